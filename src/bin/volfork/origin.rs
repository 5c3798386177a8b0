//! What a fork would be made from, as placement wants to know it.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use volfork::volume::RunKind;
use volfork::{Snapshot, Store};

use crate::failure::Result;
use crate::target::Target;

/// Ranges of data that are told, and asked for at once.
const RUNS_MAX: usize = 16 << 10;

/// The snapshot below a fork.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Identity of its bytes; `None` if there is no snapshot, or it has none.
    pub identity: Option<String>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes of a block, where that is known.
    pub block_bytes: Option<u32>,
    /// Bytes that earlier forks touched first, or all that are not zero if that was not recorded; empty if neither is known.
    pub first: Vec<Range<u64>>,
    /// Labels of the volume.
    pub labels: BTreeMap<String, String>,
}

/// Of a volume or snapshot of `store`. A volume stands for its latest snapshot: other hosts can have nothing newer of it.
pub fn origin(store: &Store, target: &Target) -> Result<Origin> {
    let volume = store.volume(&target.volume)?;
    let all = store.labels();
    let labels = all.into_iter().find(|(name, ..)| *name == target.volume).map(|(_, _, labels)| labels).unwrap_or_default();
    let snapshot = target.snapshot.clone().or_else(|| store.snapshot_names(&target.volume).ok()?.pop());
    let Some(snapshot) = snapshot else {
        return Ok(Origin { size_bytes: volume.size_bytes(), labels, ..Origin::default() });
    };
    let snapshot = store.snapshot(&target.volume, &snapshot)?;
    Ok(Origin {
        identity: Some(snapshot.identity()),
        size_bytes: snapshot.size_bytes(),
        block_bytes: u32::try_from(store.block_size().bytes()).ok(),
        first: match snapshot.trace() {
            trace if trace.is_empty() => data(&snapshot)?,
            trace => trace,
        },
        labels,
    })
}

/// What is not known to be zero. The last range covers the rest when there are more than can be told.
fn data(snapshot: &Snapshot) -> Result<Vec<Range<u64>>> {
    let (mut ranges, mut at, end) = (Vec::new(), 0, snapshot.size_bytes());
    while at < end {
        for run in snapshot.allocation(at..end, RUNS_MAX)? {
            if run.kind != RunKind::Zero {
                ranges.push(at..at + run.bytes);
            }
            at += run.bytes;
        }
        if ranges.len() > RUNS_MAX {
            ranges.push(at..end);
            break;
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use volfork::StoreOptions;

    use super::*;

    #[test]
    fn what_is_needed_first_is_what_is_not_zero() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path(), StoreOptions::default()).unwrap();
        let volume = store.create_volume("v", 64 << 20).unwrap();
        volume.write_at(&[1; 8192], 4096).unwrap();
        volume.write_at(&[1; 4096], 32 << 20).unwrap();
        volume.snapshot("s").unwrap();
        let origin = origin(&store, &"v@s".parse().unwrap()).unwrap();
        assert_eq!(origin.first, [4096..12288, 32 << 20..(32 << 20) + 4096]);
    }
}
