//! Accepting connections, and ending them.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::budget::Budget;
use super::clients::{Client, NbdClients, Places};
use super::connection::{Connection, Terms};
use super::export::Exports;
use super::handshake::agree;
use super::listener::{Listener, PassedSocket};
use super::options::NbdServerOptions;
use super::security::Security;
use super::shutdown::Shutdown;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Socket, descriptors_max};
use crate::limits::QUEUE_DEPTH_MAX;
use crate::source::with_export;
use crate::sync::atomic::AtomicBool;
use crate::sync::thread::{Builder, JoinHandle};
use crate::telemetry::tell;

/// Descriptors of one connection: two handles to its socket, its ring and what wakes it; with TLS the two sockets of the relay.
const CONNECTION_DESCRIPTORS: usize = if cfg!(feature = "tls") { 6 } else { 4 };
/// Part of the descriptors of the process for connections.
const DESCRIPTORS_SHARE: usize = 2;
/// How long a shutdown waits for connections that were ended by force.
const FORCED_PATIENCE: Duration = Duration::from_secs(2);

struct Shared {
    exports: Arc<dyn Exports>,
    options: NbdServerOptions,
    places: Arc<Places>,
    budget: Arc<Budget>,
    shutdown: Arc<Shutdown>,
}

/// The place of a connection among the clients, given back when it is dropped: a panic on its thread costs no other client.
struct Place {
    places: Arc<Places>,
    number: u64,
    cut: Arc<AtomicBool>,
}

/// The thread of a connection. It gives up the exports before its place: when a shutdown finds no connection any more, none keeps a
/// store open.
struct Serving {
    shared: Arc<Shared>,
    place: Place,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.leave(self.number);
    }
}

/// A running NBD server.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use std::sync::Arc;
/// use volfork::serve::{Listener, NbdServerOptions, NbdServer};
///
/// store.create_volume("web", 1 << 30)?;
/// // Without TLS ([`Listener::with_tls`]), NBD over TCP has no authentication: listen only where every host is trusted.
/// let listener = Listener::parse("127.0.0.1:0")?;
/// let server = NbdServer::start(Arc::new(store.clone()), vec![listener], NbdServerOptions::default())?;
/// assert!(server.uris("web")[0].starts_with("nbd://127.0.0.1:"));
/// assert_eq!(server.connections(), 0);
///
/// // Requests under way get their replies. The store stays open.
/// server.shutdown();
/// store.close()?;
/// # Ok(())
/// # }
/// ```
pub struct NbdServer {
    shared: Arc<Shared>,
    /// Shared with the acceptor; none once the server has ended.
    listeners: Arc<[Listener]>,
    acceptor: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for NbdServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NbdServer").field("connections", &self.connections()).finish_non_exhaustive()
    }
}

