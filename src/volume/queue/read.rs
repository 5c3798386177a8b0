//! Reads through the ring.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::{Inner, Pending, Shared, Target};
use crate::io::{AlignedBuffer, Done, Op};
use crate::layer::{BlockRead, Layer};
use crate::limits::{EXTENT_BLOCKS, SEGMENT_BYTES};
use crate::volume::request::{Completion, Request};
use crate::volume::view::{Answer, Piece};

/// Consecutive blocks with one answer.
struct Part {
    blocks: Range<u64>,
    /// `None`: zeros.
    layer: Option<Arc<Layer>>,
    bytes: Option<Bytes>,
}

/// A read that the ring has.
pub struct PendingRead {
    token: u64,
    offset: u64,
    bytes: u32,
    parts: Vec<Part>,
    under_way: usize,
    failed: bool,
    began: Option<Duration>,
}

impl Shared {
    /// Starts a read. `false`: it needs a worker.
    pub(super) fn start_read(&self, inner: &mut Inner, token: u64, offset: u64, bytes: u32) -> bool {
        let Some(parts) = self.plan_read(offset, bytes) else { return false };
        let core = self.target.core();
        let mut files = Vec::with_capacity(parts.len());
        for part in &parts {
            let file = match &part.layer {
                None => None,
                Some(layer) => match core.layers.data_file(layer, part.blocks.start as u32) {
                    Ok(Some(file)) => Some(file),
                    _ => return false,
                },
            };
            files.push(file);
        }
        let under_way = files.iter().flatten().count();
        let slot = inner.insert(Pending::Read(PendingRead { token, offset, bytes, parts, under_way, failed: false, began: self.began() }));
        if under_way == 0 {
            self.finish_read(inner, slot);
            return true;
        }
        for (number, file) in files.into_iter().enumerate() {
            let (Some(file), Some(Pending::Read(read))) = (file, &inner.pending[slot as usize]) else { continue };
            let blocks = &read.parts[number].blocks;
            let length = core.block_size.offset_of(blocks.end - blocks.start) as usize;
            let place = core.layers.place(blocks.start as u32).1;
            inner.ring.push(u64::from(slot) << 32 | number as u64, Op::Read { file, buffer: AlignedBuffer::new(length), offset: place });
        }
        true
    }

    /// Who answers, if all of it is here.
    fn plan_read(&self, offset: u64, bytes: u32) -> Option<Vec<Part>> {
        let core = self.target.core();
        let view = self.target.look();
        view.check_range(offset, u64::from(bytes)).ok()?;
        if let Target::Volume(head) = &self.target {
            head.touch(offset, u64::from(bytes));
        }
        let mut parts: Vec<Part> = Vec::with_capacity(2);
        let (mut at, end) = (offset, offset + u64::from(bytes));
        while at < end {
            let piece = Piece::at(core.block_size, at, end - at);
            let first = u64::from(piece.extent) * u64::from(EXTENT_BLOCKS);
            for (run, answer) in core.answers(&view, piece.extent, piece.blocks.clone()).ok()? {
                let blocks = first + u64::from(run.start)..first + u64::from(run.end);
                let layer = match answer {
                    Answer::Zero => None,
                    Answer::Held(layer) => Some(layer),
                    Answer::Missing(_) | Answer::Patched(_) => return None,
                };
                let joins = |part: &&mut Part| {
                    part.blocks.end == blocks.start
                        && part.layer.as_ref().map(|layer| layer.id) == layer.as_ref().map(|layer| layer.id)
                        && !core.block_size.offset_of(blocks.start).is_multiple_of(SEGMENT_BYTES)
                };
                match parts.last_mut().filter(joins) {
                    Some(part) => part.blocks.end = blocks.end,
                    None => parts.push(Part { blocks, layer, bytes: None }),
                }
            }
            at += piece.bytes;
        }
        Some(parts)
    }

    pub(super) fn end_read(self: &Arc<Self>, inner: &mut Inner, slot: u32, done: Done) {
        let Some(Some(Pending::Read(read))) = inner.pending.get_mut(slot as usize) else { return };
        let part = &mut read.parts[(done.token & u64::from(u32::MAX)) as usize];
        read.under_way -= 1;
        let layers = &self.target.core().layers;
        match (done.result, done.op, &part.layer) {
            (Ok(()), Op::Read { buffer, .. }, Some(layer))
                if matches!(layers.verify_blocks(layer, part.blocks.start as u32, &buffer), Ok(BlockRead::Verified)) =>
            {
                part.bytes = Some(buffer.into_bytes());
            }
            // A worker looks again, and finds out whether it is damage.
            _ => read.failed = true,
        }
        if read.under_way > 0 {
            return;
        }
        if read.failed {
            let (token, offset, bytes) = (read.token, read.offset, read.bytes);
            inner.remove(slot);
            self.delegate(token, Request::Read { offset, bytes });
            return;
        }
        self.finish_read(inner, slot);
    }

    fn finish_read(&self, inner: &mut Inner, slot: u32) {
        let Some(Pending::Read(read)) = inner.remove(slot) else { return };
        self.target.core().note_latency(read.began);
        let block_size = self.target.core().block_size;
        let skip = (read.offset % block_size.bytes()) as usize;
        let wanted = skip..skip + read.bytes as usize;
        let bytes = match <[Part; 1]>::try_from(read.parts) {
            Ok([Part { bytes: Some(bytes), .. }]) => bytes.slice(wanted),
            Ok([Part { bytes: None, .. }]) => BytesMut::zeroed(read.bytes as usize).freeze(),
            Err(parts) => {
                let mut all = BytesMut::new();
                for part in parts {
                    match part.bytes {
                        Some(bytes) => all.extend_from_slice(&bytes),
                        None => all.resize(all.len() + block_size.offset_of(part.blocks.end - part.blocks.start) as usize, 0),
                    }
                }
                all.freeze().slice(if read.bytes == 0 { 0..0 } else { wanted })
            }
        };
        inner.ready.push(Completion { token: read.token, result: Ok(bytes) });
    }
}
