//! Stores of earlier builds, recorded by `tests/stores/make.py`: this build reads all their bytes. A store that needs a feature unknown
//! to this build is refused and left unchanged.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use volfork::source::{Source, SourceError, SourceOpener, UriSources};
use volfork::store::HydrationControl;
use volfork::{ErrorKind, Store, StoreOptions};

/// The source of `half`, which is not where it was.
struct Moved(PathBuf);

impl SourceOpener for Moved {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        assert_eq!(uri, "nbd://127.0.0.1:10899");
        UriSources::default().open(&format!("file://{}", self.0.display()))
    }
}

/// What the source has, as in `make.py`.
fn source_bytes() -> Vec<u8> {
    let padded = |text: String, fill: char, width: usize| format!("{text}{}", String::from(fill).repeat(width - text.len()));
    let mut bytes = Vec::new();
    for number in 0..300 {
        bytes.extend(padded(format!("source block {number}"), '.', 32).into_bytes());
        bytes.resize((number + 1) * 4096, 0);
    }
    bytes.extend(padded("the odd end".into(), '!', 1000).into_bytes());
    bytes
}

/// A store written by an older program, with the size and digest of each volume and snapshot.
struct Old {
    directory: tempfile::TempDir,
    volumes: Vec<(String, u64, String)>,
}

impl Old {
    fn new(written: &Path) -> Self {
        let mut old = Self { directory: tempfile::tempdir().unwrap(), volumes: Vec::new() };
        let mut file: Option<File> = None;
        for line in fs::read_to_string(written).unwrap().lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["volume", name, size, digest] => old.volumes.push((name.into(), size.parse().unwrap(), digest.into())),
                ["file", name, size] => {
                    let path = old.store().join(name);
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    file = Some(File::create(path).unwrap());
                    file.as_ref().unwrap().set_len(size.parse().unwrap()).unwrap();
                }
                ["at", offset, bytes] => {
                    let bytes = data_encoding::BASE64.decode(bytes.as_bytes()).unwrap();
                    file.as_ref().unwrap().write_all_at(&bytes, offset.parse().unwrap()).unwrap();
                }
                _ => panic!("{}: {line}", written.display()),
            }
        }
        fs::write(old.source(), source_bytes()).unwrap();
        old
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn source(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    fn open(&self) -> Store {
        let sources: Arc<dyn SourceOpener> = Arc::new(Moved(self.source()));
        Store::open(self.store(), StoreOptions::default().with_sources(sources)).unwrap()
    }

    /// Everything is as it was.
    fn compare(&self, store: &Store) {
        for (name, size, digest) in &self.volumes {
            let mut bytes = vec![0; usize::try_from(*size).unwrap()];
            match name.split_once('@') {
                Some((volume, snapshot)) => store.snapshot(volume, snapshot).unwrap().read_at(&mut bytes, 0).unwrap(),
                None => store.volume(name).unwrap().read_at(&mut bytes, 0).unwrap(),
            }
            let found = data_encoding::HEXLOWER.encode(&Sha256::digest(&bytes));
            assert_eq!(found, *digest, "{name}");
        }
        let names: Vec<_> = self.volumes.iter().map(|(name, _, _)| name).filter(|name| !name.contains('@')).cloned().collect();
        assert!(names.iter().all(|name| store.volume_names().contains(name)), "{:?}", store.volume_names());
        let scrubbed = store.scrub(None).unwrap();
        assert!(scrubbed.blocks_verified > 0 && scrubbed.blocks_damaged + scrubbed.blocks_repaired == 0, "{scrubbed:?}");
    }

    /// No rule of the structure is broken.
    fn check(&self) {
        let checked = Store::check(self.store(), StoreOptions::default()).unwrap();
        assert!(checked.violations.is_empty(), "{:?}", checked.violations);
    }
}

fn written() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stores");
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut stores: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "store")).collect();
    stores.sort();
    assert!(stores.len() >= 4, "{stores:?}");
    stores
}

#[test]
fn stores_of_earlier_builds_are_opened_with_all_they_have() {
    for path in written() {
        println!("{}", path.display());
        let old = Old::new(&path);
        old.check();
        let store = old.open();
        old.compare(&store);
        store.control_hydration("half", &HydrationControl::default().with_paused(false)).unwrap();
        assert!(store.wait_hydrated("half", Duration::from_secs(60)).unwrap());
        // It is used like any other from then on.
        store.fork("base@s", "new").unwrap().write_at(b"new", 4095).unwrap();
        store.create_snapshot("child", "t").unwrap();
        store.close().unwrap();
        old.check();
        fs::remove_file(old.source()).unwrap();
        old.compare(&old.open());
    }
}

/// Names and bytes of the files of a store, but that of its lock.
fn files(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for directory in [store.to_path_buf(), store.join("layers")] {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let is_counted = entry.file_type().unwrap().is_file() && entry.file_name() != "lock";
            found.extend(is_counted.then(|| (entry.path(), fs::read(entry.path()).unwrap())));
        }
    }
    found
}

#[test]
fn a_store_that_needs_a_later_build_is_left_unchanged() {
    const SLOT: usize = 4096;
    for path in written() {
        let old = Old::new(&path);
        let superblock = old.store().join("superblock");
        let mut bytes = fs::read(&superblock).unwrap();
        for slot in bytes.chunks_mut(SLOT).filter(|slot| slot.starts_with(b"volfork")) {
            // Feature number 40.
            slot[48 + 40 / 8] |= 1;
            let crc = crc32fast::hash(&slot[..SLOT - 4]);
            slot[SLOT - 4..].copy_from_slice(&crc.to_le_bytes());
        }
        fs::write(&superblock, bytes).unwrap();
        let before = files(&old.store());
        let refused = Store::open(old.store(), StoreOptions::default()).err().unwrap();
        assert!(refused.kind() == ErrorKind::Unsupported && refused.to_string().contains("feature number 40"), "{refused}");
        let source = old.source();
        let source = source.to_str().unwrap();
        for arguments in
            [&["list"][..], &["create", "v", "--size", "1M"], &["import", "v", source], &["serve"], &["scrub"], &["check"], &["init"]]
        {
            let mut command = Command::new(env!("CARGO_BIN_EXE_volfork"));
            let output = command.arg("--store").arg(old.store()).args(arguments).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            let is_told = error.contains("feature number 40") || arguments == ["init"];
            assert!(output.status.code() == Some(1) && is_told, "{arguments:?}: {error}");
        }
        assert!(files(&old.store()) == before, "{}", path.display());
    }
}
