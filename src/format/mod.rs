//! Bytes on disk: each layout is stated once, here. Little-endian throughout.
//!
//! # Invariants
//! - A decoder takes untrusted bytes and returns an error that names what is wrong; it never panics, never reads past its
//!   input, and never reserves memory for more than its input can hold.
#![deny(clippy::wildcard_enum_match_arm)]
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod blocks;
mod bytes;
mod frame;
mod label;
mod lease;
mod limit;
mod names;
mod presence;
mod record;
mod shape;
mod source;
mod superblock;
mod tags;
mod trace;
mod unrecorded;

pub use blocks::{BlockRun, BlocksRecord, PatchRecord};
pub use bytes::{FormatError, FormatErrorKind, Reader, Writer};
pub use frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, Frame, FrameCheck, FrameKind, decode_frame, encode_frame, frame_bytes};
pub use label::{ALL_LABELS_BYTES_MAX, HeldRecord, LabelChange, Labels, changed_labels, valid_labels};
pub use lease::{LEASE_TEXT_BYTES_MAX, LeaseRecord, LesseeRecord};
pub use limit::VolumeLimits;
pub use names::{LayerFile, StorePaths, instant_name, is_instant, valid_name};
pub use presence::{ForgetRecord, PresenceRecord};
pub use record::Record;
pub use shape::{LayerRecord, ShapeRecord, SnapshotRecord, VolumeRecord};
pub use source::{HydrationPriority, HydrationSettings, SOURCE_URIS_MAX, SourceRecord};
pub use superblock::{Features, SUPERBLOCK_BYTES, Superblock, SuperblockSlot};
pub use trace::{TRACE_BYTES_MAX, TRACE_RUNS_MAX, Trace};
pub use unrecorded::{Note, UnrecordedHeader};
