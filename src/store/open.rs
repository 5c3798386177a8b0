//! Opening, recovering and closing a store.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::background::Background;
use super::options::StoreOptions;
use crate::catalog::{Catalog, Frozen};
use crate::clock::{Clock, GuardedClock};
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::format::{BlocksRecord, Features, Record, ShapeRecord, StorePaths, Superblock};
use crate::ids::{LayerId, VolumeId, random_bytes};
use crate::io::{Access, Disk, DiskFileExt, IoMode, OpenMode, OverlayDisk};
use crate::journal::{Journal, Loaded, load, no_store};
use crate::layer::{LayerConfig, Layers, Recovery, Session, read_unrecorded};
use crate::place::{BlockSize, BlockSpan, length, wide};
use crate::sync::{Mutex, Rank};
use crate::telemetry::tell;
use crate::volume::{Core, CoreConfig};

/// Most bytes of the lock file that are looked at.
const OWNER_BYTES_MAX: u64 = 4096;

/// A store that this process owns.
pub struct OpenStore {
    pub(super) core: Arc<Core>,
    background: Background,
    ownership: Mutex<Ownership>,
}

/// Whether this process holds the store's lock, or how closing went.
enum Ownership {
    Held { _lock: Box<dyn Send + Sync> },
    Released(Result<()>),
}

/// Absolute paths of a store's files, which a later change of the working directory does not affect.
pub(super) fn absolute(disk: &dyn Disk, path: &Path) -> Result<StorePaths> {
    let absolute = disk.absolute(path);
    absolute.map(|path| StorePaths::new(&path)).map_err(|error| Error::io(format!("cannot find {}", path.display()), error))
}

/// Takes the store's lock.
pub(super) fn lock(disk: &dyn Disk, paths: &StorePaths, owner: &str) -> Result<Box<dyn Send + Sync>> {
    disk.lock(&paths.lock(), owner).map_err(|error| {
        if error.kind() == io::ErrorKind::WouldBlock {
            let owner = error.to_string();
            let owner = owner.lines().next().unwrap_or_default();
            let message = format!("the store {} is in use by {owner}: wait until it has ended, or stop it", paths.root().display());
            return Error::new(ErrorKind::Locked, message);
        }
        Error::io(format!("cannot lock the store with {}", paths.lock().display()), error)
    })
}

/// Takes the store's lock, and begins or continues the session that stands in its file behind the owner. A program that knows nothing of
/// sessions overwrites it: what a process left before that program came does not count any more.
pub(super) fn lock_session(disk: &dyn Disk, paths: &StorePaths, owner: &str) -> Result<(Box<dyn Send + Sync>, Option<Session>)> {
    let text = disk.open(&paths.lock(), OpenMode::Read, IoMode::Buffered).and_then(|file| {
        let mut text = vec![0; length(file.size_bytes()?.min(OWNER_BYTES_MAX))];
        file.read_exact_at(&mut text, 0)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    });
    let before = text.ok().and_then(|text| u128::from_str_radix(text.lines().nth(1)?.trim_end(), 16).ok());
    let id = before.map_or_else(random_bytes, |number| Ok(number.to_be_bytes()))?;
    let lock = lock(disk, paths, &format!("{owner}\n{:032x}", u128::from_be_bytes(id)))?;
    Ok((lock, disk.page_cache(&paths.lock()).map(|cache| Session { id, cache, file: 0 })))
}

/// Restricts the modes of a store's files, which older programs made by the umask, so that other users cannot use them. The directory
/// is restricted too, unless it has other things in it. Returns how many other users could use.
fn restrict(disk: &dyn Disk, paths: &StorePaths, access: Option<Access>) -> io::Result<usize> {
    let access = access.map_or_else(|| disk.access(paths.root()), Ok)?;
    let names = disk.list(paths.root())?;
    let is_shared = names.iter().any(|name| !StorePaths::is_own(name));
    if !is_shared && !disk.restrict(paths.root(), access)? {
        // The directory is closed to other users already, and so are the files in it.
        return Ok(0);
    }
    let mut open = usize::from(!is_shared);
    for name in names.iter().filter(|name| StorePaths::is_own(name)) {
        open += usize::from(disk.restrict(&paths.root().join(name), access)?);
    }
    for name in disk.list(&paths.layers()).unwrap_or_default() {
        open += usize::from(disk.restrict(&paths.layers().join(name), access)?);
    }
    Ok(open)
}

