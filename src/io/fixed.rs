//! Memory that a ring has registered with the kernel (`IORING_REGISTER_BUFFERS2`), so that its pages are not pinned for each transfer.
//!
//! # Invariants
//! - An entry of the kernel's table is replaced only if no transfer refers to it: a transfer that the kernel has not seen yet would
//!   use the other memory.
//! - Memory that is still allocated keeps its entry: to register it costs more than one transfer gains. Entries of freed memory are
//!   taken for other memory.
//! - A ring works without: what cannot be registered is transferred as it is.

use io_uring::Submitter;

use super::regions::{self, Region, region_of};

/// Entries of the kernel's table.
const ENTRIES: u16 = 64;
/// Bytes that one ring registers at most.
const BYTES_MAX: usize = 16 << 20;

struct Entry {
    region: Region,
    /// Transfers that refer to it.
    uses: usize,
}

/// The table of one ring. It is dropped after the ring, whose end unregisters everything.
#[derive(Default)]
pub struct FixedBuffers {
    entries: Vec<Entry>,
    bytes: usize,
    /// The kernel has the table.
    is_made: bool,
    /// The kernel refuses: it is too old, or the process may lock no more memory.
    is_refused: bool,
}

impl FixedBuffers {
    /// The entry to transfer `bytes` with, which is taken until [`Self::release`].
    pub fn acquire(&mut self, kernel: &Submitter<'_>, bytes: &[u8]) -> Option<u16> {
        if bytes.len() < regions::REGION_BYTES_MIN {
            return None;
        }
        let region = region_of(bytes)?;
        let number = match self.entries.iter().position(|entry| entry.region == region) {
            Some(number) => number,
            None => self.register(kernel, region)?,
        };
        self.entries[number].uses += 1;
        u16::try_from(number).ok()
    }

    /// Gives an entry back.
    pub fn release(&mut self, number: u16) {
        if let Some(entry) = self.entries.get_mut(usize::from(number)) {
            entry.uses -= 1;
        }
    }

    fn register(&mut self, kernel: &Submitter<'_>, region: Region) -> Option<usize> {
        if self.is_refused {
            return None;
        }
        if !self.is_made {
            self.is_made = kernel.register_buffers_sparse(u32::from(ENTRIES)).is_ok();
            self.is_refused = !self.is_made;
        }
        let number = match self.entries.len() < usize::from(ENTRIES) && self.bytes + region.bytes <= BYTES_MAX {
            true => self.entries.len(),
            false => self.entries.iter().position(|entry| entry.uses == 0 && !regions::is_allocated(entry.region))?,
        };
        let before = self.entries.get(number).map_or(0, |entry| entry.region.bytes);
        if self.bytes - before + region.bytes > BYTES_MAX || !regions::registers(region.bytes) {
            return None;
        }
        let memory = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(region.start), iov_len: region.bytes };
        // SAFETY: the memory is allocated, for a transfer of it is about to begin. If it is freed while it is registered, the kernel
        // keeps its pages, and no transfer refers to the entry: each owns its memory.
        let registered = unsafe { kernel.register_buffers_update(u32::try_from(number).unwrap_or(0), &[memory], None) };
        if registered.is_err() {
            regions::unregistered(region.bytes);
            self.is_refused = true;
            return None;
        }
        let entry = Entry { region, uses: 0 };
        match self.entries.get_mut(number) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
        regions::unregistered(before);
        self.bytes = self.bytes - before + region.bytes;
        Some(number)
    }
}

impl Drop for FixedBuffers {
    fn drop(&mut self) {
        regions::unregistered(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use io_uring::{IoUring, opcode, types};

    use super::*;

    const BYTES: usize = 64 << 10;

    impl FixedBuffers {
        /// Transfers that use each entry.
        pub fn uses(&self) -> impl Iterator<Item = usize> {
            self.entries.iter().map(|entry| entry.uses)
        }

        pub fn is_refused(&self) -> bool {
            self.is_refused
        }
    }

    /// New pages, at an address of choice.
    fn pages(address: *mut libc::c_void) -> &'static mut [u8] {
        let fixed = if address.is_null() { 0 } else { libc::MAP_FIXED };
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed);
        // SAFETY: the kernel chooses the address, or it is one of pages that were made here and that nothing refers to any more.
        let start = unsafe { libc::mmap(address, BYTES, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        regions::allocated(start.expose_provenance(), BYTES);
        // SAFETY: the pages are mapped, hold zeros, and stay for the rest of the process.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), BYTES) }
    }

    #[test]
    fn memory_at_the_address_of_freed_memory_is_registered_anew() {
        let Ok(mut ring) = IoUring::new(8) else { return println!("this machine has no io_uring") };
        let mut fixed = FixedBuffers::default();
        let file: File = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; BYTES], 0).unwrap();
        let mut address = std::ptr::null_mut();
        for turn in 0..3 * usize::from(ENTRIES) {
            let memory = pages(address);
            let Some(number) = fixed.acquire(&ring.submitter(), memory) else {
                assert!(fixed.is_refused, "turn {turn}");
                return println!("this machine registers no memory");
            };
            let read = opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), memory.as_mut_ptr(), 65536, number).build();
            // SAFETY: memory and file outlive the call below, which takes the completion.
            unsafe { ring.submission().push(&read).unwrap() };
            ring.submit_and_wait(1).unwrap();
            assert_eq!(ring.completion().next().unwrap().result(), 65536);
            assert!(memory.iter().all(|byte| *byte == 7), "turn {turn}: other pages were read into");
            fixed.release(number);
            address = memory.as_mut_ptr().cast();
            regions::freed(address.addr(), BYTES);
        }
        assert_eq!(fixed.entries.len(), usize::from(ENTRIES));
    }

    #[test]
    fn an_entry_in_use_or_of_allocated_memory_is_not_replaced() {
        let Ok(ring) = IoUring::new(8) else { return println!("this machine has no io_uring") };
        let mut fixed = FixedBuffers::default();
        let memory: Vec<_> = (0..=ENTRIES).map(|_| pages(std::ptr::null_mut())).collect();
        let numbers: Vec<_> = memory.iter().filter_map(|memory| fixed.acquire(&ring.submitter(), memory)).collect();
        if fixed.is_refused {
            return println!("this machine registers no memory");
        }
        let last = &memory[usize::from(ENTRIES)];
        assert!(numbers.iter().copied().eq(0..ENTRIES));
        // Allocated, not used.
        fixed.release(5);
        assert_eq!(fixed.acquire(&ring.submitter(), last), None);
        // Used, not allocated.
        regions::freed(memory[6].as_ptr().addr(), BYTES);
        assert_eq!(fixed.acquire(&ring.submitter(), last), None);
        fixed.release(6);
        assert_eq!(fixed.acquire(&ring.submitter(), last), Some(6));
        let before = fixed.bytes;
        drop(ring);
        drop(fixed);
        assert_eq!(before, usize::from(ENTRIES) * BYTES);
    }
}
