//! Stores with damaged files: recovery where it is possible, a clear refusal where it is not, and never wrong bytes without an error.

#[path = "../src/random.rs"]
mod random;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use volfork::source::UriSources;
use volfork::{ErrorKind, Result, Store, StoreOptions};

use random::Random;

const BLOCK: usize = 4096;
const SIZE: usize = 5 << 20;

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    Random::new(seed).bytes(bytes)
}

/// No thread changes files behind the test's back, and no source is there.
fn options() -> StoreOptions {
    StoreOptions::default().with_threads(false)
}

/// What an export must read as.
type Contents = BTreeMap<&'static str, Vec<u8>>;

/// Blocks of `half` that came before its source was lost.
const FETCHED: usize = 64;

/// A store with every kind of file: closed in order in `closed`, and as it was after the last flush in `killed`.
struct Fixture {
    directory: tempfile::TempDir,
    contents: Contents,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let image = pattern(1, SIZE);
        fs::write(path("image"), &image).unwrap();
        let with_source = options().with_sources(Arc::new(UriSources::default()));
        let store = Store::create(path("store"), with_source).unwrap();
        let half = store.fork(&format!("file://{}", path("image").display()), "half").unwrap();
        half.read_at(&mut vec![0; FETCHED * BLOCK], 0).unwrap();
        store.close().unwrap();
        let store = Store::open(path("store"), options()).unwrap();
        let mut contents = Contents::new();
        let (half, mut bytes) = (store.volume("half").unwrap(), image.clone());
        // One block over what came, and a part of one that did not.
        for (offset, length) in [(BLOCK, BLOCK), (100 * BLOCK + 5, 100)] {
            bytes[offset..offset + length].copy_from_slice(&pattern(2, length));
            half.write_at(&bytes[offset..offset + length], offset as u64).unwrap();
        }
        half.flush().unwrap();
        contents.insert("half", bytes);
        let base = store.create_volume("base", SIZE as u64).unwrap();
        let mut bytes = vec![0; SIZE];
        bytes[..SIZE / 2].copy_from_slice(&image[..SIZE / 2]);
        base.write_at(&bytes[..SIZE / 2], 0).unwrap();
        base.create_snapshot("s").unwrap();
        let (kid, mut other) = (store.fork("base@s", "kid").unwrap(), bytes.clone());
        contents.insert("base@s", bytes.clone());
        for block in [0, 3, 1100] {
            for (volume, bytes, seed) in [(&base, &mut bytes, 3), (&kid, &mut other, 4)] {
                let range = block * BLOCK..(block + 1) * BLOCK;
                bytes[range.clone()].copy_from_slice(&pattern(seed, BLOCK));
                volume.write_at(&bytes[range.clone()], range.start as u64).unwrap();
                volume.flush().unwrap();
            }
        }
        contents.extend([("base", bytes), ("kid", other)]);
        copy(&path("store"), &path("killed"));
        store.close().unwrap();
        fs::rename(path("store"), path("closed")).unwrap();
        Self { directory, contents }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A fresh copy of `closed` or `killed`.
    fn copy(&self, which: &str) -> PathBuf {
        let path = self.path("damaged");
        let _ = fs::remove_dir_all(&path);
        copy(&self.path(which), &path);
        path
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        match path.is_dir() {
            true => copy(&path, &to.join(name)),
            false => drop(fs::copy(&path, to.join(name)).unwrap()),
        }
    }
}

/// The only file of the store whose name begins so.
fn journal(store: &Path) -> PathBuf {
    let names = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
    let mut journals: Vec<_> = names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("journal.")).collect();
    assert_eq!(journals.len(), 1, "{journals:?}");
    journals.remove(0)
}

/// Where the frames of a journal are.
fn frames(journal: &Path) -> Vec<std::ops::Range<usize>> {
    let bytes = fs::read(journal).unwrap();
    let (mut frames, mut at) = (Vec::new(), 0);
    while bytes[at..].starts_with(b"vfj1") {
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        frames.push(at..at + 24 + length);
        at = (at + 24 + length).next_multiple_of(8);
    }
    frames
}

