//! Buffers that the disk takes as they are.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

use crate::sync::Mutex;

/// Direct I/O wants memory on such boundaries.
const ALIGN_BYTES: usize = 4096;
/// Buffers up to this size are kept for reuse.
const KEPT_BYTES_MAX: usize = 128 << 10;
/// Buffers kept for each size (a power of two).
const KEPT_MAX: usize = 256;
/// log2 of the smallest and the largest size that is kept.
const KEPT_SHIFTS: std::ops::Range<usize> = 12..18;
const _: () = assert!(1 << (KEPT_SHIFTS.end - 1) == KEPT_BYTES_MAX && 1 << KEPT_SHIFTS.start == ALIGN_BYTES);

struct Memory {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the memory is owned by one `Memory`, like a `Box<[u8]>`; nothing about it belongs to a thread.
unsafe impl Send for Memory {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Memory {}

static KEPT: [Mutex<Vec<Memory>>; KEPT_SHIFTS.end - KEPT_SHIFTS.start] =
    [const { Mutex::new(Vec::new()) }; KEPT_SHIFTS.end - KEPT_SHIFTS.start];

impl Memory {
    fn layout(capacity: usize) -> Layout {
        // A power of two and a size rounded up to it: the only failure is a size near `isize::MAX`, which no caller can name.
        Layout::from_size_align(capacity, ALIGN_BYTES).unwrap_or(Layout::new::<[u8; ALIGN_BYTES]>())
    }

    fn new(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the capacity is at least one page, so the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        Self { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), capacity }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout, and owned by `self` alone.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// Memory that begins on a 4,096-byte boundary. Dropped buffers of common sizes are kept and used again.
pub struct AlignedBuffer {
    memory: Option<Memory>,
    length: usize,
}

fn kept(capacity: usize) -> Option<&'static Mutex<Vec<Memory>>> {
    capacity.is_power_of_two().then(|| KEPT.get((capacity.trailing_zeros() as usize).wrapping_sub(KEPT_SHIFTS.start)))?
}

impl AlignedBuffer {
    /// A buffer of `length` bytes with some content: zeros, or what an earlier buffer of this process held.
    pub fn new(length: usize) -> Self {
        let mut capacity = length.next_multiple_of(ALIGN_BYTES).max(ALIGN_BYTES);
        if capacity <= KEPT_BYTES_MAX {
            capacity = capacity.next_power_of_two();
        }
        let memory = kept(capacity).and_then(|kept| kept.lock().pop()).unwrap_or_else(|| Memory::new(capacity));
        Self { memory: Some(memory), length }
    }

    /// A buffer of `length` zeros.
    pub fn zeroed(length: usize) -> Self {
        let mut buffer = Self::new(length);
        buffer.fill(0);
        buffer
    }

    /// The same memory, shared and read-only.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }

    fn start(&self) -> NonNull<u8> {
        self.memory.as_ref().map_or(NonNull::dangling(), |memory| memory.start)
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        if let Some(kept) = kept(memory.capacity) {
            let mut kept = kept.lock();
            if kept.len() < KEPT_MAX {
                kept.push(memory);
            }
        }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is owned by `self`, initialised since it was allocated, and at least `length` bytes long.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused_without_old_bytes_in_zeroed_ones() {
        for length in [1, 4096, 5000, 128 << 10, 1 << 20] {
            let mut buffer = AlignedBuffer::new(length);
            assert!(buffer.as_ptr().addr().is_multiple_of(4096) && buffer.len() == length);
            buffer.fill(7);
            drop(buffer.into_bytes());
            assert!(AlignedBuffer::zeroed(length).iter().all(|byte| *byte == 0));
        }
    }
}
