//! The volume of the file system and what of it is free.

use std::io::Read;

use super::groups::Groups;
use super::layout::{BLOCK_BYTES, BLOCK_STEP, GROUP_BYTES, MAX_BYTES, Run, refused};
use crate::error::Result;
use crate::image::stream;
use crate::io::is_zero;
use crate::place::{length, wide};
use crate::volume::Volume;

pub(super) struct Space<'a> {
    pub volume: &'a Volume,
    pub groups: Groups,
}

impl Space<'_> {
    /// Bytes of the file system.
    pub fn size_bytes(&self) -> u64 {
        u64::from(self.groups.count()) * GROUP_BYTES
    }

    /// Blocks for content. The file system and its volume grow when it is full.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if it has the largest size already; an error of the volume.
    pub fn allocate(&mut self, blocks: u64) -> Result<Vec<Run>> {
        loop {
            if let Some(runs) = self.groups.take_blocks(blocks) {
                return Ok(runs);
            }
            self.grow()?;
        }
    }

    /// As [`Space::allocate`], one block.
    pub fn allocate_one(&mut self) -> Result<u32> {
        self.allocate(1).map(|runs| runs[0].start)
    }

    /// As [`Space::allocate`], an inode.
    pub fn allocate_inode(&mut self, directory: bool) -> Result<u32> {
        loop {
            if let Some(number) = self.groups.take_free_inode(directory) {
                return Ok(number);
            }
            self.grow()?;
        }
    }

    fn grow(&mut self) -> Result<()> {
        if self.size_bytes() == MAX_BYTES {
            return Err(refused(format!("the file system of the image is full, and it has {MAX_BYTES} bytes, the most there are")));
        }
        let size_bytes = (self.size_bytes() * 2).min(MAX_BYTES);
        if size_bytes > self.volume.size_bytes() {
            self.volume.resize(size_bytes, false)?;
        }
        self.groups.resize(size_bytes / GROUP_BYTES)
    }

    /// Gives blocks back.
    pub fn free(&mut self, runs: impl IntoIterator<Item = Run>) {
        runs.into_iter().for_each(|run| self.groups.free_blocks_of(run));
    }

    /// Stores content of `bytes` bytes; answers where.
    ///
    /// # Errors
    /// As [`Space::allocate`]; the content ends before, or cannot be read.
    pub fn write_content(&mut self, content: &mut dyn Read, bytes: u64) -> Result<Vec<Run>> {
        const PIECE_BYTES: usize = 1 << 20;
        let runs = self.allocate(bytes.div_ceil(BLOCK_STEP))?;
        let mut left = bytes;
        let mut piece = vec![0; PIECE_BYTES.min(length(bytes).next_multiple_of(BLOCK_BYTES))];
        for run in &runs {
            let mut offset = run.start_byte();
            let end = offset + run.bytes();
            while offset < end {
                let room = length(end - offset).min(piece.len());
                let filled = room.min(length(left));
                content.read_exact(&mut piece[..filled]).map_err(|error| stream::error_of("a file of the layer", error))?;
                piece[filled..room].fill(0);
                match is_zero(&piece[..room]) {
                    true => self.volume.write_zeroes(offset, wide(room))?,
                    false => self.volume.write_at(&piece[..room], offset)?,
                }
                left -= wide(filled);
                offset += wide(room);
            }
        }
        Ok(runs)
    }
}