fn flip(path: &Path, offset: usize) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset as u64).unwrap();
}

/// What became of a store.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It does not open.
    Refused(ErrorKind),
    /// Everything that was there is.
    Whole,
    /// So many blocks of all exports cannot be read.
    Damaged,
}

/// Opens a store and reads all of it; answers also whether `check` found something before. Whatever can be read must be right, and
/// what cannot must be explained.
fn examine(store: &Path, contents: &Contents, what: &str) -> (Verdict, bool) {
    let checked = Store::check(store, options());
    let found_by_check = checked.as_ref().map_or(true, |report| !report.violations.is_empty());
    let opened = match Store::open(store, options()) {
        Ok(opened) => opened,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(store.to_str().unwrap()), "{what}: the error does not say where: {text}");
            assert!(found_by_check, "{what}: check finds nothing, but: {text}");
            return (Verdict::Refused(error.kind()), true);
        }
    };
    let mut damaged = 0;
    let mut by_name: BTreeMap<String, u64> = BTreeMap::new();
    for (name, expected) in contents {
        for (block, expected) in expected.chunks(BLOCK).enumerate() {
            let mut found = vec![0; BLOCK];
            match read(&opened, name, &mut found, (block * BLOCK) as u64) {
                Ok(()) => assert!(found == expected, "{what}: block {block} of {name} reads wrong"),
                Err(error) if *name == "half" && block >= FETCHED && error.kind() != ErrorKind::Corrupt => {}
                Err(error) => {
                    assert_explained(&error, name, block, store, what);
                    damaged += 1;
                    let kind = if name.contains('@') { "snapshot" } else { "volume" };
                    *by_name.entry(format!("{kind} '{name}'")).or_default() += 1;
                }
            }
        }
    }
    let scrubbed = opened.scrub(None);
    let found = scrubbed.as_ref().map_or(1, |report| report.errors.len());
    assert_eq!(damaged > 0, found > 0, "{what}: {damaged} blocks cannot be read, scrub says {scrubbed:?}");
    if let Ok(report) = scrubbed {
        let told: BTreeMap<_, _> = report.affected.iter().map(|(name, blocks)| (name.clone(), blocks.blocks_damaged)).collect();
        assert_eq!(told, by_name, "{what}: scrub names those who show what is damaged: {:?}", report.errors);
    }
    opened.close().unwrap();
    (if damaged == 0 { Verdict::Whole } else { Verdict::Damaged }, found_by_check)
}

fn read(store: &Store, name: &str, buffer: &mut [u8], offset: u64) -> Result<()> {
    match name.split_once('@') {
        Some((volume, snapshot)) => store.snapshot(volume, snapshot)?.read_at(buffer, offset),
        None => store.volume(name)?.read_at(buffer, offset),
    }
}

fn assert_explained(error: &volfork::Error, name: &str, block: usize, store: &Path, what: &str) {
    let text = error.to_string();
    let Some(corruption) = error.corruption() else {
        assert!(text.contains(store.to_str().unwrap()) || text.contains("layer"), "{what}: block {block} of {name}: {text}");
        return;
    };
    assert_eq!((corruption.volume.as_deref(), corruption.block), (Some(name), block as u64), "{what}: {text}");
    assert!(text.contains("scrub") && text.contains("backup"), "{what}: it does not say what to do: {text}");
    assert!(corruption.file.contains(&format!("{}.", corruption.layer)), "{what}: {text}");
    assert_eq!(corruption.offset_bytes, (block * BLOCK) as u64, "{what}: {text}");
}

