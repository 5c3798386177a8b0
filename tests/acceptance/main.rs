//! Acceptance: what users do in a day, with the real binary and real clients, against oracles that know nothing of the engine.
#![cfg(feature = "fleet")]

#[path = "../fleet/bucket.rs"]
mod bucket;
mod day;
mod disk;
mod full;
#[cfg(feature = "images")]
mod images;
mod ledger;
#[path = "../fleet/place.rs"]
mod place;
#[path = "../images/programs.rs"]
mod programs;
#[path = "../../src/random.rs"]
mod random;
mod way;
mod world;
