//! `volfork` is an embedded block-store engine for storage servers.
mod bits;
mod catalog;
mod clock;
mod error;
mod format;
mod hydrate;
mod ids;
pub mod io;
mod journal;
mod layer;
mod limits;
mod owners;
pub mod serve;
pub mod source;
pub mod store;
mod units;
pub mod volume;
pub mod wire;

pub use clock::{Clock, SystemClock};
pub use error::{Corruption, Error, ErrorKind, Result};
pub use ids::{BlockSize, LayerId, VolumeId};
pub use store::{Store, StoreOptions};
pub use units::{format_bytes, parse_bytes};
pub use volume::{Queue, Snapshot, Volume};
