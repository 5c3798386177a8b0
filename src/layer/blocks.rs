//! Blocks in the layers' files: verified reads, and the bytes of admitted writes.

use std::io;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;

use super::admitted::Admitted;
use super::checksums::{ChecksumPage, block_checksum};
use super::set::Layers;
use super::state::Layer;
use crate::error::{Corruption, Error, ErrorKind, Result};
use crate::format::{LayerFile, StorePaths};
use crate::io::{AlignedBuffer, DiskFile, DiskFileExt, IoMode};
use crate::limits::{EXTENT_BLOCKS, SEGMENT_BYTES};
use crate::place::BlockBits;
use crate::sync::atomic::Ordering;

/// How a read of blocks ended.
#[derive(Debug, PartialEq, Eq)]
pub enum BlockRead {
    /// Every block matches its checksum (or is in an extent that has not been hashed again since a crash).
    Verified,
    /// This block does not match: it may have been overwritten meanwhile, or it is damaged.
    Mismatch(u32),
}

impl Layers {
    /// Segment and byte offset of a block in it.
    pub fn place(&self, block: u32) -> (u32, u64) {
        let offset = self.block_size.offset_of(u64::from(block));
        ((offset / SEGMENT_BYTES) as u32, offset % SEGMENT_BYTES)
    }

    /// The data file that has a block, if it exists.
    ///
    /// # Errors
    /// An I/O error.
    pub fn data_file(&self, layer: &Layer, block: u32) -> Result<Option<Arc<dyn DiskFile>>> {
        self.files
            .get(layer.id, LayerFile::Data(self.place(block).0))
            .map_err(|error| Error::io(format!("cannot open the data file of layer {}", layer.id), error))
    }

    /// The data file for writing a block; it is created if it does not exist.
    ///
    /// # Errors
    /// An I/O error, no space; [`crate::ErrorKind::NotFound`]: the layer was destroyed meanwhile.
    pub fn data_file_to_write(&self, layer: &Layer, block: u32) -> Result<Arc<dyn DiskFile>> {
        let opened = self.files.get_or_create(layer.id, LayerFile::Data(self.place(block).0));
        opened.map_err(|error| match self.files.is_removed(layer.id) {
            true => Self::gone(layer),
            false => Error::io(format!("cannot create the data file of layer {}", layer.id), error),
        })
    }

    /// The bytes in a buffer that the disk takes as it is.
    pub fn for_disk(&self, data: &Bytes) -> Bytes {
        if self.is_aligned(data) {
            return data.clone();
        }
        let mut copy = AlignedBuffer::new(data.len());
        copy.copy_from_slice(data);
        copy.into_bytes()
    }

    /// Whether a buffer can be handed to the disk as it is.
    fn is_aligned(&self, buffer: &[u8]) -> bool {
        self.io_mode == IoMode::Buffered || buffer.as_ptr().addr().is_multiple_of(4096)
    }

    /// Reads consecutive blocks of an extent from `first` and verifies them.
    ///
    /// # Errors
    /// An I/O error.
    pub fn read_blocks(&self, layer: &Layer, first: u32, buffer: &mut [u8]) -> Result<BlockRead> {
        let Some(file) = self.data_file(layer, first)? else { return Ok(BlockRead::Mismatch(first)) };
        let offset = self.place(first).1;
        let expected = self.expect(layer, first);
        let result = if self.is_aligned(buffer) {
            file.read_exact_at(buffer, offset)
        } else {
            let mut bounce = AlignedBuffer::zeroed(buffer.len());
            let result = file.read_exact_at(&mut bounce, offset);
            buffer.copy_from_slice(&bounce);
            result
        };
        match result {
            Ok(()) => self.verify_expected(layer, first, buffer, expected),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.first_lost(layer, first, &*file, buffer.len()),
            Err(error) => Err(Error::io(format!("cannot read layer {} at block {first}", layer.id), error)),
        }
    }

    /// The first damaged block of a range that reaches beyond the end of its file.
    fn first_lost(&self, layer: &Layer, first: u32, file: &dyn DiskFile, bytes: usize) -> Result<BlockRead> {
        let (offset, block_bytes) = (self.place(first).1, self.block_size.bytes());
        let unreadable = |error| Error::io(format!("cannot read layer {} at block {first}", layer.id), error);
        let blocks = (file.size_bytes().map_err(unreadable)?.saturating_sub(offset)).min(bytes as u64) / block_bytes;
        if blocks == 0 {
            return Ok(BlockRead::Mismatch(first));
        }
        let mut whole = AlignedBuffer::zeroed((blocks * block_bytes) as usize);
        file.read_exact_at(&mut whole, offset).map_err(unreadable)?;
        match self.verify_blocks(layer, first, &whole)? {
            BlockRead::Verified => Ok(BlockRead::Mismatch(first + blocks as u32)),
            damaged => Ok(damaged),
        }
    }

