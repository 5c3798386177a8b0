//! Block status of an export, in each of its contexts.

use std::ops::Range;

use super::export::Export;
use crate::error::Result;
use crate::volume::{Run, RunKind, Snapshot};
use crate::wire::StatusExtent;
use crate::wire::constants::{
    CHECKSUM_KNOWN, CONTEXT_ALLOCATION, CONTEXT_ALLOCATION_DEPTH, CONTEXT_CHECKSUMS, CONTEXT_DIRTY_BITMAP, CONTEXT_MISSING, CONTEXT_TRACE,
    PAYLOAD_BYTES_MAX, STATE_DIRTY, STATE_HOLE, STATE_MISSING, STATE_ZERO,
};

/// A context of block status that a client can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Context {
    /// Which bytes are zero.
    Allocation,
    /// From which layer they come.
    Depth,
    /// Which are still only at a source.
    Missing,
    /// Checksums of blocks.
    Checksums,
    /// In which order an earlier fork touched them.
    Trace,
    /// Which were changed since this snapshot.
    Changed(String),
}

impl Context {
    /// The contexts of an export. Their order changes only when snapshots are taken or destroyed.
    pub fn of(export: &Export, is_extended: bool) -> Vec<Self> {
        let mut contexts = vec![Self::Allocation, Self::Depth, Self::Missing];
        if is_extended && export.snapshot().is_some() {
            // Their flags need 64 bits, and they say what never changes.
            contexts.extend([Self::Checksums, Self::Trace]);
        }
        contexts.extend(export.snapshots_below().into_iter().map(Self::Changed));
        contexts
    }

    /// Its name on the wire.
    pub fn name(&self) -> String {
        match self {
            Self::Allocation => CONTEXT_ALLOCATION.into(),
            Self::Depth => CONTEXT_ALLOCATION_DEPTH.into(),
            Self::Missing => CONTEXT_MISSING.into(),
            Self::Checksums => CONTEXT_CHECKSUMS.into(),
            Self::Trace => CONTEXT_TRACE.into(),
            Self::Changed(snapshot) => format!("{CONTEXT_DIRTY_BITMAP}{snapshot}"),
        }
    }
}

/// Extents of one block status in all its contexts: 2^20 are the most that clients take.
pub const EXTENTS_MAX: usize = 1 << 20;
/// Bytes of which the layers are told at once: bounds the time, and the client asks on.
const RUNS_BYTES_MAX: u64 = 64 << 30;

/// The status of the bytes from the start of `range` (not empty) in one context, in about `most` extents; they cover a part of the
/// range, at least.
///
/// # Errors
/// The range ends behind the export; checksums cannot be read; the snapshot was destroyed.
pub fn extents(export: &Export, context: &Context, range: Range<u64>, most: usize) -> Result<Vec<StatusExtent>> {
    let most = most.max(2);
    let cut = |bytes: u64| range.start..range.end.min(range.start.saturating_add(bytes));
    match (context, export.snapshot()) {
        (Context::Allocation, _) => Ok(joined(&export.allocation(range, most)?, allocation)),
        (Context::Depth, _) => Ok(joined(&export.runs(cut(RUNS_BYTES_MAX), most)?, depth)),
        (Context::Missing, _) => Ok(joined(&export.runs(cut(RUNS_BYTES_MAX), most)?, missing)),
        (Context::Changed(snapshot), _) => {
            let most = most / 2;
            let changed = export.changed_since(snapshot, &range, most)?;
            // There may be more behind the last one.
            let end = changed.get(most - 1).map_or(range.end, |last| last.end);
            let range = range.start..end;
            Ok(marked(changed.into_iter().map(|run| (run, STATE_DIRTY)), &range))
        }
        (Context::Checksums, Some(snapshot)) => checksums(snapshot, cut(u64::from(PAYLOAD_BYTES_MAX))),
        (Context::Trace, Some(snapshot)) => {
            let mut runs: Vec<(Range<u64>, u64)> = snapshot.trace().into_iter().zip(1..).collect();
            runs.sort_unstable_by_key(|(run, _)| run.start);
            Ok(marked(runs.into_iter(), &range))
        }
        (Context::Checksums | Context::Trace, None) => Ok(marked(std::iter::empty(), &range)),
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

/// Flags of `x-volfork:missing`.
fn missing(kind: RunKind) -> u64 {
    if kind == RunKind::Missing { STATE_MISSING } else { 0 }
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

/// Runs in order of their place with their flags, and 0 for what lies between them.
fn marked(runs: impl Iterator<Item = (Range<u64>, u64)>, range: &Range<u64>) -> Vec<StatusExtent> {
    let mut extents = Vec::new();
    let mut offset = range.start;
    for (run, flags) in runs {
        let (start, end) = (run.start.clamp(offset, range.end), run.end.clamp(offset, range.end));
        push(&mut extents, start - offset, 0);
        push(&mut extents, end - start, flags);
        offset = end;
    }
    push(&mut extents, range.end - offset, 0);
    extents
}
