//! Writes through the ring.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::{Inner, Later, Pass, Pending, Shared, Target};
use crate::error::{Error, Result};
use crate::io::{Done, IoMode, Op};
use crate::layer::{Admission, Admitted, Layer, Layers};
use crate::limits::{EXTENT_BLOCKS, SEGMENT_BYTES};
use crate::place::{BlockBits, Extent, IndexSpan, Segment};
use crate::volume::blocks::Piece;
use crate::volume::gate::{Gate, Inside};
use crate::volume::head::Head;
use crate::volume::request::{Completion, Request};

/// The gate of a head that is kept alive.
struct HeadGate(Arc<Head>);

impl Deref for HeadGate {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        &self.0.gate
    }
}

/// The part of a write that lies in one extent, and its blocks.
struct Part<S: Deref<Target = Admission>, L: Deref<Target = Layer>> {
    piece: Piece,
    admitted: Admitted<S, L>,
    /// The head answered for it before.
    owned: bool,
}

/// Most writes lie in one extent.
type Parts<'a> = SmallVec<[Part<&'a Admission, &'a Layer>; 1]>;

/// A write that the ring has. The guards give back blocks, gate and fence, in this order, whatever becomes of it.
pub struct PendingWrite {
    token: u64,
    fua: bool,
    layer: Arc<Layer>,
    parts: Vec<Part<Arc<Admission>, Arc<Layer>>>,
    checksums: Vec<u32>,
    segment: Segment,
    began: Option<Duration>,
    inside: Inside<HeadGate>,
    pass: Pass,
}

impl Shared {
    /// Starts a write. `false`: it needs a worker.
    pub(super) fn start_write(self: &Arc<Self>, inner: &mut Inner, token: u64, offset: u64, data: &Bytes, fua: bool) -> bool {
        let Target::Volume(head) = &self.target else { return false };
        let block_bytes = head.blocks.block_size.bytes();
        let bytes = data.len() as u64;
        let whole = offset.is_multiple_of(block_bytes) && bytes.is_multiple_of(block_bytes) && bytes > 0;
        // A range that wraps is refused where ranges are checked.
        let one_file = offset.checked_add(bytes).is_some_and(|end| offset / SEGMENT_BYTES == end.saturating_sub(1) / SEGMENT_BYTES);
        if !whole || !one_file || head.blocks.layers.under_pressure() || head.check_alive().is_err() {
            return false;
        }
        let Some(inside) = Gate::try_enter(&head.gate) else { return false };
        let layer = {
            let view = head.view.read();
            if view.check_range(offset, bytes).is_err() {
                return false;
            }
            Arc::clone(&view.layer)
        };
        let Some(parts) = admit(head, &layer, offset, bytes) else { return false };
        if head.blocks.layers.blocks.io_mode() == IoMode::Buffered && data.len() <= head.blocks.layers.limits().inline_bytes_max {
            let began = self.began();
            let result = write_inline(head, &layer, parts, data);
            drop(inside);
            head.blocks.foreground.note_latency(began);
            self.end_request(inner, token, fua, result, None);
            return true;
        }
        let block = head.blocks.block_size.block_at(offset);
        let Ok(file) = head.blocks.layers.blocks.data_file_to_write(&layer, block) else { return false };
        let checksums = head.blocks.layers.blocks.checksums_of(&layer, block, data);
        let (segment, place) = head.blocks.layers.blocks.place(block);
        let Some(pass) = self.hold(inner, token) else { return true };
        let keep = |part: Part<&Admission, &Layer>| {
            let mut admitted = part.admitted.keep(Arc::clone(&head.blocks.layers.admission), Arc::clone(&layer));
            admitted.touch();
            Part { piece: part.piece, admitted, owned: part.owned }
        };
        let parts = parts.into_iter().map(keep).collect();
        let (began, inside) = (self.began(), inside.keep(HeadGate(Arc::clone(head))));
        let op = Op::Write { file, data: head.blocks.layers.blocks.for_disk(data), offset: place };
        let layer = Arc::clone(&layer);
        let slot = inner.insert(Pending::Write(PendingWrite { token, fua, layer, parts, checksums, segment, began, inside, pass }));
        inner.ring.push(u64::from(slot) << 32, op);
        true
    }

