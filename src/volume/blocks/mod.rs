//! Blocks of a chain: which layer answers for each, and its verified bytes.
//!
//! The cast: a [`View`] is a layer with its chain; [`Blocks`] looks blocks up (`view`), reads them (`read`), and merges those that were
//! written in part (`patch`).

mod patch;
mod read;
mod view;

pub use read::LOOKS_MAX;
pub use view::{Answer, Blocks, View};
