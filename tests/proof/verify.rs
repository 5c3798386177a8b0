//! A saved state of the disk: the power is lost there, and the store has to open with everything that was acknowledged.

use std::path::Path;

use volfork::Store;

use crate::bytes::run_bytes;
use crate::disk::{Medium, SimDisk};
use crate::inode::Loss;
use crate::oracle::Oracle;
use crate::plan::Plan;
use crate::random::Random;
use crate::survey::{accept, compare};

/// Where the store is.
pub const ROOT: &str = "store";
/// Pieces of background work after which a store has to be idle.
const STEPS_MAX: usize = 5000;

/// What was set aside.
#[derive(Clone)]
pub struct Case {
    pub medium: Medium,
    pub oracle: Oracle,
}

/// What became of the process and the machine. `only_killed`: the machine has gone on, and the disk kept all that it was given.
fn interrupt(medium: &mut Medium, random: &mut Random, only_killed: &mut bool) -> String {
    match random.below(5) {
        0..2 => {
            *only_killed &= medium.spares_the_log && !medium.harmed;
            medium.kill();
            if random.below(2) == 0 {
                medium.drop_caches();
            }
            "killed".into()
        }
        _ => {
            *only_killed = false;
            let loss = Loss::draw(random);
            medium.lose_power(random, loss);
            format!("power lost ({loss:?})")
        }
    }
}

/// Opens the store, perhaps after losses of power while it recovers.
fn open(plan: &Plan, disk: &SimDisk, random: &mut Random, (story, only_killed): (&mut String, &mut bool)) -> Result<Store, String> {
    for _ in 0..2 {
        if random.below(4) > 0 {
            break;
        }
        let at = disk.medium().operations + 1 + random.below(120);
        disk.medium().off_at = Some(at);
        let opened = Store::open(Path::new(ROOT), plan.options(disk, false));
        let failed = opened.err().map(|error| error.to_string());
        if let Some(error) = failed.filter(|_| !disk.is_off()) {
            return Err(format!("opening: {error}"));
        }
        disk.power_off();
        story.push_str(&format!(", then in recovery at {at}: {}", interrupt(&mut disk.medium(), random, only_killed)));
    }
    let checked = Store::check(Path::new(ROOT), plan.options(disk, false)).map_err(|error| format!("check: {error}"))?;
    if !checked.violations.is_empty() {
        return Err(format!("check: {:?}", checked.violations));
    }
    Store::open(Path::new(ROOT), plan.options(disk, false)).map_err(|error| format!("opening: {error}"))
}

fn scrub(store: &Store) -> Result<(), String> {
    let report = store.scrub(None).map_err(|error| format!("scrub: {error}"))?;
    if report.errors.is_empty() && report.blocks_repaired == 0 { Ok(()) } else { Err(format!("scrub: {:?}", report.errors)) }
}

/// Does all background work.
pub fn settle(store: &Store) -> Result<(), String> {
    for _ in 0..STEPS_MAX {
        if !store.step().map_err(|error| format!("background: {error}"))? {
            return Ok(());
        }
    }
    Err("background work never ends".into())
}

/// Writes to every volume and flushes it.
fn write_everywhere(plan: &Plan, store: &Store, oracle: &mut Oracle, random: &mut Random) -> Result<(), String> {
    let keys: Vec<u64> = oracle.volumes.keys().copied().collect();
    for key in keys {
        let name = oracle.volumes[&key].name.clone();
        let volume = store.volume(&name).map_err(|error| format!("volume {name}: {error}"))?;
        let failed = |error: volfork::Error| format!("volume {name}: {error}");
        if random.below(3) == 0 {
            // What lies behind a shrunk end reads zero.
            let asked = oracle.begin_resize(key, plan.window as u64);
            volume.resize(plan.size_bytes(plan.window as u64), true).map_err(failed)?;
            oracle.end_resize(key, asked, true, false);
        }
        let size = plan.sectors(volume.size_bytes()) as usize;
        if size > 0 {
            let first = random.below(size as u64) as usize;
            let sectors = first..size.min(first + 1 + random.below(20) as usize);
            let tag = oracle.new_tag();
            let asked = oracle.begin_write(key, sectors.clone(), tag);
            volume.write_at(&run_bytes(tag, first, sectors.len()), plan.offset(first)).map_err(failed)?;
            oracle.end_write(key, sectors, asked, true, false);
        }
        let asked = oracle.begin();
        volume.flush().map_err(failed)?;
        oracle.end(asked);
        oracle.flushed(key, asked);
    }
    Ok(())
}

/// What has to be there: the death of the process alone loses nothing that was acknowledged.
fn left(oracle: &Oracle, only_killed: bool) -> Oracle {
    let mut oracle = oracle.clone();
    if only_killed {
        oracle.everything_is_durable();
    }
    oracle
}

/// The power goes off, or the process is killed; then everything is compared, and goes on for a while. Answers the disk and the
/// oracle, with the store closed.
pub fn verify(plan: &Plan, case: Case, random: &mut Random) -> Result<Case, String> {
    let Case { mut medium, oracle } = case;
    medium.calm();
    let mut only_killed = true;
    let mut story = format!("{} at operation {}", interrupt(&mut medium, random, &mut only_killed), medium.operations);
    let disk = SimDisk::new(medium);
    let outcome = run(plan, &disk, &oracle, random, (&mut story, only_killed));
    let medium = disk.medium().clone();
    outcome.map(|oracle| Case { medium, oracle }).map_err(|error| format!("{story}: {error}\n{}", oracle.story()))
}

fn run(
    plan: &Plan,
    disk: &SimDisk,
    oracle: &Oracle,
    random: &mut Random,
    (story, mut only_killed): (&mut String, bool),
) -> Result<Oracle, String> {
    let store = open(plan, disk, random, (story, &mut only_killed))?;
    let mut oracle = accept(plan, &store, &left(oracle, only_killed))?;
    if random.below(4) == 0 {
        scrub(&store)?;
    }
    if random.below(3) == 0 {
        settle(&store).and_then(|()| compare(plan, &store, &mut oracle)).map_err(|error| format!("after background work: {error}"))?;
        scrub(&store)?;
    }
    if random.below(3) == 0 {
        write_everywhere(plan, &store, &mut oracle, random)?;
        compare(plan, &store, &mut oracle)?;
        if random.below(2) == 0 {
            disk.power_off();
            drop(store);
            only_killed = true;
            story.push_str(&format!(", then after more writes: {}", interrupt(&mut disk.medium(), random, &mut only_killed)));
            let store = open(plan, disk, random, (story, &mut only_killed))?;
            let oracle = accept(plan, &store, &left(&oracle, only_killed))?;
            store.close().map_err(|error| format!("close: {error}"))?;
            return Ok(oracle);
        }
    }
    store.close().map_err(|error| format!("close: {error}"))?;
    let checked = Store::check(Path::new(ROOT), plan.options(disk, false)).map_err(|error| format!("check: {error}"))?;
    if checked.violations.is_empty() { Ok(oracle) } else { Err(format!("check after close: {:?}", checked.violations)) }
}