/// Shape and presence, replayed from the journal.
pub(super) struct Replayed {
    pub catalog: Catalog,
    block_size: BlockSize,
    pub recovery: Recovery,
    /// The store was not closed cleanly.
    pub unclean: bool,
    /// Blocks of the last round that were not on disk.
    pub lost_blocks: u64,
}

pub(super) fn layer_config(paths: &StorePaths, options: &StoreOptions, superblock: &Superblock) -> LayerConfig {
    LayerConfig {
        disk: Arc::clone(&options.disk),
        paths: paths.clone(),
        block_size: superblock.block_size,
        io_mode: options.io_mode,
        checksum_cache_bytes: options.checksum_cache_bytes,
        checkpoint_bytes: options.checkpoint_bytes,
        limits: options.limits(),
    }
}

/// Recovers shape and presence from the journal.
///
/// 1. The state of the last checkpoint is applied.
/// 2. All rounds but the last are applied: a round begins only after the sync of the one before has ended, so their blocks are on disk.
/// 3. The last round may have been cut short by the crash. It is applied as far as its blocks match their checksums
///    (`Replayed::apply_last`).
pub(super) fn replay(config: LayerConfig, loaded: &Loaded) -> Result<Replayed> {
    let mut replayed = Replayed {
        catalog: Catalog::new(loaded.superblock.store_id),
        block_size: config.block_size,
        recovery: Recovery::new(config),
        unclean: !loaded.is_closed(),
        lost_blocks: 0,
    };
    let (last, before) = match loaded.rounds.split_last() {
        Some((last, before)) => (Some(last), before),
        None => (None, &loaded.rounds[..]),
    };
    for record in loaded.state.iter().chain(before.iter().flatten()) {
        replayed.apply(record)?;
    }
    if let Some(last) = last {
        match replayed.unclean {
            false => last.iter().try_for_each(|record| replayed.apply(record))?,
            true => replayed.apply_last(last)?,
        }
    }
    Ok(replayed)
}

impl Replayed {
    fn apply(&mut self, record: &Record) -> Result<()> {
        match record {
            Record::Shape(record) => self.apply_shape(record),
            Record::Blocks(record) => self.recovery.apply(record),
            Record::Closed => Ok(()),
        }
    }

    fn apply_shape(&mut self, record: &ShapeRecord) -> Result<()> {
        if let ShapeRecord::Resize { volume, size_bytes } = record {
            self.cut(*volume, *size_bytes)?;
        }
        let freed = self.catalog.apply(record);
        let freed = freed.map_err(|error| {
            Error::new(
                ErrorKind::Corrupt,
                format!("the journal contradicts itself ({error}): run a check, or restore the store from a backup"),
            )
        })?;
        if let ShapeRecord::Layer(layer) = record {
            self.recovery.add(layer.layer);
        }
        self.recovery.free(&freed);
        Ok(())
    }

    /// Applies the shrink of a volume. Its record also stands for the zeros behind the new end, in whole blocks of the open layer.
    fn cut(&mut self, volume: VolumeId, size_bytes: u64) -> Result<()> {
        let Some((layer, old)) = self.catalog.volume(volume).map(|entry| (entry.head, entry.size_bytes)) else { return Ok(()) };
        let cut = BlockSpan::new(self.block_size.blocks_for(size_bytes), self.block_size.blocks_for(old));
        let Some((first, last)) = cut.first().zip(cut.last()) else { return Ok(()) };
        let hides = self.catalog.layer(layer).is_some_and(|entry| entry.parent.is_some());
        self.recovery.apply(&if hides { BlocksRecord::Zero { layer, first, last } } else { BlocksRecord::Drop { layer, first, last } })
    }

