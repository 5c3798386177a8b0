//! Open files of layers: opened when they are needed, closed when too many are open.

use std::io;
use std::sync::Arc;

use roaring::RoaringBitmap;
use rustc_hash::FxHashMap;

use crate::error::{Error, Result};
use crate::format::{LayerFile, StorePaths};
use crate::ids::LayerId;
use crate::io::{Disk, DiskFile, IoMode, OpenMode, descriptors_max};
use crate::place::BlockSize;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, OnceLock, Rank};

/// Files that are kept open at most, where the process may have many.
const OPEN_FILES_MAX: usize = 2048;
/// Part of the descriptors of the process for open files.
const DESCRIPTORS_SHARE: usize = 4;

type Key = (LayerId, LayerFile);

/// A bounded cache of open files. A file that is in use stays open behind its `Arc`.
pub struct LayerFiles {
    disk: Arc<dyn Disk>,
    paths: StorePaths,
    mode: IoMode,
    open: Mutex<Open>,
    open_max: usize,
    /// Files that were created, and how many of them have durable names.
    created: AtomicU64,
    named: AtomicU64,
    /// Names may be lost: no later sync tells.
    unnamed: OnceLock<Error>,
}

#[derive(Default)]
struct Open {
    files: FxHashMap<Key, (Arc<dyn DiskFile>, u64)>,
    uses: u64,
    /// Layers whose files were removed: a writer that is still in one does not make a file for it again.
    removed: RoaringBitmap,
}

impl LayerFiles {
    pub fn new(disk: Arc<dyn Disk>, paths: StorePaths, mode: IoMode) -> Self {
        let open_max = OPEN_FILES_MAX.min((descriptors_max() / DESCRIPTORS_SHARE).max(1));
        let (created, named, unnamed) = (AtomicU64::new(0), AtomicU64::new(0), OnceLock::new());
        let open = Mutex::ranked(Rank::OpenFiles, Open::default());
        Self { disk, paths, mode, open, open_max, created, named, unnamed }
    }

    /// Begins to write completed writes of a file back.
    pub fn begin_write_back(&self, file: &Arc<dyn DiskFile>) {
        self.disk.begin_write_back(file);
    }

    /// Layers that may keep files open because they were written and not synced. Beyond, writers have them synced.
    pub fn pinned_max(&self) -> usize {
        self.open_max / 2
    }

    /// The file, if it exists.
    pub fn get(&self, layer: LayerId, file: LayerFile) -> io::Result<Option<Arc<dyn DiskFile>>> {
        match self.open(layer, file, OpenMode::Write) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The file, created if it does not exist. The name of a created file is durable after [`LayerFiles::sync_names`].
    pub fn get_or_create(&self, layer: LayerId, file: LayerFile) -> io::Result<Arc<dyn DiskFile>> {
        match self.open(layer, file, OpenMode::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.open(layer, file, OpenMode::Create),
            other => other,
        }
    }

    fn open(&self, layer: LayerId, file: LayerFile, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.open.lock();
        open.uses += 1;
        let uses = open.uses;
        if let Some((found, used)) = open.files.get_mut(&(layer, file)) {
            *used = uses;
            return Ok(Arc::clone(found));
        }
        let io = match file {
            LayerFile::Data(_) => self.mode,
            LayerFile::Checksums | LayerFile::Trace => IoMode::Buffered,
        };
        if mode == OpenMode::Create && open.removed.contains(layer.0) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the layer was destroyed meanwhile"));
        }
        let opened = self.disk.open(&self.paths.layer(layer, file), mode, io)?;
        if mode == OpenMode::Create {
            // Set before another thread can find the file here, write to it and flush.
            self.created.fetch_add(1, Ordering::AcqRel);
        }
        if open.files.len() >= self.open_max {
            open.evict();
        }
        open.files.insert((layer, file), (Arc::clone(&opened), uses));
        Ok(opened)
    }

    /// Whether the files of a layer were removed.
    pub fn is_removed(&self, layer: LayerId) -> bool {
        self.open.lock().removed.contains(layer.0)
    }

    /// Removes every file of a layer, whose number is not used again while the store is open.
    pub fn remove(&self, layer: LayerId) -> io::Result<()> {
        {
            let mut open = self.open.lock();
            open.files.retain(|(id, _), _| *id != layer);
            open.removed.insert(layer.0);
        }
        let segments = BlockSize::DEFAULT.segments().map(|(segment, _)| LayerFile::Data(segment.number()));
        let files = segments.chain([LayerFile::Checksums, LayerFile::Trace]);
        for file in files {
            match self.disk.remove(&self.paths.layer(layer, file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the names of created files durable, if there are any. Two callers sync at a time rather than wait for each other.
    ///
    /// # Errors
    /// A shortage: nothing was tried. After any other error it is not known whether the names are durable, and every later call fails.
    pub fn sync_names(&self) -> Result<()> {
        let created = self.created.load(Ordering::Acquire);
        if self.named.load(Ordering::Acquire) < created {
            let synced = self.disk.sync_dir(&self.paths.layers());
            synced.map_err(|error| Error::sync_dir("cannot sync the layers' directory", error)).inspect_err(|error| {
                if !error.is_shortage() {
                    let _ = self.unnamed.set(error.clone());
                }
            })?;
            self.named.fetch_max(created, Ordering::AcqRel);
        }
        self.unnamed.get().map_or(Ok(()), |error| Err(error.clone()))
    }
}

impl Open {
    /// Closes the less recently used half.
    fn evict(&mut self) {
        let mut ages: Vec<u64> = self.files.values().map(|(_, used)| *used).collect();
        let middle = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(middle);
        let median = *median;
        self.files.retain(|_, (_, used)| *used >= median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SystemDisk;

    #[test]
    fn a_writer_in_a_destroyed_layer_makes_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let paths = StorePaths::new(dir.path());
        std::fs::create_dir(paths.layers()).unwrap();
        let files = LayerFiles::new(Arc::new(SystemDisk::new()), paths.clone(), IoMode::Buffered);
        let made = |layer| files.get_or_create(layer, LayerFile::Data(0)).map(drop);
        [1, 2].into_iter().for_each(|layer| made(LayerId(layer)).unwrap());
        files.remove(LayerId(1)).unwrap();
        assert_eq!(made(LayerId(1)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!paths.layer(LayerId(1), LayerFile::Data(0)).exists());
        made(LayerId(2)).unwrap();
    }
}