impl NbdServer {
    /// Serves `exports` on `listeners`, each connection in a thread of its own.
    ///
    /// # Errors
    /// The machine refuses a descriptor or a thread.
    pub fn start(exports: Arc<dyn Exports>, listeners: Vec<Listener>, mut options: NbdServerOptions) -> Result<Self> {
        // Clients must not use up the descriptors that those who are served already need for files.
        options.connections_max = options.connections_max.min((descriptors_max() / DESCRIPTORS_SHARE / CONNECTION_DESCRIPTORS).max(1));
        if options.depth == 0 || options.depth > QUEUE_DEPTH_MAX {
            let message = format!("a connection has 1 to {QUEUE_DEPTH_MAX} requests under way, not {}", options.depth);
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let budget = Arc::new(Budget::new(options.memory_bytes_max));
        let shutdown = Arc::new(Shutdown::new()?);
        let shared = Arc::new(Shared { exports, options, places: Arc::default(), budget, shutdown });
        let listeners: Arc<[Listener]> = listeners.into();
        let accepting = (Arc::clone(&shared), Arc::clone(&listeners));
        let acceptor = Builder::new().name("nbd-accept".into()).spawn(move || accept(&accepting.0, &accepting.1));
        let acceptor = acceptor.map_err(|error| Error::io("cannot start a thread", error))?;
        Ok(Self { shared, listeners, acceptor: Some(acceptor) })
    }

    /// The NBD URIs by which clients reach an export, one for each listener, in their order: `nbd://` or `nbd+unix://`, and where TLS is
    /// required `nbds://` or `nbds+unix://`. The export need not exist yet. A listener on all addresses of the host has the unspecified one
    /// (`0.0.0.0`) in its URI.
    pub fn uris(&self, export: &str) -> Vec<String> {
        self.listeners.iter().filter_map(|listener| with_export(&listener.uri(), export)).collect()
    }

    /// Connections at this moment.
    pub fn connections(&self) -> usize {
        self.shared.places.count()
    }

    /// The connected clients. May be kept longer than the server.
    pub fn clients(&self) -> NbdClients {
        NbdClients(Arc::clone(&self.shared.places))
    }

    /// The sockets of the listeners for another process, which is to serve in the place of this one. This server takes no more clients, and
    /// serves those it has. When it shuts down, clients that are agreeing on an export end that first, and the paths of its sockets stay.
    ///
    /// # Errors
    /// The process has no descriptor for one of them.
    pub fn pass_on(&self) -> Result<Vec<PassedSocket>> {
        self.shared.shutdown.closed.wake();
        self.listeners.iter().map(Listener::pass_on).collect()
    }

    /// Takes no more clients, lets requests under way end (for [`NbdServerOptions::shutdown_timeout`]), and closes all connections. A
    /// thread that then still hangs in an export is left behind after two more seconds: it keeps what it needs alive, and ends when the
    /// export lets it.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.shutdown.closed.wake();
        // A panic in the thread was printed there.
        let _ = acceptor.join();
        self.shared.shutdown.asked.wake();
        let passed_on = self.listeners.iter().any(Listener::is_passed_on);
        // Clients that come now are refused, or wait for the process that the sockets were passed on to.
        self.listeners = Arc::new([]);
        // Clients that have not agreed on an export have nothing to lose, but not all of them connect again if that fails.
        if !passed_on {
            self.shared.places.shut(|client| client.export.is_none());
        }
        if self.shared.places.wait_empty(self.shared.options.shutdown_timeout) {
            return;
        }
        self.shared.places.cut();
        self.shared.shutdown.forced.wake();
        self.shared.places.shut(|_| true);
        // Requests that are still under way wait for a source that does not answer. Exports are not trusted to do this at once either.
        let shared = Arc::clone(&self.shared);
        let give_up = move || shared.exports.give_up_waiting();
        if Builder::new().name("nbd-give-up".into()).spawn(give_up).is_ok() {
            self.shared.places.wait_empty(FORCED_PATIENCE);
        }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(shared: &Arc<Shared>, listeners: &[Listener]) {
    let fds: Vec<RawFd> =
        listeners.iter().map(|listener| listener.as_fd().as_raw_fd()).chain([shared.shutdown.closed.as_raw_fd()]).collect();
    loop {
        let mut polls: Vec<libc::pollfd> = fds.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
        // After an error no descriptor counts as ready.
        let _ = crate::sync::poll(&mut polls, None);
        if polls.last().is_some_and(|closed| closed.revents != 0) {
            return;
        }
        for (listener, _) in listeners.iter().zip(&polls).filter(|(_, poll)| poll.revents != 0) {
            match listener.accept() {
                Ok(socket) => shared.admit(socket, listener),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // Out of descriptors, or the client is gone already: leaves the processor to those who are connected.
                Err(_) => crate::sync::thread::sleep(std::time::Duration::from_millis(10)),
            }
        }
    }
}

impl Serving {
    /// Serves a client until it leaves. It keeps its place until it has the last bytes: those that wait for them are no more than places.
    fn run(self, socket: Socket, mut security: Security) {
        self.shared.serve(&self.place, socket, &mut security);
        if security.has_begun() {
            self.shared.places.hang_up(self.place.number);
            security.end();
        }
    }
}

impl Shared {
    fn admit(self: &Arc<Self>, socket: Socket, listener: &Listener) {
        let cut = Arc::<AtomicBool>::default();
        let Ok(handle) = socket.try_clone() else { return };
        let security = Security::of(listener, &cut);
        let client = Client { peer: socket.peer(), socket: handle, export: None, certificate: None, cut: Arc::clone(&cut) };
        let Some(number) = self.places.enter(client, self.options.connections_max) else { return };
        let serving = Serving { shared: Arc::clone(self), place: Place { places: Arc::clone(&self.places), number, cut } };
        // Without a thread the place is given back at once.
        let _ = Builder::new().name(format!("nbd-{number}")).spawn(move || serving.run(socket, security));
    }

    /// Whatever ends a connection is between it and its client.
    fn serve(&self, place: &Place, mut socket: Socket, security: &mut Security) {
        let Ok(Some(session)) = agree(&mut socket, &*self.exports, self.options.handshake_timeout, security) else { return };
        let Ok(handle) = socket.try_clone() else { return };
        self.places.agreed(place.number, session.export.clone(), security.certificate.clone(), handle);
        tell!(DEBUG, connection = place.number, export = session.export.name(), "client connected");
        let terms = Terms {
            depth: self.options.depth,
            stall_timeout: self.options.stall_timeout,
            shutdown: Arc::clone(&self.shutdown),
            budget: Arc::clone(&self.budget),
            cut: Arc::clone(&place.cut),
        };
        if let Ok(connection) = Connection::new(socket, session, terms) {
            let _ = connection.run();
        }
        tell!(DEBUG, connection = place.number, "client gone");
    }
}
