//! Real file systems that are full: ext4, XFS and btrfs on loop devices.
//!
//! Opt-in, for it needs root, loop devices and the tools that make file systems: `VOLFORK_FULL_DISK=1`. `VOLFORK_FULL_LIVES` says
//! how many lives a store has (default 12), `VOLFORK_FULL_SEED` where the histories begin. Each life is a process of its own. It
//! opens the store with 0 to 100 KiB free, compares every block with the model, works on, and closes the store or calls `abort`.

#[path = "../src/random.rs"]
mod random;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use volfork::{ErrorKind, Store, StoreOptions};

use random::Random;

const BLOCK: u64 = 4096;
/// Blocks that are written, far from one another.
const PLACES: u64 = 400;
const PLACE_BYTES: u64 = 37 * BLOCK * 100;
const IMAGE_BYTES: u64 = 400 << 20;
const STEPS: u64 = 400;

/// What each place of each volume may hold: the last value is that of the last write.
type Model = BTreeMap<String, Vec<Vec<u8>>>;

fn save(model: &Model, path: &Path) {
    let mut file = File::create(path).unwrap();
    for (name, places) in model {
        let places: Vec<String> = places.iter().map(|values| values.iter().map(u8::to_string).collect::<Vec<_>>().join(",")).collect();
        writeln!(file, "{name} {}", places.join(" ")).unwrap();
    }
}

fn load(path: &Path) -> Model {
    let text = fs::read_to_string(path).unwrap_or_default();
    let places =
        |words: std::str::SplitWhitespace<'_>| words.map(|word| word.split(',').map(|value| value.parse().unwrap()).collect()).collect();
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            (words.next().unwrap().to_owned(), places(words))
        })
        .collect()
}

struct Life {
    store: Store,
    model: Model,
    random: Random,
    names: u64,
}

impl Life {
    fn compare(&self) {
        for (name, places) in &self.model {
            for (place, values) in places.iter().enumerate() {
                for sector in self.read(name, place).chunks(512) {
                    assert!(
                        values.contains(&sector[0]) && sector.iter().all(|byte| *byte == sector[0]),
                        "{name} {place}: {} of {values:?}",
                        sector[0]
                    );
                }
            }
        }
    }

    fn read(&self, name: &str, place: usize) -> [u8; BLOCK as usize] {
        let (mut block, offset) = ([0; BLOCK as usize], place as u64 * PLACE_BYTES);
        match name.split_once('@') {
            None => self.store.volume(name).unwrap().read_at(&mut block, offset).unwrap(),
            Some((volume, snapshot)) => self.store.snapshot(volume, snapshot).unwrap().read_at(&mut block, offset).unwrap(),
        }
        block
    }

    /// What the store has after it was killed is what it had when it was opened: a write that was lost stays lost.
    fn learn(&mut self) {
        for name in self.model.keys().cloned().collect::<Vec<_>>() {
            for place in 0..PLACES as usize {
                let found = self.read(&name, place);
                if found.iter().all(|byte| *byte == found[0]) {
                    self.model.get_mut(&name).unwrap()[place] = vec![found[0]];
                }
            }
        }
    }

    /// A lack of space is the only error that there may be.
    fn space<T>(result: volfork::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if error.kind() == ErrorKind::NoSpace => None,
            Err(error) => panic!("{error:?}"),
        }
    }

    fn settle(&mut self, name: &str) {
        for values in self.model.get_mut(name).unwrap() {
            values.drain(..values.len() - 1);
        }
    }

    fn volume_name(&mut self) -> String {
        let names: Vec<String> = self.model.keys().filter(|name| !name.contains('@')).cloned().collect();
        names[self.random.below(names.len() as u64) as usize].clone()
    }

    fn step(&mut self) {
        let name = self.volume_name();
        let place = self.random.below(PLACES);
        match self.random.below(100) {
            0..50 => {
                let (volume, value) = (self.store.volume(&name).unwrap(), 1 + self.random.below(250) as u8);
                let values = &mut self.model.get_mut(&name).unwrap()[place as usize];
                match Self::space(volume.write_at(&[value; BLOCK as usize], place * PLACE_BYTES)) {
                    Some(()) => values.push(value),
                    // Old or new, sector by sector; the old value counts as the last.
                    None => values.insert(values.len() - 1, value),
                }
            }
            50..65 => {
                self.store.volume(&name).unwrap().discard(place * PLACE_BYTES, BLOCK).expect("a discard needs no space");
                self.model.get_mut(&name).unwrap()[place as usize].push(0);
            }
            65..80 => {
                self.store.volume(&name).unwrap().flush().expect("a flush needs no space");
                self.settle(&name);
            }
            80..85 => {
                self.names += 1;
                let fork = format!("v{}", self.names);
                if Self::space(self.store.fork(&name, &fork)).is_some() {
                    self.settle(&name);
                    self.model.insert(fork, self.model[&name].clone());
                }
            }
            85..90 => {
                self.names += 1;
                let snapshot = format!("s{}", self.names);
                if Self::space(self.store.create_snapshot(&name, &snapshot)).is_some() {
                    self.settle(&name);
                    self.model.insert(format!("{name}@{snapshot}"), self.model[&name].clone());
                }
            }
            90..94 => {
                if self.model.keys().filter(|name| !name.contains('@')).count() > 1 {
                    self.store.destroy_volume(&name, true).expect("a destroy needs no space");
                    self.model.retain(|other, _| *other != name && !other.starts_with(&format!("{name}@")));
                }
            }
            94..97 => {
                let snapshots: Vec<String> = self.model.keys().filter(|name| name.contains('@')).cloned().collect();
                if let Some(name) = snapshots.get(self.random.below(snapshots.len().max(1) as u64) as usize) {
                    let (volume, snapshot) = name.split_once('@').unwrap();
                    self.store.destroy_snapshot(volume, snapshot).expect("a destroy needs no space");
                    self.model.remove(name);
                }
            }
            _ => {
                for _ in 0..20 {
                    let _ = Self::space(self.store.step());
                }
            }
        }
    }
}

