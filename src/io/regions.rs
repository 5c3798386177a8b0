//! Memory of the process that rings may register, and how much of it they have registered.
//!
//! # Invariants
//! - A region has its number from its allocation until it is freed, and no other region ever has it. An address alone does not tell:
//!   memory that is freed and allocated again may have the same address and other pages, and what a ring has registered are pages.

use std::collections::BTreeMap;

use crate::sync::StaticMutex;

/// Transfers below this size are not worth it: the pages of 4 KiB are pinned in less time than a tenth of that of the transfer
/// (measured: `guide::measurements`).
pub const REGION_BYTES_MIN: usize = 64 << 10;
/// Bytes that all rings together have registered at most. They cannot be swapped, and those of freed memory stay until it is noticed.
const REGISTERED_BYTES_MAX: usize = 64 << 20;

/// Memory that was allocated in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub id: u64,
    /// Address of the first byte.
    pub start: usize,
    pub bytes: usize,
}

struct Regions {
    by_start: BTreeMap<usize, Region>,
    last_id: u64,
    registered_bytes: usize,
}

static REGIONS: StaticMutex<Regions> = StaticMutex::new(Regions { by_start: BTreeMap::new(), last_id: 0, registered_bytes: 0 });

/// Notes memory that was allocated, if it is large enough.
pub fn allocated(start: usize, bytes: usize) {
    if bytes >= REGION_BYTES_MIN {
        let mut regions = REGIONS.lock();
        regions.last_id += 1;
        let id = regions.last_id;
        regions.by_start.insert(start, Region { id, start, bytes });
    }
}

/// Notes memory that is about to be freed.
pub fn freed(start: usize, bytes: usize) {
    if bytes >= REGION_BYTES_MIN {
        REGIONS.lock().by_start.remove(&start);
    }
}

/// The region that all of `bytes` lies in. `None`: it is memory of somebody else.
pub fn region_of(bytes: &[u8]) -> Option<Region> {
    let address = bytes.as_ptr().addr();
    let region = REGIONS.lock().by_start.range(..=address).next_back().map(|(_, region)| *region)?;
    (address - region.start + bytes.len() <= region.bytes).then_some(region)
}

/// Whether a region has not been freed.
pub fn is_allocated(region: Region) -> bool {
    REGIONS.lock().by_start.get(&region.start) == Some(&region)
}

/// Takes room for registered bytes, which [`unregistered`] gives back.
pub fn registers(bytes: usize) -> bool {
    let mut regions = REGIONS.lock();
    let fits = regions.registered_bytes + bytes <= REGISTERED_BYTES_MAX;
    if fits {
        regions.registered_bytes += bytes;
    }
    fits
}

/// Gives back room that [`registers`] took.
pub fn unregistered(bytes: usize) {
    REGIONS.lock().registered_bytes -= bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_found_by_what_lies_in_it_until_it_is_freed() {
        let memory = vec![0u8; 3 * REGION_BYTES_MIN];
        let (start, bytes) = (memory.as_ptr().addr(), 2 * REGION_BYTES_MIN);
        allocated(start, bytes);
        let region = region_of(&memory[..bytes]).unwrap();
        assert_eq!((region.start, region.bytes, region_of(&memory[bytes - 1..bytes])), (start, bytes, Some(region)));
        assert_eq!((region_of(&memory[1..bytes + 1]), region_of(&memory[bytes..])), (None, None));
        assert!(is_allocated(region));
        freed(start, bytes);
        assert!(!is_allocated(region) && region_of(&memory[..bytes]).is_none());
        allocated(start, bytes);
        assert!(region_of(&memory[..bytes]).is_some_and(|again| again.id != region.id) && !is_allocated(region));
        freed(start, bytes);
    }
}
