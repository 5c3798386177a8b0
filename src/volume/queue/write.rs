//! Writes through the ring.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Inner, Pending, Shared, Target};
use crate::bits::BlockBits;
use crate::error::Error;
use crate::io::{Done, IoMode, Op};
use crate::layer::{Admission, Layer};
use crate::limits::{EXTENT_BLOCKS, SEGMENT_BYTES};
use crate::volume::head::Head;
use crate::volume::request::{Completion, Request};
use crate::volume::view::Piece;

/// A write that the ring has. Its blocks are latched and the gate is passed.
pub struct PendingWrite {
    token: u64,
    fua: bool,
    layer: Arc<Layer>,
    pieces: Vec<Piece>,
    checksums: Vec<u32>,
    /// For each piece, whether the head answered for it before.
    owned: Vec<bool>,
    segment: u32,
    began: Option<Duration>,
}

impl Shared {
    /// Starts a write. `false`: it needs a worker.
    pub(super) fn start_write(self: &Arc<Self>, inner: &mut Inner, token: u64, offset: u64, data: &Bytes, fua: bool) -> bool {
        let Target::Volume(head) = &self.target else { return false };
        let core = &head.core;
        let block_bytes = core.block_size.bytes();
        let bytes = data.len() as u64;
        let whole = offset.is_multiple_of(block_bytes) && bytes.is_multiple_of(block_bytes) && bytes > 0;
        let one_file = offset / SEGMENT_BYTES == (offset + bytes.max(1) - 1) / SEGMENT_BYTES;
        if !whole || !one_file || core.layers.under_pressure() || head.check_alive().is_err() || !head.gate.try_enter() {
            return false;
        }
        let started = self.admit_write(inner, head, token, offset, data, fua);
        if !started {
            head.gate.leave();
        }
        started
    }

    fn admit_write(self: &Arc<Self>, inner: &mut Inner, head: &Arc<Head>, token: u64, offset: u64, data: &Bytes, fua: bool) -> bool {
        let core = &head.core;
        let layer = {
            let view = head.view.read();
            if view.check_range(offset, data.len() as u64).is_err() {
                return false;
            }
            Arc::clone(&view.layer)
        };
        let block = core.block_size.block_of(offset) as u32;
        let Ok(file) = core.layers.data_file_to_write(&layer, block) else { return false };
        let mut pieces: Vec<Piece> = Vec::with_capacity(1);
        let (mut at, end) = (offset, offset + data.len() as u64);
        while at < end {
            let piece = Piece::at(core.block_size, at, end - at);
            let bits = BlockBits::of(piece.blocks.clone());
            let page = core.layers.cached_page(&layer, piece.extent);
            let granted = page
                .filter(|_| !core.layers.is_mixed(&layer, piece.extent, &bits))
                .is_some_and(|page| matches!(core.layers.admit(&layer, piece.extent, &bits, &page), Ok(Admission::Granted)));
            if !granted {
                for piece in pieces {
                    core.layers.withdraw_write(&layer, piece.extent, &BlockBits::of(piece.blocks));
                }
                return false;
            }
            at += piece.bytes;
            pieces.push(piece);
        }
        if core.layers.io_mode() == IoMode::Buffered && data.len() <= core.layers.limits().inline_bytes_max {
            let began = self.began();
            self.write_inline(inner, head, token, &layer, &pieces, data, fua);
            core.note_latency(began);
            return true;
        }
        let owned = pieces.iter().map(|piece| head.is_owner(&layer, piece.extent, piece.blocks.clone())).collect();
        let checksums = core.layers.checksums_of(&layer, block, data);
        let (segment, place) = core.layers.place(block);
        let slot = inner.insert(Pending::Write(PendingWrite { token, fua, layer, pieces, checksums, owned, segment, began: self.began() }));
        inner.ring.push(u64::from(slot) << 32, Op::Write { file, data: core.layers.for_disk(data), offset: place });
        true
    }

    /// Writes admitted pieces here and now.
    #[allow(clippy::too_many_arguments, reason = "they are what one request is made of")]
    fn write_inline(
        self: &Arc<Self>,
        inner: &mut Inner,
        head: &Arc<Head>,
        token: u64,
        layer: &Arc<Layer>,
        pieces: &[Piece],
        data: &Bytes,
        fua: bool,
    ) {
        let layers = &head.core.layers;
        let (mut at, mut outcome) = (0, Ok(Bytes::new()));
        for piece in pieces {
            let part = &data[at..at + piece.bytes as usize];
            at += piece.bytes as usize;
            if outcome.is_err() {
                layers.withdraw_write(layer, piece.extent, &BlockBits::of(piece.blocks.clone()));
                continue;
            }
            let owned = head.is_owner(layer, piece.extent, piece.blocks.clone());
            match layers.write_admitted(layer, piece.extent, piece.blocks.clone(), part) {
                Ok(()) if !owned => head.take_over(layer, piece.extent, piece.blocks.clone()),
                Ok(()) => {}
                Err(error) => outcome = Err(error),
            }
        }
        head.gate.leave();
        match outcome {
            Ok(_) if fua => inner.later.push((token, Request::Flush)),
            result => inner.ready.push(Completion { token, result }),
        }
    }

    pub(super) fn end_write(self: &Arc<Self>, inner: &mut Inner, slot: u32, done: Done) {
        let (Some(Pending::Write(write)), Target::Volume(head)) = (inner.remove(slot), &self.target) else { return };
        let layers = &head.core.layers;
        let result = match (done.result, done.op) {
            (Ok(()), Op::Write { file, .. }) => {
                let mut checksums = &write.checksums[..];
                for (piece, owned) in write.pieces.iter().zip(&write.owned) {
                    let (these, rest) = checksums.split_at(piece.blocks.len());
                    checksums = rest;
                    let bits = BlockBits::of(piece.blocks.clone());
                    layers.finish_write(&write.layer, piece.extent, &bits, these, (write.segment, &file));
                    if !owned {
                        head.take_over(&write.layer, piece.extent, piece.blocks.clone());
                    }
                }
                Ok(Bytes::new())
            }
            (result, _) => {
                let cause = result.err().unwrap_or_else(|| std::io::ErrorKind::Other.into());
                let first = write.pieces.first().map_or(0, |piece| piece.extent * EXTENT_BLOCKS + piece.blocks.start);
                let error = Error::io(format!("cannot write layer {} at block {first}", write.layer.id), cause);
                for piece in write.pieces {
                    layers.abort_write(&write.layer, piece.extent, &BlockBits::of(piece.blocks), &error);
                }
                Err(error)
            }
        };
        head.gate.leave();
        head.core.note_latency(write.began);
        match result {
            Ok(_) if write.fua => inner.later.push((write.token, Request::Flush)),
            result => inner.ready.push(Completion { token: write.token, result }),
        }
    }
}
