//! Buffers that the disk takes as they are.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

use super::regions;
use crate::place::index;
use crate::sync::StaticMutex;

/// Direct I/O wants memory on such boundaries.
const ALIGN_BYTES: usize = 4096;
/// Buffers up to this size are kept for reuse.
const KEPT_BYTES_MAX: usize = 2 << 20;
/// Buffers kept for each size (a power of two), and their bytes together.
const KEPT_MAX: usize = 256;
const KEPT_CLASS_BYTES_MAX: usize = 16 << 20;
/// log2 of the smallest and the largest size that is kept.
const KEPT_SHIFTS: std::ops::Range<usize> = 12..22;
const _: () = assert!(1 << (KEPT_SHIFTS.end - 1) == KEPT_BYTES_MAX && 1 << KEPT_SHIFTS.start == ALIGN_BYTES);

struct Memory {
    start: NonNull<u8>,
    /// Of the allocation as it was made: its size is the capacity.
    layout: Layout,
}

// SAFETY: the memory is owned by one `Memory`, like a `Box<[u8]>`; nothing about it belongs to a thread.
unsafe impl Send for Memory {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Memory {}

static KEPT: [StaticMutex<Vec<Memory>>; KEPT_SHIFTS.end - KEPT_SHIFTS.start] =
    [const { StaticMutex::new(Vec::new()) }; KEPT_SHIFTS.end - KEPT_SHIFTS.start];

impl Memory {
    fn new(layout: Layout) -> Self {
        // SAFETY: the layout is at least one page, so it is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        if kept(layout.size()).is_some() {
            regions::allocated(start.as_ptr().expose_provenance(), layout.size());
        }
        Self { start, layout }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if kept(self.layout.size()).is_some() {
            regions::freed(self.start.as_ptr().addr(), self.layout.size());
        }
        // SAFETY: allocated in `new` with the same layout, and owned by `self` alone.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Memory that begins on a 4,096-byte boundary. Dropped buffers of common sizes are kept and used again.
/// Queues of a store with [`IoMode::Direct`](super::IoMode::Direct) register those of 64 KiB to 2 MiB with the kernel.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::io::AlignedBuffer;
/// use volfork::volume::Request;
///
/// let mut buffer = AlignedBuffer::zeroed(8192);
/// assert_eq!(buffer.as_ptr() as usize % 4096, 0);
/// buffer[..5].copy_from_slice(b"block");
///
/// // A queue writes it without a copy, in the mode `IoMode::Direct` too.
/// let volume = store.create_volume("v", 1 << 20)?;
/// let mut queue = volume.queue(8)?;
/// queue.submit(1, Request::Write { offset: 0, data: buffer.into_bytes(), fua: true })?;
/// let mut completions = Vec::new();
/// queue.wait(&mut completions, None)?;
/// completions.pop().unwrap().result?;
/// # Ok(())
/// # }
/// ```
pub struct AlignedBuffer {
    memory: Option<Memory>,
    length: usize,
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBuffer").field("length", &self.length).finish_non_exhaustive()
    }
}

/// The memory of a buffer: whole pages, and a power of two where buffers are kept. `None`: there is no such memory.
fn layout_for(length: usize) -> Option<Layout> {
    let mut capacity = length.checked_next_multiple_of(ALIGN_BYTES)?.max(ALIGN_BYTES);
    if capacity <= KEPT_BYTES_MAX {
        capacity = capacity.next_power_of_two();
    }
    Layout::from_size_align(capacity, ALIGN_BYTES).ok()
}

fn kept(capacity: usize) -> Option<&'static StaticMutex<Vec<Memory>>> {
    capacity.is_power_of_two().then(|| KEPT.get(index(capacity.trailing_zeros()).wrapping_sub(KEPT_SHIFTS.start)))?
}

impl AlignedBuffer {
    /// A buffer of `length` bytes with some content: zeros, or what an earlier buffer of this process held.
    ///
    /// # Panics
    /// If no memory can have `length` bytes (more than about `isize::MAX`), as `Vec` does.
    pub fn new(length: usize) -> Self {
        let Some(layout) = layout_for(length) else { panic!("no memory can have {length} bytes") };
        let memory = kept(layout.size()).and_then(|kept| kept.lock().pop()).unwrap_or_else(|| Memory::new(layout));
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
        if let Some(kept) = kept(memory.layout.size()) {
            let mut kept = kept.lock();
            if kept.len() < KEPT_MAX.min(KEPT_CLASS_BYTES_MAX / memory.layout.size()) {
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

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Compares in wide steps: a slice is all equal if it equals itself shifted by one.
    bytes.first().is_none_or(|first| *first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed_ones_hold_no_old_bytes() {
        for length in [1, 4096, 5000, 128 << 10, 1 << 20] {
            let mut buffer = AlignedBuffer::new(length);
            assert!(buffer.as_ptr().addr().is_multiple_of(4096) && buffer.len() == length);
            buffer.fill(7);
            drop(buffer.into_bytes());
            assert!(AlignedBuffer::zeroed(length).iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        let mut bytes = [0; 100];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in 0..bytes.len() {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "byte {at}");
            bytes[at] = 0;
        }
        assert!(!is_zero(&[7; 100]), "equal bytes are not zeros");
    }

    #[test]
    fn a_length_that_no_memory_has_is_refused() {
        const LARGEST: usize = isize::MAX.unsigned_abs();
        for length in [LARGEST - 4094, LARGEST, usize::MAX - 4095, usize::MAX] {
            std::panic::catch_unwind(|| drop(AlignedBuffer::new(length))).unwrap_err();
        }
        for length in [0, 1, 4096, 4097, KEPT_BYTES_MAX, KEPT_BYTES_MAX + 1] {
            let buffer = AlignedBuffer::new(length);
            assert!(buffer.memory.as_ref().is_some_and(|memory| memory.layout.size() >= length.max(1)) && buffer.len() == length);
        }
    }
}
