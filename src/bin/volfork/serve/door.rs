//! The NBD server of the process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volfork::Store;
use volfork::serve::{Listener, NbdClients, NbdServer, NbdServerOptions, PassedSocket};

use super::guard::exposed;
use crate::failure::Result;

/// A running NBD server.
pub struct Door {
    /// `None` once it is shut.
    server: Mutex<Option<NbdServer>>,
    /// Of the listeners, in their order, each without an export name.
    uris: Vec<String>,
    /// The first one that other machines reach.
    exposed: Option<String>,
}

impl Door {
    /// Serves `store` on `listeners`.
    pub fn open(store: &Store, listeners: Vec<Listener>) -> Result<Self> {
        let uris = listeners.iter().map(Listener::uri).collect();
        let exposed = listeners.iter().find(|listener| listener.is_exposed()).map(Listener::uri);
        let server = NbdServer::start(Arc::new(store.clone()), listeners, NbdServerOptions::default())?;
        Ok(Self { server: Mutex::new(Some(server)), uris, exposed })
    }

    /// Addresses of the server, each without an export name.
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// Addresses of an export, one for each of [`Door::uris`]; none once it is shut.
    pub fn uris_of(&self, export: &str) -> Vec<String> {
        self.server().as_ref().map_or_else(Vec::new, |server| server.uris(export))
    }

    /// The connected clients.
    pub fn clients(&self) -> Option<NbdClients> {
        self.server().as_ref().map(NbdServer::clients)
    }

    /// Its sockets, for the process that takes the place of this one; `exposes`: it serves also those that other machines reach. Otherwise
    /// this one goes on serving them.
    pub fn pass_on(&self, exposes: bool) -> Result<Vec<PassedSocket>> {
        if let Some(uri) = self.exposed.as_ref().filter(|_| !exposes) {
            return Err(exposed(uri));
        }
        Ok(self.server().as_ref().map_or_else(|| Ok(Vec::new()), NbdServer::pass_on)?)
    }

    /// Ends requests under way, then all connections.
    pub fn shut(&self) {
        let server = self.server().take();
        drop(server);
    }

    fn server(&self) -> MutexGuard<'_, Option<NbdServer>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
