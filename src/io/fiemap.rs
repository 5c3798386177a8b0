//! Which bytes of a file have space, written or not.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::place::index;

/// Extents that one call answers.
const EXTENTS: u32 = 32;
/// `FS_IOC_FIEMAP`, `FIEMAP_EXTENT_ENCODED` and `FIEMAP_EXTENT_SHARED` of `linux/fs.h` and `linux/fiemap.h`.
const FS_IOC_FIEMAP: u32 = 0xC020_660B;
const ENCODED: u32 = 0x8;
const SHARED: u32 = 0x2000;
/// Of `linux/magic.h`.
const XFS_SUPER_MAGIC: u64 = 0x5846_5342;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap`, with room for its extents.
#[repr(C)]
#[derive(Default)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; index(EXTENTS)],
}

/// Whether a file of XFS has space of its own for a range that does not go beyond its end. XFS takes space for a whole range before it
/// looks which parts have some, and so refuses, on a full disk, to allocate what is allocated.
///
/// # Errors
/// An I/O error of the file.
pub fn has_space_on_xfs(file: &File, range: Range<u64>) -> io::Result<bool> {
    let is_xfs = u64::try_from(rustix::fs::fstatfs(file)?.f_type).is_ok_and(|kind| kind == XFS_SUPER_MAGIC);
    if !is_xfs || range.end > file.metadata()?.len() {
        return Ok(false);
    }
    let mut at = range.start;
    while at < range.end {
        let mut map = Fiemap { start: at, length: range.end - at, extent_count: EXTENTS, ..Fiemap::default() };
        #[allow(clippy::cast_lossless, reason = "the width of a request depends on the C library")]
        let request = FS_IOC_FIEMAP as _;
        // SAFETY: the kernel writes into `map` alone, at most `extent_count` extents, and that many are there.
        if unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut map) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let before = at;
        for extent in map.extents.iter().take(index(map.mapped_extents)) {
            if extent.logical > at || extent.flags & (ENCODED | SHARED) != 0 {
                return Ok(false);
            }
            at = at.max(extent.logical.saturating_add(extent.length));
        }
        if at == before {
            return Ok(false);
        }
    }
    Ok(true)
}
