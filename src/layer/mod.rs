//! Layers: presence, checksums, and the order in which bytes and records become durable.
//!
//! The cast: a [`Layer`] is a set of blocks over a parent; [`Layers`] is the table of all of them with the files, the
//! checksum pages and the group commit they share; a [`Ticket`] is a place in a barrier round.
//!
//! # Crash ordering
//! 1. *A presence bit is durable only after its block is.* A barrier round writes one journal frame with the checksums of the
//!    newly present blocks, and syncs the journal and the data files together. Until the next frame is durable, recovery believes
//!    a block of that frame only if its bytes match; so a block whose record is on its way is not overwritten before the round
//!    has ended (`Hot::round`). A flush names every write that completed before it: while its round begins, nobody is admitted to a
//!    block that waits for its record, and the writers that hold one are waited for (`Hot::draining`).
//! 2. *A block that the journal calls present is overwritten in place only inside an extent with a durable mark, and only when a
//!    later frame than the one that names it is durable* (`Hot::recorded`, `Commit::is_proven`). "Appended" is not "durable": a
//!    torn frame leaves the one before it as the last, and recovery drops every block of the last frame that does not match. A
//!    round that appends no frame proves nothing.
//! 3. *A mark is cleared* when the extent's blocks, then its checksum page, are durable, and nothing was written in between.
//! 4. *Space is given back* only after the record that makes the blocks zero or forgotten is durable, and a block is written
//!    again only after that (`State::dying`). A block that is present again is no garbage any more.
//! 5. *A checkpoint* (which drops the checksums from the journal) writes and syncs every changed checksum page first. Blocks
//!    that no frame names yet are in it as what they were before: absent, zeroed or patched.
//! 6. *A record of shape counts only if every block its round names matches*: a fork seals a layer, and the layer's unsynced
//!    overwrites are named in the same frame (`Expect`), so one barrier round makes both durable or neither count.
//! 7. *A patch leaves memory, and so the next checkpoint, only when what supersedes it is durable* (see `patches`).
//! 8. *A discard's record and the blocks that it takes out of a layer are in the same round* (`Commit::hold_beginning`); so are the
//!    record that frees a layer and the layer's end, and a flush of a new head comes in no round before that of its record. Otherwise
//!    the round of a flush has neither the block nor its end, and bytes older than the flush come back.
//! 9. *Every record takes its journal space before the change is visible*, and what gives back space lives on a reserve (see `space`
//!    and the journal): lack of space refuses a call, and never breaks a store.
//! 10. *While the file system has no space for checksum pages*, a checkpoint carries the checksums that the pages in the files lack.
//!
//! # Errors
//! Only a failed write or sync of bytes or names that may have reached the disk poisons the store. A round that finds no room for its frame is
//! undone, and a write that finds no room leaves its blocks old or new, hashed as they are.
//!
//! # Layers that are freed
//! A layer may be freed while a round, a writer or a fill is in it. Each of them looks at `State::freed` under the layer's lock, and
//! again whenever it has waited: a freed layer is named in no frame, counts nothing, and gets no file again.
//!
//! Lock order: owner map, catalogue, `Commit::beginning`, layer state, commit queue, journal. None is held across a barrier; a
//! beginning round waits for writers of its blocks, which need none of them. The table of layers is never locked while another lock
//! is waited for.
#![deny(clippy::wildcard_enum_match_arm)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod admit;
mod admitted;
#[cfg(test)]
mod bare;
mod blocks;
mod checksums;
mod clean;
mod commit;
mod files;
mod patches;
mod presence;
#[cfg(all(test, feature = "sim"))]
mod proof;
mod punch;
mod recover;
mod round;
mod set;
mod space;
mod state;
mod trace;

pub use admitted::Admitted;
#[cfg(test)]
pub(crate) use bare::layers as bare_layers;
pub use blocks::BlockRead;
pub use commit::Ticket;
pub use patches::{Merged, PatchRoom};
pub use presence::Presence;
pub use recover::Recovery;
pub use set::{LayerConfig, Layers, Reap};
pub use space::CutRoom;
pub use state::Layer;
