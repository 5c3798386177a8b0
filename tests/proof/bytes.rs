//! The bytes of sectors: each names its write and its place, so that no sector can be taken for another one.

use crate::image::SECTOR;
use crate::sector::Tag;

pub fn sector_bytes(tag: Tag, number: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if tag != 0 {
        for part in bytes.as_chunks_mut::<16>().0 {
            part[..8].copy_from_slice(&tag.to_le_bytes());
            part[8..].copy_from_slice(&(number as u64).to_le_bytes());
        }
    }
    bytes
}

/// Bytes of a write of sectors from `first` on.
pub fn run_bytes(tag: Tag, first: usize, count: usize) -> Vec<u8> {
    (first..first + count).flat_map(|number| sector_bytes(tag, number)).collect()
}

/// The tags of sectors from `first` on.
pub fn tags_of(bytes: &[u8], first: usize) -> Result<Vec<Tag>, String> {
    let tag_of = |(number, sector): (usize, &[u8])| {
        let tag = Tag::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
        match *sector == sector_bytes(tag, number) {
            true => Ok(tag),
            false => Err(format!("sector {number} is mixed, or from another place: {:?}", &sector[..32])),
        }
    };
    (first..).zip(bytes.chunks(SECTOR)).map(tag_of).collect()
}