    /// Fills `buffer` with consecutive blocks from `first` of a data file if the page cache has them and they match; never waits
    /// for a device. `None`: the page cache has not all of them.
    pub fn read_cached(&self, layer: &Layer, file: &dyn DiskFile, first: u32, buffer: &mut [u8]) -> Option<BlockRead> {
        let expected = self.expect(layer, first);
        let done = file.read_cached_at(buffer, self.place(first).1).ok().filter(|done| *done == buffer.len());
        done.and_then(|_| self.verify_expected(layer, first, buffer, expected).ok())
    }

    /// The checksums from a block on, if they are in memory.
    fn expect(&self, layer: &Layer, first: u32) -> Option<(u32, Arc<ChecksumPage>)> {
        let extent = first / EXTENT_BLOCKS;
        let page = self.cached_page(layer, extent)?;
        page.expect(first % EXTENT_BLOCKS);
        Some((extent, page))
    }

    /// Compares blocks (within one extent or more) with their checksums.
    ///
    /// # Errors
    /// The checksums cannot be read.
    pub fn verify_blocks(&self, layer: &Layer, first: u32, bytes: &[u8]) -> Result<BlockRead> {
        self.verify_expected(layer, first, bytes, None)
    }

    /// As [`Layers::verify_blocks`], with the page of one extent at hand.
    fn verify_expected(&self, layer: &Layer, first: u32, bytes: &[u8], mut page: Option<(u32, Arc<ChecksumPage>)>) -> Result<BlockRead> {
        for (number, bytes) in bytes.chunks(self.block_size.bytes() as usize).enumerate() {
            let block = first + number as u32;
            let extent = block / EXTENT_BLOCKS;
            if layer.unverified.load(Ordering::Acquire) {
                let state = layer.state.lock();
                match (state.unverified.contains(extent), state.presence.present.contains(block)) {
                    (false, _) => {}
                    (true, true) => continue,
                    // Nothing else tells that the block was forgotten, and its space given back, while it was read.
                    (true, false) => return Ok(BlockRead::Mismatch(block)),
                }
            }
            let page = match &page {
                Some((of, page)) if *of == extent => page,
                _ => &page.insert((extent, self.page(layer, extent)?)).1,
            };
            if page.get(block % EXTENT_BLOCKS) != block_checksum(layer.id, block, bytes) {
                return Ok(BlockRead::Mismatch(block));
            }
        }
        Ok(BlockRead::Verified)
    }

    /// The crc32 of the bytes of present blocks of one extent, without reading them. `None`: not known since a crash.
    ///
    /// # Errors
    /// The checksums cannot be read.
    pub fn content_checksums(&self, layer: &Layer, blocks: RangeInclusive<u32>) -> Result<Vec<Option<u32>>> {
        let extent = blocks.start() / EXTENT_BLOCKS;
        if layer.unverified.load(Ordering::Acquire) && layer.state.lock().unverified.contains(extent) {
            return Ok(blocks.map(|_| None).collect());
        }
        let page = self.page(layer, extent)?;
        Ok(blocks.map(|block| Some(self.contents.content(layer.id, block, page.get(block % EXTENT_BLOCKS)))).collect())
    }

    /// Reads one block while nobody writes, fills or punches it.
    /// `Ok(None)`: the layer does not hold the block any more.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] with the place, or an I/O error.
    pub fn read_settled(&self, layer: &Layer, block: u32, buffer: &mut [u8]) -> Result<Option<()>> {
        let (extent, within) = (block / EXTENT_BLOCKS, block % EXTENT_BLOCKS);
        let bits = BlockBits::of(within..within + 1);
        let latched = self.latch_wait(layer, extent, &bits)?;
        let held = layer.extent(extent).0.contains(within);
        let result = if held { self.read_blocks(layer, block, buffer) } else { Ok(BlockRead::Verified) };
        drop(latched);
        match result? {
            BlockRead::Verified => Ok(held.then_some(())),
            BlockRead::Mismatch(_) => Err(self.corruption(layer, block, "its bytes do not match their checksum")),
        }
    }

    /// The error for a damaged block.
    pub fn corruption(&self, layer: &Layer, block: u32, reason: &str) -> Error {
        let (segment, offset_bytes) = self.place(block);
        let file = StorePaths::new(std::path::Path::new("")).layer(layer.id, LayerFile::Data(segment));
        Error::corrupt_block(Corruption {
            volume: None,
            block: u64::from(block),
            layer: layer.id.0,
            file: file.display().to_string(),
            offset_bytes,
            reason: reason.into(),
        })
    }