/// Something that happens to a file.
type Damage = (&'static str, fn(&Path));

fn first_used(path: &Path) -> usize {
    fs::read(path).unwrap().iter().position(|byte| *byte != 0).unwrap_or(0)
}

const DAMAGES: &[Damage] = &[
    ("a bit flips", |path| flip(path, first_used(path))),
    ("4 KiB become zero", |path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let offset = first_used(path) / BLOCK * BLOCK;
        file.write_all_at(&vec![0; BLOCK.min(file.metadata().unwrap().len() as usize - offset)], offset as u64).unwrap();
    }),
    ("half is cut", |path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }),
    ("all is cut", |path| drop(OpenOptions::new().write(true).truncate(true).open(path).unwrap())),
    ("garbage follows", |path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&pattern(9, 70_000), file.metadata().unwrap().len()).unwrap();
    }),
    ("it is gone", |path| fs::remove_file(path).unwrap()),
    ("it is a directory", |path| fs::remove_file(path).and_then(|()| fs::create_dir(path)).unwrap()),
    ("it is a pipe", |path| {
        fs::remove_file(path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).unwrap();
    }),
    ("it is that of another layer", |path| {
        let Some(extension) = path.extension() else { return };
        let entries = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
        let mut others: Vec<_> = entries.filter(|other| other != path && other.extension() == Some(extension)).collect();
        others.sort();
        if let (Some(other), "layers") = (others.first(), path.parent().unwrap().file_name().unwrap().to_str().unwrap()) {
            let aside = path.with_extension("aside");
            fs::rename(path, &aside).and_then(|()| fs::rename(other, path)).and_then(|()| fs::rename(&aside, other)).unwrap();
        }
    }),
];

fn files(store: &Path) -> Vec<PathBuf> {
    let list = |path: &Path| -> Vec<PathBuf> { fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect() };
    let all = list(store).into_iter().chain(list(&store.join("layers")));
    let mut files: Vec<PathBuf> = all.filter(|path| path.is_file()).map(|path| path.strip_prefix(store).unwrap().to_owned()).collect();
    files.sort();
    files
}

/// What must become of a store that was closed in order; and whether `check` must have found it.
fn expected(file: &Path, damage: &str) -> (&'static [Verdict], bool) {
    const WHOLE: &[Verdict] = &[Verdict::Whole];
    const DAMAGED: &[Verdict] = &[Verdict::Damaged];
    const EITHER: &[Verdict] = &[Verdict::Whole, Verdict::Damaged];
    const CORRUPT: &[Verdict] = &[Verdict::Refused(ErrorKind::Corrupt)];
    const IO: &[Verdict] = &[Verdict::Refused(ErrorKind::Io)];
    let no_file = matches!(damage, "it is a directory" | "it is a pipe");
    let emptied = no_file || matches!(damage, "all is cut" | "it is gone");
    let name = file.to_str().unwrap();
    match (name, file.extension().and_then(|extension| extension.to_str())) {
        // Nothing depends on what is in it.
        ("lock", _) if no_file => (IO, true),
        ("lock" | "reserve" | "unrecorded.0" | "unrecorded.1", _) | (_, Some("trace")) => (WHOLE, false),
        ("superblock", _) if no_file => (IO, true),
        ("superblock", _) if emptied => (CORRUPT, true),
        ("superblock", _) => (WHOLE, damage != "it is that of another layer"),
        // Behind the state is only room for more.
        (_, Some("data" | "crc")) if damage == "garbage follows" => (WHOLE, false),
        (_, Some("crc")) if damage == "half is cut" => (EITHER, false),
        (_, Some("data")) => (DAMAGED, emptied || damage == "half is cut"),
        (_, Some("crc")) => (DAMAGED, emptied),
        _ if no_file => (IO, true),
        _ if matches!(damage, "half is cut" | "garbage follows" | "it is that of another layer") => (WHOLE, false),
        _ => (CORRUPT, true),
    }
}

