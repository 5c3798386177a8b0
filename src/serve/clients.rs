//! The connected clients, and how their connections are ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::export::Export;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Socket;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex, Rank};
use crate::wire::deadline_after;

/// A connection.
pub struct Client {
    pub socket: Socket,
    pub peer: String,
    /// Once they agreed on one.
    pub export: Option<Export>,
    /// The name in its certificate.
    pub certificate: Option<String>,
    /// Tells the connection to end, whatever is under way.
    pub cut: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    connected: HashMap<u64, Client>,
    next: u64,
}

/// The places of all connections.
pub struct Places {
    state: Mutex<State>,
    left: Condvar,
}

impl Default for Places {
    fn default() -> Self {
        Self { state: Mutex::ranked(Rank::ServeClients, State::default()), left: Condvar::new() }
    }
}

/// A client that has an export open.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// # let volume = store.create_volume("base", 1 << 20)?;
/// # volume.write_at(b"base", 0)?;
/// # volume.create_snapshot("v1")?;
/// # let listener = volfork::serve::Listener::parse(&format!("unix:{}", directory.path().join("nbd.sock").display()))?;
/// # let server = volfork::serve::NbdServer::start(std::sync::Arc::new(store.clone()), vec![listener], Default::default())?;
/// # let uri = |export: &str| server.uris(export).remove(0);
/// use volfork::source::{NbdOptions, NbdSource, SourceExt};
///
/// let source = NbdSource::open(&uri("base@v1"), NbdOptions::default())?;
/// source.read_blocking(0..4096)?;
/// for client in server.clients().list() {
///     // Over TCP the address is `HOST:PORT`; here it is a process of this machine.
///     assert!(client.address.starts_with("process "), "{}", client.address);
///     assert_eq!(client.export, "base@v1");
/// }
/// # drop(server);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ClientInfo {
    /// Where it is: `HOST:PORT`, or `process NUMBER` on this machine.
    pub address: String,
    /// The name that the export has now.
    pub export: String,
    /// The name in its certificate, where clients need one: the common name (CN) of the subject.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub certificate: Option<String>,
}

/// The clients of a server.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// # let volume = store.create_volume("base", 1 << 20)?;
/// # volume.write_at(b"base", 0)?;
/// # volume.create_snapshot("v1")?;
/// # let listener = volfork::serve::Listener::parse(&format!("unix:{}", directory.path().join("nbd.sock").display()))?;
/// # let server = volfork::serve::NbdServer::start(std::sync::Arc::new(store.clone()), vec![listener], Default::default())?;
/// # let uri = |export: &str| server.uris(export).remove(0);
/// use std::time::Duration;
/// use volfork::source::{NbdOptions, NbdSource, SourceExt};
///
/// let source = NbdSource::open(&uri("base@v1"), NbdOptions::default())?;
/// source.read_blocking(0..4096)?;
/// let clients = server.clients();
/// assert!(clients.list().iter().all(|client| client.export == "base@v1"));
///
/// // A snapshot is in use while clients read it.
/// assert!(store.destroy_snapshot("base", "v1").is_err());
/// store.destroy_by_force(("base", Some("v1")), false, |exports| {
///     exports.iter().try_for_each(|export| clients.disconnect(export, Duration::from_secs(10)).map(drop))
/// })?;
/// assert!(store.snapshot_names("base")?.is_empty());
/// # drop(server);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct NbdClients(pub(super) Arc<Places>);

impl std::fmt::Debug for NbdClients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NbdClients").field("clients", &self.0.count()).finish_non_exhaustive()
    }
}

impl Places {
    /// A place for a connection, by number; `None` if there is none.
    pub fn enter(&self, client: Client, most: usize) -> Option<u64> {
        let mut state = self.state.lock();
        if state.connected.len() >= most {
            return None;
        }
        state.next += 1;
        let number = state.next;
        state.connected.insert(number, client);
        Some(number)
    }

    /// Notes the export of a connection, the name in its certificate, and the socket that it goes on with.
    pub fn agreed(&self, number: u64, export: Export, certificate: Option<String>, socket: Socket) {
        let mut state = self.state.lock();
        let Some(client) = state.connected.get_mut(&number) else { return };
        (client.export, client.certificate) = (Some(export), certificate);
        let before = std::mem::replace(&mut client.socket, socket);
        drop(state);
        drop(before);
    }

