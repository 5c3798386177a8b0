//! Reading verified bytes.

use std::ops::Range;

use super::view::{Answer, Blocks, Piece, View};
use crate::error::{Error, ErrorKind, Result};
use crate::io::AlignedBuffer;
use crate::layer::{BlockRead, Layer, Merged};
use crate::limits::EXTENT_BLOCKS;
use crate::place::Block;
use crate::sync::RwLock;

/// Looks at a block that moves from layer to layer while it is read. After these the read fails.
pub const LOOKS_MAX: u32 = 1000;

impl Blocks {
    /// Brings missing blocks of a root layer. A layer that was detached has none that can be seen.
    pub fn demand(&self, layer: &Layer, blocks: Range<u64>) -> Result<()> {
        self.foreground.note_demand();
        match self.hydrations.get(layer.id) {
            Some(hydrator) => hydrator.demand(blocks),
            None if layer.missing(Block::at(blocks.start).unwrap_or(Block::LAST).extent()).is_empty() => Ok(()),
            None => {
                let why = if self.has_sources { "its source is not needed any more" } else { "this store was opened without sources" };
                Err(Error::new(ErrorKind::SourceLost, format!("block {} was never fetched, and {why}", blocks.start)))
            }
        }
    }

    /// Brings missing blocks of an extent. It is no error if the view does not need them any more: a layer above may hold them by now,
    /// and then the root may have forgotten them and let its source go.
    pub fn demand_seen(&self, seen: &RwLock<View>, root: &Layer, extent: u32, range: Range<u32>) -> Result<()> {
        let first = u64::from(extent) * u64::from(EXTENT_BLOCKS);
        match self.demand(root, first + u64::from(range.start)..first + u64::from(range.end)) {
            Err(error) if error.kind() == ErrorKind::SourceLost => {
                let answers = self.answers(&seen.read(), extent, range)?;
                let missing = answers.iter().any(|(_, answer)| matches!(answer, Answer::Missing(_)));
                if missing { Err(error) } else { Ok(()) }
            }
            other => other,
        }
    }

    /// Fills `buffer` with whole blocks of one extent. `seen` is the view, which may change meanwhile.
    ///
    /// # Errors
    /// Damage, a lost source, an I/O error.
    pub fn read_extent(&self, seen: &RwLock<View>, extent: u32, range: Range<u32>, buffer: &mut [u8]) -> Result<()> {
        self.read_again(seen, extent, range, buffer, LOOKS_MAX)
    }

