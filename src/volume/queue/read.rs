//! Reads through the ring, or at once from the page cache.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::{Inner, Later, Pass, Pending, Shared, Target};
use crate::io::{AlignedBuffer, Done, IoMode, Op};
use crate::layer::{BlockRead, Layer};
use crate::limits::{EXTENT_BLOCKS, SEGMENT_BYTES};
use crate::place::Block;
use crate::volume::blocks::{Answer, Piece};
use crate::volume::request::{Completion, Request};

/// Consecutive blocks with one answer.
struct Part {
    blocks: Range<u64>,
    /// `None`: zeros.
    layer: Option<Arc<Layer>>,
    bytes: Option<Bytes>,
}

/// Most reads lie in one layer.
type Parts = SmallVec<[Part; 1]>;

/// A read that the ring has.
pub struct PendingRead {
    token: u64,
    offset: u64,
    bytes: u32,
    parts: Parts,
    under_way: usize,
    failed: bool,
    began: Option<Duration>,
    /// `None`: it ends in the call that started it.
    pass: Option<Pass>,
}

/// Whether the page cache is asked first: not for every read while it has nothing.
#[derive(Default)]
pub struct CacheGuess {
    misses: u32,
    skip: u32,
}

impl CacheGuess {
    /// Reads in a row that go past the cache at most before it is asked again, as a power of two.
    const SKIP_SHIFT_MAX: u32 = 6;

    fn is_likely(&mut self) -> bool {
        let likely = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        likely
    }

    fn note(&mut self, hit: bool) {
        self.misses = if hit { 0 } else { (self.misses + 1).min(Self::SKIP_SHIFT_MAX) };
        self.skip = (1 << self.misses) - 1;
    }
}

impl Shared {
    /// Starts a read. `false`: it needs a worker.
    pub(super) fn start_read(&self, inner: &mut Inner, token: u64, offset: u64, bytes: u32) -> bool {
        let (began, blocks) = (self.began(), self.target.blocks());
        let Some(mut parts) = self.plan_read(offset, bytes) else { return false };
        let may_be_cached = blocks.layers.blocks.io_mode() == IoMode::Buffered && bytes as usize <= blocks.layers.limits().inline_bytes_max;
        let mut ops: SmallVec<[(usize, Op); 1]> = SmallVec::new();
        for (number, part) in parts.iter_mut().enumerate() {
            let Some(layer) = &part.layer else { continue };
            let first = Block::at(part.blocks.start).unwrap_or(Block::LAST);
            let Ok(Some(file)) = blocks.layers.blocks.data_file(layer, first) else { return false };
            let length = blocks.block_size.offset_of(part.blocks.end - part.blocks.start) as usize;
            let (mut buffer, offset) = (AlignedBuffer::new(length), blocks.layers.blocks.place(first).1);
            if may_be_cached && inner.cached.is_likely() {
                let cached = blocks.layers.blocks.read_cached(layer, &*file, first, &mut buffer);
                inner.cached.note(cached.is_some());
                // What does not match is read again through the ring, as everything else.
                if cached == Some(BlockRead::Verified) {
                    part.bytes = Some(buffer.into_bytes());
                    continue;
                }
            }
            ops.push((number, Op::Read { file, buffer, offset }));
        }
        let read = PendingRead { token, offset, bytes, parts, under_way: ops.len(), failed: false, began, pass: None };
        if ops.is_empty() {
            self.finish_read(inner, read);
            return true;
        }
        let Some(pass) = self.hold(inner, token) else { return true };
        let slot = inner.insert(Pending::Read(PendingRead { pass: Some(pass), ..read }));
        for (number, op) in ops {
            inner.ring.push(u64::from(slot) << 32 | number as u64, op);
        }
        true
    }

    /// Who answers, if all of it is here.
    fn plan_read(&self, offset: u64, bytes: u32) -> Option<Parts> {
        let chain = self.target.blocks();
        let view = self.target.view().read();
        view.check_range(offset, u64::from(bytes)).ok()?;
        if let Target::Volume(head) = &self.target {
            head.touch(offset, u64::from(bytes));
        }
        let mut parts = Parts::new();
        let (mut at, end) = (offset, offset + u64::from(bytes));
        while at < end {
            let piece = Piece::at(chain.block_size, at, end - at);
            let first = u64::from(piece.extent) * u64::from(EXTENT_BLOCKS);
            for (run, answer) in chain.answers(&view, piece.extent, piece.blocks.clone()).ok()? {
                let blocks = first + u64::from(run.start)..first + u64::from(run.end);
                let layer = match answer {
                    Answer::Zero => None,
                    Answer::Held(layer) => Some(layer),
                    Answer::Missing(_) | Answer::Patched(_) => return None,
                };
                let joins = |part: &&mut Part| {
                    part.blocks.end == blocks.start
                        && part.layer.as_ref().map(|layer| layer.id) == layer.as_ref().map(|layer| layer.id)
                        && !chain.block_size.offset_of(blocks.start).is_multiple_of(SEGMENT_BYTES)
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
        let layers = &self.target.blocks().layers;
        match (done.result, done.op, &part.layer) {
            (Ok(()), Op::Read { buffer, .. }, Some(layer))
                if matches!(
                    // The disk's code may panic, and other completions wait to be taken.
                    catch_unwind(AssertUnwindSafe(|| layers.blocks.verify(
                        layer,
                        Block::at(part.blocks.start).unwrap_or(Block::LAST),
                        &buffer
                    ))),
                    Ok(Ok(BlockRead::Verified))
                ) =>
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
            let (token, request, pass) = (read.token, Request::Read { offset: read.offset, bytes: read.bytes }, read.pass.take());
            inner.remove(slot);
            inner.later.extend(pass.map(|pass| Later { token, request, pass }));
            return;
        }
        if let Some(Pending::Read(read)) = inner.remove(slot) {
            self.finish_read(inner, read);
        }
    }

    fn finish_read(&self, inner: &mut Inner, read: PendingRead) {
        self.target.blocks().foreground.note_latency(read.began);
        let block_size = self.target.blocks().block_size;
        let skip = (read.offset % block_size.bytes()) as usize;
        let wanted = skip..skip + read.bytes as usize;
        let bytes = match read.parts.into_inner() {
            Ok([Part { bytes: Some(bytes), .. }]) if bytes.len() == wanted.len() => bytes,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_page_cache_is_probed_rarely_until_a_hit() {
        let mut guess = CacheGuess::default();
        let mut between = |hit: bool| {
            let mut skipped = 0;
            while !guess.is_likely() {
                skipped += 1;
            }
            guess.note(hit);
            skipped
        };
        assert_eq!([false; 9].map(&mut between), [0, 1, 3, 7, 15, 31, 63, 63, 63]);
        assert_eq!([true, true, false, true].map(between), [63, 0, 0, 1]);
    }
}
