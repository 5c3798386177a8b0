//! The proof world: the real engine with all its threads over a simulated disk, under random histories of many threads, with an
//! oracle that says what a store may hold, and losses of power at random operations of the disk.
//!
//! `SEED=N` runs one history. `VOLFORK_PROOF_SECONDS=N` searches for N seconds, from the seed `FIRST=N` on (by default one that depends
//! on the date). `VOLFORK_PROOF_PLANTED=NAME` (a [`Planted`], or `all`) takes a repair out and searches until that is detected.
mod bytes;
mod disk;
mod history;
mod image;
mod inode;
mod oracle;
mod plan;
mod queuer;
#[path = "../../src/random.rs"]
mod random;
mod sector;
mod shaper;
mod source;
mod survey;
mod threads;
mod verify;
mod weather;
mod world;
mod writer;

use std::time::{Duration, Instant};

use history::{Tally, run};
use volfork::Planted;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs histories until the time is over or one fails. Answers what was done and the failure.
fn search(what: &str, first: u64, seconds: u64, planted: Planted) -> (Tally, Option<String>) {
    let began = Instant::now();
    let mut all = Tally::default();
    let mut failure = None;
    let mut told = 0;
    for seed in first.. {
        let minutes = began.elapsed().as_secs() / 60;
        if minutes > told {
            println!("{what}: seeds {first} to {seed}, {all:?}, {minutes} min");
            told = minutes;
        }
        match run(seed, planted) {
            Ok(tally) => all.add(&tally),
            Err(error) => failure = Some(error),
        }
        if failure.is_some() || variable("SEED").is_some() || began.elapsed() > Duration::from_secs(seconds) {
            println!("{what}: seeds {first} to {seed}, {all:?}, {:?}", began.elapsed());
            break;
        }
    }
    (all, failure)
}

/// A seed that nobody has chosen: each day the gate looks elsewhere, and all day everybody sees what it saw.
fn seed_of_the_day() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is right");
    now.as_secs() / (24 * 60 * 60) * 1_000_000
}

#[test]
fn what_was_acknowledged_is_there() {
    let first = variable("SEED").or(variable("FIRST")).unwrap_or_else(seed_of_the_day);
    let seconds = variable("VOLFORK_PROOF_SECONDS").unwrap_or(180);
    let (all, failure) = search("histories", first, seconds, Planted::Nothing);
    if let Some(failure) = failure {
        panic!("repeat it with SEED: {failure}");
    }
    assert!(all.states > 0);
}

/// Faults that are seen after seconds to minutes, with `VOLFORK_PROOF_PLANTED=all` or one of their names.
const PLANTED: [Planted; 16] = [
    Planted::RewrittenWhileDraining,
    Planted::ProvenByAppending,
    Planted::EarlyPunch,
    Planted::ShrinkInTwoSteps,
    Planted::UnpinnedSnapshot,
    Planted::LostWake,
    Planted::UncutSet,
    Planted::FreedInARound,
    Planted::FreedInTwoRounds,
    Planted::SealedInTwoRounds,
    Planted::TableHeld,
    Planted::SizeBeforeTheGate,
    Planted::EmptyRoundProves,
    Planted::DiscardInTwoRounds,
    Planted::RoundsLeftBehind,
    Planted::ShapesTwice,
];

#[test]
fn repairs_that_are_taken_out_are_seen() {
    let asked = std::env::var("VOLFORK_PROOF_PLANTED").unwrap_or_default();
    let first = variable("FIRST").unwrap_or(1);
    let mut unseen = Vec::new();
    let known = asked.is_empty() || asked == "all" || PLANTED.iter().any(|planted| asked == format!("{planted:?}"));
    assert!(known, "VOLFORK_PROOF_PLANTED: there is no {asked}, but {PLANTED:?}");
    for planted in PLANTED.into_iter().filter(|planted| asked == "all" || asked == format!("{planted:?}")) {
        let (_, failure) = search(&format!("{planted:?}"), first, variable("VOLFORK_PROOF_SECONDS").unwrap_or(600), planted);
        match failure {
            Some(failure) => println!("{}", failure.lines().next().unwrap_or_default()),
            None => unseen.push(planted),
        }
    }
    assert!(unseen.is_empty(), "not seen: {unseen:?}");
}

#[test]
fn planted_faults_are_seen() {
    let canaries = [Planted::ForgottenSync, Planted::ForgottenRun, Planted::UnpinnedSnapshot];
    for planted in canaries {
        let (_, failure) = search(&format!("{planted:?}"), 1, 120, planted);
        let failure = failure.unwrap_or_else(|| panic!("{planted:?} was not seen"));
        println!("{}", failure.lines().next().unwrap_or_default());
    }
}