    pub(super) fn end_write(self: &Arc<Self>, inner: &mut Inner, slot: u32, done: Done) {
        let (Some(Pending::Write(write)), Target::Volume(head)) = (inner.remove(slot), &self.target) else { return };
        let result = match (done.result, done.op) {
            (Ok(()), Op::Write { file, .. }) => {
                let mut checksums = &write.checksums[..];
                for Part { piece, admitted, owned } in write.parts {
                    let (these, rest) = checksums.split_at(piece.blocks.len());
                    checksums = rest;
                    admitted.finish(these, (write.segment, &file));
                    if !owned {
                        head.take_over(&write.layer, piece.extent, piece.blocks);
                    }
                }
                Ok(Bytes::new())
            }
            (result, _) => {
                let cause = result.err().unwrap_or_else(|| std::io::ErrorKind::Other.into());
                let first = write.parts.first().map_or(0, |part| part.piece.extent * EXTENT_BLOCKS + part.piece.blocks.start);
                let error = Error::io(format!("cannot write layer {} at block {first}", write.layer.id), cause);
                write.parts.into_iter().for_each(|part| part.admitted.fail(&error));
                Err(error)
            }
        };
        drop(write.inside);
        head.blocks.foreground.note_latency(write.began);
        self.end_request(inner, write.token, write.fua, result, Some(write.pass));
    }

    /// Ends a write, or lets a flush end it.
    fn end_request(&self, inner: &mut Inner, token: u64, fua: bool, result: Result<Bytes>, pass: Option<Pass>) {
        if !fua || result.is_err() {
            inner.ready.push(Completion { token, result });
        } else if let Some(pass) = pass.or_else(|| self.hold(inner, token)) {
            inner.later.push(Later { token, request: Request::Flush, pass });
        }
    }
}

/// Takes the blocks of a write, if they can be had at once. A write that overwrites some blocks and adds others is left to a worker,
/// which takes the space of the new ones first: the disk must not be full when the others are overwritten.
fn admit<'a>(head: &'a Head, layer: &'a Layer, offset: u64, bytes: u64) -> Option<Parts<'a>> {
    let layers: &Layers = &head.blocks.layers;
    let (mut at, end) = (offset, offset + bytes);
    let mut parts = Parts::new();
    let (mut overwrites, mut adds) = (false, false);
    while at < end {
        let piece = Piece::at(head.blocks.block_size, at, end - at);
        at += piece.bytes;
        let extent = Extent::clamped(piece.extent);
        let page = layers.blocks.cached_page(layer, extent)?;
        let bits = BlockBits::of(IndexSpan::new(piece.blocks.start, piece.blocks.end));
        let admitted = Admitted::now(&*layers.admission, layer, extent, bits, &page).ok()?.ok()?;
        let found = admitted.overwrites_and_adds();
        (overwrites, adds) = (overwrites || found.0, adds || found.1);
        if overwrites && adds {
            return None;
        }
        let owned = head.is_owner(layer, piece.extent, piece.blocks.clone());
        parts.push(Part { piece, admitted, owned });
    }
    Some(parts)
}

/// Writes admitted parts here and now.
fn write_inline(head: &Head, layer: &Layer, parts: Parts<'_>, data: &[u8]) -> Result<Bytes> {
    let mut at = 0;
    for Part { piece, admitted, owned } in parts {
        let part = &data[at..at + piece.bytes as usize];
        at += piece.bytes as usize;
        admitted.write(part)?;
        if !owned {
            head.take_over(layer, piece.extent, piece.blocks);
        }
    }
    Ok(Bytes::new())
}
