//! The source of a fork, as placement sees it.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The snapshot below a fork.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Id of the store that has it; empty if it does not say.
    pub store: String,
    /// Identity of its bytes; `None` if it has none.
    pub identity: Option<String>,
    pub size_bytes: u64,
    /// Bytes of a block, where that is known.
    pub block_bytes: Option<u32>,
    /// Bytes that earlier forks touched first, or all that are not zero if that was not recorded; `None` if neither is known.
    pub first: Option<Vec<Range<u64>>>,
    /// Bytes that the store itself has not fetched yet; `None` if it does not say.
    pub missing: Option<Vec<Range<u64>>>,
    /// Labels of the volume that the snapshot is of.
    pub labels: BTreeMap<String, String>,
}