    /// Applies the last round, whose sync may not have ended before the crash.
    ///
    /// 1. Each block that the round names is compared with the bytes on disk. Frame and blocks reach the disk in any order, so a block that
    ///    does not match was lost.
    /// 2. Changes of shape, and records that drop or forget blocks, are applied only if no block was lost: a fork is there with all of its
    ///    bytes or not at all, and no block is forgotten for one that was lost.
    /// 3. Zeros, marks and patches are applied in any case, because they depend on no block.
    /// 4. New blocks that match become present. Blocks of `Expect` records only decide step 2: they were present before.
    fn apply_last(&mut self, records: &[Record]) -> Result<()> {
        let mut present = Vec::new();
        for record in records {
            if let Record::Blocks(BlocksRecord::Present(run) | BlocksRecord::Expect(run)) = record {
                let parts = self.recovery.matching(run);
                self.lost_blocks += wide(run.checksums.len() - parts.iter().map(|part| part.checksums.len()).sum::<usize>());
                if let Record::Blocks(BlocksRecord::Present(_)) = record {
                    present.extend(parts.into_iter().map(|run| Record::from(BlocksRecord::Present(run))));
                }
            }
        }
        let whole = self.lost_blocks == 0;
        let plain = |record: &&Record| match record {
            Record::Shape(_) => whole,
            Record::Blocks(record) => match record {
                BlocksRecord::Present(_) | BlocksRecord::Expect(_) => false,
                BlocksRecord::Drop { .. } | BlocksRecord::Forget(_) => whole,
                BlocksRecord::Zero { .. }
                | BlocksRecord::Mark(..)
                | BlocksRecord::Clear(..)
                | BlocksRecord::Patch(_)
                | BlocksRecord::Presence(_) => true,
            },
            Record::Closed => true,
        };
        for record in records.iter().filter(plain).chain(&present) {
            self.apply(record)?;
        }
        Ok(())
    }
}