    /// Writes a block of a sealed layer again, if `bytes` are what its checksum says.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] if they are not, an I/O error.
    pub fn repair_block(&self, layer: &Layer, block: u32, bytes: &[u8]) -> Result<()> {
        let (extent, within) = (block / EXTENT_BLOCKS, block % EXTENT_BLOCKS);
        let bits = BlockBits::of(within..within + 1);
        let latched = self.latch_wait(layer, extent, &bits)?;
        let result = self.repair_latched(layer, block, bytes);
        drop(latched);
        result
    }

    fn repair_latched(&self, layer: &Layer, block: u32, bytes: &[u8]) -> Result<()> {
        if self.page(layer, block / EXTENT_BLOCKS)?.get(block % EXTENT_BLOCKS) != block_checksum(layer.id, block, bytes) {
            return Err(Error::new(ErrorKind::Corrupt, "what it could be repaired from does not match its checksum either"));
        }
        let file = self.data_file_to_write(layer, block)?;
        let wrap = |error| Error::io(format!("cannot write layer {} at block {block}", layer.id), error);
        self.put(&*file, self.place(block).1, bytes).map_err(wrap)?;
        // The sync is that of all others who wrote to the file as well, and they would never hear of its failure.
        let synced = file.sync_data().map_err(|error| Error::sync(format!("cannot sync layer {} at block {block}", layer.id), error));
        synced.inspect_err(|error| self.commit.poison(error.clone()))
    }

    /// Writes whole blocks of an extent that the caller was admitted to; makes them the blocks' content, or gives them back.
    ///
    /// # Errors
    /// An I/O error, no space.
    pub fn write_admitted(&self, layer: &Layer, extent: u32, range: Range<u32>, data: &[u8]) -> Result<()> {
        let first = extent * EXTENT_BLOCKS + range.start;
        let bits = BlockBits::of(range);
        let mut admitted = Admitted::of(self, layer, extent, bits);
        // Nothing is written before the file is open and the space is taken: an error so far changes nothing.
        self.allocate_mixed(layer, extent, &bits)?;
        let file = self.data_file_to_write(layer, first)?;
        let checksums = self.checksums_of(layer, first, data);
        admitted.touch();
        let written = self.put(&*file, self.place(first).1, data);
        match written.map_err(|error| Error::io(format!("cannot write layer {} at block {first}", layer.id), error)) {
            Ok(()) => {
                admitted.finish(&checksums, (self.place(first).0, &file));
                Ok(())
            }
            Err(error) => {
                admitted.fail(&error);
                Err(error)
            }
        }
    }

    /// A write that overwrites some blocks and adds others must not fail for lack of space when it has overwritten the first:
    /// takes the space of the new ones before.
    fn allocate_mixed(&self, layer: &Layer, extent: u32, bits: &BlockBits) -> Result<()> {
        let new = bits.minus(&layer.extent(extent).0);
        if new.is_empty() || new == *bits { Ok(()) } else { self.take_space(layer, extent, &new) }
    }

    /// Takes the space of blocks that are not there yet, so that a write of them cannot fail for lack of it.
    ///
    /// # Errors
    /// An I/O error, no space; what was taken is given back later.
    pub fn take_space(&self, layer: &Layer, extent: u32, new: &BlockBits) -> Result<()> {
        self.commit.healthy()?;
        if layer.state.lock().freed {
            return Err(Self::gone(layer));
        }
        // A hint for the journal: room that is there once stays there.
        if self.commit.reserve_blocks(new.count())? {
            self.commit.release_blocks(new.count());
        }
        let file = self.data_file_to_write(layer, extent * EXTENT_BLOCKS)?;
        for run in new.runs() {
            let start = self.place(extent * EXTENT_BLOCKS + run.start).1;
            let range = start..start + run.len() as u64 * self.block_size.bytes();
            if let Err(error) = file.allocate(range) {
                self.give_back(layer, extent, new);
                return Err(Error::io(format!("cannot take space for layer {}", layer.id), error));
            }
        }
        Ok(())
    }

    /// Lets the background give back the space of blocks that were not written after all.
    pub fn give_back(&self, layer: &Layer, extent: u32, bits: &BlockBits) {
        let mut state = layer.state.lock();
        let unused = bits.minus(&state.presence.present_bits(extent));
        if !unused.is_empty() && !state.freed {
            super::presence::insert_bits(&mut state.garbage, extent, &unused);
            self.note_garbage(layer);
        }
    }

    fn put(&self, file: &dyn DiskFile, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.is_aligned(data) {
            return file.write_all_at(data, offset);
        }
        let mut bounce = AlignedBuffer::zeroed(data.len());
        bounce.copy_from_slice(data);
        file.write_all_at(&bounce, offset)
    }

    /// Checksums of consecutive blocks.
    pub fn checksums_of(&self, layer: &Layer, first: u32, data: &[u8]) -> Vec<u32> {
        let blocks = data.chunks(self.block_size.bytes() as usize).zip(first..=u32::MAX);
        blocks.map(|(bytes, block)| block_checksum(layer.id, block, bytes)).collect()
    }
}
