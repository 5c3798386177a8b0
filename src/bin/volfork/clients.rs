//! The clients of the serving process, for the answers that tell of them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use volfork::serve::NbdClients;

use crate::failure::Result;
use crate::request::Response;

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

    /// Adds to an answer what only this process knows, and does what only it can do.
    pub fn complete(&self, mut response: Response) -> Result<Response> {
        let Some(clients) = self.0.get() else { return Ok(response) };
        match &mut response {
            Response::Shown(shown) => {
                let volume = shown.info.name.as_str();
                let of_volume = |export: &str| export.split('@').next() == Some(volume);
                shown.connections = clients.list().into_iter().filter(|client| of_volume(&client.export)).collect();
            }
            Response::Disconnected(disconnected) => disconnected.connections = clients.disconnect(&disconnected.name, PATIENCE)?,
            _ => {}
        }
        Ok(response)
    }
}
