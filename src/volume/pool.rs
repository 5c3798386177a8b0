//! What the handles and queues of a store share.

use std::sync::Arc;

use super::fence::Fence;
use super::queue::Workers;
use crate::io::RingKind;

/// What a handle keeps alive: the store, which is closed when the last of its handles is gone.
pub type Keeper = Arc<dyn std::any::Any + Send + Sync>;

/// What the handles and queues of a store share.
pub struct Pool {
    /// Every public call passes it.
    pub fence: Arc<Fence>,
    /// Which kind of ring a queue makes; `None` is the best one the machine allows.
    pub ring: Option<RingKind>,
    /// Threads for flushes, of all volumes.
    pub flushers: Workers,
}

impl Pool {
    /// With this kind of ring.
    pub fn new(fence: Arc<Fence>, ring: Option<RingKind>) -> Self {
        Self { fence, ring, flushers: Workers::default() }
    }
}