/// One life, in a process of its own.
fn live(store: &Path, model_path: &Path, seed: u64) {
    let threads = seed.is_multiple_of(2);
    let store = Store::open(store, StoreOptions::default().with_threads(threads)).expect("a store opens on a full disk");
    let mut life = Life { store, model: load(model_path), random: Random::new(seed), names: seed * 10_000 };
    life.compare();
    life.learn();
    for _ in 0..STEPS {
        life.step();
    }
    life.compare();
    let ends = life.random.below(3);
    if ends > 0 {
        life.store.close().expect("a store closes on a full disk");
        for name in life.model.keys().cloned().collect::<Vec<_>>() {
            life.settle(&name);
        }
    }
    save(&life.model, model_path);
    if ends == 0 {
        std::process::abort();
    }
}

/// A file system of its own, unmounted and removed at the end.
struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    fn new(kind: &str) -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        let options: &[&str] = if kind == "ext4" { &["-q", "-m", "0"] } else { &["-q"] };
        run(Command::new(format!("mkfs.{kind}")).args(options).arg(&image))?;
        let mount = directory.path().join("mount");
        fs::create_dir(&mount).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount))?;
        Ok(Self { directory })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    /// Takes all space but so many bytes.
    fn fill(&self, free: u64) {
        let file = File::options().create(true).append(true).open(self.path().join("filler")).unwrap();
        for size in [1 << 20, 64 << 10, 4096, 512] {
            let bytes = vec![1; size];
            while (&file).write_all(&bytes).is_ok() {}
        }
        let _ = file.sync_all();
        let length = file.metadata().unwrap().len().saturating_sub(free);
        file.set_len(length).unwrap();
        let _ = file.sync_all();
        let _ = file.read_at(&mut [0], 0);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))) }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn histories(kind: &str) {
    if std::env::var_os("VOLFORK_FULL_DISK").is_none() {
        return println!("skipped: VOLFORK_FULL_DISK is not set");
    }
    let mounted = match Mounted::new(kind) {
        Ok(mounted) => mounted,
        Err(reason) => return println!("skipped: there is no {kind} here: {reason}"),
    };
    let (path, model) = (mounted.path().join("store"), mounted.directory.path().join("model"));
    let store = Store::create(&path, StoreOptions::default().with_threads(false)).unwrap();
    store.create_volume("v", PLACES * PLACE_BYTES).unwrap();
    save(&[("v".to_owned(), vec![vec![0]; PLACES as usize])].into(), &model);
    store.close().unwrap();
    drop(store);
    let first = number("VOLFORK_FULL_SEED", 1);
    for seed in first..first + number("VOLFORK_FULL_LIVES", 12) {
        let free = Random::new(seed).below(101) << 10;
        // The first life has space for something to overwrite.
        mounted.fill(if seed == first { 4 << 20 } else { free });
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "a_life", "--nocapture"]).env("VOLFORK_FULL_LIFE", format!("{seed}")).env("VOLFORK_FULL_STORE", &path);
        let output = child.env("VOLFORK_FULL_MODEL", &model).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(!text.contains("panicked"), "{kind}, seed {seed}, {free} bytes free:\n{text}");
    }
    let report = Store::open(&path, StoreOptions::default()).unwrap().scrub(None).unwrap();
    assert_eq!(report.errors, Vec::<String>::new(), "{kind}, seed {first}");
}

#[test]
fn a_life() {
    if let Some(seed) = std::env::var("VOLFORK_FULL_LIFE").ok().and_then(|seed| seed.parse().ok()) {
        let path = |name| PathBuf::from(std::env::var_os(name).unwrap());
        live(&path("VOLFORK_FULL_STORE"), &path("VOLFORK_FULL_MODEL"), seed);
    }
}

#[test]
fn a_store_lives_on_a_full_ext4() {
    histories("ext4");
}

#[test]
fn a_store_lives_on_a_full_xfs() {
    histories("xfs");
}

#[test]
fn a_store_lives_on_a_full_btrfs() {
    histories("btrfs");
}
