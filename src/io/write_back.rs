//! Write-back that begins before a sync asks for it.

use std::os::fd::RawFd;

use io_uring::{IoUring, opcode, types};

use crate::sync::{Mutex, Rank};

/// Write-backs under way at once. What begins beyond them is left to the next sync.
const UNDER_WAY_MAX: u32 = 8;

/// A ring whose kernel threads write back. It is made when first needed, `None` inside if the machine has no io_uring.
pub struct WriteBack(Mutex<Option<Option<State>>>);

struct State {
    ring: IoUring,
    under_way: u32,
}

impl Default for WriteBack {
    fn default() -> Self {
        Self(Mutex::ranked(Rank::WriteBack, None))
    }
}

impl WriteBack {
    /// Begins to write back what a file has in the page cache, and does not wait. It is a hint: an error is found by the next sync, which
    /// also does what was not begun.
    pub fn begin(&self, fd: RawFd) {
        // Another thread begins one just now.
        let Some(mut guard) = self.0.try_lock() else { return };
        let made = || IoUring::new(UNDER_WAY_MAX).ok().map(|ring| State { ring, under_way: 0 });
        let Some(state) = guard.get_or_insert_with(made) else { return };
        let ended = state.ring.completion().count();
        state.under_way = state.under_way.saturating_sub(u32::try_from(ended).unwrap_or(u32::MAX));
        if state.under_way >= UNDER_WAY_MAX {
            return;
        }
        // A length of zero reaches to the end of the file.
        let entry = opcode::SyncFileRange::new(types::Fd(fd), 0).flags(libc::SYNC_FILE_RANGE_WRITE).build();
        // SAFETY: the entry refers to no memory, and the kernel takes the file when it is submitted, while the caller has it open.
        let begun = unsafe { state.ring.submission().push(&entry) }.is_ok() && state.ring.submit().is_ok();
        match begun {
            true => state.under_way += 1,
            // An entry that was not submitted would name the file of another descriptor later.
            false => *guard = Some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn more_write_backs_than_there_is_room_for_are_left_out() {
        let (write_back, file) = (WriteBack::default(), tempfile::tempfile().unwrap());
        for number in 0..100 {
            file.write_all_at(&[1; 8192], number * 8192).unwrap();
            write_back.begin(file.as_raw_fd());
        }
        write_back.begin(-1);
        if let Some(Some(state)) = &mut *write_back.0.lock() {
            assert!((1..=UNDER_WAY_MAX).contains(&state.under_way));
            state.ring.submit_and_wait(1).unwrap();
            assert!(state.ring.completion().all(|ended| [0, -libc::EBADF].contains(&ended.result())));
        }
    }
}