    /// Gives a place back.
    pub fn leave(&self, number: u64) {
        // The export goes first, and not under the lock: a connection that is not listed any more keeps no store open.
        let export = self.state.lock().connected.get_mut(&number).and_then(|client| client.export.take());
        drop(export);
        self.state.lock().connected.remove(&number);
        self.left.notify_all();
    }

    /// Connections at this moment.
    pub fn count(&self) -> usize {
        self.state.lock().connected.len()
    }

    /// Shuts the socket that a connection went on with, once they agreed on an export. Before, the socket here is that of the client, who
    /// is owed the last replies, and nobody has another handle to the one that the connection went on with.
    pub fn hang_up(&self, number: u64) {
        if let Some(client) = self.state.lock().connected.get(&number).filter(|client| client.export.is_some()) {
            client.socket.shut();
        }
    }

    /// Tells all connections to end at once, whatever is under way, and whatever their clients have not taken yet.
    pub fn cut(&self) {
        self.state.lock().connected.values().for_each(|client| client.cut.store(true, Ordering::SeqCst));
    }

    /// Closes the sockets of some clients.
    pub fn shut(&self, which: impl Fn(&Client) -> bool) {
        self.state.lock().connected.values().filter(|client| which(client)).for_each(|client| client.socket.shut());
    }

    /// Waits until no connection is left. `false`: not within the time.
    pub fn wait_empty(&self, timeout: Duration) -> bool {
        self.wait_until_gone(timeout, |connected| connected.len()) == 0
    }

    /// Waits until none of the connections that are counted is left; answers how many are.
    fn wait_until_gone(&self, timeout: Duration, count: impl Fn(&HashMap<u64, Client>) -> usize) -> usize {
        let deadline = deadline_after(timeout);
        let mut state = self.state.lock();
        while count(&state.connected) > 0 && !self.left.wait_until(&mut state, deadline).timed_out() {}
        count(&state.connected)
    }

    /// Numbers and exports of the clients that have one open, and what else is told of them.
    fn agreed_clients(&self) -> Vec<(u64, Export, ClientInfo)> {
        let state = self.state.lock();
        let agreed = state.connected.iter().filter_map(|(number, client)| {
            let info = ClientInfo { address: client.peer.clone(), export: String::new(), certificate: client.certificate.clone() };
            Some((*number, client.export.clone()?, info))
        });
        let mut agreed: Vec<_> = agreed.collect();
        agreed.sort_unstable_by_key(|(number, ..)| *number);
        agreed
    }
}

impl NbdClients {
    /// Those that have an export open, the oldest first.
    pub fn list(&self) -> Vec<ClientInfo> {
        // Names are resolved after the lock is released.
        self.0.agreed_clients().into_iter().map(|(_, export, info)| ClientInfo { export: export.name(), ..info }).collect()
    }

    /// Ends the connections to the export that has this name, `VOLUME` or `VOLUME@SNAPSHOT`, and waits until they are gone. What their
    /// clients had not flushed may be lost, as at any other loss of a connection. A client may connect again. Answers how many there were.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`]: some have not ended within the time.
    pub fn disconnect(&self, export: &str, timeout: Duration) -> Result<usize> {
        let named = self.0.agreed_clients().into_iter().filter(|(_, open, _)| open.name() == export);
        let numbers: Vec<u64> = named.map(|(number, ..)| number).collect();
        {
            let state = self.0.state.lock();
            for client in numbers.iter().filter_map(|number| state.connected.get(number)) {
                client.cut.store(true, Ordering::SeqCst);
                client.socket.shut();
            }
        }
        match self.0.wait_until_gone(timeout, |connected| numbers.iter().filter(|number| connected.contains_key(number)).count()) {
            0 => Ok(numbers.len()),
            left => Err(Error::new(
                ErrorKind::Busy,
                format!("{left} of {} connections to '{export}' wait for what they have begun: try again soon", numbers.len()),
            )),
        }
    }
}
