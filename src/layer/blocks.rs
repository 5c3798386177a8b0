//! Blocks in the layers' files: verified reads, and checksums.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::checksums::{ChecksumCache, ChecksumPage, ContentChecksums, block_checksum};
use super::damage::Damage;
use super::files::LayerFiles;
use super::layer::Layer;
use super::table::freed;
use crate::error::{Corruption, Error, Result};
use crate::format::{LayerFile, StorePaths};
use crate::io::{AlignedBuffer, DiskFile, DiskFileExt, IoMode};
use crate::place::{Block, BlockBits, BlockSize, BlockSpan, Extent, ExtentSpan, Segment};
use crate::sync::atomic::Ordering;

/// Alignment of buffers for files that bypass the page cache.
const ALIGN_BYTES: usize = 4096;

/// How a read of blocks ended.
#[derive(Debug, PartialEq, Eq)]
pub enum BlockRead {
    /// Every block matches its checksum (or is in an extent that has not been hashed again since a crash).
    Verified,
    /// This block does not match: it may have been overwritten meanwhile, or it is damaged.
    Mismatch(Block),
}

/// The files of the layers, and the checksums of their blocks. It takes no part in the order of commits.
pub struct Blocks {
    pub(super) files: Arc<LayerFiles>,
    pub(super) checksums: Arc<ChecksumCache>,
    contents: ContentChecksums,
    damage: Damage,
    block_size: BlockSize,
    io_mode: IoMode,
}

impl Blocks {
    pub(super) fn new(files: Arc<LayerFiles>, checksums: Arc<ChecksumCache>, block_size: BlockSize, io_mode: IoMode) -> Self {
        Self { files, checksums, contents: ContentChecksums::new(block_size), damage: Damage::default(), block_size, io_mode }
    }

    /// Block size of the store.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// What has been found damaged since the store was opened.
    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    /// Page cache or not.
    pub fn io_mode(&self) -> IoMode {
        self.io_mode
    }

    /// The data file of a layer that has a block, and the block's byte offset in it.
    pub fn place(&self, block: Block) -> (Segment, u64) {
        self.block_size.in_file(block)
    }

    /// The data file that has a block, if it exists.
    ///
    /// # Errors
    /// An I/O error.
    pub fn data_file(&self, layer: &Layer, block: Block) -> Result<Option<Arc<dyn DiskFile>>> {
        self.files
            .get(layer.id, LayerFile::Data(self.place(block).0.number()))
            .map_err(|error| Error::io(format!("cannot open the data file of layer {}", layer.id), error))
    }

