//! A write of whole blocks that a ring makes.

use std::sync::Arc;

use bytes::Bytes;

use super::admission::Admission;
use super::admitted::Admitted;
use super::blocks::unwritable;
use super::layer::Layer;
use crate::error::Result;
use crate::io::{Done, Op};
use crate::place::{Block, Segment};

/// Consecutive blocks of a layer that a ring writes into one file, with the checksums that they will have.
///
/// # Invariants
/// - The owner of the ring passes the end of the transfer to [`RingWrite::end`]. Dropping the guard instead gives the blocks back as
///   those of a write that may have reached the disk in part; it is sound only when the ring has ended the transfer.
#[must_use]
pub struct RingWrite {
    /// The blocks by extent, in order.
    parts: Vec<Admitted<Arc<Admission>, Arc<Layer>>>,
    layer: Arc<Layer>,
    first: Block,
    checksums: Vec<u32>,
    segment: Segment,
}

impl RingWrite {
    /// Prepares to write `data` from block `first` on. `parts` are the admitted blocks, by extent and in order. The caller pushes the
    /// transfer to its ring: from this call on, bytes may reach the file.
    ///
    /// # Errors
    /// The data file cannot be made. The blocks are given back untouched.
    pub fn begin(
        admission: &Admission,
        layer: &Arc<Layer>,
        first: Block,
        mut parts: Vec<Admitted<Arc<Admission>, Arc<Layer>>>,
        data: &Bytes,
    ) -> Result<(Self, Op)> {
        let blocks = &admission.blocks;
        let file = blocks.data_file_to_write(layer, first)?;
        let checksums = blocks.checksums_of(layer, first, data);
        let (segment, offset) = blocks.place(first);
        let data = blocks.for_disk(data);
        parts.iter_mut().for_each(Admitted::touch);
        let write = Self { parts, layer: Arc::clone(layer), first, checksums, segment };
        Ok((write, Op::Write { file, data, offset }))
    }

    /// Ends the write as its transfer has ended: the bytes become the content of the blocks, or the blocks are given back.
    ///
    /// # Errors
    /// That of the transfer.
    pub fn end(self, done: Done) -> Result<()> {
        let Self { parts, layer, first, checksums, segment } = self;
        match (done.result, done.op) {
            (Ok(()), Op::Write { file, .. }) => {
                let mut checksums = &checksums[..];
                for part in parts {
                    let (these, rest) = checksums.split_at(part.block_count());
                    checksums = rest;
                    part.finish(these, (segment, &file));
                }
                Ok(())
            }
            (result, Op::Read { .. } | Op::Write { .. }) => {
                let cause = result.err().unwrap_or_else(|| std::io::ErrorKind::Other.into());
                let error = unwritable(&layer, first, cause);
                parts.into_iter().for_each(|part| part.fail(&error));
                Err(error)
            }
        }
    }
}