#[test]
fn every_damage_to_every_file_is_recovered_refused_or_explained() {
    let fixture = Fixture::new();
    for file in files(&fixture.path("closed")) {
        for (damage, harm) in DAMAGES {
            let store = fixture.copy("closed");
            harm(&store.join(&file));
            let what = format!("{}: {damage}", file.display());
            let (verdict, found_by_check) = examine(&store, &fixture.contents, &what);
            let (allowed, must_be_found) = expected(&file, damage);
            assert!(allowed.contains(&verdict), "{what}: {verdict:?}");
            assert!(found_by_check || !must_be_found, "{what}: check finds nothing");
            if file == Path::new("superblock") && verdict == Verdict::Whole && damage != &"garbage follows" {
                let again = Store::check(&store, options()).unwrap();
                assert!(again.violations.is_empty(), "{what}: opening it has not mended it: {:?}", again.violations);
            }
        }
    }
}

#[test]
fn a_damaged_frame_is_told_from_a_torn_end() {
    let fixture = Fixture::new();
    let frames = frames(&journal(&fixture.path("killed")));
    assert!(frames.len() > 4, "{frames:?}");
    let last = frames.len() - 1;
    for (number, frame) in frames.iter().enumerate() {
        // The magic number, the length (longer and shorter), the number, the checksum, the first and the last byte of the payload.
        for offset in [0, 5, 7, 9, 20, 24, frame.len() - 1] {
            let store = fixture.copy("killed");
            flip(&journal(&store), frame.start + offset);
            let opened = Store::open(&store, options());
            match (opened, number == last) {
                (Err(error), false) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                    assert!(error.to_string().contains("journal.") && error.to_string().contains("backup"), "{error}");
                }
                // The end may be torn; what was flushed before it is there.
                (Ok(store), true) => {
                    let mut bytes = vec![0; BLOCK];
                    store.volume("base").unwrap().read_at(&mut bytes, 3 * BLOCK as u64).unwrap();
                    assert!(bytes == fixture.contents["base"][3 * BLOCK..4 * BLOCK]);
                    store.close().unwrap();
                }
                (opened, _) => panic!("frame {number} of {last}, byte {offset}: {:?}", opened.map(drop)),
            }
        }
    }
}

#[test]
fn a_store_that_lost_its_superblock_is_not_made_anew() {
    let fixture = Fixture::new();
    let store = fixture.copy("closed");
    fs::remove_file(store.join("superblock")).unwrap();
    for refused in [Store::create(&store, options()).map(drop), Store::open(&store, options()).map(drop)] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
    }
    assert!(files(&store).iter().any(|file| file.starts_with("layers")), "its layers were swept");
}

#[test]
fn a_scrub_ends_when_it_is_told_to() {
    let fixture = Fixture::new();
    let store = Store::open(fixture.copy("closed"), options()).unwrap();
    let whole = store.scrub(None).unwrap().blocks_verified;
    let mut calls = 0;
    let report = store.scrub_with(None, &mut |progress| {
        calls += 1;
        assert_eq!(progress.blocks_total, whole);
        ControlFlow::Break(())
    });
    let verified = report.unwrap().blocks_verified;
    assert!(calls == 1 && verified > 0 && verified < whole, "{verified} of {whole}");
}

/// What is behind it would fit as well: a volume that was written before and flushed would have lost that in silence.
#[test]
fn a_frame_that_is_gone_from_the_middle_is_noticed() {
    let fixture = Fixture::new();
    let frames = frames(&journal(&fixture.path("killed")));
    let rounds = 1..frames.len() - 1;
    assert!(rounds.len() > 3, "{frames:?}");
    for number in rounds {
        let store = fixture.copy("killed");
        let path = journal(&store);
        let mut bytes = fs::read(&path).unwrap();
        bytes.drain(frames[number].start..frames[number + 1].start);
        fs::write(&path, bytes).unwrap();
        let refused = Store::open(&store, options()).map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "frame {number}: {refused}");
        assert!(refused.to_string().contains("has number"), "frame {number}: {refused}");
    }
}

