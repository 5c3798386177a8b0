//! The proof world: the real engine with all its threads over a simulated disk, under random histories of many threads, with an
//! oracle that says what a store may hold, and losses of power at random operations of the disk.
//!
//! `SEED=N` runs one history; `VOLFORK_PROOF_SECONDS=N` searches for so long; `FIRST=N` is the first seed of a search.
mod bytes;
mod disk;
mod history;
mod image;
mod inode;
mod oracle;
mod plan;
#[path = "../sim/random.rs"]
mod random;
mod sector;
mod shaper;
mod survey;
mod threads;
mod verify;
mod weather;
mod world;
mod writer;

use std::time::{Duration, Instant};

use history::{Tally, run};

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn what_was_acknowledged_is_there() {
    let first = variable("SEED").or(variable("FIRST")).unwrap_or(1);
    let seconds = variable("VOLFORK_PROOF_SECONDS").unwrap_or(60);
    let began = Instant::now();
    let mut all = Tally::default();
    let mut failures = 0;
    for seed in first.. {
        match run(seed) {
            Ok(tally) => {
                all.histories += 1;
                all.states += tally.states;
                all.operations += tally.operations;
                all.points += tally.points;
            }
            Err(error) => {
                failures += 1;
                println!("---- seed {seed}, after {:?}\n{error}", began.elapsed());
            }
        }
        if variable("SEED").is_some() || began.elapsed() > Duration::from_secs(seconds) || failures >= variable("FAILURES").unwrap_or(1) {
            break;
        }
    }
    println!("{all:?} in {:?}", began.elapsed());
    assert_eq!(failures, 0);
}
