//! The NBD server of the process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volfork::Store;
use volfork::io::Access;
use volfork::serve::{Listener, NbdClients, NbdServer, NbdServerOptions, PassedSocket};

use crate::failure::Result;

/// A running NBD server.
pub struct Door {
    /// Until it is shut.
    server: Mutex<Option<NbdServer>>,
    uris: Vec<String>,
}

impl Door {
    /// Serves `store` on the sockets of the process that it takes the place of. Without any: on the addresses of `listen`; without any on
    /// the sockets that systemd passed, and without those on `default`. `access` says who connects to sockets at paths.
    pub fn open(store: &Store, passed: Vec<Listener>, listen: &[String], default: &str, access: Access) -> Result<Self> {
        let mut listeners = passed;
        if listeners.is_empty() {
            listeners = listen.iter().map(|address| Ok(Listener::parse_for(address, access)?)).collect::<Result<_>>()?;
        }
        if listeners.is_empty() {
            listeners = Listener::from_environment()?;
        }
        if listeners.is_empty() {
            listeners.push(Listener::parse_for(default, access)?);
        }
        let uris = listeners.iter().map(Listener::uri).collect();
        let server = NbdServer::start(Arc::new(store.clone()), listeners, NbdServerOptions::default())?;
        Ok(Self { server: Mutex::new(Some(server)), uris })
    }

    /// Addresses of the server, each without an export name.
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// The connected clients.
    pub fn clients(&self) -> Option<NbdClients> {
        self.server().as_ref().map(NbdServer::clients)
    }

    /// Its sockets, for the process that takes the place of this one.
    pub fn pass_on(&self) -> Result<Vec<PassedSocket>> {
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

/// The address of an export behind one of [`Door::uris`].
pub fn export_uri(uri: &str, export: &str) -> String {
    match uri.split_once('?') {
        // nbd+unix:///?socket=PATH: the name goes before the query.
        Some((base, query)) => format!("{}/{export}?{query}", base.strip_suffix('/').unwrap_or(base)),
        None => format!("{}/{export}", uri.strip_suffix('/').unwrap_or(uri)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_have_addresses() {
        assert_eq!(export_uri("nbd://127.0.0.1:10809", "v@s"), "nbd://127.0.0.1:10809/v@s");
        assert_eq!(export_uri("nbd://[::1]:1/", "v"), "nbd://[::1]:1/v");
        assert_eq!(export_uri("nbd+unix:///?socket=/run/x", "v"), "nbd+unix:///v?socket=/run/x");
    }
}
