//! Layers: presence, checksums, and the order in which bytes and records become durable.
//!
//! A [`Layer`] is a set of blocks over a parent. [`Layers`] assembles the parts that all layers of a store share; each part owns its locks
//! and knows only the parts above it in this list:
//!
//! ```text
//! layer state presence patch    one layer in memory, behind its lock
//! files checksums blocks        files, checksum pages, verified reads
//! commit/{cost,room,queue}      journal space, and group commit
//! table owed space patches      which layers there are, and what they owe to rounds; what waits for its space; patches
//! commit/{round,barriers}       barrier rounds, and waiting for them
//! commit/checkpoint             the whole state in a new journal
//! admission admitted            writers of blocks, and their guards
//! zeroes punch settled cleaning discards; space; single blocks; marks
//! layers recovery               all of it, assembled; and from a journal
//! ```
//!
//! # Crash ordering
//! 1. *A presence bit is durable only after its block is.* A barrier round writes one journal frame with the checksums of the
//!    newly present blocks, and syncs the journal and the data files together. Until the next frame is durable, recovery believes
//!    a block of that frame only if its bytes match; so a block whose record is on its way is not overwritten before the round
//!    has ended (`Hot::round`). A flush names every write that completed before it: while its round begins, no writer is admitted to a
//!    block that waits for its record, and the round waits for the writers that have one (`Hot::draining`).
//! 2. *A block that the journal calls present is overwritten in place only inside an extent with a durable mark, and only when a
//!    later frame than the one that names it is durable* (`Hot::recorded`, `Commit::is_proven`). An appended frame is not durable yet: a
//!    torn frame leaves the one before it as the last, and recovery drops every block of the last frame that does not match. A
//!    round that appends no frame proves nothing.
//! 3. *A mark is cleared* when the extent's blocks, then its checksum page, are durable, and nothing was written in between.
//! 4. *Space is given back* only after the record that makes the blocks zero or forgotten is durable, and a block is written
//!    again only after that (`State::retiring`). A block that is present again is not garbage any more.
//! 5. *A checkpoint* (which drops the checksums from the journal) writes and syncs every changed checksum page before its journal counts.
//!    Blocks that no frame names yet are in it as what they were before: absent, zeroed or patched. Rounds go on meanwhile, and are copied
//!    behind the state (see `commit/checkpoint`).
//! 6. *A record of shape counts only if every block its round names matches*: a fork seals a layer, and the layer's unsynced
//!    overwrites are named in the same frame (`Expect`), so one barrier round makes both durable or neither count.
//! 7. *A patch leaves memory, and so the next checkpoint, only when what supersedes it is durable* (see `patches`).
//! 8. *A discard's record and the blocks that it takes out of a layer are in the same round* (`Commit::hold_beginning`); so are the
//!    record that frees a layer and the layer's end, and a flush of a new head comes in no round before that of its record. Otherwise
//!    the round of a flush has neither the block nor its end, and bytes older than the flush come back.
//! 9. *Every record takes its journal space before the change is visible*, and changes that give back space live on a reserve (see
//!    `commit/room` and the journal): a lack of space refuses a call, and never breaks a store.
//! 10. *While the file system has no space for checksum pages*, a checkpoint carries the checksums that the pages in the files lack.
//!
//! # Errors
//! Only a failed write or sync of bytes or names that may have reached the disk poisons the store. A round that finds no room for its frame
//! is undone, and a write that finds no room leaves its blocks old or new, hashed as they are.
//!
//! # Layers that are freed
//! A layer may be freed while a round, a writer or a fill is in it. Each of them looks at `State::freed` under the layer's lock, and
//! again whenever it has waited: a freed layer is named in no frame, counts nothing, and gets no file again.
//!
//! # Locks
//! Order: `Checkpoints::writing`, catalogue, `Commit::beginning`, layer state, then one of: a list of `owed`, `space` or `patches`; the
//! journal; the commit queue. None of these but the first is held across a barrier. A beginning round waits for writers of its blocks,
//! which need none of them. The table of layers is never locked while another lock is waited for.
#![deny(clippy::wildcard_enum_match_arm)]
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod admission;
mod admitted;
#[cfg(test)]
mod bare;
mod blocks;
mod checksums;
mod cleaning;
mod commit;
mod damage;
mod files;
#[expect(clippy::module_inception, reason = "it holds the layer")]
mod layer;
mod layers;
mod owed;
mod patch;
mod patches;
mod presence;
#[cfg(all(test, feature = "sim"))]
mod proof;
mod punch;
mod reapers;
mod recovery;
mod ring_write;
mod settled;
mod space;
mod state;
mod table;
mod traces;
mod unrecorded;
mod zeroes;

pub use admission::Admission;
pub use admitted::Admitted;
#[cfg(test)]
pub(crate) use bare::layers as bare_layers;
pub use blocks::BlockRead;
pub use commit::queue::Ticket;
pub use commit::room::Reserved;
pub use layer::Layer;
pub use layers::{LayerConfig, Layers};
pub use patches::PatchRoom;
pub use presence::Presence;
pub use reapers::Reap;
pub use recovery::Recovery;
pub use ring_write::RingWrite;
pub use settled::Merged;
pub use unrecorded::{Session, read as read_unrecorded};
