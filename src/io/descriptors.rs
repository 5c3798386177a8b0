//! How many descriptors this process may have open. What can do with fewer takes none when they are scarce, so that those who cannot
//! do without still get theirs.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

use crate::sync::StaticMutex;

/// Where the kernel tells what this process has open.
const OPEN: &str = "/proc/self/fd";

/// Reserved by those who are about to open them.
static RESERVED: StaticMutex<usize> = StaticMutex::new(0);

/// How many descriptors this process may have open.
pub fn descriptors_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// How many this process has open; 0 where the kernel does not tell.
fn descriptors_open() -> usize {
    let open = Path::new(OPEN);
    match open.metadata().map_or(0, |metadata| metadata.len()) {
        // Before Linux 6.2 it has no size (proc_pid_fd(5)).
        0 => open.read_dir().map_or(0, Iterator::count),
        size => usize::try_from(size).unwrap_or(usize::MAX),
    }
}

/// Descriptors that are about to be opened. Kept until they are open.
#[derive(Debug)]
pub struct Reservation(usize);

impl Reservation {
    /// Reserves `count` descriptors, if no more than `quarters` quarters of all are open or reserved then.
    pub fn take(count: usize, quarters: usize) -> Option<Self> {
        let mut reserved = RESERVED.lock();
        let room = (descriptors_max() / 4).saturating_mul(quarters);
        (descriptors_open().saturating_add(*reserved).saturating_add(count) <= room).then(|| {
            *reserved += count;
            Self(count)
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *RESERVED.lock() -= self.0;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_is_open_is_counted_above_holes_as_well() {
        let mut files: Vec<File> = (0..40).map(|_| File::open("/dev/null").unwrap()).collect();
        assert!(descriptors_open() >= 40);
        files.drain(..10);
        // Other tests open and close some meanwhile.
        assert!(descriptors_open() >= 30);
    }

    #[test]
    fn what_is_reserved_is_no_room_for_others() {
        // Little, because other tests need some meanwhile.
        let much = descriptors_max() / 4 / 2;
        assert!(Reservation::take(1, 0).is_none());
        let first = Reservation::take(much, 1).unwrap();
        assert!(Reservation::take(much, 1).is_none());
        drop(first);
        assert!(Reservation::take(much, 1).is_some());
    }
}
