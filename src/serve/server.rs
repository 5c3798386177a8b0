//! Accepting connections, and ending them.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use super::NbdOptions;
use super::budget::Budget;
use super::connection::Connection;
use super::export::Exports;
use super::handshake::agree;
use super::listener::{ClientSocket, Listener};
use crate::error::{Error, Result};
use crate::io::{RingWaker, descriptors_max};
use crate::sync::thread::JoinHandle;
use crate::sync::time::Instant;
use crate::sync::{Condvar, Mutex};

/// Descriptors of one connection: two handles to its socket, its ring and what wakes it.
const CONNECTION_DESCRIPTORS: usize = 4;
/// Part of the descriptors of the process for connections.
const DESCRIPTORS_SHARE: usize = 2;

#[derive(Default)]
struct Clients {
    /// Sockets of the connections, to end them by force; and whether they have agreed on an export.
    sockets: HashMap<u64, (ClientSocket, bool)>,
    next: u64,
    stopping: bool,
}

struct Shared {
    exports: Arc<dyn Exports>,
    options: NbdOptions,
    clients: Mutex<Clients>,
    left: Condvar,
    budget: Arc<Budget>,
    /// Readable from the moment the server shuts down.
    shutdown: RingWaker,
}

/// A running NBD server.
pub struct NbdServer {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl NbdServer {
    /// Serves `exports` on `listeners`, each connection in a thread of its own.
    ///
    /// # Errors
    /// The machine refuses a descriptor or a thread.
    pub fn start(exports: Arc<dyn Exports>, listeners: Vec<Listener>, mut options: NbdOptions) -> Result<Self> {
        // Clients must not use up the descriptors that those who are served already need for files.
        options.connections_max = options.connections_max.min((descriptors_max() / DESCRIPTORS_SHARE / CONNECTION_DESCRIPTORS).max(1));
        let shutdown = RingWaker::new().map_err(|error| Error::io("cannot make an event descriptor", error))?;
        let shared =
            Arc::new(Shared { exports, options, clients: Mutex::default(), left: Condvar::new(), budget: Arc::default(), shutdown });
        let accepting = Arc::clone(&shared);
        let acceptor = crate::sync::thread::Builder::new().name("nbd-accept".into()).spawn(move || accept(&accepting, &listeners));
        let acceptor = acceptor.map_err(|error| Error::io("cannot start a thread", error))?;
        Ok(Self { shared, acceptor: Some(acceptor) })
    }

    /// Connections at this moment.
    pub fn connections(&self) -> usize {
        self.shared.clients.lock().sockets.len()
    }

    /// Takes no more clients, lets requests under way end (for a bounded time), and closes all connections.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.clients.lock().stopping = true;
        self.shared.shutdown.wake();
        // A panic in the thread was printed there.
        let _ = acceptor.join();
        let deadline = Instant::now() + self.shared.options.shutdown_timeout;
        let mut clients = self.shared.clients.lock();
        // Who has not agreed on an export has nothing to lose.
        clients.sockets.values().filter(|(_, agreed)| !agreed).for_each(|(socket, _)| socket.shut());
        while !clients.sockets.is_empty() {
            if self.shared.left.wait_until(&mut clients, deadline).timed_out() {
                clients.sockets.values().for_each(|(socket, _)| socket.shut());
                drop(clients);
                // What is still under way waits for a source that does not answer.
                self.shared.exports.give_up_waiting();
                clients = self.shared.clients.lock();
                break;
            }
        }
        while !clients.sockets.is_empty() {
            self.shared.left.wait(&mut clients);
        }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(shared: &Arc<Shared>, listeners: &[Listener]) {
    let fds: Vec<RawFd> = listeners.iter().map(|listener| listener.as_fd().as_raw_fd()).chain([shared.shutdown.as_raw_fd()]).collect();
    loop {
        let mut polls: Vec<libc::pollfd> = fds.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
        // After an error no descriptor counts as ready.
        let _ = crate::sync::poll(&mut polls, None);
        if shared.clients.lock().stopping {
            return;
        }
        for (listener, _) in listeners.iter().zip(&polls).filter(|(_, poll)| poll.revents != 0) {
            match listener.accept() {
                Ok(socket) => shared.admit(socket),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // Out of descriptors, or the client is gone already: leaves the processor to those who are connected.
                Err(_) => crate::sync::thread::sleep(std::time::Duration::from_millis(10)),
            }
        }
    }
}

impl Shared {
    fn admit(self: &Arc<Self>, socket: ClientSocket) {
        let number = {
            let mut clients = self.clients.lock();
            if clients.stopping || clients.sockets.len() >= self.options.connections_max {
                return;
            }
            let Ok(handle) = socket.try_clone() else { return };
            clients.next += 1;
            let number = clients.next;
            clients.sockets.insert(number, (handle, false));
            number
        };
        let shared = Arc::clone(self);
        let started = crate::sync::thread::Builder::new().name(format!("nbd-{number}")).spawn(move || {
            shared.serve(number, socket);
            shared.leave(number);
        });
        if started.is_err() {
            self.leave(number);
        }
    }

    fn leave(&self, number: u64) {
        self.clients.lock().sockets.remove(&number);
        self.left.notify_all();
    }

    /// Whatever ends a connection is between it and its client.
    fn serve(&self, number: u64, mut socket: ClientSocket) {
        let Ok(Some(session)) = agree(&mut socket, &*self.exports, self.options.handshake_timeout) else { return };
        if let Some((_, agreed)) = self.clients.lock().sockets.get_mut(&number) {
            *agreed = true;
        }
        let budget = Arc::clone(&self.budget);
        if let Ok(connection) = Connection::new(socket, session, self.options.depth, self.shutdown.as_raw_fd(), budget) {
            let _ = connection.run();
        }
    }
}
