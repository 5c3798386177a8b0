//! Writes through the ring.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use super::outcome::{Begun, Later, Outcome, Pass};
use crate::error::Result;
use crate::io::{Done, IoMode};
use crate::layer::{Admission, Admitted, Layer, Layers, RingWrite};
use crate::limits::SEGMENT_BYTES;
use crate::place::{BlockBits, ExtentSpan, Piece, length, wide};
use crate::volume::gate::{Gate, Inside};
use crate::volume::head::Head;
use crate::volume::request::Request;

/// The gate of a head that is kept alive.
struct HeadGate(Arc<Head>);

impl Deref for HeadGate {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        &self.0.gate
    }
}

/// The part of a write that lies in one extent, and its blocks.
struct Part<'a> {
    piece: Piece,
    admitted: Admitted<&'a Admission, &'a Layer>,
    /// The head answered for it before.
    owned: bool,
}

/// Most writes lie in one extent.
type Parts<'a> = SmallVec<[Part<'a>; 1]>;

/// A write that the ring has. The guards give back blocks, gate and fence, in this order, whatever becomes of it.
pub struct PendingWrite {
    token: u64,
    fua: bool,
    layer: Arc<Layer>,
    write: RingWrite,
    /// Blocks for which the head did not answer before.
    taken_over: SmallVec<[ExtentSpan; 1]>,
    began: Option<Duration>,
    inside: Inside<HeadGate>,
    pass: Pass,
}

impl PendingWrite {
    /// Begins a write.
    pub fn begin(head: &Arc<Head>, token: u64, offset: u64, data: &Bytes, fua: bool) -> Begun<Self> {
        let block_bytes = head.blocks.block_size.bytes();
        let bytes = wide(data.len());
        let whole = offset.is_multiple_of(block_bytes) && bytes.is_multiple_of(block_bytes) && bytes > 0;
        // A range that wraps is refused where ranges are checked.
        let one_file = offset.checked_add(bytes).is_some_and(|end| offset / SEGMENT_BYTES == end.saturating_sub(1) / SEGMENT_BYTES);
        if !whole || !one_file || head.blocks.layers.under_pressure() || head.check_alive().is_err() {
            return Begun::NeedsWorker;
        }
        let Some(inside) = Gate::try_enter(&head.gate) else { return Begun::NeedsWorker };
        let layer = {
            let view = head.view.read();
            if view.check_range(offset, bytes).is_err() {
                return Begun::NeedsWorker;
            }
            Arc::clone(&view.layer)
        };
        let Some(parts) = admit(head, &layer, offset, bytes) else { return Begun::NeedsWorker };
        if head.blocks.layers.blocks.io_mode() == IoMode::Buffered && data.len() <= head.blocks.layers.limits().inline_bytes_max {
            let began = head.blocks.foreground.began();
            let result = write_inline(head, &layer, parts, data);
            drop(inside);
            head.blocks.foreground.note_latency(began);
            return Begun::Done(finish(head, token, fua || !head.blocks.layers.is_founded(&layer), result, None));
        }
        let Ok(pass) = head.pool.fence.hold() else { return Begun::NeedsWorker };
        let (layers, block) = (&head.blocks.layers, head.blocks.block_size.block_at(offset));
        let mut taken_over = SmallVec::new();
        let keep = |part: Part<'_>| {
            if !part.owned {
                taken_over.push(part.piece.part);
            }
            part.admitted.keep(Arc::clone(&layers.admission), Arc::clone(&layer))
        };
        let parts = parts.into_iter().map(keep).collect();
        let (began, inside) = (head.blocks.foreground.began(), inside.keep(HeadGate(Arc::clone(head))));
        let Ok((write, op)) = RingWrite::begin(&layers.admission, &layer, block, parts, data) else { return Begun::NeedsWorker };
        let write = Self { token, fua, layer, write, taken_over, began, inside, pass };
        Begun::Pending(write, smallvec![(0, op)])
    }

    /// Its transfer has ended.
    pub fn end(self, head: &Head, done: Done) -> Outcome {
        let result = self.write.end(done);
        // A process that finds the journal after the death of this one has to find the layer.
        let flushes = self.fua || !head.blocks.layers.is_founded(&self.layer);
        if result.is_ok() {
            for part in self.taken_over {
                head.take_over(&self.layer, part);
            }
        }
        drop(self.inside);
        head.blocks.foreground.note_latency(self.began);
        finish(head, self.token, flushes, result, Some(self.pass))
    }
}

/// Ends a write, or lets a flush end it.
fn finish(head: &Head, token: u64, fua: bool, result: Result<()>, pass: Option<Pass>) -> Outcome {
    let pass = match (result, pass) {
        (Ok(()), pass) if fua => pass.map_or_else(|| head.pool.fence.hold(), Ok),
        (result, _) => return Outcome::Ended(Request::Flush.complete(token, result.map(|()| Bytes::new()))),
    };
    match pass {
        Ok(pass) => Outcome::Later(Later { token, request: Request::Flush, pass }),
        Err(closed) => Outcome::Ended(Request::Flush.complete(token, Err(closed))),
    }
}

/// Takes the blocks of a write, if they can be had at once. A write that overwrites some blocks and adds others is left to a worker,
/// which takes the space of the new ones first: the disk must not be full when the others are overwritten.
fn admit<'a>(head: &'a Head, layer: &'a Layer, offset: u64, bytes: u64) -> Option<Parts<'a>> {
    let layers: &Layers = &head.blocks.layers;
    let mut parts = Parts::new();
    let (mut overwrites, mut adds) = (false, false);
    for piece in head.blocks.block_size.pieces(offset..offset + bytes) {
        let extent = piece.part.extent;
        let page = layers.blocks.cached_page(layer, extent)?;
        let bits = BlockBits::of(piece.part.indices);
        let admitted = Admitted::now(&*layers.admission, layer, extent, bits, &page).ok()?.ok()?;
        let found = admitted.overwrites_and_adds();
        (overwrites, adds) = (overwrites || found.0, adds || found.1);
        if overwrites && adds {
            return None;
        }
        let owned = head.is_owner(layer, piece.part);
        parts.push(Part { piece, admitted, owned });
    }
    Some(parts)
}

/// Writes admitted parts here and now.
fn write_inline(head: &Head, layer: &Layer, parts: Parts<'_>, data: &[u8]) -> Result<()> {
    let mut rest = data;
    for Part { piece, admitted, owned } in parts {
        let (part, behind) = rest.split_at(length(piece.bytes));
        rest = behind;
        admitted.write(part)?;
        if !owned {
            head.take_over(layer, piece.part);
        }
    }
    Ok(())
}
