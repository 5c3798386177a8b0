//! What answers for ranges of bytes, without reading them.

use std::collections::HashMap;
use std::ops::Range;

use super::core::Core;
use super::request::{Run, RunKind};
use super::view::{Answer, Piece, View};
use crate::error::Result;
use crate::ids::LayerId;
use crate::limits::EXTENT_BLOCKS;
use crate::sync::RwLock;

/// Adds a run, joined to the last one if it says the same.
fn push(runs: &mut Vec<Run>, bytes: u64, kind: RunKind) {
    match runs.last_mut() {
        Some(last) if last.kind == kind => last.bytes += bytes,
        _ => runs.push(Run { bytes, kind }),
    }
}

impl Core {
    /// What answers for the bytes from the start of `range`.
    pub(super) fn runs(&self, seen: &RwLock<View>, range: Range<u64>, runs_max: usize) -> Result<Vec<Run>> {
        seen.read().check_run(&range)?;
        let mut depths = (None, HashMap::new());
        let mut runs = Vec::new();
        let mut offset = range.start;
        while offset < range.end {
            let piece = Piece::at(self.block_size, offset, range.end - offset);
            let extent_start = self.block_size.offset_of(u64::from(piece.extent) * u64::from(EXTENT_BLOCKS));
            // Behind this lock the top of the chain stays the top, so nothing that it shows is forgotten.
            let view = seen.read();
            for (blocks, answer) in self.answers(&view, piece.extent, piece.blocks.clone())? {
                let kind = match answer {
                    Answer::Zero => RunKind::Zero,
                    Answer::Missing(_) | Answer::Patched(_) => RunKind::Missing,
                    Answer::Held(layer) => RunKind::Data { depth: self.depth_of(&view, layer.id, &mut depths) },
                };
                let start = (extent_start + self.block_size.offset_of(u64::from(blocks.start))).max(offset);
                let end = (extent_start + self.block_size.offset_of(u64::from(blocks.end))).min(offset + piece.bytes);
                push(&mut runs, end - start, kind);
            }
            if runs.len() > runs_max {
                runs.truncate(runs_max);
                break;
            }
            offset += piece.bytes;
        }
        Ok(runs)
    }

    /// How far below the top a layer is, counted from 1; the walk is remembered for the request.
    fn depth_of(&self, view: &View, layer: LayerId, (top, depths): &mut (Option<LayerId>, HashMap<LayerId, u32>)) -> u32 {
        if layer == view.layer.id {
            return 1;
        }
        if *top != Some(view.layer.id) {
            *top = Some(view.layer.id);
            depths.clear();
            let mut next = view.layer.parent;
            let mut depth = 2;
            while let Some(layer) = next.and_then(|id| self.layers.get(id)) {
                depths.insert(layer.id, depth);
                depth += 1;
                next = layer.parent;
            }
        }
        depths.get(&layer).copied().unwrap_or(1)
    }

    /// Brings blocks of a range that are still at a source, until `wanted` answers an error.
    pub(super) fn prefetch(&self, seen: &RwLock<View>, mut offset: u64, mut bytes: u64, wanted: &dyn Fn() -> Result<()>) -> Result<()> {
        seen.read().check_range(offset, bytes)?;
        while bytes > 0 {
            wanted()?;
            let piece = Piece::at(self.block_size, offset, bytes);
            self.bring(seen, piece.extent, piece.blocks.clone())?;
            offset += piece.bytes;
            bytes -= piece.bytes;
        }
        Ok(())
    }
}
