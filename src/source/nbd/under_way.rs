//! A request under way, with the part of its reply that has arrived.

use std::io;
use std::ops::Range;

use super::assembly::Assembly;
use super::handshake::Contexts;
use super::job::{Job, Waiter};
use crate::place::length;
use crate::source::Checksums;
use crate::sync::time::Instant;
use crate::wire::constants::CHECKSUM_KNOWN;
use crate::wire::{Chunk, StatusExtent, WireError};

/// A job under way, with the part of its reply that has arrived.
pub struct UnderWay {
    pub job: Job,
    pub sent: Instant,
    pub assembly: Assembly,
    pub extents: Vec<StatusExtent>,
    pub error: Option<(u32, String)>,
    /// The last chunk of the reply has arrived.
    pub over: bool,
    /// The checksums of the read have not arrived yet.
    pub awaits_checksums: bool,
}

pub fn protocol(error: WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server breaks the protocol: {error}"))
}

/// Checksums of the blocks of a range, decoded from the checksum context of a volfork server.
pub fn checksums(extents: &[StatusExtent], range: &Range<u64>, block_bytes: u32) -> Checksums {
    let known = |extent: &StatusExtent| extent.flags & CHECKSUM_KNOWN != 0;
    let (size, block_bytes) = (block_bytes, u64::from(block_bytes));
    let first = range.start.next_multiple_of(block_bytes);
    let blocks = range.end.saturating_sub(first).div_ceil(block_bytes);
    let mut values = vec![None; length(blocks)];
    let mut offset = range.start;
    for extent in extents {
        let slot = offset.checked_sub(first).filter(|_| offset.is_multiple_of(block_bytes)).map(|bytes| length(bytes / block_bytes));
        if let Some(value) = slot.and_then(|slot| values.get_mut(slot)).filter(|_| known(extent)) {
            *value = u32::try_from(extent.flags & u64::from(u32::MAX)).ok();
        }
        offset = offset.saturating_add(extent.length);
    }
    Checksums { block_bytes: size, first, values }
}

impl UnderWay {
    pub fn new(job: Job, awaits_checksums: bool) -> Self {
        let assembly = Assembly::new(job.range.clone());
        Self { job, sent: Instant::now(), assembly, extents: Vec::new(), error: None, over: false, awaits_checksums }
    }

    /// Delivers whole parts to the waiter, once their checksums have arrived.
    pub fn deliver(&mut self) {
        if let (false, Waiter::Read(_, arrival)) = (self.awaits_checksums, &mut self.job.waiter) {
            for part in self.assembly.take_whole() {
                arrival.part(part);
            }
        }
    }

    /// Marks the bytes of a range as arriving.
    ///
    /// # Errors
    /// The bytes were not requested, or have arrived before.
    pub fn expect_bytes(&mut self, range: &Range<u64>) -> io::Result<()> {
        if !self.job.is_read() {
            return Err(protocol(WireError("data for a request that is no read".into())));
        }
        self.assembly.check(range).map_err(protocol)
    }

    /// Takes a chunk that is not data: a hole, block status or an error. Returns how many bytes of a read it covers.
    ///
    /// # Errors
    /// The chunk does not fit the request.
    pub fn take_chunk(&mut self, kind: u16, payload: &[u8], contexts: &Contexts) -> io::Result<u64> {
        let decoded = Chunk::decode(kind, payload).map_err(protocol)?;
        match (decoded, &self.job.waiter) {
            (Chunk::None, _) => {}
            (Chunk::Hole(offset, length), Waiter::Read(..)) => {
                let end = offset.checked_add(length).ok_or_else(|| protocol(WireError("a hole has no end".into())))?;
                self.assembly.fill_zeros(offset..end).map_err(protocol)?;
                self.deliver();
                return Ok(length);
            }
            (Chunk::Error(error, text), _) => self.error = Some((error, text)),
            (Chunk::Status(context, extents), Waiter::Status(topic, _)) if contexts.number(*topic) == Some(context) => {
                self.extents = extents;
            }
            (Chunk::Status(..), _) => {}
            _ => return Err(protocol(WireError("a chunk does not fit its request".into()))),
        }
        Ok(0)
    }
}
