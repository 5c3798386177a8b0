//! What answers for ranges of bytes, without reading them.

use std::collections::HashMap;
use std::ops::Range;

use roaring::RoaringBitmap;

use crate::error::Result;
use crate::ids::LayerId;
use crate::place::{BlockSpan, set_of};
use crate::sync::RwLock;
use crate::volume::blocks::{Answer, Blocks, View};
use crate::volume::request::{Run, RunKind};

/// Adds a run, joined to the last one if it says the same.
fn push(runs: &mut Vec<Run>, bytes: u64, kind: RunKind) {
    match runs.last_mut() {
        Some(last) if last.kind == kind => last.bytes += bytes,
        _ => runs.push(Run { bytes, kind }),
    }
}

/// What answers for the bytes from the start of `range`.
pub fn runs(blocks: &Blocks, seen: &RwLock<View>, range: Range<u64>, runs_max: usize) -> Result<Vec<Run>> {
    seen.read().check_run(&range)?;
    let mut depths = (None, HashMap::new());
    let mut runs = Vec::new();
    for piece in blocks.block_size.pieces(range.clone()) {
        // Behind this lock the top of the chain stays the top, so nothing that it shows is forgotten.
        let view = seen.read();
        for (part, answer) in blocks.answers(&view, piece.part)? {
            let kind = match answer {
                Answer::Zero => RunKind::Zero,
                Answer::Missing(_) | Answer::Patched(_) => RunKind::Missing,
                Answer::Held(layer) => RunKind::Data { depth: depth_of(blocks, &view, layer.id, &mut depths) },
            };
            let bytes = blocks.block_size.bytes_of(piece.part.extent.part(part).span());
            push(&mut runs, bytes.end.min(range.end) - bytes.start.max(range.start), kind);
        }
        if runs.len() > runs_max {
            runs.truncate(runs_max);
            break;
        }
    }
    Ok(runs)
}

/// How far below the top a layer is, counted from 1; the walk is remembered for the request.
fn depth_of(blocks: &Blocks, view: &View, layer: LayerId, (top, depths): &mut (Option<LayerId>, HashMap<LayerId, u32>)) -> u32 {
    if layer == view.layer.id {
        return 1;
    }
    if *top != Some(view.layer.id) {
        *top = Some(view.layer.id);
        depths.clear();
        let mut next = view.layer.parent;
        let mut depth = 2;
        while let Some(layer) = next.and_then(|id| blocks.layers.get(id)) {
            depths.insert(layer.id, depth);
            depth += 1;
            next = layer.parent;
        }
    }
    depths.get(&layer).copied().unwrap_or(1)
}

/// Which bytes of `range` are zero and which may not be, as runs (the depth of data is not told apart). Costs as much as
/// the presence of the chain, however large the range is.
///
/// # Errors
/// [`crate::ErrorKind::OutOfRange`].
pub fn allocation(blocks: &Blocks, seen: &RwLock<View>, range: Range<u64>, runs_max: usize) -> Result<Vec<Run>> {
    let data = {
        let _forgetting = blocks.forgetting.read();
        let view = seen.read().clone();
        view.check_run(&range)?;
        data_blocks(blocks, &view)?
    };
    let mut runs: Vec<Run> = Vec::new();
    let mut offset = range.start;
    let mut push = |runs: &mut Vec<Run>, end: u64, kind| {
        if end > offset {
            runs.push(Run { bytes: end - offset, kind });
            offset = end;
        }
    };
    let mut parts = data.range(blocks.block_size.block_at(range.start).number()..);
    while let Some(run) = parts.next_range() {
        let bytes = blocks.block_size.bytes_of(BlockSpan::of_run(&run));
        push(&mut runs, bytes.start.min(range.end), RunKind::Zero);
        push(&mut runs, bytes.end.min(range.end), RunKind::Data { depth: 1 });
        if bytes.start >= range.end || runs.len() >= runs_max {
            runs.truncate(runs_max);
            return Ok(runs);
        }
    }
    push(&mut runs, range.end, RunKind::Zero);
    Ok(runs)
}

/// Blocks of a view that are data, or may be: everything but zeros.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] when the volume was destroyed.
fn data_blocks(blocks: &Blocks, view: &View) -> Result<RoaringBitmap> {
    let (mut data, mut zero) = (RoaringBitmap::new(), RoaringBitmap::new());
    let mut next = Some(view.layer.id);
    while let Some(id) = next {
        let layer = blocks.layers.require(id)?;
        if layer.has_patches() {
            data |= layer.patched_blocks() - &zero;
        }
        layer.with_presence(|presence| {
            data |= &presence.present - &zero;
            zero |= &presence.zeroed - &data;
        });
        if let Some(all) = layer.source_blocks() {
            // What is still at the source may be data.
            data |= set_of(BlockSpan::new(0, all)) - &zero;
        }
        next = layer.parent;
    }
    Ok(data)
}
