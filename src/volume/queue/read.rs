//! Reads through the ring, or at once from the page cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::outcome::{Begun, Later, Outcome, Pass, Transfers};
use super::scatter::scatter;
use super::target::Target;
use crate::error::Error;
use crate::io::{AlignedBuffer, Done, Guess, IoMode, Op, ReadBuffer};
use crate::layer::{BlockRead, Layer, Layers};
use crate::limits::SEGMENT_BYTES;
use crate::place::{Block, BlockSpan, index, length, wide};
use crate::volume::blocks::{Answer, Blocks};
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
    /// The ring has not given the caller's buffer back.
    lost: Option<Error>,
    began: Option<Duration>,
    /// `None`: it ends in the call that started it.
    pass: Option<Pass>,
}

impl PendingRead {
    /// Begins a read, into the memory `given` if there is some.
    pub fn begin(
        target: &Target,
        cached: &mut Guess,
        token: u64,
        (offset, bytes): (u64, u32),
        mut given: Option<&mut Vec<BytesMut>>,
    ) -> Begun<Self> {
        let chain = target.blocks();
        let began = chain.foreground.began();
        let Some(mut parts) = plan(target, offset, bytes) else { return Begun::NeedsWorker };
        let may_be_cached = chain.layers.blocks.io_mode() == IoMode::Buffered && index(bytes) <= chain.layers.limits().inline_bytes_max;
        let direct = given.as_ref().is_some_and(|given| is_direct(chain, given, offset, &parts));
        let mut transfers = Transfers::new();
        for (number, part) in parts.iter_mut().enumerate() {
            let Some(layer) = &part.layer else { continue };
            let Some(first) = part.blocks.first() else { continue };
            let Ok(Some(file)) = chain.layers.blocks.data_file(layer, first) else { return Begun::NeedsWorker };
            let bytes = length(chain.block_size.bytes_for(part.blocks.len()));
            let own = given.as_mut().filter(|_| direct).and_then(|given| given.pop());
            let mut buffer = own.map_or_else(|| AlignedBuffer::new(bytes).into(), ReadBuffer::Given);
            let offset = chain.layers.blocks.place(first).1;
            if may_be_cached && cached.is_likely() {
                let read = chain.layers.blocks.read_cached(layer, &*file, first, &mut buffer);
                cached.note(read.is_some());
                // What does not match is read again through the ring, as everything else.
                if read == Some(BlockRead::Verified) {
                    match (buffer, given.as_mut()) {
                        (ReadBuffer::Aligned(buffer), _) => part.bytes = Some(buffer.into_bytes()),
                        (ReadBuffer::Given(buffer), Some(given)) => given.push(buffer),
                        (ReadBuffer::Given(_), None) => {}
                    }
                    continue;
                }
            }
            transfers.push((number, Op::Read { file, buffer, offset }));
        }
        let pass = match transfers.is_empty() {
            true => None,
            false => match target.hold() {
                Ok(pass) => Some(pass),
                Err(_) => {
                    give_back(transfers, given);
                    return Begun::NeedsWorker;
                }
            },
        };
        let given = given.map(std::mem::take);
        let read = Self { token, offset, bytes, parts, given, direct, under_way: transfers.len(), failed: false, lost: None, began, pass };
        match transfers.is_empty() {
            true => Begun::Done(Outcome::Ended(read.complete(chain))),
            false => Begun::Pending(read, transfers),
        }
    }

