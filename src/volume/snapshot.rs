//! One open snapshot, as its handles and queues share it.

use std::sync::Arc;

use super::blocks::{Blocks, View};
use super::pool::Pool;
use super::queue::Workers;
use super::state::{Pin, Shape};
use crate::error::Error;
use crate::ids::VolumeId;
use crate::sync::RwLock;

/// A sealed layer with its chain, open for reading.
pub struct OpenSnapshot {
    pub blocks: Arc<Blocks>,
    pub shape: Arc<Shape>,
    pub pool: Arc<Pool>,
    pub volume: VolumeId,
    pub name: String,
    pub view: RwLock<View>,
    /// Threads for its reads that have to wait.
    pub readers: Workers,
    /// Threads for what is brought before it is read.
    pub prefetchers: Workers,
    /// It cannot be destroyed while it is open.
    pub _pin: Pin,
}

impl OpenSnapshot {
    pub fn look(&self) -> View {
        self.view.read().clone()
    }

    pub fn name_damage(&self, error: Error) -> Error {
        match error.corruption() {
            Some(corruption) if corruption.volume.is_none() => {
                let mut corruption = corruption.clone();
                corruption.volume = Some(self.name.clone());
                Error::corrupt_block(corruption)
            }
            _ => error,
        }
    }
}
