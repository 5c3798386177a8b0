//! Checks that each side of the fork reads as expected.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};
use volfork::{ErrorKind, Snapshot, Volume};

use super::chance::Random;
use crate::failure::{Failure, Result};

/// Bytes of one write.
pub const WRITE_BYTES: u64 = 4096;
/// Bytes read at once when everything is read.
const STEP_BYTES: u64 = 1 << 20;

/// Bytes that can be read at a place.
pub trait Bytes: Sync {
    /// How many there are.
    fn size_bytes(&self) -> u64;
    /// Fills `buffer` from `offset`.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
}

impl Bytes for Volume {
    fn size_bytes(&self) -> u64 {
        Volume::size_bytes(self)
    }
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        Ok(self.read_at(buffer, offset)?)
    }
}

impl Bytes for Snapshot {
    fn size_bytes(&self) -> u64 {
        Snapshot::size_bytes(self)
    }
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        Ok(self.read_at(buffer, offset)?)
    }
}

/// The image with the later writes of one side.
pub struct Expected {
    image: File,
    size_bytes: u64,
    side: u64,
    writes: BTreeMap<u64, u64>,
}

impl Expected {
    /// The image without writes; `side` makes the bytes of its writes its own.
    pub fn new(image: File, side: u64) -> Result<Self> {
        let mut end = &image;
        let size_bytes = io::Seek::seek(&mut end, io::SeekFrom::End(0)).map_err(|error| Failure::io("size of the image", error))?;
        Ok(Self { image, size_bytes, side, writes: BTreeMap::new() })
    }

    /// A next write of this side at a place that `random` chooses: its offset and its bytes, which no other write has.
    pub fn next_write(&mut self, random: &mut Random) -> (u64, Vec<u8>) {
        let offset = random.below((self.size_bytes / WRITE_BYTES).max(1)) * WRITE_BYTES;
        let seed = random.number();
        self.writes.insert(offset, seed);
        (offset, self.bytes_of(seed, offset))
    }

    /// Where this side wrote.
    pub fn written(&self) -> impl Iterator<Item = u64> {
        self.writes.keys().copied()
    }

    fn bytes_of(&self, seed: u64, offset: u64) -> Vec<u8> {
        let mut bytes = Random::new(seed ^ self.side).bytes(WRITE_BYTES.min(self.size_bytes - offset) as usize);
        bytes[..8].copy_from_slice(&self.side.to_le_bytes());
        bytes
    }
}

impl Bytes for Expected {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.image.read_exact_at(buffer, offset).map_err(|error| Failure::io("read the image", error))?;
        let end = offset + buffer.len() as u64;
        for (at, seed) in self.writes.range(offset.saturating_sub(WRITE_BYTES)..end) {
            let bytes = self.bytes_of(*seed, *at);
            let (from, to) = (offset.max(*at), end.min(at + bytes.len() as u64));
            if from < to {
                buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
            }
        }
        Ok(())
    }
}

/// Fails unless `bytes` at `offset` are the expected ones.
pub fn compare(what: &str, found: &dyn Bytes, expected: &dyn Bytes, offset: u64, bytes: u64) -> Result<()> {
    let (mut left, mut right) = (vec![0; bytes as usize], vec![0; bytes as usize]);
    found.read(&mut left, offset)?;
    expected.read(&mut right, offset)?;
    match left.iter().zip(&right).position(|(left, right)| left != right) {
        None => Ok(()),
        Some(index) => Err(Failure::new(ErrorKind::Corrupt, format!("{what}: byte {} is not the one expected", offset + index as u64))),
    }
}

/// Fails unless all bytes are the expected ones.
pub fn compare_all(what: &str, found: &dyn Bytes, expected: &dyn Bytes, going_on: &dyn Fn() -> Result<()>) -> Result<()> {
    if found.size_bytes() != expected.size_bytes() {
        let message = format!("{what}: {} bytes instead of {}", found.size_bytes(), expected.size_bytes());
        return Err(Failure::new(ErrorKind::Corrupt, message));
    }
    each_step(found.size_bytes(), going_on, |offset, bytes| compare(what, found, expected, offset, bytes))
}

/// SHA-256 of all bytes, in hexadecimal.
pub fn checksum(bytes: &dyn Bytes, going_on: &dyn Fn() -> Result<()>) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; STEP_BYTES as usize];
    each_step(bytes.size_bytes(), going_on, |offset, count| {
        bytes.read(&mut buffer[..count as usize], offset)?;
        hash.update(&buffer[..count as usize]);
        Ok(())
    })?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn each_step(size_bytes: u64, going_on: &dyn Fn() -> Result<()>, mut step: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let mut offset = 0;
    while offset < size_bytes {
        going_on()?;
        let bytes = STEP_BYTES.min(size_bytes - offset);
        step(offset, bytes)?;
        offset += bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&Random::new(9).bytes(3 * 4096 + 10), 0).unwrap();
        file
    }

    #[test]
    fn writes_of_a_side_are_expected_there_only() {
        let image = image();
        let mut ours = Expected::new(image.try_clone().unwrap(), 1).unwrap();
        let theirs = Expected::new(image, 2).unwrap();
        compare_all("same", &ours, &theirs, &|| Ok(())).unwrap();
        let same = checksum(&ours, &|| Ok(())).unwrap();
        assert_eq!(same, checksum(&theirs, &|| Ok(())).unwrap());
        let (offset, bytes) = ours.next_write(&mut Random::new(3));
        let mut found = vec![0; 100];
        ours.read(&mut found, offset + 50).unwrap();
        assert_eq!(found, bytes[50..150]);
        assert!(compare("other", &ours, &theirs, offset, WRITE_BYTES).unwrap_err().is(ErrorKind::Corrupt));
        assert_ne!(same, checksum(&ours, &|| Ok(())).unwrap());
        assert_eq!(ours.written().collect::<Vec<_>>(), [offset]);
    }

    #[test]
    fn the_checksum_is_that_of_other_tools() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        let sum = checksum(&Expected::new(file, 0).unwrap(), &|| Ok(())).unwrap();
        assert_eq!(sum, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
