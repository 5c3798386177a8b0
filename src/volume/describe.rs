//! What a sealed chain can tell about its bytes without giving them: for other hosts that fork it.

use std::collections::HashSet;
use std::ops::Range;

use roaring::RoaringBitmap;

use super::core::Core;
use super::request::{Run, RunKind};
use super::view::{Answer, Piece, View};
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::format::is_instant;
use crate::ids::{LayerId, VolumeId};
use crate::limits::EXTENT_BLOCKS;
use crate::place::{Extent, IndexSpan};
use crate::sync::RwLock;

/// Checksums that one call tells at most.
const CHECKSUMS_MAX: u64 = 1 << 20;

impl Core {
    /// The crc32 of the bytes of each whole block of `range` (which begins with a block), without reading them; `None` where it
    /// is not known: the block is still at a source, or its extent was not verified since a crash.
    ///
    /// # Errors
    /// [`crate::ErrorKind::OutOfRange`]; [`crate::ErrorKind::InvalidInput`] for too many blocks; the checksums cannot be read.
    pub(super) fn content_checksums(&self, seen: &RwLock<View>, range: Range<u64>) -> Result<Vec<Option<u32>>> {
        let view = seen.read().clone();
        // The last block may be named as a whole.
        let end = view.size_bytes.next_multiple_of(self.block_size.bytes());
        View { size_bytes: end, ..view.clone() }.check_run(&range)?;
        let blocks = self.block_size.blocks_for(range.end.saturating_sub(range.start));
        if blocks > CHECKSUMS_MAX {
            let message = format!("{blocks} checksums are too many at once: ask for {CHECKSUMS_MAX} blocks at most");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        // Behind the end, the last block may hold anything.
        let partial = (end > view.size_bytes).then(|| self.block_size.block_of(view.size_bytes));
        let zeros = crc32fast::hash(&vec![0; self.block_size.bytes() as usize]);
        let mut checksums = Vec::new();
        let mut offset = range.start;
        while offset < range.end {
            let piece = Piece::at(self.block_size, offset, range.end - offset);
            let first = piece.extent * EXTENT_BLOCKS;
            for (run, answer) in self.answers(&view, piece.extent, piece.blocks.clone())? {
                let blocks = first + run.start..=first + (run.end - 1);
                match answer {
                    Answer::Zero => checksums.resize(checksums.len() + run.len(), Some(zeros)),
                    Answer::Missing(_) | Answer::Patched(_) => checksums.resize(checksums.len() + run.len(), None),
                    Answer::Held(layer) => {
                        checksums.extend(
                            self.layers
                                .blocks
                                .content_checksums(&layer, Extent::clamped(piece.extent).part(IndexSpan::new(run.start, run.end)))?,
                        );
                        if partial == Some(u64::from(*blocks.end()))
                            && let Some(Some(checksum)) = checksums.last_mut()
                        {
                            *checksum = self.last_checksum(seen, &view)?;
                        }
                    }
                }
            }
            offset += piece.bytes;
        }
        Ok(checksums)
    }

    /// The crc32 of the last block of a view, with zeros behind the end.
    fn last_checksum(&self, seen: &RwLock<View>, view: &View) -> Result<u32> {
        let block_bytes = self.block_size.bytes();
        let start = view.size_bytes - view.size_bytes % block_bytes;
        let mut block = vec![0; block_bytes as usize];
        self.read(seen, start, &mut block[..(view.size_bytes - start) as usize])?;
        Ok(crc32fast::hash(&block))
    }

    /// Which bytes of `range` are zero and which may not be, as runs (the depth of data is not told apart). Costs as much as
    /// the presence of the chain, however large the range is.
    ///
    /// # Errors
    /// [`crate::ErrorKind::OutOfRange`].
    pub(super) fn allocation(&self, seen: &RwLock<View>, range: Range<u64>, runs_max: usize) -> Result<Vec<Run>> {
        let data = {
            let _forgetting = self.forgetting.read();
            let view = seen.read().clone();
            view.check_run(&range)?;
            self.data_blocks(&view)?
        };
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
    fn layers_above(catalog: &Catalog, view: &View, volume: VolumeId, snapshot: &str) -> Option<Vec<LayerId>> {
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

    /// Names of the snapshots of a volume on which a view stands, but for those that were taken for leases: they come and go.
    pub(super) fn snapshots_below(&self, view: &View, volume: VolumeId) -> Vec<String> {
        let catalog = self.catalog();
        let below: HashSet<LayerId> = catalog.chain(view.layer.id).map(|(layer, _)| layer).collect();
        let snapshots = catalog.volume(volume).into_iter().flat_map(|entry| entry.snapshots.iter());
        let snapshots = snapshots.filter(|snapshot| !is_instant(&snapshot.name) && below.contains(&snapshot.layer));
        snapshots.map(|snapshot| snapshot.name.clone()).collect()
    }

    /// The bytes of `range` that were written or zeroed since a snapshot of `volume`, in whole blocks; at most `runs_max` runs.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] unless the view stands on the snapshot.
    pub(super) fn changed_since(
        &self,
        seen: &RwLock<View>,
        (volume, snapshot): (VolumeId, &str),
        range: &Range<u64>,
        runs_max: usize,
    ) -> Result<Vec<Range<u64>>> {
        let (layers, forgetting) = {
            let catalog = self.catalog();
            let forgetting = self.forgetting.read();
            let view = seen.read();
            view.check_run(range)?;
            (Self::layers_above(&catalog, &view, volume, snapshot), forgetting)
        };
        let layers = layers.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("it does not stand on a snapshot '{snapshot}'")))?;
        let mut changed = RoaringBitmap::new();
        for layer in layers {
            let layer = self.layers.require(layer)?;
            changed |= layer.patched_blocks();
            layer.with_presence(|presence| changed |= presence.covered());
        }
        drop(forgetting);
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
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the volume was destroyed.
    fn data_blocks(&self, view: &View) -> Result<RoaringBitmap> {
        let (mut data, mut zero) = (RoaringBitmap::new(), RoaringBitmap::new());
        let mut next = Some(view.layer.id);
        while let Some(id) = next {
            let layer = self.layers.require(id)?;
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
            next = layer.parent;
        }
        Ok(data)
    }
}
