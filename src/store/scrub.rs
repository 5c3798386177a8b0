//! Reading and verifying every stored block of an open store.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::report::{ScrubProgress, ScrubReport};
use crate::error::{Error, ErrorKind, Result};
use crate::io::AlignedBuffer;
use crate::layer::Layer;
use crate::place::{Block, BlockSpan, Extent, length};
use crate::volume::{Core, Viewers};

/// Damaged blocks that are named in a report; further ones are only counted.
const ERRORS_MAX: usize = 1000;
/// Volumes and snapshots that one sentence names.
const NAMES_MAX: usize = 4;

/// Called with the progress; `ControlFlow::Break` ends the scrub.
pub type OnProgress<'a> = &'a mut dyn FnMut(ScrubProgress) -> ControlFlow<()>;

pub fn scrub(core: &Arc<Core>, volume: Option<&str>, progress: OnProgress<'_>) -> Result<ScrubReport> {
    let layers = core.enter().and_then(|_pass| layers_of(core, volume))?;
    let count = |layer: &Arc<Layer>| layer.with_presence(|presence| presence.present.len());
    let blocks_total = layers.iter().map(count).sum();
    let mut report = ScrubReport::default();
    for layer in layers {
        // Extents that a crash left unverified are hashed first: their present bytes become the valid ones.
        core.layers.cleaning.retry_unreadable(&layer);
        while core.enter().and_then(|_pass| core.layers.cleaning.rehash_step(&layer))? {}
        let mut scrubbed = LayerScrub { core, layer: &layer, viewers: None, report: &mut report };
        let mut next = layer.with_presence(|presence| presence.present.min());
        while let Some(block) = next {
            let extent = Block::new(block).extent();
            {
                // The pass is not held across `progress`, which may close the store.
                let _pass = core.enter()?;
                scrubbed.extent(extent)?;
            }
            let (blocks_verified, damage) = (scrubbed.report.blocks_verified, scrubbed.report.damage());
            if progress(ScrubProgress { blocks_verified, blocks_total, damage }).is_break() {
                return Ok(report);
            }
            next = extent.last().next().and_then(|from| layer.with_presence(|presence| presence.present.range(from.number()..).next()));
        }
    }
    Ok(report)
}

fn layers_of(core: &Arc<Core>, volume: Option<&str>) -> Result<Vec<Arc<Layer>>> {
    let Some(name) = volume else { return Ok(core.layers.all()) };
    let catalog = core.shape.catalog();
    let id = core.shape.volume_id(&catalog, name)?;
    let head = catalog.volume(id).map(|entry| entry.head);
    Ok(head.into_iter().flat_map(|head| catalog.chain(head)).filter_map(|(id, _)| core.layers.get(id)).collect())
}

/// The scrub of one layer.
struct LayerScrub<'a> {
    core: &'a Arc<Core>,
    layer: &'a Arc<Layer>,
    /// Volumes and snapshots that show the layer; looked up at the first damage.
    viewers: Option<Viewers>,
    report: &'a mut ScrubReport,
}

impl LayerScrub<'_> {
    fn extent(&mut self, extent: Extent) -> Result<()> {
        for run in self.layer.extent(extent).0.spans() {
            let mut left = extent.part(run).span();
            // After an I/O error of several blocks they are read one by one, because the disk does not say which of them failed.
            let mut at_once = left.len();
            while let Some(first) = left.first() {
                let part = left.take(at_once);
                let mut buffer = AlignedBuffer::zeroed(length(self.core.blocks.block_size.bytes_for(part.len())));
                let damaged = match self.core.layers.settled.scrub(self.layer, first, &mut buffer) {
                    Ok(()) => {
                        left = left.skip(part.len());
                        continue;
                    }
                    Err(error) if !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Io) || error.is_shortage() => return Err(error),
                    // The layer was destroyed meanwhile; its files may be gone.
                    Err(_) if self.core.layers.get(self.layer.id).is_none() => return Ok(()),
                    Err(error) => error,
                };
                match damaged.corruption().and_then(|corruption| Block::at(corruption.block)) {
                    Some(block) => {
                        self.note_damage(block, damaged);
                        left = BlockSpan::new(block.span().end(), left.end());
                    }
                    None if part.len() > 1 => at_once = 1,
                    None => {
                        self.note_damage(first, damaged);
                        left = left.skip(1);
                    }
                }
            }
            self.report.blocks_verified += u64::from(run.len());
        }
        Ok(())
    }

    fn note_damage(&mut self, block: Block, damaged: Error) {
        let viewers = self.viewers.get_or_insert_with(|| self.core.viewers(self.layer.id));
        let names = viewers.of(block);
        let mut buffer = vec![0; self.core.blocks.block_size.len()];
        let outcome = self.core.blocks.repair(self.layer, block, &mut buffer, damaged);
        for name in &names {
            let affected = self.report.affected.entry((*name).to_owned()).or_default();
            match outcome {
                Ok(()) => affected.blocks_repaired += 1,
                Err(_) => affected.blocks_damaged += 1,
            }
        }
        match outcome {
            Ok(()) => self.report.blocks_repaired += 1,
            Err(error) => {
                self.report.blocks_damaged += 1;
                if self.report.errors.len() < ERRORS_MAX {
                    self.report.errors.push(format!("{}: {error}", named(&names)));
                }
            }
        }
    }
}

/// A text of the first names, and the number of further ones.
fn named(names: &[&str]) -> String {
    let first = names.iter().take(NAMES_MAX).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "no volume or snapshot shows it".into(),
        1..=NAMES_MAX => first,
        count => format!("{first} and {} more", count - NAMES_MAX),
    }
}

impl ScrubReport {
    /// The volumes and snapshots with damage found so far.
    fn damage(&self) -> Option<String> {
        let names: Vec<&str> =
            self.affected.iter().filter(|(_, blocks)| blocks.blocks_damaged > 0).map(|(name, _)| name.as_str()).collect();
        (self.blocks_damaged > 0).then(|| named(&names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_names_a_few() {
        assert_eq!(named(&[]), "no volume or snapshot shows it");
        assert_eq!(named(&["volume 'a'", "volume 'b'"]), "volume 'a', volume 'b'");
        assert_eq!(named(&["a", "b", "c", "d", "e", "f"]), "a, b, c, d and 2 more");
    }
}
