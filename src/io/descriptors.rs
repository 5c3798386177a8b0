//! How many descriptors this process has left. What can do with fewer takes none when they are scarce, so that those who cannot do
//! without still get theirs.

use std::os::fd::AsRawFd;

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, getrlimit};

/// How many descriptors this process may have open.
pub fn descriptors_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// How many can be opened, at most, before so many quarters of all are in use. Numbers are given from below, so the next one tells how
/// many there are, about.
pub fn descriptors_left(quarters: usize) -> usize {
    let used = eventfd(0, EventfdFlags::CLOEXEC).map_or(usize::MAX, |descriptor| descriptor.as_raw_fd().unsigned_abs() as usize);
    (descriptors_max() / 4 * quarters).saturating_sub(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_not_left() {
        assert!(descriptors_left(4) <= descriptors_max());
        assert!(descriptors_left(2) <= descriptors_left(3));
        assert_eq!(descriptors_left(0), 0);
    }
}
