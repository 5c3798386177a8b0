//! Requests of a queue, and their completions.

use bytes::{Bytes, BytesMut};

use crate::error::{Error, ErrorKind, Result};
use crate::io::AlignedBuffer;

/// One request. Offsets and lengths are bytes and need no alignment; a request reads or writes less than 4 GiB.
///
/// # Order
/// Requests that are under way together have no order. A request that must come after another one is submitted when the completion of
/// that one was taken.
/// - Of two writes that overlap, each block (4 KiB, or the store's block size) is as if one had been made after the other. Which one is
///   the later one may differ from block to block, and does not follow from the order of submission.
/// - A read that overlaps a write under way gives each byte as it was before the write or as it is after it.
/// - A flush makes durable what had completed when it was submitted.
///
/// # Examples
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::bytes::BytesMut;
/// use volfork::volume::Request;
/// # use volfork::{Store, StoreOptions};
/// # let store = Store::create(directory.path(), StoreOptions::default())?;
/// # let volume = store.create_volume("v", 1 << 20)?;
///
/// let mut queue = volume.queue(8)?;
/// let mut completions = Vec::new();
/// queue.submit(1, Request::WriteVectored { offset: 0, data: vec!["head".into(), "tail".into()], fua: false })?;
/// queue.wait(&mut completions, None)?;
/// completions.pop().unwrap().result?;
///
/// // The queue owns the buffers until it gives them back, filled.
/// let buffers = vec![BytesMut::zeroed(4), BytesMut::zeroed(4)];
/// queue.submit(2, Request::ReadInto { offset: 0, buffers })?;
/// queue.wait(&mut completions, None)?;
/// let completion = completions.pop().unwrap();
/// completion.result?;
/// assert_eq!(completion.buffers, ["head", "tail"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Request {
    /// Reads `bytes` at `offset` into memory of the engine.
    Read {
        /// Offset of the first byte in the volume.
        offset: u64,
        /// Length in bytes.
        bytes: u32,
    },
    /// Reads at `offset` into memory of the caller: as many bytes as the buffers have, one buffer after the other. Whole blocks for a
    /// single buffer (in the mode [`crate::io::IoMode::Direct`], one whose memory begins on a 4,096-byte boundary) are read into it
    /// without a copy; otherwise the bytes are copied once.
    ReadInto {
        /// Offset of the first byte in the volume.
        offset: u64,
        /// Owned by the queue until completion, which gives them back ([`Completion::buffers`]). After an error their content is not
        /// defined. If [`crate::Queue::submit`] refuses the request, they are dropped.
        buffers: Vec<BytesMut>,
    },
    /// Writes `data` at `offset`.
    Write {
        /// Offset of the first byte in the volume.
        offset: u64,
        /// The bytes; owned by the queue until completion.
        data: Bytes,
        /// Whether the change is durable before it completes (forced unit access).
        fua: bool,
    },
    /// As `Write`, from several buffers, one after the other. More than one are copied together first.
    WriteVectored {
        /// Offset of the first byte in the volume.
        offset: u64,
        /// Written one after the other; owned by the queue until completion.
        data: Vec<Bytes>,
        /// Whether the change is durable before it completes (forced unit access).
        fua: bool,
    },
    /// Makes every write completed before it was submitted durable.
    Flush,
    /// Gives back the space of a range, which then reads as zero.
    Discard {
        /// Offset of the first byte in the volume.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
        /// Whether the change is durable before it completes (forced unit access).
        fua: bool,
    },
    /// Makes a range read as zero.
    WriteZeroes {
        /// Offset of the first byte in the volume.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
        /// Whether the change is durable before it completes (forced unit access).
        fua: bool,
    },
    /// Writes zeros to a range, which has all its space afterwards.
    Provision {
        /// Offset of the first byte in the volume.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
        /// Whether the change is durable before it completes (forced unit access).
        fua: bool,
    },
    /// Brings missing blocks of a range from the source, as a hint.
    Prefetch {
        /// Offset of the first byte in the volume.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
    },
}

