//! A guide for those who operate volfork, build on it, or change it.
//!
//! | page | for |
//! |---|---|
//! | [`architecture`] | the floors, what a write, a read, a fork, a fetch and a recovery do, all locks and threads |
//! | [`commands`] | the command line, what scripts can rely on, defaults |
//! | [`operations`] | what to watch, what each state and each kind of error means, and what to do |
//! | [`hydration`] | forks from elsewhere: order, pace, leases |
//! | [`fleet`](mod@fleet) | container images as volumes, placement of machines, reservations |
//! | [`format`](mod@format) | the files of a store, the records, and which program reads which store |
//! | [`contributing`] | the gate, the simulator, how to add a record, a source or a command |
//! | [`measurements`] | what was measured, and the command that measures it again |
//! | [`changelog`] | what changed |
//!
//! Six examples compile and run: `cargo run --example NAME`. They are in `src/guide/examples`.
//!
//! | example | shows |
//! |---|---|
//! | `embed` | a volume, a fork, a snapshot, errors, and the same store after a restart |
//! | `queue` | many requests from one thread, over io_uring |
//! | `serve` | an NBD server within a program |
//! | `fork_from_host` | a fork from another host, and the event that says it is complete |
//! | `source` | a source of one's own |
//! | `disk` | a disk of one's own, which counts what the engine does |
#![expect(rustdoc::private_intra_doc_links, reason = "the pages name the private items that do what they describe")]

#[doc = include_str!("architecture.md")]
pub mod architecture {}
#[doc = include_str!("commands.md")]
pub mod commands {}
#[doc = include_str!("operations.md")]
pub mod operations {}
#[doc = include_str!("hydration.md")]
pub mod hydration {}
#[doc = include_str!("fleet.md")]
pub mod fleet {}
#[doc = include_str!("format.md")]
pub mod format {}
#[doc = include_str!("contributing.md")]
pub mod contributing {}
#[doc = include_str!("measurements.md")]
pub mod measurements {}
#[doc = include_str!("changelog.md")]
pub mod changelog {}
