//! Reads through the ring, or at once from the page cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::{Inner, Later, Pass, Pending, Shared, Target};
use crate::error::Error;
use crate::io::{AlignedBuffer, Done, IoMode, Op, ReadBuffer};
use crate::layer::{BlockRead, Layer};
use crate::limits::SEGMENT_BYTES;
use crate::place::{Block, BlockSpan, index, length, wide};
use crate::volume::blocks::Answer;
use crate::volume::request::{Completion, Request};

/// What direct I/O wants the memory of a transfer to begin on a multiple of.
const DIRECT_ALIGN_BYTES: usize = 4096;

/// Consecutive blocks with one answer.
struct Part {
    blocks: BlockSpan,
    /// `None`: zeros.
    layer: Option<Arc<Layer>>,
    /// Verified bytes in memory of the engine.
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
    /// Memory of the caller that the bytes go to.
    given: Option<Vec<BytesMut>>,
    /// The only part is read into the caller's only buffer. A transfer has it, or it is in `given` and has been filled.
    direct: bool,
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
    /// Starts a read, into the memory `given` if there is some. `false`: it needs a worker.
    pub(super) fn start_read(
        &self,
        inner: &mut Inner,
        token: u64,
        (offset, bytes): (u64, u32),
        mut given: Option<&mut Vec<BytesMut>>,
    ) -> bool {
        let (began, chain) = (self.began(), self.target.blocks());
        let Some(mut parts) = self.plan_read(offset, bytes) else { return false };
        let may_be_cached = chain.layers.blocks.io_mode() == IoMode::Buffered && index(bytes) <= chain.layers.limits().inline_bytes_max;
        let direct = given.as_ref().is_some_and(|given| self.is_direct(given, offset, &parts));
        let mut ops: SmallVec<[(usize, Op); 1]> = SmallVec::new();
        for (number, part) in parts.iter_mut().enumerate() {
            let Some(layer) = &part.layer else { continue };
            let Some(first) = part.blocks.first() else { continue };
            let Ok(Some(file)) = chain.layers.blocks.data_file(layer, first) else { return false };
            let bytes = length(chain.block_size.bytes_for(part.blocks.len()));
            let own = given.as_mut().filter(|_| direct).and_then(|given| given.pop());
            let mut buffer = own.map_or_else(|| AlignedBuffer::new(bytes).into(), ReadBuffer::Given);
            let offset = chain.layers.blocks.place(first).1;
            if may_be_cached && inner.cached.is_likely() {
                let cached = chain.layers.blocks.read_cached(layer, &*file, first, &mut buffer);
                inner.cached.note(cached.is_some());
                // What does not match is read again through the ring, as everything else.
                if cached == Some(BlockRead::Verified) {
                    match (buffer, given.as_mut()) {
                        (ReadBuffer::Aligned(buffer), _) => part.bytes = Some(buffer.into_bytes()),
                        (ReadBuffer::Given(buffer), Some(given)) => given.push(buffer),
                        (ReadBuffer::Given(_), None) => {}
                    }
                    continue;
                }
            }
            ops.push((number, Op::Read { file, buffer, offset }));
        }
        let pass = match ops.is_empty() {
            true => None,
            false => match self.hold() {
                Ok(pass) => Some(pass),
                Err(_) => {
                    give_back(ops, given);
                    return false;
                }
            },
        };
        let given = given.map(std::mem::take);
        let read = PendingRead { token, offset, bytes, parts, given, direct, under_way: ops.len(), failed: false, began, pass };
        if ops.is_empty() {
            self.finish_read(inner, read);
            return true;
        }
        let slot = inner.pending.insert(Pending::Read(read));
        for (number, op) in ops {
            inner.ring.push(wide(slot) << 32 | wide(number), op);
        }
        true
    }

    /// Whether the bytes can be read into the caller's memory as they are: whole blocks of one layer, and one buffer that the disk takes.
    fn is_direct(&self, given: &[BytesMut], offset: u64, parts: &[Part]) -> bool {
        let chain = self.target.blocks();
        let ([buffer], [Part { blocks, layer: Some(_), .. }]) = (given, parts) else { return false };
        let whole = chain.block_size.bytes_of(*blocks) == (offset..offset + wide(buffer.len()));
        whole && (chain.layers.blocks.io_mode() == IoMode::Buffered || buffer.as_ptr().addr().is_multiple_of(DIRECT_ALIGN_BYTES))
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
        for piece in chain.block_size.pieces(offset..offset + u64::from(bytes)) {
            for (run, answer) in chain.answers(&view, piece.part).ok()? {
                let blocks = piece.part.extent.part(run).span();
                let layer = match answer {
                    Answer::Zero => None,
                    Answer::Held(layer) => Some(layer),
                    Answer::Missing(_) | Answer::Patched(_) => return None,
                };
                let joins = |part: &&mut Part| {
                    part.blocks.end() == blocks.start()
                        && part.layer.as_ref().map(|layer| layer.id) == layer.as_ref().map(|layer| layer.id)
                        && !chain.block_size.bytes_of(blocks).start.is_multiple_of(SEGMENT_BYTES)
                };
                match parts.last_mut().filter(joins) {
                    Some(part) => part.blocks = BlockSpan::new(part.blocks.start(), blocks.end()),
                    None => parts.push(Part { blocks, layer, bytes: None }),
                }
            }
        }
        Some(parts)
    }

