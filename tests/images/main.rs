//! Container images: found, checked, and imported as volumes.
//!
//! Needs the programs that `.ci/run` installs; a missing one fails the test that needs it.
#![cfg(feature = "images")]

mod archives;
mod files;
mod fixture;
mod hostile;
mod layers;
mod peers;
mod programs;
#[path = "../../src/random.rs"]
mod random;
mod registry;
mod together;
