//! Verifies the structure of a closed store without changing it: superblock_session, journal, shape, presence and files.

use std::path::Path;

use roaring::RoaringBitmap;

use super::open::{absolute, has_superblock, layer_config, lock_session, replay};
use super::options::StoreOptions;
use super::report::CheckReport;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{LayerFile, StorePaths};
use crate::ids::LayerId;
use crate::io::{Disk, DiskFile, IoMode, OpenMode};
use crate::journal::load;
use crate::layer::{Presence, Recovery};
use crate::limits::VOLUME_BYTES_MAX;
use crate::place::{Block, BlockSize, BlockSpan, wide};

pub fn check(path: &Path, options: StoreOptions) -> Result<CheckReport> {
    let paths = absolute(&*options.disk, path)?;
    let mut report = CheckReport::default();
    // Only a directory that holds a store gets a lock file.
    let _lock = if has_superblock(&*options.disk, &paths) { Some(lock_session(&*options.disk, &paths, &options.owner)?) } else { None };
    let loaded = match load(&*options.disk, &paths, &options.limits()) {
        Ok(loaded) => loaded,
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            report.violations.push(error.to_string());
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    let replayed = match replay(layer_config(&paths, &options, &loaded.superblock), &loaded) {
        Ok(replayed) => replayed,
        Err(error) => {
            report.violations.push(error.to_string());
            return Ok(report);
        }
    };
    if !replayed.unclean {
        // After a clean close both slots are valid; a crash may leave one torn.
        report.violations.extend(loaded.warnings.iter().cloned());
    }
    let catalog = &replayed.catalog;
    report.violations.extend(catalog.violations());
    report.volumes = wide(catalog.volumes().count());
    report.snapshots = catalog.volumes().map(|(_, volume)| wide(volume.snapshots.len())).sum();
    let recovery = &replayed.recovery;
    let files = Files { disk: &*options.disk, paths: &paths, block_size: loaded.superblock.block_size, recovery };
    for (id, presence, _) in replayed.recovery.layers() {
        report.layers += 1;
        if catalog.layer(id).is_none() {
            report.violations.push(format!("layer {id}: it has presence, but is not in the catalogue"));
        }
        files.check_layer(id, presence, &mut report.violations)?;
    }
    for (layer, block) in recovery.patched() {
        let entry = catalog.layer(layer);
        let offset = loaded.superblock.block_size.offset(block);
        match entry {
            None => report.violations.push(format!("layer {layer}: it has a patch of block {block}, but is not in the catalogue")),
            Some(entry) if entry.parent.is_none() => {
                report.violations.push(format!("layer {layer}: it has a patch of block {block} over nothing"))
            }
            Some(_) if offset >= VOLUME_BYTES_MAX => {
                report.violations.push(format!("layer {layer}: its patch of block {block} is behind every volume"))
            }
            Some(_) => {}
        }
    }
    Ok(report)
}

struct Files<'a> {
    disk: &'a dyn Disk,
    paths: &'a StorePaths,
    block_size: BlockSize,
    recovery: &'a Recovery,
}

impl Files<'_> {
    fn check_layer(&self, id: LayerId, presence: &Presence, violations: &mut Vec<String>) -> Result<()> {
        if !presence.present.is_disjoint(&presence.zeroed) {
            violations.push(format!("layer {id}: blocks are both present and zeroed"));
        }
        match self.recovery.extents_without_checksums(id) {
            Ok(extents) => {
                if let Some(extent) = extents.first() {
                    let (count, path) = (extents.len(), self.paths.layer(id, LayerFile::Checksums));
                    violations.push(format!(
                        "layer {id}: {count} extents have no checksums in {}, the first is extent {extent}: their blocks cannot be read",
                        path.display()
                    ));
                }
            }
            Err(error) => violations.push(error.to_string()),
        }
        for (segment, blocks) in self.block_size.segments() {
            let mut here = presence.present.clone();
            here.remove_range(BlockSpan::new(0, blocks.start()).numbers());
            here.remove_range(BlockSpan::new(blocks.end(), BlockSpan::ALL.end()).numbers());
            if here.is_empty() {
                continue;
            }
            let path = self.paths.layer(id, LayerFile::Data(segment.number()));
            match self.disk.open(&path, OpenMode::Read, IoMode::Buffered) {
                Ok(file) => self.check_allocation(id, &*file, blocks.start(), here, violations)?,
                Err(error) => violations.push(format!(
                    "layer {id}: {} blocks are present, but {} cannot be opened: {error}",
                    here.len(),
                    path.display()
                )),
            }
        }
        Ok(())
    }

    /// Checks that every present block lies in allocated space of its file.
    fn check_allocation(
        &self,
        id: LayerId,
        file: &dyn DiskFile,
        base: u64,
        mut present: RoaringBitmap,
        violations: &mut Vec<String>,
    ) -> Result<()> {
        let mut offset = 0;
        let next = |offset| file.next_allocated(offset).map_err(|error| Error::io(format!("cannot map layer {id}"), error));
        while let Some(range) = next(offset)? {
            offset = range.end;
            let blocks = self.block_size.touched(&range);
            present.remove_range(BlockSpan::new(base + blocks.start(), base + blocks.end()).numbers());
        }
        // A crash may leave a block of zeros in a hole. It reads as zeros there too, and matches its checksum.
        let lost: Vec<u32> = present.iter().filter(|block| !self.recovery.is_zero_block(id, Block::new(*block))).collect();
        if let Some(block) = lost.first() {
            violations.push(format!("layer {id}: {} present blocks have no space in the file, the first is block {block}", lost.len()));
        }
        Ok(())
    }
}