impl OpenStore {
    pub fn create(path: &Path, options: StoreOptions) -> Result<Arc<Self>> {
        let paths = absolute(&*options.disk, path)?;
        let disk = Arc::clone(&options.disk);
        let make = |path: &Path| disk.create_dir(path).map_err(|error| Error::io(format!("cannot create {}", path.display()), error));
        // Crash ordering: the name of a directory is durable once its parent is synced, so the parents are synced, topmost first, before
        // anything in the store is. A parent that existed may have been made by an earlier try that was killed before its sync; but this
        // process may not be allowed to open it, and its file system may not sync directories.
        let new: Vec<&Path> =
            paths.root().ancestors().take_while(|path| !path.as_os_str().is_empty() && disk.list(path).is_err()).collect();
        make(paths.root())?;
        let all: Vec<&Path> = paths.root().ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
        for (depth, path) in all.iter().enumerate().rev().filter(|(_, path)| path.parent().is_some()) {
            let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let synced = disk.sync_dir(above).map_err(|error| Error::sync_dir(format!("cannot sync {}", above.display()), error));
            if depth < new.len() {
                synced?;
            }
        }
        let (lock, session) = lock_session(&*disk, &paths, &options.owner)?;
        let exists = |error: Option<Error>| match error {
            Some(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Some(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt) => Err(error),
            _ => Err(Error::new(
                ErrorKind::Exists,
                format!("there is a store in {} already: use it, or choose another directory", path.display()),
            )),
        };
        exists(load(&*disk, &paths, &options.limits()).err())?;
        let restricted = restrict(&*disk, &paths, options.group_access.then_some(Access::Group));
        if options.group_access && !(restricted.is_ok() && disk.access(paths.root()).is_ok_and(|access| access == Access::Group)) {
            let text =
                format!("{} cannot be shared with a group: choose a directory of your own that has nothing else in it", path.display());
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        make(&paths.layers())?;
        let store_id = random_bytes()?;
        let superblock = Superblock { block_size: options.block_size, generation: 0, store_id, journal: 0, features: Features::default() };
        let mut recovery = Recovery::new(layer_config(&paths, &options, &superblock));
        recovery.set_session(session);
        Self::start(paths, options, superblock, 0, Catalog::new(store_id), recovery, lock)
    }

    pub fn open(path: &Path, options: StoreOptions) -> Result<Arc<Self>> {
        let paths = absolute(&*options.disk, path)?;
        // Fails before a lock file is made where no store is.
        if !has_superblock(&*options.disk, &paths) {
            return Err(no_store(&*options.disk, &paths));
        }
        let (lock, mut session) = lock_session(&*options.disk, &paths, &options.owner)?;
        let restricted = restrict(&*options.disk, &paths, None);
        let mut loaded = load(&*options.disk, &paths, &options.limits())?;
        let mut replayed = replay(layer_config(&paths, &options, &loaded.superblock), &loaded)?;
        if let Some(session) = &mut session {
            let read = read_unrecorded(&*options.disk, &paths, session, loaded.sequence);
            let (records, file) = read.map_err(|error| Error::io("cannot read unrecorded.0 and unrecorded.1 of the store", error))?;
            session.file = file;
            if replayed.unclean {
                replayed.recovery.apply_unrecorded(&records)?;
            }
        }
        replayed.recovery.set_session(session);
        let names = options.disk.list(&paths.layers());
        let names = names.map_err(|error| Error::io(format!("cannot list {}", paths.layers().display()), error))?;
        replayed.catalog.skip_layers(names.iter().filter_map(|name| StorePaths::parse_layer(name)).map(|(layer, _)| layer));
        if let Some(violation) = replayed.catalog.violations().first() {
            let message = format!("the journal contradicts itself ({violation}): run a check, or restore the store from a backup");
            return Err(Error::remediable(ErrorKind::Corrupt, message, Remedy::CheckStore));
        }
        Journal::confirm(&*options.disk, &paths, &mut loaded)?;
        // Takes the journal's space before checksum pages use the rest of the disk.
        Journal::take_space(&options.disk, &paths, &loaded, &options.limits());
        // Cleared once no lease is left, and no limit, so that older programs can read the store again.
        loaded.superblock.features = replayed.catalog.features();
        let store = Self::start(paths, options, loaded.superblock, loaded.sequence, replayed.catalog, replayed.recovery, lock)?;
        store.background.note_opened(replayed.unclean);
        store.core.note_restricted(restricted);
        tell!(INFO, store = store.core.report.store_id, path = %path.display(), unclean = replayed.unclean, "opened");
        Ok(store)
    }

    /// Opens a store read-only, on an overlay disk that keeps the changes of recovery in memory.
    pub fn open_read_only(path: &Path, options: StoreOptions) -> Result<Arc<Self>> {
        let disk = Arc::new(OverlayDisk::new(options.disk));
        let store = Self::open(path, StoreOptions { disk, sources: None, threads: false, ..options })?;
        store.core.layers.set_read_only();
        Ok(store)
    }

    fn start(
        paths: StorePaths,
        options: StoreOptions,
        superblock: Superblock,
        sequence: u64,
        catalog: Catalog,
        recovery: Recovery,
        lock: Box<dyn Send + Sync>,
    ) -> Result<Arc<Self>> {
        let block_size = superblock.block_size;
        let store_id = superblock.store_id.iter().map(|byte| format!("{byte:02x}")).collect();
        let entry = |layer: LayerId| {
            let entry = catalog.layer(layer);
            let source = entry.and_then(|entry| entry.source.as_ref());
            (entry.and_then(|entry| entry.parent), source.map(|source| block_size.blocks_for(source.size_bytes)))
        };
        let disk = Arc::clone(&options.disk);
        let shape = Frozen::of(&catalog).records().map(Record::Shape);
        let start_paths = paths.clone();
        // Crash ordering: the new journal makes the decisions of this recovery durable before any write builds on them.
        let limits = options.limits();
        let layers = recovery
            .finish(entry, move |presence| Journal::start(disk, start_paths, superblock, sequence, shape.chain(presence), limits))?;
        let layers = Arc::new(layers);
        Self::seal_all(&catalog, &layers);
        let clock: Arc<dyn Clock> = Arc::new(GuardedClock::new(options.clock));
        let core = Core::new(CoreConfig {
            layers,
            catalog,
            block_size,
            store_id,
            ring: options.ring,
            sources: options.sources,
            clock: Arc::clone(&clock),
            threads: options.threads,
            on_event: options.on_event,
            lease: options.lease,
        });
        let needs = Arc::downgrade(&core);
        core.layers.barriers.on_need(move || needs.upgrade().map_or(Ok(()), |core| core.shape.checkpoint()));
        let background = Background::new(Arc::clone(&core), paths, options.disk, clock);
        let store = Arc::new(Self { core, background, ownership: Mutex::ranked(Rank::Ownership, Ownership::Held { _lock: lock }) });
        store.resume_hydration()?;
        if options.threads {
            store.background.start()?;
        }
        Ok(store)
    }

    fn seal_all(catalog: &Catalog, layers: &Layers) {
        let heads: std::collections::HashSet<LayerId> = catalog.volumes().map(|(_, volume)| volume.head).collect();
        for layer in layers.all() {
            if !heads.contains(&layer.id) {
                layer.seal();
            }
        }
    }

    fn resume_hydration(&self) -> Result<()> {
        let sources: Vec<_> = self.core.shape.catalog().layers().filter_map(|(id, entry)| Some((id, entry.source.clone()?))).collect();
        for (id, source) in sources {
            if self.core.blocks.has_sources {
                let layer = self.core.layers.require(id)?;
                self.core.roots.resume(&layer, source)?;
            }
        }
        Ok(())
    }

    pub(super) fn background(&self) -> &Background {
        &self.background
    }

    pub fn step(&self) -> Result<bool> {
        self.background.step()
    }

    pub fn close(&self) -> Result<()> {
        // From here on every call is refused, whichever thread closes the store.
        self.core.pool.fence.shut();
        let mut ownership = match self.core.pool.fence.is_own_thread() {
            false => self.ownership.lock(),
            // Another close may be under way that waits for this very thread: it is not waited for.
            true => match self.ownership.try_lock() {
                Some(ownership) => ownership,
                None => return Ok(()),
            },
        };
        if let Ownership::Released(result) = &*ownership {
            return result.clone();
        }
        // Readers that wait for a source fail now, so that calls under way end.
        self.stop_threads();
        self.core.pool.fence.wait_empty(|| self.core.layers.reapers.help());
        // A second time: the last of these calls may have begun the hydration of a fork.
        self.stop_threads();
        self.core.borrowing.give_back_all();
        let result = match self.core.shut_down(self.background.is_swept()) {
            // A read-only store has nothing to make durable.
            Err(error) if error.kind() == ErrorKind::ReadOnly => Ok(()),
            other => other,
        };
        // The lock is released last: another process may open the store at once.
        *ownership = Ownership::Released(result.clone());
        drop(ownership);
        tell!(INFO, store = self.core.report.store_id, error = result.as_ref().err().map(tracing::field::display), "closed");
        result
    }

    fn stop_threads(&self) {
        // Hydrators first, because other threads may wait for their sources.
        for hydrator in self.core.hydrations.all() {
            hydrator.stop();
        }
        self.background.stop();
        self.core.hydrations.join();
        self.core.borrowing.stop();
    }
}

impl Drop for OpenStore {
    fn drop(&mut self) {
        // A caller that wants the error calls `close`. Flushed data are safe in any case.
        let _ = self.close();
    }
}

/// Whether a directory may hold a store.
pub(super) fn has_superblock(disk: &dyn Disk, paths: &StorePaths) -> bool {
    disk.list(paths.root()).is_ok_and(|names| names.iter().any(|name| name == "superblock"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BlockRun, LayerRecord, SnapshotRecord, VolumeRecord};
    use crate::place::{Block, BlockSize};
    use crate::store::Store;

    #[test]
    fn opening_seals_layers_that_no_volume_writes_to() {
        let dir = tempfile::tempdir().unwrap();
        let options = || StoreOptions { threads: false, ..StoreOptions::default() };
        let store = Store::create(dir.path(), options()).unwrap();
        store.create_volume("v", 1 << 20).unwrap().write_at(&[1; 4096], 0).unwrap();
        store.create_snapshot("v", "s").unwrap();
        store.fork("v@s", "f").unwrap();
        let sealed = |store: &Store| -> Vec<_> { store.0.core.layers.all().iter().map(|layer| layer.is_sealed()).collect() };
        assert_eq!(sealed(&store), [true, false, false]);
        store.close().unwrap();
        assert_eq!(sealed(&Store::open(dir.path(), options()).unwrap()), [true, false, false]);
    }

    /// What the last round says, when one of its blocks is not on disk.
    #[test]
    fn a_torn_round_neither_changes_the_shape_nor_forgets_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let superblock =
            Superblock { block_size: BlockSize::DEFAULT, generation: 1, store_id: [1; 16], journal: 1, features: Features::default() };
        let config = layer_config(&StorePaths::new(dir.path()), &StoreOptions::default(), &superblock);
        let (volume, base, head) = (VolumeId(0), LayerId(0), LayerId(1));
        let name = || "v".to_owned();
        let present = |layer, block| Record::from(BlocksRecord::Present(BlockRun { layer, block: Block::new(block), checksums: vec![1] }));
        let state = [
            ShapeRecord::Layer(LayerRecord::over(None, base)),
            ShapeRecord::Layer(LayerRecord::over(Some(base), head)),
            ShapeRecord::Volume(VolumeRecord { volume, head, size_bytes: 1 << 20, created_at: 0, name: name(), parent: String::new() }),
            ShapeRecord::Snapshot(SnapshotRecord { volume, layer: base, size_bytes: 1 << 20, created_at: 0, name: name() }),
        ]
        .map(Record::Shape);
        let ends = vec![
            Record::from(ShapeRecord::DestroySnapshot { volume, name: name() }),
            BlocksRecord::Drop { layer: base, first: Block::new(5), last: Block::new(5) }.into(),
            BlocksRecord::Zero { layer: head, first: Block::new(9), last: Block::new(9) }.into(),
        ];
        for torn in [false, true] {
            let mut last = ends.clone();
            // There is no file that could have this block.
            last.extend(torn.then(|| present(head, 6)));
            let rounds = vec![vec![present(base, 5)], last];
            let loaded = Loaded {
                superblock,
                state: state.to_vec(),
                rounds,
                sequence: 3,
                both_slots: true,
                warnings: Vec::new(),
                covers: 0,
                bytes: (0, 0),
            };
            let replayed = replay(config.clone(), &loaded).unwrap();
            assert_eq!(replayed.lost_blocks, u64::from(torn));
            assert_eq!(replayed.catalog.snapshot("v", "v").is_ok(), torn);
            let held: Vec<_> = replayed.recovery.layers().map(|(id, presence, _)| (id, presence.present.contains(5))).collect();
            assert_eq!(held, [(base, torn), (head, false)]);
            let zeroed = replayed.recovery.layers().any(|(id, presence, _)| id == head && presence.zeroed.contains(9));
            assert!(zeroed, "a discard does not depend on other blocks");
        }
    }
}
