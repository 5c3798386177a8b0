//! Places in a volume or layer: blocks, extents, spans and sets of blocks, and how bytes map to them.
//!
//! Every type is `Copy`. A `u64` is an offset or a number of bytes; blocks and extents have types of their own, so that they cannot be
//! taken for one another. The arithmetic with the size of an extent and of a block stands here and nowhere else.
//!
//! ```text
//! Block        a block of a volume or layer, 0 to 2^32 - 1
//! Extent       1024 consecutive blocks, 0 to 2^22 - 1
//! BlockIndex   a block within its extent, 0 to 1023
//! BlockSpan    consecutive blocks of a volume or layer
//! IndexSpan    consecutive blocks of one extent, numbered within it
//! ExtentSpan   an extent and an index span: consecutive blocks of one extent
//! BlockBits    a set of blocks of one extent
//! Segment      a data file of a layer
//! Piece        the part of a request that lies in one extent
//! BlockSize    bytes <-> blocks <-> extents
//! ```
//!
//! [`wide`], [`length`] and [`index`] convert between lengths in memory and numbers of 64 and 32 bits: no cast stands elsewhere.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]

mod bits;
mod block;
mod set;
mod size;
mod span;
mod width;

pub use bits::BlockBits;
pub use block::{Block, BlockIndex, Extent, Segment, per_extent};
pub use set::{end_of_run, extent_bits, extents_of, insert_bits, remove_bits, runs_of, set_of};
pub use size::{BlockSize, Piece};
pub use span::{BlockSpan, ExtentSpan, IndexSpan};
pub use width::{index, length, wide};
