//! The doors: an NBD server.
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

fn stub<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "stub"))
}

/// What an NBD server offers.
pub trait Exports: Send + Sync + 'static {}

impl Exports for Store {}

/// Settings of an NBD server.
#[derive(Clone, Debug, Default)]
pub struct NbdOptions {}

/// Where an NBD server listens.
pub struct Listener(());

impl Listener {
    /// Listens on `unix:PATH` or `HOST:PORT`.
    pub fn parse(_address: &str) -> Result<Self> {
        stub()
    }
    /// The sockets that systemd passed to this process.
    pub fn from_environment() -> Result<Vec<Self>> {
        Ok(Vec::new())
    }
    /// The address of this listener as an NBD URI without an export name, with the port that was really taken.
    pub fn uri(&self) -> String {
        String::new()
    }
}

/// A running NBD server.
pub struct NbdServer(());

impl NbdServer {
    /// Serves `exports` on `listeners`.
    pub fn start(_exports: Arc<dyn Exports>, _listeners: Vec<Listener>, _options: NbdOptions) -> Result<Self> {
        stub()
    }
    /// Ends requests under way, then all connections.
    pub fn shutdown(self) {}
}