impl Request {
    /// The request with all data of a write in one buffer.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for 4 GiB or more.
    pub(super) fn gathered(self) -> Result<Self> {
        match self {
            Self::WriteVectored { offset, mut data, fua } if data.len() == 1 => {
                Ok(Self::Write { offset, data: data.pop().unwrap_or_default(), fua })
            }
            Self::WriteVectored { offset, data, fua } => {
                let bytes = total(data.iter().map(Bytes::len))?;
                let mut whole = AlignedBuffer::new(bytes);
                let mut rest = &mut whole[..];
                for piece in &data {
                    let (this, behind) = rest.split_at_mut(piece.len());
                    this.copy_from_slice(piece);
                    rest = behind;
                }
                Ok(Self::Write { offset, data: whole.into_bytes(), fua })
            }
            Self::ReadInto { offset, buffers } => {
                total(buffers.iter().map(|buffer| buffer.len()))?;
                Ok(Self::ReadInto { offset, buffers })
            }
            other @ (Self::Read { .. }
            | Self::Write { .. }
            | Self::Flush
            | Self::Discard { .. }
            | Self::WriteZeroes { .. }
            | Self::Provision { .. }
            | Self::Prefetch { .. }) => Ok(other),
        }
    }

    /// The completion of this request.
    pub(super) fn complete(self, token: u64, result: Result<Bytes>) -> Completion {
        let buffers = if let Self::ReadInto { buffers, .. } = self { buffers } else { Vec::new() };
        Completion { token, result, buffers }
    }
}

/// The sum of the lengths of a request's buffers.
fn total(lengths: impl Iterator<Item = usize>) -> Result<usize> {
    let total = lengths.fold(0, usize::saturating_add);
    match u32::try_from(total) {
        Ok(_) => Ok(total),
        Err(_) => Err(Error::new(ErrorKind::InvalidInput, format!("a request has less than 4 GiB, not {total} bytes"))),
    }
}

/// The end of one request.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::{ErrorKind, volume::Request};
///
/// let mut queue = store.create_volume("v", 1 << 20)?.queue(8)?;
/// queue.submit(7, Request::Read { offset: 0, bytes: 512 })?;
/// queue.submit(8, Request::Read { offset: 1 << 20, bytes: 512 })?;
/// let mut completions = Vec::new();
/// while queue.in_flight() > 0 {
///     queue.wait(&mut completions, None)?;
/// }
/// for completion in completions {
///     match completion.result {
///         Ok(bytes) => assert_eq!((completion.token, &bytes[..]), (7, &[0; 512][..])),
///         Err(error) => assert_eq!((completion.token, error.kind()), (8, ErrorKind::OutOfRange)),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Completion {
    /// The number given when the request was submitted.
    pub token: u64,
    /// The bytes of a [`Request::Read`] (empty for every other request), or the error.
    pub result: Result<Bytes>,
    /// The buffers of a [`Request::ReadInto`], filled unless there is an error. A buffer that the kernel never gave back is missing.
    pub buffers: Vec<BytesMut>,
}

/// What answers for a run of bytes of a volume.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::volume::RunKind;
///
/// let volume = store.create_volume("v", 1 << 20)?;
/// volume.write_at(&[1; 4096], 0)?;
/// let (mut own, mut below, mut zero, mut missing) = (0, 0, 0, 0);
/// for run in volume.fork("w")?.runs(0..1 << 20, 1024)? {
///     match run.kind {
///         RunKind::Data { depth: 1 } => own += run.bytes,
///         RunKind::Data { .. } => below += run.bytes,
///         RunKind::Zero => zero += run.bytes,
///         RunKind::Missing => missing += run.bytes,
///         _ => {}
///     }
/// }
/// // The fork has written nothing: its data are the parent's.
/// assert_eq!((own, below, zero, missing), (0, 4096, (1 << 20) - 4096, 0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunKind {
    /// Stored in a layer; the number counts layers from the head (1 is the head itself).
    Data {
        /// 1 for the volume's own open layer, 2 for its parent, and so on.
        depth: u32,
    },
    /// Reads as zero because it was discarded or zeroed, or never written.
    Zero,
    /// Still only at the source.
    Missing,
}

/// A run of bytes with one answer.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::volume::RunKind;
///
/// let volume = store.create_volume("v", 1 << 20)?;
/// volume.write_at(&[1; 8192], 4096)?;
/// // Runs follow one another from the start of the range.
/// let mut offset = 0;
/// for run in volume.allocation(0..1 << 20, 1024)? {
///     if let RunKind::Data { .. } = run.kind {
///         assert_eq!(offset..offset + run.bytes, 4096..12_288);
///     }
///     offset += run.bytes;
/// }
/// assert_eq!(offset, 1 << 20);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Length in bytes, never 0.
    pub bytes: u64,
    /// Whether the bytes are stored, zero, or only at the source.
    pub kind: RunKind,
}
