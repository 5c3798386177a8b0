//! `volfork serve`: the store behind its NBD door and its control socket, until a signal.
pub mod door;
pub mod guard;
mod ready;
mod replace;
mod sockets;
#[cfg(feature = "images")]
mod starts;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::json;
use volfork::Store;
use volfork::serve::Listener;
use volfork::volume::OnEvent;

use door::Door;
use guard::Guard;
use ready::notify;
use sockets::Sockets;
#[cfg(feature = "images")]
use starts::Starts;

use crate::act::clients::Clients;
use crate::act::execution::execute;
use crate::act::gate::{Alone, Gate};
use crate::ask::interrupt::Stop;
use crate::ask::reach::{self, LOCK_PATIENCE};
use crate::cli::arguments::ServeArguments;
use crate::control::{self, ControlServer};
use crate::failure::{Failure, Result};
#[cfg(feature = "fleet")]
use crate::fleet::reporter::Reporter;
use crate::request::Request;
use crate::settings::Settings;
use crate::show::{event, stream};

/// Time for a process that is replaced to end: opening the store, if it is still at that, its requests, those that it has to cut off, and
/// closing the store.
const REPLACE_PATIENCE: Duration = Duration::from_secs(120);

/// Serves the store of `settings` on `listen`, by default on `STORE/nbd.sock`.
pub fn serve(settings: &Settings, arguments: &ServeArguments) -> Result<()> {
    let guard = Guard::of(&arguments.tls)?;
    if !arguments.replace && control::connect(&settings.store)?.is_some() {
        let message = format!("{} is served already: stop that process first, or replace it (--replace)", settings.store.display());
        return Err(Failure::new(volfork::ErrorKind::Locked, message));
    }
    raise_descriptors();
    let teller = settings.clone();
    let on_event: OnEvent = Arc::new(move |happened| event::event(&teller, happened));
    let (store, passed) = enter(settings, arguments, &on_event, guard.exposes())?;
    let sockets = Sockets { passed, addresses: &arguments.listen, guard: &guard };
    let served = Fleet::start(settings, arguments, &store).and_then(|fleet| {
        let served = control_and_wait(settings, &store, sockets, fleet.gate(), fleet.changed());
        fleet.stop();
        served
    });
    let closed = store.close();
    served?;
    Ok(closed?)
}

/// Opens the store, and takes the sockets of the process that is replaced; none without such a process. `exposes`: also those that other
/// machines reach.
fn enter(settings: &Settings, arguments: &ServeArguments, on_event: &OnEvent, exposes: bool) -> Result<(Store, Vec<Listener>)> {
    let mut passed = None;
    let patience = if arguments.replace { REPLACE_PATIENCE } else { LOCK_PATIENCE };
    let store = reach::patiently_for(patience, || {
        // A process that is still opening the store takes no requests yet, so it is looked for each time that the store is locked.
        if arguments.replace && passed.is_none() {
            passed = replace::take_over(settings, exposes)?;
        }
        reach::open_with(settings, Some(on_event.clone()), Some(arguments.lease))
    })?;
    Ok((store, passed.unwrap_or_default()))
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

/// What commands of the control socket see of the NBD server: nothing until it is open.
#[derive(Clone, Default)]
struct Shared {
    clients: Clients,
    door: Arc<OnceLock<Door>>,
}

fn control_and_wait(
    settings: &Settings,
    store: &Store,
    sockets: Sockets<'_>,
    gate: Box<dyn Gate>,
    changed: impl Fn() + Send + Sync + 'static,
) -> Result<()> {
    // From here on another process may ask this one to end.
    let stop = Stop::catch()?;
    let shared = Shared::default();
    let control = ControlServer::start(&settings.store, {
        let (store, shared) = (store.clone(), shared.clone());
        #[cfg(feature = "images")]
        let (settings, starts) = (settings.clone(), Starts::default());
        move |request, file, watcher| {
            if let (Request::Replace { exposes }, Some(file)) = (&request, &file) {
                return replace::pass_on(shared.door.get().map_or_else(|| Ok(Vec::new()), |door| door.pass_on(*exposes))?, file);
            }
            let changes = request.changes();
            #[cfg_attr(not(feature = "images"), expect(unused_mut, reason = "only answers about images are added to"))]
            let mut done = execute(&store, &shared.clients, request, file, &*gate, watcher);
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
    let served = open_and_wait(settings, store, sockets, &shared, stop);
    control.stop();
    served
}

fn open_and_wait(settings: &Settings, store: &Store, sockets: Sockets<'_>, shared: &Shared, stop: Stop) -> Result<()> {
    let opened = Door::open(store, sockets.listen(&settings.store)?)?;
    opened.clients().into_iter().for_each(|open| shared.clients.know(open));
    let door = shared.door.get_or_init(|| opened);
    announce(settings, door.uris())?;
    notify("READY=1").map_err(|error| Failure::io("tell the service manager", error))?;
    stop.wait();
    // If this fails, the manager sees the end of the process.
    let _ = notify("STOPPING=1");
    door.shut();
    Ok(())
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