    /// A transfer has ended. Answers whether it was the last one.
    pub fn end_transfer(&mut self, layers: &Layers, done: Done) -> bool {
        let part = &mut self.parts[length(done.token & u64::from(u32::MAX))];
        self.under_way -= 1;
        let Op::Read { buffer, .. } = done.op else { return self.under_way == 0 };
        let verified = done.result.is_ok()
            && part.layer.as_ref().is_some_and(|layer| {
                let first = part.blocks.first().unwrap_or(Block::LAST);
                // The disk's code may panic, and other completions wait to be taken.
                let verify = AssertUnwindSafe(|| layers.blocks.verify(layer, first, &buffer));
                matches!(catch_unwind(verify), Ok(Ok(BlockRead::Verified)))
            });
        // What does not match, a worker reads again, and finds out whether it is damage.
        self.failed |= !verified;
        match (buffer, &mut self.given) {
            (ReadBuffer::Given(buffer), Some(given)) => given.push(buffer),
            (ReadBuffer::Aligned(_), _) if self.direct => {
                let cause = done.result.err().unwrap_or_else(|| std::io::ErrorKind::Other.into());
                self.lost = Some(Error::io("the ring never gave the memory of a read back", cause));
            }
            (ReadBuffer::Aligned(buffer), _) if verified => part.bytes = Some(buffer.into_bytes()),
            (ReadBuffer::Aligned(_) | ReadBuffer::Given(_), _) => {}
        }
        self.under_way == 0
    }

    /// Every transfer of it has ended.
    pub fn end(mut self, blocks: &Blocks) -> Outcome {
        if let Some(lost) = self.lost {
            return Outcome::Ended(Request::Flush.complete(self.token, Err(lost)));
        }
        match self.pass.take() {
            Some(pass) if self.failed => {
                let (offset, bytes) = (self.offset, self.bytes);
                let again = |buffers| Request::ReadInto { offset, buffers };
                let request = self.given.map_or(Request::Read { offset, bytes }, again);
                Outcome::Later(Later { token: self.token, request, pass })
            }
            _ => Outcome::Ended(self.complete(blocks)),
        }
    }

    fn complete(self, blocks: &Blocks) -> Completion {
        blocks.foreground.note_latency(self.began);
        let (token, block_size) = (self.token, blocks.block_size);
        let skip = length(self.offset % block_size.bytes());
        let size = |part: &Part| length(block_size.bytes_for(part.blocks.len()));
        let bytes = match (self.given, &self.parts[..]) {
            (Some(mut buffers), parts) => {
                if !self.direct {
                    scatter(parts.iter().map(|part| (part.bytes.as_deref(), size(part))), skip, &mut buffers);
                }
                return Completion { token, result: Ok(Bytes::new()), buffers };
            }
            // The only part is the read itself, or it is a part of it.
            (None, [Part { bytes: Some(bytes), .. }]) => bytes.slice(skip..skip + index(self.bytes)),
            (None, parts) => {
                let mut all = BytesMut::zeroed(index(self.bytes));
                scatter(parts.iter().map(|part| (part.bytes.as_deref(), size(part))), skip, std::slice::from_mut(&mut all));
                all.freeze()
            }
        };
        Completion { token, result: Ok(bytes), buffers: Vec::new() }
    }
}

/// Whether the bytes can be read into the caller's memory as they are: whole blocks of one layer, and one buffer that the disk takes.
fn is_direct(chain: &Blocks, given: &[BytesMut], offset: u64, parts: &[Part]) -> bool {
    let ([buffer], [Part { blocks, layer: Some(_), .. }]) = (given, parts) else { return false };
    let whole = chain.block_size.bytes_of(*blocks) == (offset..offset + wide(buffer.len()));
    whole && (chain.layers.blocks.io_mode() == IoMode::Buffered || buffer.as_ptr().addr().is_multiple_of(DIRECT_ALIGN_BYTES))
}

/// Which layers answer, if all of it is here.
fn plan(target: &Target, offset: u64, bytes: u32) -> Option<Parts> {
    let chain = target.blocks();
    let view = target.view().read();
    view.check_range(offset, u64::from(bytes)).ok()?;
    if let Target::Volume(head) = target {
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

/// Gives the caller's buffer back, of a read that does not go to the ring.
fn give_back(transfers: Transfers, given: Option<&mut Vec<BytesMut>>) {
    let Some(given) = given else { return };
    for (_, op) in transfers {
        if let Op::Read { buffer: ReadBuffer::Given(buffer), .. } = op {
            given.push(buffer);
        }
    }
}
