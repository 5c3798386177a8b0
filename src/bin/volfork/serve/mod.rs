//! `volfork serve`: the store behind its NBD door and its control socket, until a signal.
pub mod door;
mod ready;
#[cfg(feature = "images")]
mod starts;

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use volfork::Store;
use volfork::io::Access;
use volfork::volume::OnEvent;

use door::Door;
use ready::notify;
#[cfg(feature = "images")]
use starts::Starts;

use crate::act::clients::Clients;
use crate::act::execution::execute;
use crate::act::gate::{Alone, Gate};
use crate::ask::interrupt::Stop;
use crate::ask::reach;
use crate::cli::arguments::ServeArguments;
use crate::control::{self, ControlServer};
use crate::failure::{Failure, Result};
#[cfg(feature = "fleet")]
use crate::fleet::reporter::Reporter;
use crate::settings::Settings;
use crate::show::{event, stream};

/// Serves the store of `settings` on `listen`, by default on `STORE/nbd.sock`.
pub fn serve(settings: &Settings, arguments: &ServeArguments) -> Result<()> {
    if control::connect(&settings.store)?.is_some() {
        let message = format!("{} is served already: stop that process first", settings.store.display());
        return Err(Failure::new(volfork::ErrorKind::Locked, message));
    }
    raise_descriptors();
    let teller = settings.clone();
    let on_event: OnEvent = Arc::new(move |happened| event::event(&teller, happened));
    let store = reach::patiently(|| reach::open_with(settings, Some(on_event.clone()), Some(arguments.lease)))?;
    let served = Fleet::start(settings, arguments, &store).and_then(|fleet| {
        let served = control_and_wait(settings, &store, &arguments.listen, fleet.gate(), fleet.changed());
        fleet.stop();
        served
    });
    let closed = store.close();
    served?;
    Ok(closed?)
}

/// Takes as many descriptors as the machine allows: each client needs some. Without more, fewer clients are served.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Connection to the fleet, if there is one.
struct Fleet {
    #[cfg(feature = "fleet")]
    reporter: Option<Reporter>,
}

impl Fleet {
    #[cfg(feature = "fleet")]
    fn start(settings: &Settings, arguments: &ServeArguments, store: &Store) -> Result<Self> {
        Ok(Self { reporter: Reporter::start(settings, &arguments.report, store)? })
    }

    #[cfg(not(feature = "fleet"))]
    fn start(_: &Settings, _: &ServeArguments, _: &Store) -> Result<Self> {
        Ok(Self {})
    }

    /// The gate for new volumes.
    fn gate(&self) -> Box<dyn Gate> {
        #[cfg(feature = "fleet")]
        if let Some(reporter) = &self.reporter {
            return Box::new(reporter.gate());
        }
        Box::new(Alone)
    }

    /// The function to call after each command that changes the store.
    fn changed(&self) -> impl Fn() + Send + Sync + use<> {
        #[cfg(feature = "fleet")]
        let changed = self.reporter.as_ref().map(Reporter::changed);
        move || {
            #[cfg(feature = "fleet")]
            if let Some(changed) = &changed {
                changed.tell();
            }
        }
    }

    fn stop(self) {
        #[cfg(feature = "fleet")]
        if let Some(reporter) = self.reporter {
            reporter.stop();
        }
    }
}

fn control_and_wait(
    settings: &Settings,
    store: &Store,
    listen: &[String],
    gate: Box<dyn Gate>,
    changed: impl Fn() + Send + Sync + 'static,
) -> Result<()> {
    let clients = Clients::default();
    let control = ControlServer::start(&settings.store, {
        let (store, clients) = (store.clone(), clients.clone());
        #[cfg(feature = "images")]
        let (settings, starts) = (settings.clone(), Starts::default());
        move |request, file, watcher| {
            let changes = request.changes();
            #[cfg_attr(not(feature = "images"), expect(unused_mut, reason = "only answers about images are added to"))]
            let mut done = execute(&store, &clients, request, file, &*gate, watcher);
            #[cfg(feature = "images")]
            if let Ok(response) = &mut done {
                starts.note(&settings, response);
            }
            if changes {
                changed();
            }
            done
        }
    })?;
    let served = open_and_wait(settings, store, listen, &clients);
    control.stop();
    served
}

fn open_and_wait(settings: &Settings, store: &Store, listen: &[String], clients: &Clients) -> Result<()> {
    let access = Access::of(&settings.store).map_err(|error| Failure::io(format!("look at {}", settings.store.display()), error))?;
    let door = Door::open(store, listen, &default_address(&settings.store), access)?;
    clients.know(door.clients());
    let stop = Stop::catch()?;
    announce(settings, door.uris())?;
    notify("READY=1").map_err(|error| Failure::io("tell the service manager", error))?;
    stop.wait();
    // If this fails, the manager sees the end of the process.
    let _ = notify("STOPPING=1");
    door.shut();
    Ok(())
}

fn default_address(store: &Path) -> String {
    // Absolute, because the address is shown to users elsewhere.
    let store = std::path::absolute(store).unwrap_or_else(|_| store.to_path_buf());
    format!("unix:{}", store.join("nbd.sock").display())
}

fn announce(settings: &Settings, uris: &[String]) -> Result<()> {
    if settings.json {
        return stream::json(&stream::log("listening", &json!({ "listening": uris })));
    }
    if settings.quiet {
        return Ok(());
    }
    // Not on standard output: with socket activation that belongs to the client which started this server.
    for uri in uris {
        eprintln!("listening on {uri}");
    }
    Ok(())
}