    pub(super) fn end_read(self: &Arc<Self>, inner: &mut Inner, slot: usize, done: Done) {
        let Some(Pending::Read(read)) = inner.pending.get_mut(slot) else { return };
        let part = &mut read.parts[length(done.token & u64::from(u32::MAX))];
        read.under_way -= 1;
        let layers = &self.target.blocks().layers;
        let Op::Read { buffer, .. } = done.op else { return };
        let verified = done.result.is_ok()
            && part.layer.as_ref().is_some_and(|layer| {
                let first = part.blocks.first().unwrap_or(Block::LAST);
                // The disk's code may panic, and other completions wait to be taken.
                let verify = AssertUnwindSafe(|| layers.blocks.verify(layer, first, &buffer));
                matches!(catch_unwind(verify), Ok(Ok(BlockRead::Verified)))
            });
        // What does not match, a worker reads again, and finds out whether it is damage.
        read.failed |= !verified;
        let mut lost = false;
        match (buffer, &mut read.given) {
            (ReadBuffer::Given(buffer), Some(given)) => given.push(buffer),
            (ReadBuffer::Aligned(_), _) if read.direct => lost = true,
            (ReadBuffer::Aligned(buffer), _) if verified => part.bytes = Some(buffer.into_bytes()),
            (ReadBuffer::Aligned(_) | ReadBuffer::Given(_), _) => {}
        }
        if lost {
            let cause = done.result.err().unwrap_or_else(|| std::io::ErrorKind::Other.into());
            let lost = Error::io("the ring never gave the memory of a read back", cause);
            let token = read.token;
            inner.pending.remove(slot);
            inner.ready.push(Request::Flush.complete(token, Err(lost)));
        } else if read.under_way == 0 {
            self.end_last(inner, slot);
        }
    }

    /// Every transfer of a read has ended.
    fn end_last(&self, inner: &mut Inner, slot: usize) {
        let Some(Pending::Read(mut read)) = inner.pending.remove(slot) else { return };
        match read.pass.take() {
            Some(pass) if read.failed => {
                let (token, offset, bytes) = (read.token, read.offset, read.bytes);
                let again = |buffers| Request::ReadInto { offset, buffers };
                let request = read.given.map_or(Request::Read { offset, bytes }, again);
                inner.later.push(Later { token, request, pass });
            }
            _ => self.finish_read(inner, read),
        }
    }

    fn finish_read(&self, inner: &mut Inner, read: PendingRead) {
        self.target.blocks().foreground.note_latency(read.began);
        let block_size = self.target.blocks().block_size;
        let skip = length(read.offset % block_size.bytes());
        let size = |part: &Part| length(block_size.bytes_for(part.blocks.len()));
        let bytes = match (read.given, &read.parts[..]) {
            (Some(mut buffers), parts) => {
                if !read.direct {
                    scatter(parts.iter().map(|part| (part.bytes.as_deref(), size(part))), skip, &mut buffers);
                }
                return inner.ready.push(Completion { token: read.token, result: Ok(Bytes::new()), buffers });
            }
            // The only part is the read itself, or it is a part of it.
            (None, [Part { bytes: Some(bytes), .. }]) => bytes.slice(skip..skip + index(read.bytes)),
            (None, parts) => {
                let mut all = BytesMut::zeroed(index(read.bytes));
                scatter(parts.iter().map(|part| (part.bytes.as_deref(), size(part))), skip, std::slice::from_mut(&mut all));
                all.freeze()
            }
        };
        inner.ready.push(Completion { token: read.token, result: Ok(bytes), buffers: Vec::new() });
    }
}

/// Gives the caller's buffer back, of a read that does not go to the ring.
fn give_back(ops: SmallVec<[(usize, Op); 1]>, given: Option<&mut Vec<BytesMut>>) {
    let Some(given) = given else { return };
    for (_, op) in ops {
        if let Op::Read { buffer: ReadBuffer::Given(buffer), .. } = op {
            given.push(buffer);
        }
    }
}

/// Copies what parts have, from the byte `skip` on, into buffers, one after the other. A part is its bytes, or zeros, and its length.
/// The parts are not shorter than the buffers.
pub fn scatter<'a>(parts: impl IntoIterator<Item = (Option<&'a [u8]>, usize)>, mut skip: usize, buffers: &mut [BytesMut]) {
    let mut buffers = buffers.iter_mut();
    let mut rest: &mut [u8] = &mut [];
    for (bytes, length) in parts {
        let (mut at, end) = (skip.min(length), length);
        skip -= at;
        while at < end {
            if rest.is_empty() {
                let Some(next) = buffers.next() else { return };
                rest = next;
                continue;
            }
            let count = rest.len().min(end - at);
            let (filled, behind) = rest.split_at_mut(count);
            match bytes {
                Some(bytes) => filled.copy_from_slice(&bytes[at..at + count]),
                None => filled.fill(0),
            }
            (rest, at) = (behind, at + count);
        }
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

    #[test]
    fn bytes_of_parts_are_scattered_over_buffers_of_any_length() {
        let parts = [(Some(&[1u8, 2, 3][..]), 3), (None, 2), (Some(&[6, 7, 8, 9][..]), 4)];
        let mut buffers = [0, 1, 4, 3].map(|length| BytesMut::from(&[255; 8][..length]));
        scatter(parts, 1, &mut buffers);
        assert_eq!(buffers, [&[][..], &[2], &[3, 0, 0, 6], &[7, 8, 9]]);
    }
}
