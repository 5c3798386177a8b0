//! Layers without a store around them, in a directory of their own: for tests.

use std::path::Path;
use std::sync::Arc;

use super::commit::queue::Commit;
use super::layers::{LayerConfig, Layers};
use super::recovery::Recovery;
use crate::error::Result;
use crate::format::{Features, Record, StorePaths, Superblock};
use crate::io::{Disk, IoMode, SystemDisk};
use crate::journal::Journal;
use crate::limits::Limits;
use crate::place::BlockSize;

pub(super) fn config(disk: Arc<dyn Disk>, directory: &Path, limits: Limits) -> LayerConfig {
    let paths = StorePaths::new(directory);
    disk.create_dir(&paths.layers()).unwrap();
    LayerConfig {
        disk,
        paths,
        block_size: BlockSize::DEFAULT,
        io_mode: IoMode::Buffered,
        checksum_cache_bytes: 1 << 20,
        checkpoint_bytes: 1 << 20,
        limits,
    }
}

pub(super) fn journal(config: LayerConfig, state: &mut dyn Iterator<Item = Record>) -> Result<Journal> {
    let superblock =
        Superblock { block_size: config.block_size, generation: 0, store_id: [1; 16], journal: 0, features: Features::default() };
    Journal::start(config.disk, config.paths, superblock, 0, state, config.limits)
}

pub(super) fn commit(directory: &Path) -> Commit {
    commit_on(Arc::new(SystemDisk::new()), directory)
}

pub(super) fn commit_on(disk: Arc<dyn Disk>, directory: &Path) -> Commit {
    let config = config(disk, directory, Limits::DEFAULT);
    let limits = config.limits;
    Commit::new(journal(config, &mut std::iter::empty()).unwrap(), &limits)
}

/// The layers of a new store: none.
pub fn layers(disk: Arc<dyn Disk>, directory: &Path, limits: Limits) -> Layers {
    let config = config(disk, directory, limits);
    Recovery::new(config.clone()).finish(|_| (None, None), |state| journal(config, state)).unwrap()
}
