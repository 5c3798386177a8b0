//! What block status says of an export.

use std::ops::Range;

use super::export::Export;
use super::handshake::{NUMBER_OF_ALLOCATION, NUMBER_OF_CHECKSUMS, NUMBER_OF_DEPTH};
use crate::error::Result;
use crate::volume::{Run, RunKind, Snapshot};
use crate::wire::StatusExtent;
use crate::wire::constants::{CHECKSUM_KNOWN, PAYLOAD_BYTES_MAX, STATE_HOLE, STATE_ZERO};

/// Extents of one block status: 2^20 are the most that clients take.
const EXTENTS_MAX: usize = 1 << 20;
/// Bytes of which the depth is told at once: bounds the time, and the client asks on.
const DEPTH_BYTES_MAX: u64 = 64 << 30;

/// What one context says of the bytes from the start of `range` (not empty); the extents cover a part of it, at least.
///
/// # Errors
/// The range ends behind the export; checksums cannot be read.
pub fn extents(export: &Export, context: u32, range: Range<u64>) -> Result<Vec<StatusExtent>> {
    let cut = |bytes: u64| range.start..range.end.min(range.start.saturating_add(bytes));
    match (context, export.snapshot()) {
        (NUMBER_OF_ALLOCATION, _) => Ok(joined(&export.allocation(range, EXTENTS_MAX)?, allocation)),
        (NUMBER_OF_DEPTH, _) => Ok(joined(&export.runs(cut(DEPTH_BYTES_MAX), EXTENTS_MAX)?, depth)),
        (NUMBER_OF_CHECKSUMS, Some(snapshot)) => checksums(snapshot, cut(u64::from(PAYLOAD_BYTES_MAX))),
        (_, Some(snapshot)) => Ok(trace(snapshot, range)),
        (_, None) => Ok(vec![StatusExtent { length: range.end - range.start, flags: 0 }]),
    }
}

fn push(extents: &mut Vec<StatusExtent>, length: u64, flags: u64) {
    match extents.last_mut() {
        Some(last) if last.flags == flags => last.length += length,
        _ if length > 0 => extents.push(StatusExtent { length, flags }),
        _ => {}
    }
}

fn joined(runs: &[Run], flags: impl Fn(RunKind) -> u64) -> Vec<StatusExtent> {
    let mut extents = Vec::new();
    for run in runs {
        push(&mut extents, run.bytes, flags(run.kind));
    }
    extents
}

/// Flags of `base:allocation`. A block that is still at a source is allocated: it may be data.
fn allocation(kind: RunKind) -> u64 {
    match kind {
        RunKind::Zero => u64::from(STATE_HOLE | STATE_ZERO),
        RunKind::Data { .. } | RunKind::Missing => 0,
    }
}

/// Depth of `qemu:allocation-depth`: 0 for nothing, 1 for the volume's own layer, 2 for what is below.
fn depth(kind: RunKind) -> u64 {
    match kind {
        RunKind::Zero => 0,
        RunKind::Data { depth } => u64::from(depth),
        RunKind::Missing => 2,
    }
}

/// One extent for each whole block, never joined: each says a checksum of its own.
fn checksums(snapshot: &Snapshot, range: Range<u64>) -> Result<Vec<StatusExtent>> {
    let block_bytes = u64::from(snapshot.block_bytes());
    let whole = range.start.next_multiple_of(block_bytes)..range.end;
    let mut extents = Vec::new();
    push(&mut extents, whole.start.min(range.end) - range.start, 0);
    if whole.is_empty() {
        return Ok(extents);
    }
    let mut offset = whole.start;
    for checksum in snapshot.checksums(whole)? {
        let length = block_bytes.min(range.end - offset);
        // The rest of the last block of the snapshot is zero; of any other block, a part says nothing.
        let whole = length == block_bytes || range.end == snapshot.size_bytes();
        match checksum.filter(|_| whole) {
            Some(checksum) => extents.push(StatusExtent { length, flags: CHECKSUM_KNOWN | u64::from(checksum) }),
            None => push(&mut extents, length, 0),
        }
        offset += length;
    }
    Ok(extents)
}

/// Touched runs in order of their place, numbered in order of their touch.
fn trace(snapshot: &Snapshot, range: Range<u64>) -> Vec<StatusExtent> {
    let mut runs: Vec<(Range<u64>, u64)> = snapshot.trace().into_iter().zip(1..).collect();
    runs.sort_unstable_by_key(|(run, _)| run.start);
    let mut extents = Vec::new();
    let mut offset = range.start;
    for (run, number) in runs {
        let (start, end) = (run.start.clamp(offset, range.end), run.end.clamp(offset, range.end));
        push(&mut extents, start - offset, 0);
        push(&mut extents, end - start, number);
        offset = end;
    }
    push(&mut extents, range.end - offset, 0);
    extents
}
