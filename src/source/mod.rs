//! Read-only bytes below the root of a chain, elsewhere.
//!
//! The cast: a [`Source`] is a seam that embedders implement, and [`OnArrival`] the callback of one read. `connect` opens sources
//! without trusting the opener; `guarded` wraps an opened source without trusting it; `closing` closes sources; `gather` composes reads of
//! any length and alignment from the reads that a source allows.
//!
//! # Invariants
//! - A source that panics, drops a callback, answers without bytes or never answers costs its own requests and nothing else.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![deny(clippy::cast_precision_loss)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod about;
mod arrival;
mod closing;
mod connect;
mod error;
mod file;
mod gather;
mod guarded;
mod lease;
mod nbd;
mod opener;
mod part;
mod schemes;
mod seam;
mod threads;
mod uri;

pub use about::About;
pub use arrival::{Arrival, OnArrival};
pub(crate) use closing::await_closed;
pub(crate) use connect::{Connector, Since};
pub(crate) use error::damaged_error;
pub use error::{SourceError, SourceErrorKind};
pub use file::FileSource;
pub use gather::SourceExt;
pub use lease::{Lease, LeaseAction, LeaseGrant, LeaseRequest, LeasedSource};
pub use nbd::{NbdOptions, NbdSource};
pub use opener::SourceOpener;
pub use part::{Checksums, PART_ALIGN_BYTES, Part, content_checksum};
pub use schemes::UriSources;
pub use seam::{ReadClass, Source, SourceExtent, SourceStats};
pub(crate) use uri::host_of;
#[cfg(feature = "serve")]
pub(crate) use uri::with_export;