    /// Fills `buffer`; blocks that are still at a source are looked at again when they have come, `looks` times.
    fn read_again(&self, seen: &RwLock<View>, extent: u32, range: Range<u32>, buffer: &mut [u8], looks: u32) -> Result<()> {
        let block_bytes = self.block_size.bytes() as usize;
        let first = extent * EXTENT_BLOCKS;
        let answers = self.answers(&seen.read(), extent, range.clone())?;
        for (run, answer) in answers {
            let at = (run.start - range.start) as usize * block_bytes;
            let part = &mut buffer[at..at + run.len() * block_bytes];
            let layer = match answer {
                Answer::Zero => {
                    part.fill(0);
                    continue;
                }
                Answer::Held(layer) => layer,
                Answer::Patched(layer) => {
                    self.read_patched(seen, &layer, extent, run, part)?;
                    continue;
                }
                Answer::Missing(layer) => {
                    let demanded = self.demand_seen(seen, &layer, extent, run.clone());
                    let unstored = matches!(demanded.as_ref().map_err(Error::kind), Err(ErrorKind::NoSpace | ErrorKind::Poisoned));
                    if let Some(hydrator) = self.hydrations.get(layer.id).filter(|_| unstored) {
                        // A disk that is full, or a store that refuses writes, still serves reads.
                        hydrator.read_through(u64::from(first + run.start), part)?;
                        continue;
                    }
                    demanded?;
                    if looks == 0 {
                        return Err(self.never_settles(&layer, first + run.start));
                    }
                    // What arrived may be data or zeros.
                    self.read_again(seen, extent, run, part, looks - 1)?;
                    continue;
                }
            };
            let mut done = 0;
            while let BlockRead::Mismatch(block) =
                self.layers.blocks.read(&layer, Block::new(first + run.start + done), &mut part[done as usize * block_bytes..])?
            {
                let at = (block.number() - first - run.start) as usize;
                self.read_block_settled(seen, block.number(), &mut part[at * block_bytes..(at + 1) * block_bytes])?;
                done = at as u32 + 1;
                if done == run.len() as u32 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Reads one block as it is here, without a source. `false`: it is missing, or does not match its checksum.
    ///
    /// # Errors
    /// An I/O error; [`ErrorKind::NotFound`] when the volume was destroyed.
    pub fn read_here(&self, seen: &RwLock<View>, block: u32, buffer: &mut [u8]) -> Result<bool> {
        let within = block % EXTENT_BLOCKS;
        match self.answers(&seen.read(), block / EXTENT_BLOCKS, within..within + 1)?.pop() {
            None => Ok(true),
            Some((_, Answer::Zero)) => {
                buffer.fill(0);
                Ok(true)
            }
            Some((_, Answer::Held(layer))) => {
                Ok(matches!(self.layers.blocks.read(&layer, Block::new(block), buffer)?, BlockRead::Verified))
            }
            Some((_, Answer::Missing(_) | Answer::Patched(_))) => Ok(false),
        }
    }

    /// Reads one block that did not match: looks again at what answers for it, with the writers of the block held.
    ///
    /// 1. A layer that answers and does not hold the block has lost it between the two looks: to a discard, or to a write into a
    ///    layer above, after which reclaim forgot it. If neither is the case, the block is lost, and no ancestor's bytes or zeros
    ///    stand for it.
    /// 2. Between the moment at which a write fills its block and that at which the owner map names the head, the map is stale.
    ///    So it is not asked again: the extent is resolved anew from what the layers hold.
    /// 3. A block that moves at each look is being changed all the time. Looks are bounded all the same, so that a fault of the engine
    ///    ends as an error and not as a loop.
    ///
    /// # Errors
    /// Damage, a lost source, an I/O error; [`ErrorKind::NotFound`] when the volume was destroyed.
    pub fn read_block_settled(&self, seen: &RwLock<View>, block: u32, buffer: &mut [u8]) -> Result<()> {
        let (extent, within) = (block / EXTENT_BLOCKS, block % EXTENT_BLOCKS);
        let mut looks = 0..LOOKS_MAX;
        loop {
            let answer = self.answers(&seen.read(), extent, within..within + 1)?.pop();
            let Some((_, answer)) = answer else { return Ok(()) };
            let layer = match answer {
                Answer::Zero => {
                    buffer.fill(0);
                    return Ok(());
                }
                Answer::Missing(layer) => {
                    self.demand_seen(seen, &layer, extent, within..within + 1)?;
                    layer
                }
                Answer::Patched(layer) => {
                    if !matches!(self.merge_block(&layer, block, buffer)?, Merged::Superseded) {
                        return Ok(());
                    }
                    layer
                }
                Answer::Held(layer) => {
                    match self.layers.settled.read(&layer, Block::new(block), buffer) {
                        Ok(Some(())) => return Ok(()),
                        Ok(None) if self.renew_owners(seen, &layer, block) => {}
                        Ok(None) => return Err(self.never_settles(&layer, block)),
                        Err(error) if error.kind() == ErrorKind::Corrupt => return self.repair(&layer, block, buffer, error),
                        Err(error) => return Err(error),
                    }
                    layer
                }
            };
            if looks.next().is_none() {
                return Err(self.never_settles(&layer, block));
            }
        }
    }

    pub fn never_settles(&self, layer: &Layer, block: u32) -> Error {
        self.layers.blocks.corruption(layer, Block::new(block), "the layer answers for it and does not have it")
    }

    /// Fetches a damaged block of a root layer again, if its source still has the bytes that the checksum names; a damaged block of a layer
    /// of an image is taken from another layer that holds the same chain. Damage that stays is noted in the layer.
    ///
    /// # Errors
    /// `damage`, with why it could not be repaired.
    pub fn repair(&self, layer: &Layer, block: u32, buffer: &mut [u8], damage: Error) -> Result<()> {
        let found = match self.hydrations.get(layer.id) {
            Some(hydrator) => hydrator.read_through(u64::from(block), buffer).map_err(|error| damage.context(error)),
            None if self.read_twin(layer, block, buffer) => Ok(()),
            None => Err(damage.clone()),
        };
        let repaired =
            found.and_then(|()| self.layers.settled.repair(layer, Block::new(block), buffer).map_err(|error| damage.context(error)));
        layer.note_damage(Block::new(block), repaired.is_err());
        repaired
    }

    /// Fills `buffer` with a block of a layer of an image from another layer that holds the same chain.
    fn read_twin(&self, layer: &Layer, block: u32, buffer: &mut [u8]) -> bool {
        let twins = self.shape.catalog().twins(layer.id);
        twins.into_iter().filter_map(|twin| self.layers.get(twin)).any(|twin| {
            // `read_here` repairs nothing: two damaged twins would ask each other for ever.
            matches!(self.read_here(&RwLock::new(View::new(twin, u64::MAX)), block, buffer), Ok(true))
        })
    }

    /// Fills `buffer` from byte `offset`.
    ///
    /// # Errors
    /// As [`Blocks::read_extent`]; [`ErrorKind::OutOfRange`].
    pub fn read(&self, seen: &RwLock<View>, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        seen.read().check_range(offset, buffer.len() as u64)?;
        let block_bytes = self.block_size.bytes();
        while !buffer.is_empty() {
            let piece = Piece::at(self.block_size, offset, buffer.len() as u64);
            let (part, rest) = buffer.split_at_mut(piece.bytes as usize);
            if piece.is_whole(block_bytes) {
                self.read_extent(seen, piece.extent, piece.blocks.clone(), part)?;
            } else if !self.read_parts(seen, &piece, part)? {
                let mut blocks = AlignedBuffer::zeroed(piece.blocks.len() * block_bytes as usize);
                self.read_extent(seen, piece.extent, piece.blocks.clone(), &mut blocks)?;
                part.copy_from_slice(&blocks[piece.skip as usize..][..piece.bytes as usize]);
            }
            offset += piece.bytes;
            buffer = rest;
        }
        Ok(())
    }

    /// Fetches what a patched or missing block still lacks, and stores it whole.
    ///
    /// # Errors
    /// As [`Blocks::read_extent`]; no space.
    pub fn bring(&self, seen: &RwLock<View>, extent: u32, blocks: Range<u32>) -> Result<()> {
        let first = extent * EXTENT_BLOCKS;
        let answers = self.answers(&seen.read(), extent, blocks)?;
        for (run, answer) in answers {
            match answer {
                Answer::Zero | Answer::Held(_) => {}
                Answer::Missing(root) => {
                    self.demand(&root, u64::from(first) + u64::from(run.start)..u64::from(first) + u64::from(run.end))?
                }
                Answer::Patched(layer) => {
                    let mut buffer = AlignedBuffer::zeroed(self.block_size.bytes() as usize);
                    for block in run {
                        if let Merged::Unstored(error) = self.merge_block(&layer, first + block, &mut buffer)? {
                            return Err(error);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Brings blocks of a range that are still at a source, until `wanted` answers an error.
    pub fn prefetch(&self, seen: &RwLock<View>, mut offset: u64, mut bytes: u64, wanted: &dyn Fn() -> Result<()>) -> Result<()> {
        seen.read().check_range(offset, bytes)?;
        while bytes > 0 {
            wanted()?;
            let piece = Piece::at(self.block_size, offset, bytes);
            self.bring(seen, piece.extent, piece.blocks.clone())?;
            offset += piece.bytes;
            bytes -= piece.bytes;
        }
        Ok(())
    }
}
