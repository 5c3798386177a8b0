//! Clocks that differ from that of the bucket.

use std::time::SystemTime;

use super::*;

#[test]
fn a_clock_may_differ_a_little_from_that_of_the_bucket() {
    let directory = tempfile::tempdir().unwrap();
    for fleet in [memory(), SharedFleet::open(directory.path().to_str().unwrap()).unwrap()] {
        let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        for right in [now(), now() - 20, now() + 20] {
            fleet.check_clock(|| right).unwrap();
        }
        for (wrong, how) in [(now() + 100, "ahead of that of"), (now() - 100, "behind that of"), (0, "behind"), (u64::MAX, "ahead of")] {
            let refused = fleet.check_clock(|| wrong).unwrap_err();
            assert!(refused.kind() == ErrorKind::InvalidInput && refused.to_string().contains(how), "{refused}");
        }
        // A bucket that is slow to answer is no clock that is wrong.
        let asked = Cell::new(now() - 3600);
        fleet.check_clock(|| asked.replace(now() + 3600)).unwrap();
        assert_eq!(fleet.load().unwrap().unreadable, []);
    }
}

/// The owner of the directory, and what else lies there, are not known.
#[test]
fn asking_a_directory_for_the_time_leaves_its_files_alone() {
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join("clock");
    std::fs::write(&own, "tick").unwrap();
    let fleet = SharedFleet::open(directory.path().to_str().unwrap()).unwrap();
    // Of a fleet that is new, and of one whose lock file was made long ago.
    let lock = directory.path().join("lock");
    for _ in 0..2 {
        fleet.check_clock(|| SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
        let file = std::fs::File::open(&lock).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    assert_eq!(std::fs::read(&own).unwrap(), b"tick");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
}
