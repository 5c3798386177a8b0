//! What was written since a snapshot.

use std::collections::HashSet;
use std::ops::Range;

use roaring::RoaringBitmap;

use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::format::is_instant;
use crate::ids::{LayerId, VolumeId};
use crate::place::BlockSpan;
use crate::sync::RwLock;
use crate::volume::blocks::{Blocks, View};
use crate::volume::state::Shape;

/// The layers from the top of a view down to that of a snapshot, which is left out. `None`: it does not stand on that snapshot.
/// A name is that of a snapshot of `volume`; `VOLUME@SNAPSHOT` may be one of another volume.
fn layers_above(catalog: &Catalog, view: &View, volume: VolumeId, snapshot: &str) -> Option<Vec<LayerId>> {
    let base = match snapshot.split_once('@') {
        Some((volume, snapshot)) => catalog.snapshot(volume, snapshot).ok()?.1.layer,
        None => catalog.volume(volume)?.snapshots.get(snapshot)?.layer,
    };
    let mut above = Vec::new();
    for (layer, _) in catalog.chain(view.layer.id) {
        if layer == base {
            return Some(above);
        }
        above.push(layer);
    }
    None
}

/// Names of the snapshots of a volume on which a view stands, but for those that were taken for leases: they come and go.
pub fn snapshots_below(shape: &Shape, view: &View, volume: VolumeId) -> Vec<String> {
    let catalog = shape.catalog();
    let below: HashSet<LayerId> = catalog.chain(view.layer.id).map(|(layer, _)| layer).collect();
    let snapshots = catalog.volume(volume).into_iter().flat_map(|entry| entry.snapshots.iter());
    let snapshots = snapshots.filter(|snapshot| !is_instant(&snapshot.name) && below.contains(&snapshot.layer));
    snapshots.map(|snapshot| snapshot.name.clone()).collect()
}

/// The bytes of `range` that were written or zeroed since a snapshot of `volume`, in whole blocks; at most `runs_max` runs.
///
/// # Errors
/// [`ErrorKind::NotFound`] unless the view stands on the snapshot.
pub fn changed_since(
    blocks: &Blocks,
    seen: &RwLock<View>,
    (volume, snapshot): (VolumeId, &str),
    range: &Range<u64>,
    runs_max: usize,
) -> Result<Vec<Range<u64>>> {
    let (layers, forgetting) = {
        let catalog = blocks.shape.catalog();
        let forgetting = blocks.forgetting.read();
        let view = seen.read();
        view.check_run(range)?;
        (layers_above(&catalog, &view, volume, snapshot), forgetting)
    };
    let layers = layers.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("it does not stand on a snapshot '{snapshot}'")))?;
    let mut changed = RoaringBitmap::new();
    for layer in layers {
        let layer = blocks.layers.require(layer)?;
        changed |= layer.patched_blocks();
        layer.with_presence(|presence| changed |= presence.covered());
    }
    drop(forgetting);
    let mut runs = Vec::new();
    let mut parts = changed.range(blocks.block_size.block_at(range.start).number()..);
    while let Some(run) = parts.next_range().filter(|_| runs.len() < runs_max) {
        let bytes = blocks.block_size.bytes_of(BlockSpan::of_run(&run));
        let (start, end) = (bytes.start.max(range.start), bytes.end.min(range.end));
        if start >= end {
            break;
        }
        runs.push(start..end);
    }
    Ok(runs)
}
