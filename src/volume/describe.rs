//! What a sealed chain can tell about its bytes without giving them: for other hosts that fork it.

use std::collections::HashSet;
use std::ops::Range;

use roaring::RoaringBitmap;

use super::core::Core;
use super::request::{Run, RunKind};
use super::view::{Answer, Piece, View};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{LayerId, VolumeId};
use crate::limits::EXTENT_BLOCKS;

impl Core {
    /// The crc32 of the bytes of each whole block of `range` (which begins with a block), without reading them; `None` where it
    /// is not known: the block is still at a source, or its extent was not verified since a crash.
    ///
    /// # Errors
    /// [`crate::ErrorKind::OutOfRange`]; the checksums cannot be read.
    pub(super) fn content_checksums(&self, view: &View, range: Range<u64>) -> Result<Vec<Option<u32>>> {
        let zeros = crc32fast::hash(&vec![0; self.block_size.bytes() as usize]);
        let mut checksums = Vec::new();
        let mut offset = range.start;
        while offset < range.end {
            let piece = Piece::at(self.block_size, offset, range.end - offset);
            let first = piece.extent * EXTENT_BLOCKS;
            for (run, answer) in self.answers(view, piece.extent, piece.blocks.clone())? {
                match answer {
                    Answer::Zero => checksums.resize(checksums.len() + run.len(), Some(zeros)),
                    Answer::Missing(_) | Answer::Patched(_) => checksums.resize(checksums.len() + run.len(), None),
                    Answer::Held(layer) => {
                        checksums.extend(self.layers.content_checksums(&layer, first + run.start..first + run.end)?);
                    }
                }
            }
            offset += piece.bytes;
        }
        Ok(checksums)
    }

    /// Which bytes of `range` are zero and which may not be, as runs (the depth of data is not told apart). Costs as much as
    /// the presence of the chain, however large the range is.
    ///
    /// # Errors
    /// [`crate::ErrorKind::OutOfRange`].
    pub(super) fn allocation(&self, view: &View, range: Range<u64>, runs_max: usize) -> Result<Vec<Run>> {
        view.check_range(range.start, range.end.saturating_sub(range.start))?;
        let data = self.data_blocks(view);
        let mut runs: Vec<Run> = Vec::new();
        let mut offset = range.start;
        let mut push = |runs: &mut Vec<Run>, end: u64, kind| {
            if end > offset {
                runs.push(Run { bytes: end - offset, kind });
                offset = end;
            }
        };
        let first = self.block_size.block_of(range.start) as u32;
        let mut blocks = data.range(first..);
        while let Some(run) = blocks.next_range() {
            let (start, end) = (self.block_size.offset_of(u64::from(*run.start())), self.block_size.offset_of(u64::from(*run.end()) + 1));
            push(&mut runs, start.min(range.end), RunKind::Zero);
            push(&mut runs, end.min(range.end), RunKind::Data { depth: 1 });
            if start >= range.end || runs.len() >= runs_max {
                runs.truncate(runs_max);
                return Ok(runs);
            }
        }
        push(&mut runs, range.end, RunKind::Zero);
        Ok(runs)
    }

    /// The layers from the top of a view down to that of a snapshot of `volume`, which is left out. `None`: it does not stand on
    /// that snapshot.
    fn layers_above(&self, view: &View, volume: VolumeId, snapshot: &str) -> Option<Vec<LayerId>> {
        let catalog = self.catalog();
        let base = catalog.volume(volume)?.snapshots.get(snapshot)?.layer;
        let mut above = Vec::new();
        for (layer, _) in catalog.chain(view.layer.id) {
            if layer == base {
                return Some(above);
            }
            above.push(layer);
        }
        None
    }

    /// Names of the snapshots of a volume on which a view stands.
    pub(super) fn snapshots_below(&self, view: &View, volume: VolumeId) -> Vec<String> {
        let catalog = self.catalog();
        let below: HashSet<LayerId> = catalog.chain(view.layer.id).map(|(layer, _)| layer).collect();
        let snapshots = catalog.volume(volume).into_iter().flat_map(|entry| entry.snapshots.iter());
        snapshots.filter(|snapshot| below.contains(&snapshot.layer)).map(|snapshot| snapshot.name.clone()).collect()
    }

    /// The bytes of `range` that were written or zeroed since a snapshot of `volume`, in whole blocks; at most `runs_max` runs.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] unless the view stands on the snapshot.
    pub(super) fn changed_since(
        &self,
        view: &View,
        (volume, snapshot): (VolumeId, &str),
        range: &Range<u64>,
        runs_max: usize,
    ) -> Result<Vec<Range<u64>>> {
        view.check_range(range.start, range.end.saturating_sub(range.start))?;
        let layers = self.layers_above(view, volume, snapshot);
        let layers = layers.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("it does not stand on a snapshot '{snapshot}'")))?;
        let mut changed = RoaringBitmap::new();
        for layer in layers.into_iter().filter_map(|layer| self.layers.get(layer)) {
            changed |= layer.patched_blocks();
            layer.with_presence(|presence| changed |= presence.covered());
        }
        let mut runs = Vec::new();
        let mut blocks = changed.range(self.block_size.block_of(range.start) as u32..);
        while let Some(run) = blocks.next_range().filter(|_| runs.len() < runs_max) {
            let start = self.block_size.offset_of(u64::from(*run.start())).max(range.start);
            let end = self.block_size.offset_of(u64::from(*run.end()) + 1).min(range.end);
            if start >= end {
                break;
            }
            runs.push(start..end);
        }
        Ok(runs)
    }

    /// Blocks of a view that are data, or may be: everything but zeros.
    fn data_blocks(&self, view: &View) -> RoaringBitmap {
        let (mut data, mut zero) = (RoaringBitmap::new(), RoaringBitmap::new());
        let mut next = self.layers.get(view.layer.id);
        while let Some(layer) = next {
            if layer.has_patches() {
                data |= layer.patched_blocks() - &zero;
            }
            layer.with_presence(|presence| {
                data |= &presence.present - &zero;
                zero |= &presence.zeroed - &data;
            });
            if let Some(blocks @ 1..) = layer.source_blocks() {
                // What is still at the source may be data.
                let mut missing = RoaringBitmap::new();
                missing.insert_range(0..=(blocks - 1) as u32);
                data |= missing - &zero;
            }
            next = layer.parent.and_then(|parent| self.layers.get(parent));
        }
        data
    }
}
