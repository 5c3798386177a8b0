//! Describes the source of a fork for placement.

use std::ops::Range;

use volfork::Store;
use volfork::volume::RunKind;

use crate::failure::{Failure, Result};
use crate::request::origin::Origin;
use crate::request::target::Target;

/// Most ranges of data in an answer, and in one request for them.
const RUNS_MAX: usize = 16 << 10;
/// Most requests for one answer.
const LOOKS_MAX: usize = 1024;

/// Describes a volume or snapshot of `store`. A volume stands for the snapshot that would be taken of it now.
pub fn origin(store: &Store, target: &Target) -> Result<Origin> {
    let volume = store.volume(&target.volume)?;
    let all = store.labels();
    let labels = all.into_iter().find(|(name, ..)| *name == target.volume).map(|(_, _, labels)| labels).unwrap_or_default();
    let live = volume.live_identity();
    let snapshot = match &target.snapshot {
        Some(snapshot) => Some(store.snapshot(&target.volume, snapshot)?),
        // The latest snapshot counts only if nothing was written since. Snapshots for leases, whose names begin with a dot, may be
        // deleted at any moment.
        None => {
            let latest = store.snapshot_names(&target.volume)?.into_iter().rfind(|name| !name.starts_with('.'));
            latest.map(|latest| store.snapshot(&target.volume, &latest)).transpose()?
        }
    };
    let snapshot = snapshot.filter(|snapshot| target.snapshot.is_some() || snapshot.identity() == live);
    let (identity, size_bytes, trace) = match &snapshot {
        Some(snapshot) => (snapshot.identity(), snapshot.size_bytes(), snapshot.trace()),
        None => (live, volume.size_bytes(), Vec::new()),
    };
    let ranges = |chosen: &dyn Fn(RunKind) -> bool| {
        chosen_ranges(size_bytes, |range| {
            let runs = match &snapshot {
                Some(snapshot) => snapshot.allocation(range, RUNS_MAX)?,
                None => volume.allocation(range, RUNS_MAX)?,
            };
            Ok::<_, Failure>(runs.into_iter().map(|run| (run.bytes, chosen(run.kind))).collect())
        })
    };
    let first = if trace.is_empty() { ranges(&|kind| kind != RunKind::Zero)? } else { trace };
    Ok(Origin {
        store: store.id(),
        identity: Some(identity),
        size_bytes,
        block_bytes: u32::try_from(store.block_size().bytes()).ok(),
        first: Some(first),
        missing: Some(ranges(&|kind| kind == RunKind::Missing)?),
        labels,
    })
}

/// The chosen ranges of a volume. `look` returns runs from the start of a range: their lengths, and whether they are chosen. If there
/// are too many ranges, the last one covers the rest.
pub fn chosen_ranges<E>(
    size_bytes: u64,
    mut look: impl FnMut(Range<u64>) -> std::result::Result<Vec<(u64, bool)>, E>,
) -> std::result::Result<Vec<Range<u64>>, E> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    // A source may answer in small steps, so their number is bounded.
    for _ in 0..LOOKS_MAX {
        if at >= size_bytes || ranges.len() > RUNS_MAX {
            break;
        }
        for (bytes, is_chosen) in look(at..size_bytes)? {
            let end = at.saturating_add(bytes).min(size_bytes);
            if is_chosen {
                ranges.push(at..end);
            }
            at = end;
        }
    }
    if at < size_bytes {
        ranges.push(at..size_bytes);
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
        volume.create_snapshot("s").unwrap();
        let origin = origin(&store, &"v@s".parse().unwrap()).unwrap();
        assert_eq!(origin.missing.unwrap(), []);
        assert_eq!(origin.first.unwrap(), [4096..12288, 32 << 20..(32 << 20) + 4096]);
    }
}
