//! Which parts of an image need to travel.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use volfork::io::is_zero;

/// Zeroes to compare with and to write.
pub static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// The ranges of `bytes`, in whole blocks, that are not zero; neighbours are joined.
pub fn nonzero_runs(bytes: &[u8], block_bytes: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, block) in bytes.chunks(block_bytes.max(1)).enumerate() {
        if is_zero(block) {
            continue;
        }
        let start = index * block_bytes;
        let end = start + block.len();
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

/// The first range at or behind `offset` of a file of `size_bytes` that is not a hole. A file system that cannot tell has none.
pub fn next_data(file: &File, offset: u64, size_bytes: u64) -> io::Result<Option<Range<u64>>> {
    if offset >= size_bytes {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(offset..size_bytes)),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok((start < size_bytes).then(|| start..end.clamp(start + 1, size_bytes)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn zero_blocks_do_not_travel() {
        let mut bytes = vec![0; 10 * 4096 + 7];
        for at in [4096, 2 * 4096, 5 * 4096 + 4095, 10 * 4096 + 6] {
            bytes[at] = 1;
        }
        assert_eq!(nonzero_runs(&bytes, 4096), [4096..3 * 4096, 5 * 4096..6 * 4096, 10 * 4096..10 * 4096 + 7]);
        assert!(nonzero_runs(&bytes[..4096], 4096).is_empty());
        assert!(nonzero_runs(&[], 4096).is_empty());
        assert!(is_zero(&vec![0; 200_000]) && !is_zero(&bytes));
    }

    #[test]
    fn holes_are_skipped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1; 4096], 4 << 20).unwrap();
        let mut covered = 0;
        let mut offset = 0;
        while let Some(range) = next_data(&file, offset, 8 << 20).unwrap() {
            assert!(range.start >= offset && range.end <= 8 << 20 && !range.is_empty());
            covered += u64::from(range.contains(&(4 << 20)));
            offset = range.end;
        }
        assert_eq!(covered, 1);
        assert_eq!(next_data(&file, 8 << 20, 8 << 20).unwrap(), None);
    }
}
