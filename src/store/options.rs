//! Settings of a store.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::io::{Disk, IoMode, RingKind, SystemDisk};
use crate::limits::Limits;
use crate::options::with_methods;
use crate::place::BlockSize;
use crate::source::SourceOpener;
use crate::volume::OnEvent;

/// Default time after which a lease lapses: a week.
const LEASE: Duration = Duration::from_secs(7 * 86_400);

/// Settings of an open store, and the seams to the machine. The defaults use the real machine.
///
/// ```
/// use std::sync::Arc;
/// use volfork::StoreOptions;
/// use volfork::source::UriSources;
///
/// let options = StoreOptions::default().with_sources(Arc::new(UriSources::default())).with_checksum_cache_bytes(16 << 20);
/// # drop(options);
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct StoreOptions {
    /// Used by `create` only.
    pub block_size: BlockSize,
    /// Used by `create` only: the group of the store's directory may read its files and connect to the sockets of its server. A store
    /// keeps this in the mode of its directory ([`crate::io::Access`]).
    pub group_access: bool,
    /// Whether blocks go through the page cache.
    pub io_mode: IoMode,
    /// `None`: io_uring if the machine allows it, else threads.
    pub ring: Option<RingKind>,
    /// Opens the sources of forks from elsewhere; `None` refuses such forks.
    pub sources: Option<Arc<dyn SourceOpener>>,
    /// Text for the lock file that names the owner of the store, for example "volfork serve".
    pub owner: String,
    /// Bytes of memory for cached checksum pages; a page of 4 KiB covers 4 MiB of data with 4 KiB blocks. Changed pages may exceed it until
    /// a checkpoint.
    pub checksum_cache_bytes: u64,
    /// Journal bytes after which a checkpoint is taken; twice the bytes of the state, if that is more.
    pub checkpoint_bytes: u64,
    /// The files of the machine; tests and simulations put another disk here.
    pub disk: Arc<dyn Disk>,
    /// Source of time; tests and simulations put another clock here.
    pub clock: Arc<dyn Clock>,
    /// Called with each [`crate::volume::Event`], on one thread of the store.
    pub on_event: Option<OnEvent>,
    /// A lease that a fork on another host does not renew for this long lapses: its snapshot can be destroyed. No lease lapses within an
    /// hour after opening.
    pub lease: Duration,
    /// Whether background work (giving back space, checkpoints, hydration) runs on threads. If not, [`crate::Store::step`] does it.
    pub threads: bool,
    /// Limits that the proof system makes small.
    #[cfg(any(test, feature = "sim"))]
    #[doc(hidden)]
    pub limits: Limits,
}

impl std::fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreOptions")
            .field("block_size", &self.block_size)
            .field("group_access", &self.group_access)
            .field("io_mode", &self.io_mode)
            .field("ring", &self.ring)
            .field("owner", &self.owner)
            .field("checksum_cache_bytes", &self.checksum_cache_bytes)
            .field("checkpoint_bytes", &self.checkpoint_bytes)
            .field("lease", &self.lease)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

with_methods! { StoreOptions:
    with_block_size(block_size: BlockSize);
    with_group_access(group_access: bool);
    with_io_mode(io_mode: IoMode);
    with_ring(ring: Some<RingKind>);
    with_sources(sources: Some<Arc<dyn SourceOpener>>);
    with_owner(owner: String);
    with_checksum_cache_bytes(checksum_cache_bytes: u64);
    with_checkpoint_bytes(checkpoint_bytes: u64);
    with_disk(disk: Arc<dyn Disk>);
    with_clock(clock: Arc<dyn Clock>);
    with_on_event(on_event: Some<OnEvent>);
    with_lease(lease: Duration);
    with_threads(threads: bool);
}

impl StoreOptions {
    /// Sets the limits that the proof system makes small.
    #[cfg(any(test, feature = "sim"))]
    #[doc(hidden)]
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    pub(super) fn limits(&self) -> Limits {
        #[cfg(any(test, feature = "sim"))]
        return self.limits;
        #[cfg(not(any(test, feature = "sim")))]
        Limits::DEFAULT
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            block_size: BlockSize::DEFAULT,
            group_access: false,
            io_mode: IoMode::default(),
            ring: None,
            sources: None,
            owner: format!("process {}", std::process::id()),
            checksum_cache_bytes: 64 << 20,
            checkpoint_bytes: 8 << 20,
            disk: Arc::new(SystemDisk::new()),
            clock: Arc::new(SystemClock::default()),
            on_event: None,
            lease: LEASE,
            threads: true,
            #[cfg(any(test, feature = "sim"))]
            limits: Limits::DEFAULT,
        }
    }
}
