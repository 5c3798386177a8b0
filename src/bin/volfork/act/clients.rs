//! The NBD clients of the process: none, unless it serves.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use volfork::serve::{ClientInfo, NbdClients};

/// How long a connection may take to finish its requests.
const PATIENCE: Duration = Duration::from_secs(5);

/// The clients of the NBD server, once it runs.
#[derive(Clone, Default)]
pub struct Clients(Arc<OnceLock<NbdClients>>);

impl Clients {
    /// Sets the clients. Called once.
    pub fn know(&self, clients: NbdClients) {
        // There is one server in the life of a process.
        let _ = self.0.set(clients);
    }

    /// The clients of a volume and of its snapshots.
    pub fn of_volume(&self, volume: &str) -> Vec<ClientInfo> {
        let of_volume = |export: &str| export.split('@').next() == Some(volume);
        let all = self.0.get().map_or_else(Vec::new, NbdClients::list);
        all.into_iter().filter(|client| of_volume(&client.export)).collect()
    }

    /// Ends the connections to an export; returns their number.
    pub fn disconnect(&self, export: &str) -> volfork::Result<usize> {
        self.0.get().map_or(Ok(0), |clients| clients.disconnect(export, PATIENCE))
    }
}
