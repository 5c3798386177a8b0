//! NBD messages, stated once for client and server. Big-endian.
//!
//! # Invariants
//! - Decoders take untrusted bytes and return errors; they never panic and never reserve more than their input or a fixed limit.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![deny(clippy::cast_precision_loss)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod bytes;
pub mod constants;
mod deadline;
mod lease;
mod option;
mod reply;
mod request;

pub use crate::cursor::{CursorError, Dialect, Reader, Writer};
pub use bytes::{OnWire, WireError, WireReader, WireWriter, foreign_text};
pub use deadline::{deadline_after, read_by, time_left};
pub use lease::{LeaseAction, LeaseGrant, LeaseRequest};
pub use option::{ContextQuery, ExportInfo, GoRequest, OptionReply, OptionRequest, decode_export_info};
pub use reply::{
    Chunk, ChunkHeader, HeaderMode, ReplyHeader, StatusExtent, encode_chunk_header, encode_simple_reply, put_chunk_header, put_simple_reply,
};
pub use request::{Request, StatusQuery};