#[test]
fn either_slot_of_a_store_that_was_never_closed_is_enough() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let store = Store::create(path("store"), options()).unwrap();
    let bytes = pattern(1, BLOCK);
    let volume = store.create_volume("v", SIZE as u64).unwrap();
    volume.write_at(&bytes, 0).unwrap();
    volume.flush().unwrap();
    for slot in 0..2 {
        let killed = path(&format!("killed{slot}"));
        copy(&path("store"), &killed);
        assert_eq!(Store::check(&killed, options()).unwrap().violations, Vec::<String>::new());
        flip(&killed.join("superblock"), slot * 4096 + 20);
        let opened = Store::open(&killed, options()).unwrap_or_else(|error| panic!("slot {slot}: {error}"));
        let mut found = vec![0; BLOCK];
        opened.volume("v").unwrap().read_at(&mut found, 0).unwrap();
        assert!(found == bytes, "slot {slot}");
    }
}

/// A store that was killed at two moments, and closed in order after the second one: `early`, `late` and `closed`.
fn three_moments(directory: &Path) -> [PathBuf; 3] {
    let [early, late, closed] = ["early", "late", "closed"].map(|name| directory.join(name));
    let store = Store::create(&closed, options()).unwrap();
    let volume = store.create_volume("v", SIZE as u64).unwrap();
    for (number, killed) in [&early, &late].into_iter().enumerate() {
        volume.write_at(&pattern(number as u64, BLOCK), (number * BLOCK) as u64).unwrap();
        volume.flush().unwrap();
        copy(&closed, killed);
    }
    store.close().unwrap();
    [early, late, closed]
}

/// Damages the slot of the superblock that counts.
fn lose_newest_slot(store: &Path) {
    let bytes = fs::read(store.join("superblock")).unwrap();
    let generation = |slot: usize| u64::from_le_bytes(bytes[slot * 4096 + 16..slot * 4096 + 24].try_into().unwrap());
    flip(&store.join("superblock"), if generation(0) > generation(1) { 20 } else { 4096 + 20 });
}

/// A replaced journal becomes the spare. The power failed before that name was durable, and the next state was being written into it;
/// so it has its old name, and nothing that verifies. Later the newest slot of the superblock was damaged.
#[test]
fn the_newer_journal_counts_when_a_superblock_slot_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let [_, late, closed] = three_moments(directory.path());
    let (old, replaced) = (journal(&late), closed.join("journal.1"));
    assert!(old.ends_with("journal.1") && journal(&closed) != replaced);
    let mut bytes = fs::read(&old).unwrap();
    bytes[..64].fill(0xee);
    fs::write(&replaced, &bytes).unwrap();
    lose_newest_slot(&closed);
    let report = Store::check(&closed, options()).unwrap();
    assert!(report.violations.iter().any(|line| line.contains("was replaced")), "{report:?}");
    let opened = Store::open(&closed, options()).unwrap();
    for number in 0..2 {
        let mut found = vec![0; BLOCK];
        opened.volume("v").unwrap().read_at(&mut found, (number * BLOCK) as u64).unwrap();
        assert!(found == pattern(number as u64, BLOCK), "block {number}");
    }
    opened.close().unwrap();
    assert_eq!(Store::check(&closed, options()).unwrap().violations, Vec::<String>::new());
}

/// A checkpoint that failed may leave its journal behind, and the journal before goes on: what was flushed since must not vanish because
/// that one is damaged.
#[test]
fn a_successor_that_the_journal_has_outlived_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let [early, late, _] = three_moments(directory.path());
    drop(Store::open(&early, options()).unwrap());
    let successor = fs::read_dir(&early).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.ends_with("journal.2"));
    fs::copy(successor.expect("opening made it"), late.join("journal.2")).unwrap();
    flip(&late.join("journal.1"), 30);
    lose_newest_slot(&late);
    let refused = Store::open(&late, options()).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
}
