//! `volfork` is an embedded block-store engine for storage servers: volumes that fork in constant time, on the same host or from
//! another one, and are usable at once.
//!
//! It is:
//! - a library: [`Store`], [`Volume`], [`Snapshot`], [`Queue`], without a runtime of its own;
//! - crash-safe on ordinary files: a completed flush survives power loss, every block has a checksum that knows its place;
//! - lazy: a fork from an NBD export ([`source`]) is readable at once, while the rest comes in the background;
//! - an NBD server ([`serve`]) and a command line around it.
//!
//! It is not:
//! - a file system, or a replicated store: one process owns a store on one host;
//! - safe against two processes: the second opener of a store is refused;
//! - a cache: flushed data is kept, and no block is evicted.
//!
//! ```
//! # fn main() -> volfork::Result<()> {
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = directory.path();
//! use volfork::{Store, StoreOptions};
//!
//! let store = Store::create(path, StoreOptions::default())?;
//! let volume = store.create_volume("database", 1 << 30)?;
//! volume.write_at(b"before", 4096)?;
//! volume.flush()?;
//!
//! let fork = volume.fork("experiment")?;
//! volume.write_at(b"behind", 4096)?;
//!
//! let mut bytes = [0; 6];
//! fork.read_at(&mut bytes, 4096)?;
//! assert_eq!(&bytes, b"before");
//! store.close()
//! # }
//! ```
//!
//! The [`guide`] says how it works inside, what its files hold, how to operate it, and how to change it.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | block | unit of presence, 4 KiB by default, fixed when a store is created |
//! | extent | 1024 consecutive blocks: unit of the owner map, of a checksum page and of dirty marks |
//! | store | one directory on one host: superblock, journal, layers; one process owns it |
//! | volume | a named, sized, writable head: one open layer on top of a chain of sealed ones |
//! | snapshot | a named, read-only sealed layer and its chain |
//! | layer | a set of blocks over a parent; *open* (one writer) or *sealed* (its meaning never changes again) |
//! | chain | a layer and its ancestors; tails are shared by all forks |
//! | presence | which blocks a layer holds: two roaring bitmaps, *present* and *zeroed* |
//! | owner map | block -> the layer that answers for it; structurally shared between forks |
//! | source | read-only bytes below the root of a chain, elsewhere |
//! | fetch, fill | read a range from a source; put it into the layer that stands for it |
//! | patch | bytes written to a part of a block whose rest is still at the source; merged when the block arrives |
//! | hydration | making a volume independent of its source: *demand* (a reader waits) and *backfill* (nobody waits) |
//! | lease | keeps a snapshot of one host while a fork on another host fetches from it; it is renewed, given back, or lapses |
//! | instant | a snapshot that a store takes of a volume for a lease; removed with its last lease |
//! | journal | the log of changes of shape and presence since the last checkpoint |
//! | freed | a layer that nothing refers to any more; its files are removed |
//! | hidden | a block of a root for which every layer above it answers; it need not be fetched |
//! | dead | a block of a sealed layer that no head and no snapshot shows |
//! | forgotten | a block that its layer does not answer for any more |
//! | retiring | a block that was zeroed or forgotten by a record that is not durable yet |
//! | garbage | space of blocks that are durably zeroed or forgotten, to be given back |
//! | superseded | a patch whose block is present or zeroed by now |
//!
//! # Floors
//!
//! Imports point down only, and modules of one floor do not import one another; `tests/tidy` keeps it so.
//!
//! ```text
//! 0  clock content cursor error ids limits options place random sync telemetry tokens units  words; locks, threads and time
//! 1  io format wire owners                 the machine; bytes on disk; bytes on the wire; the owner map (pure)
//! 2  tls                                   TLS behind ordinary sockets
//! 3  journal source catalog                the log; bytes elsewhere; names, layers and parents (pure)
//! 4  layer                                 presence, checksums, commit order
//! 5  hydrate                               where near meets far
//! 6  volume                                read, write, queue, change of shape
//! 7  store placement                       open, recover, background work, scrub, check; where a machine starts soonest (pure)
//! 8  serve fleet image                     the NBD server; many hosts; images as volumes; above them the command line
//! 9  guide                                 text
//! ```
// With `sim` the scheduler is public, for the tests of this package.
#![cfg_attr(not(feature = "sim"), deny(missing_debug_implementations))]
// A type that the interface gives or takes has a name for those who use it.
#![cfg_attr(not(any(test, fuzzing, feature = "sim")), deny(unnameable_types))]

mod catalog;
mod clock;
pub mod content;
mod cursor;
mod error;
#[cfg(feature = "fleet")]
pub mod fleet;
mod format;
pub mod guide;
mod hydrate;
mod ids;
#[cfg(feature = "manifests")]
pub mod image;
pub mod io;
mod journal;
mod layer;
mod limits;
mod options;
mod owners;
mod place;
#[cfg(feature = "placement")]
pub mod placement;
#[cfg(test)]
mod random;
#[cfg(feature = "serve")]
pub mod serve;
pub mod source;
pub mod store;
#[cfg(not(feature = "sim"))]
mod sync;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod sync;
mod telemetry;
#[cfg(feature = "tls")]
pub mod tls;
mod tokens;
mod units;
pub mod volume;
// For the tests and fuzzers of this package: not part of the interface.
#[doc(hidden)]
pub mod wire;

/// Items that the fuzzers use.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::catalog::Catalog;
    pub use crate::format::{BlocksRecord, Reader, Record, Superblock, SuperblockSlot, Trace, UnrecordedHeader, Writer, decode_frame};
    pub use crate::layer::Presence;
    pub use crate::place::{Block, BlockSpan};
}

// Types of these crates are in the interface.
pub use bytes;
pub use roaring;

pub use clock::{Clock, SystemClock};
pub use error::{Corruption, Error, ErrorKind, Remedy, Result};
pub use ids::{LayerId, LeaseId, VolumeId};
#[cfg(feature = "sim")]
#[doc(hidden)]
pub use limits::{Limits, Planted};
pub use place::BlockSize;
pub use store::{Store, StoreOptions};
pub use units::{format_bytes, parse_bytes};
pub use volume::{Queue, Snapshot, Volume};
