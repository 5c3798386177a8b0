//! Lengths in memory, numbers of bytes and indices: 64 bits each.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("volfork needs a machine of 64 bits");

/// A length in memory as a number of bytes, of things, or as a distance of offsets.
#[inline]
pub const fn wide(length: usize) -> u64 {
    length as u64
}

/// A number of bytes or things as a length in memory, or as an index.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the machine has 64 bits")]
pub const fn length(bytes: u64) -> usize {
    bytes as usize
}

/// A number of 32 bits as an index or a length in memory.
#[inline]
pub const fn index(number: u32) -> usize {
    number as usize
}
