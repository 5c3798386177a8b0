//! The clients of the process: of one that serves, those of its NBD server; of any other none.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use volfork::serve::{ClientInfo, NbdClients};

/// How long connections have to end what they are about.
const PATIENCE: Duration = Duration::from_secs(5);

/// Those of the NBD server, once that runs.
#[derive(Clone, Default)]
pub struct Clients(Arc<OnceLock<NbdClients>>);

impl Clients {
    /// From now on these.
    pub fn know(&self, clients: NbdClients) {
        // There is one server in the life of a process.
        let _ = self.0.set(clients);
    }

    /// Those of a volume and its snapshots.
    pub fn of_volume(&self, volume: &str) -> Vec<ClientInfo> {
        let of_volume = |export: &str| export.split('@').next() == Some(volume);
        let all = self.0.get().map_or_else(Vec::new, NbdClients::list);
        all.into_iter().filter(|client| of_volume(&client.export)).collect()
    }

    /// Ends the connections to an export; answers how many there were.
    pub fn disconnect(&self, export: &str) -> volfork::Result<usize> {
        self.0.get().map_or(Ok(0), |clients| clients.disconnect(export, PATIENCE))
    }
}
