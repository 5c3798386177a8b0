//! Reading and verifying every stored block of an open store.

use std::sync::Arc;

use super::report::{ScrubProgress, ScrubReport};
use crate::error::{Error, ErrorKind, Result};
use crate::io::AlignedBuffer;
use crate::layer::Layer;
use crate::limits::EXTENT_BLOCKS;
use crate::volume::Core;

/// Damaged blocks that are named in a report; further ones are only counted.
const ERRORS_MAX: usize = 1000;

pub fn scrub(core: &Arc<Core>, volume: Option<&str>, progress: &mut dyn FnMut(ScrubProgress)) -> Result<ScrubReport> {
    let layers = layers_of(core, volume)?;
    let count = |layer: &Arc<Layer>| layer.with_presence(|presence| presence.present.len());
    let mut so_far = ScrubProgress { blocks_verified: 0, blocks_total: layers.iter().map(count).sum() };
    let mut report = ScrubReport::default();
    for layer in layers {
        // Extents that a crash left unverified are hashed first: what they hold now is what counts.
        while core.layers().rehash_step(&layer)? {}
        let mut next = layer.with_presence(|presence| presence.present.min());
        while let Some(block) = next {
            let extent = block / EXTENT_BLOCKS;
            so_far.blocks_verified += scrub_extent(core, &layer, extent, volume, &mut report)?;
            progress(so_far);
            let after = extent.checked_add(1).and_then(|extent| extent.checked_mul(EXTENT_BLOCKS));
            next = after.and_then(|from| layer.with_presence(|presence| presence.present.range(from..).next()));
        }
    }
    Ok(report)
}

fn layers_of(core: &Arc<Core>, volume: Option<&str>) -> Result<Vec<Arc<Layer>>> {
    let Some(name) = volume else { return Ok(core.layers().all()) };
    let catalog = core.catalog();
    let id = catalog.volume_id(name)?;
    let head = catalog.volume(id).map(|entry| entry.head);
    Ok(head.into_iter().flat_map(|head| catalog.chain(head)).filter_map(|(id, _)| core.layers().get(id)).collect())
}

fn scrub_extent(core: &Arc<Core>, layer: &Arc<Layer>, extent: u32, volume: Option<&str>, report: &mut ScrubReport) -> Result<u64> {
    let block_bytes = core.block_size().bytes() as usize;
    let mut seen = 0;
    for run in layer.extent(extent).0.runs() {
        let mut start = run.start;
        while start < run.end {
            let first = extent * EXTENT_BLOCKS + start;
            let mut buffer = AlignedBuffer::zeroed((run.end - start) as usize * block_bytes);
            let outcome = core.layers().scrub_blocks(layer, first, &mut buffer);
            let damaged = match outcome {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::Corrupt => error,
                Err(error) => return Err(error),
            };
            let Some(block) = damaged.corruption().map(|corruption| corruption.block as u32) else { return Err(damaged) };
            note_damage(core, layer, block, volume, damaged, report);
            start = block % EXTENT_BLOCKS + 1;
        }
        seen += run.len() as u64;
    }
    report.blocks_verified += seen;
    Ok(seen)
}

fn note_damage(core: &Arc<Core>, layer: &Arc<Layer>, block: u32, volume: Option<&str>, damaged: Error, report: &mut ScrubReport) {
    let mut buffer = vec![0; core.block_size().bytes() as usize];
    match core.repair(layer, block, &mut buffer, damaged) {
        Ok(()) => report.blocks_repaired += 1,
        Err(error) => {
            let mut error = error;
            if let (Some(corruption), Some(volume)) = (error.corruption(), volume) {
                let mut corruption = corruption.clone();
                corruption.volume = Some(volume.to_owned());
                error = Error::corrupt_block(corruption);
            }
            if report.errors.len() < ERRORS_MAX {
                report.errors.push(error.to_string());
            }
        }
    }
}
