//! One read or write of a file, with the memory that it needs.

use std::io;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{AlignedBuffer, DiskFile, DiskFileExt};

/// Memory that a read fills. It stays where it is while the value moves.
#[derive(Debug)]
pub enum ReadBuffer {
    /// Memory of the engine.
    Aligned(AlignedBuffer),
    /// Memory of the embedder.
    Given(BytesMut),
}

impl From<AlignedBuffer> for ReadBuffer {
    fn from(buffer: AlignedBuffer) -> Self {
        Self::Aligned(buffer)
    }
}

impl Deref for ReadBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Aligned(buffer) => buffer,
            Self::Given(buffer) => buffer,
        }
    }
}

impl DerefMut for ReadBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Aligned(buffer) => buffer,
            Self::Given(buffer) => buffer,
        }
    }
}

/// One transfer.
pub enum Op {
    /// Fills the whole buffer.
    Read {
        /// From this file.
        file: Arc<dyn DiskFile>,
        /// Owned by the ring until completion.
        buffer: ReadBuffer,
        /// Byte offset in the file.
        offset: u64,
    },
    /// Writes all bytes.
    Write {
        /// To this file.
        file: Arc<dyn DiskFile>,
        /// Owned by the ring until completion.
        data: Bytes,
        /// Byte offset in the file.
        offset: u64,
    },
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read { buffer, offset, .. } => write!(f, "Read({} bytes at {offset})", buffer.len()),
            Self::Write { data, offset, .. } => write!(f, "Write({} bytes at {offset})", data.len()),
        }
    }
}

impl Op {
    /// Bytes to transfer.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Read { buffer, .. } => buffer.len(),
            Self::Write { data, .. } => data.len(),
        }
    }

    /// The error of a transfer that made no progress.
    pub(super) fn stuck(&self) -> io::Error {
        match self {
            Self::Read { .. } => io::ErrorKind::UnexpectedEof.into(),
            Self::Write { .. } => io::ErrorKind::WriteZero.into(),
        }
    }
}

/// The end of one transfer.
#[derive(Debug)]
pub struct Done {
    /// The number given with it.
    pub token: u64,
    /// The transfer, with its buffer.
    pub op: Op,
    /// Whether all of it was transferred.
    pub result: io::Result<()>,
}

/// Does a transfer here and now. A file that panics fails the transfer.
pub(super) fn run(token: u64, mut op: Op) -> Done {
    let transfer = AssertUnwindSafe(|| match &mut op {
        Op::Read { file, buffer, offset } => file.read_exact_at(buffer, *offset),
        Op::Write { file, data, offset } => file.write_all_at(data, *offset),
    });
    let result = catch_unwind(transfer).unwrap_or_else(|_| Err(io::Error::other("the file's code panicked")));
    Done { token, op, result }
}