    /// The data file for writing a block; it is created if it does not exist.
    ///
    /// # Errors
    /// An I/O error, no space; [`crate::ErrorKind::NotFound`]: the layer was destroyed meanwhile.
    pub fn data_file_to_write(&self, layer: &Layer, block: Block) -> Result<Arc<dyn DiskFile>> {
        let opened = self.files.get_or_create(layer.id, LayerFile::Data(self.place(block).0.number()));
        opened.map_err(|error| match self.files.is_removed(layer.id) {
            true => freed(layer.id),
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
        self.io_mode == IoMode::Buffered || buffer.as_ptr().addr().is_multiple_of(ALIGN_BYTES)
    }

    /// Writes bytes to a file, through an aligned copy where the disk needs one.
    pub(super) fn put(&self, file: &dyn DiskFile, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.is_aligned(data) {
            return file.write_all_at(data, offset);
        }
        let mut bounce = AlignedBuffer::zeroed(data.len());
        bounce.copy_from_slice(data);
        file.write_all_at(&bounce, offset)
    }

    /// Reads consecutive blocks of an extent from `first` and verifies them.
    ///
    /// # Errors
    /// An I/O error.
    pub fn read(&self, layer: &Layer, first: Block, buffer: &mut [u8]) -> Result<BlockRead> {
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
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.first_lost(layer, first, &*file, buffer),
            Err(error) => Err(unreadable(layer, first, error)),
        }
    }

    /// The first damaged block of a range that reaches beyond the end of its file.
    fn first_lost(&self, layer: &Layer, first: Block, file: &dyn DiskFile, buffer: &mut [u8]) -> Result<BlockRead> {
        let offset = self.place(first).1;
        let size = file.size_bytes().map_err(|error| unreadable(layer, first, error))?;
        let there = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let whole = there / self.block_size.len();
        let mut held = AlignedBuffer::zeroed(whole * self.block_size.len());
        if whole > 0 {
            file.read_exact_at(&mut held, offset).map_err(|error| unreadable(layer, first, error))?;
        }
        match self.verify(layer, first, &held)? {
            BlockRead::Verified => {
                let lost = BlockSpan::from(first, u64::MAX).blocks().nth(whole);
                Ok(BlockRead::Mismatch(lost.unwrap_or(first)))
            }
            damaged => Ok(damaged),
        }
    }

    /// Fills `buffer` with consecutive blocks from `first` of a data file if the page cache has them and they match; never waits
    /// for a device. `None`: the page cache has not all of them.
    pub fn read_cached(&self, layer: &Layer, file: &dyn DiskFile, first: Block, buffer: &mut [u8]) -> Option<BlockRead> {
        let expected = self.expect(layer, first);
        let done = file.read_cached_at(buffer, self.place(first).1).ok().filter(|done| *done == buffer.len());
        done.and_then(|_| self.verify_expected(layer, first, buffer, expected).ok())
    }

    /// The checksums from a block on, if they are in memory.
    fn expect(&self, layer: &Layer, first: Block) -> Option<(Extent, Arc<ChecksumPage>)> {
        let page = self.cached_page(layer, first.extent())?;
        page.prefetch(first.index());
        Some((first.extent(), page))
    }

    /// Compares blocks, within one extent or more, with their checksums.
    ///
    /// # Errors
    /// The checksums cannot be read.
    pub fn verify(&self, layer: &Layer, first: Block, bytes: &[u8]) -> Result<BlockRead> {
        self.verify_expected(layer, first, bytes, None)
    }

    /// As [`Blocks::verify`], with the page of one extent at hand.
    fn verify_expected(
        &self,
        layer: &Layer,
        first: Block,
        bytes: &[u8],
        mut page: Option<(Extent, Arc<ChecksumPage>)>,
    ) -> Result<BlockRead> {
        for (block, bytes) in BlockSpan::from(first, u64::MAX).blocks().zip(bytes.chunks(self.block_size.len())) {
            let extent = block.extent();
            if layer.unverified.load(Ordering::Acquire) {
                let state = layer.state.lock();
                match (state.unverified.contains(extent.number()), state.presence.present.contains(block.number())) {
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
            if page.get(block.index()) != block_checksum(layer.id, block, bytes) {
                return Ok(BlockRead::Mismatch(block));
            }
        }
        Ok(BlockRead::Verified)
    }

    /// The crc32 of the bytes of present blocks, without reading them. `None`: not known since a crash.
    ///
    /// # Errors
    /// The checksums cannot be read.
    pub fn content_checksums(&self, layer: &Layer, part: ExtentSpan) -> Result<Vec<Option<u32>>> {
        if layer.unverified.load(Ordering::Acquire) && layer.state.lock().unverified.contains(part.extent.number()) {
            return Ok(part.blocks().map(|_| None).collect());
        }
        let page = self.page(layer, part.extent)?;
        Ok(part.blocks().map(|block| Some(self.contents.content(layer.id, block, page.get(block.index())))).collect())
    }

    /// The error for a damaged block.
    pub fn corruption(&self, layer: &Layer, block: Block, reason: &str) -> Error {
        let (segment, offset_bytes) = self.place(block);
        let file = StorePaths::new(std::path::Path::new("")).layer(layer.id, LayerFile::Data(segment.number()));
        let corruption = Corruption {
            volume: None,
            block: u64::from(block.number()),
            layer: layer.id.0,
            file: file.display().to_string(),
            offset_bytes,
            reason: reason.into(),
        };
        self.damage.note(&corruption);
        Error::corrupt_block(corruption)
    }

    /// Checksums of consecutive blocks.
    pub fn checksums_of(&self, layer: &Layer, first: Block, data: &[u8]) -> Vec<u32> {
        let blocks = BlockSpan::from(first, u64::MAX).blocks().zip(data.chunks(self.block_size.len()));
        blocks.map(|(block, bytes)| block_checksum(layer.id, block, bytes)).collect()
    }

    /// The checksum page of an extent.
    ///
    /// # Errors
    /// An I/O error.
    pub fn page(&self, layer: &Layer, extent: Extent) -> Result<Arc<ChecksumPage>> {
        self.checksums
            .page(&self.files, layer.id, extent)
            .map_err(|error| Error::io(format!("cannot read the checksums of layer {}, extent {extent}", layer.id), error))
    }

    /// The checksum page of an extent, if it is in memory.
    pub fn cached_page(&self, layer: &Layer, extent: Extent) -> Option<Arc<ChecksumPage>> {
        self.checksums.cached(layer.id, extent)
    }

    /// Makes the checksums of present blocks those of the bytes in the file, which it answers. The caller holds the blocks' latch.
    ///
    /// # Errors
    /// The blocks cannot be read, or the file ends before them.
    pub(super) fn hash_again(&self, layer: &Layer, extent: Extent, bits: &BlockBits) -> Result<Option<Arc<dyn DiskFile>>> {
        let page = self.page(layer, extent)?;
        let mut found = None;
        for run in bits.spans() {
            let part = extent.part(run);
            let first = part.first();
            let file = self.data_file(layer, first)?.ok_or_else(|| unreadable(layer, first, io::ErrorKind::NotFound.into()))?;
            let mut buffer = AlignedBuffer::zeroed(self.block_size.len_of(run));
            file.read_exact_at(&mut buffer, self.place(first).1).map_err(|error| unreadable(layer, first, error))?;
            for (bytes, block) in buffer.chunks(self.block_size.len()).zip(part.blocks()) {
                page.set(block.index(), block_checksum(layer.id, block, bytes));
            }
            found = Some(file);
        }
        Ok(found)
    }
}

/// The error of a block that cannot be read.
pub(super) fn unreadable(layer: &Layer, block: Block, error: io::Error) -> Error {
    Error::io(format!("cannot read layer {} at block {block}", layer.id), error)
}

/// The error of a block that cannot be written.
pub(super) fn unwritable(layer: &Layer, block: Block, error: io::Error) -> Error {
    Error::io(format!("cannot write layer {} at block {block}", layer.id), error)
}
