//! Reading verified bytes.

use super::view::{Answer, Blocks, View};
use crate::error::{Error, ErrorKind, Result};
use crate::io::AlignedBuffer;
use crate::layer::{BlockRead, Layer, Merged};
use crate::place::{Block, BlockSpan, ExtentSpan, length, wide};
use crate::sync::{Rank, RwLock};

/// Looks at a block that moves from layer to layer while it is read. After these the read fails.
pub const LOOKS_MAX: u32 = 1000;

impl Blocks {
    /// Brings missing blocks of a root layer. A layer that was detached has none that can be seen.
    pub fn demand(&self, layer: &Layer, blocks: BlockSpan) -> Result<()> {
        self.foreground.note_demand();
        match self.hydrations.get(layer.id) {
            Some(hydrator) => hydrator.demand(blocks.start()..blocks.end()),
            None if blocks.first().is_none_or(|first| layer.missing(first.extent()).is_empty()) => Ok(()),
            None => {
                let why = if self.has_sources { "its source is not needed any more" } else { "this store was opened without sources" };
                Err(Error::new(ErrorKind::SourceLost, format!("block {} was never fetched, and {why}", blocks.start())))
            }
        }
    }

    /// Brings missing blocks of an extent. It is no error if the view does not need them any more: a layer above may hold them by now,
    /// and then the root may have forgotten them and let its source go.
    pub fn demand_seen(&self, seen: &RwLock<View>, root: &Layer, part: ExtentSpan) -> Result<()> {
        match self.demand(root, part.span()) {
            Err(error) if error.kind() == ErrorKind::SourceLost => {
                let answers = self.answers(&seen.read(), part)?;
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
    pub fn read_extent(&self, seen: &RwLock<View>, part: ExtentSpan, buffer: &mut [u8]) -> Result<()> {
        self.read_again(seen, part, buffer, LOOKS_MAX)
    }

    /// Fills `buffer`; blocks that are still at a source are looked at again when they have come, `looks` times.
    fn read_again(&self, seen: &RwLock<View>, whole: ExtentSpan, buffer: &mut [u8], looks: u32) -> Result<()> {
        let answers = self.answers(&seen.read(), whole)?;
        let mut rest = buffer;
        for (run, answer) in answers {
            let run = whole.extent.part(run);
            let (part, behind) = rest.split_at_mut(self.block_size.len_of(run.indices));
            rest = behind;
            let layer = match answer {
                Answer::Zero => {
                    part.fill(0);
                    continue;
                }
                Answer::Held(layer) => layer,
                Answer::Patched(layer) => {
                    self.read_patched(seen, &layer, run, part)?;
                    continue;
                }
                Answer::Missing(layer) => {
                    let demanded = self.demand_seen(seen, &layer, run);
                    let unstored = matches!(demanded.as_ref().map_err(Error::kind), Err(ErrorKind::NoSpace | ErrorKind::Poisoned));
                    if let Some(hydrator) = self.hydrations.get(layer.id).filter(|_| unstored) {
                        // A disk that is full, or a store that refuses writes, still serves reads.
                        hydrator.read_through(run.span().start(), part)?;
                        continue;
                    }
                    demanded?;
                    if looks == 0 {
                        return Err(self.never_settles(&layer, run.first()));
                    }
                    // What arrived may be data or zeros.
                    self.read_again(seen, run, part, looks - 1)?;
                    continue;
                }
            };
            self.read_held(seen, &layer, run, part)?;
        }
        Ok(())
    }

    /// Fills `buffer` with blocks that a layer holds; those that do not match are looked at once more, each on its own.
    fn read_held(&self, seen: &RwLock<View>, layer: &Layer, run: ExtentSpan, mut buffer: &mut [u8]) -> Result<()> {
        let mut left = run.span();
        while let Some(first) = left.first()
            && let BlockRead::Mismatch(block) = self.layers.blocks.read(layer, first, buffer)?
        {
            let verified = BlockSpan::new(left.start(), block.span().start());
            let (_, behind) = buffer.split_at_mut(length(self.block_size.bytes_for(verified.len())));
            let (own, behind) = behind.split_at_mut(self.block_size.len());
            self.read_block_settled(seen, block, own)?;
            (left, buffer) = (left.skip(verified.len() + 1), behind);
        }
        Ok(())
    }

    /// Reads one block as it is here, without a source. `false`: it is missing, or does not match its checksum.
    ///
    /// # Errors
    /// An I/O error; [`ErrorKind::NotFound`] when the volume was destroyed.
    pub fn read_here(&self, seen: &RwLock<View>, block: Block, buffer: &mut [u8]) -> Result<bool> {
        match self.answers(&seen.read(), block.in_extent())?.pop() {
            None => Ok(true),
            Some((_, Answer::Zero)) => {
                buffer.fill(0);
                Ok(true)
            }
            Some((_, Answer::Held(layer))) => Ok(matches!(self.layers.blocks.read(&layer, block, buffer)?, BlockRead::Verified)),
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
    pub fn read_block_settled(&self, seen: &RwLock<View>, block: Block, buffer: &mut [u8]) -> Result<()> {
        let mut looks = 0..LOOKS_MAX;
        loop {
            let answer = self.answers(&seen.read(), block.in_extent())?.pop();
            let Some((_, answer)) = answer else { return Ok(()) };
            let layer = match answer {
                Answer::Zero => {
                    buffer.fill(0);
                    return Ok(());
                }
                Answer::Missing(layer) => {
                    self.demand_seen(seen, &layer, block.in_extent())?;
                    layer
                }
                Answer::Patched(layer) => {
                    if !matches!(self.merge_block(&layer, block, buffer)?, Merged::Superseded) {
                        return Ok(());
                    }
                    layer
                }
                Answer::Held(layer) => {
                    match self.layers.settled.read(&layer, block, buffer) {
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

    pub fn never_settles(&self, layer: &Layer, block: Block) -> Error {
        self.layers.blocks.corruption(layer, block, "the layer answers for it and does not have it")
    }

    /// Fetches a damaged block of a root layer again, if its source still has the bytes that the checksum names; a damaged block of a layer
    /// of an image is taken from another layer that holds the same chain. Damage that stays is noted in the layer.
    ///
    /// # Errors
    /// `damage`, with why it could not be repaired.
    pub fn repair(&self, layer: &Layer, block: Block, buffer: &mut [u8], damage: Error) -> Result<()> {
        let found = match self.hydrations.get(layer.id) {
            Some(hydrator) => hydrator.read_through(block.span().start(), buffer).map_err(|error| damage.context(error)),
            None if self.read_twin(layer, block, buffer) => Ok(()),
            None => Err(damage.clone()),
        };
        let repaired = found.and_then(|()| self.layers.settled.repair(layer, block, buffer).map_err(|error| damage.context(error)));
        layer.note_damage(block, repaired.is_err());
        repaired
    }

    /// Fills `buffer` with a block of a layer of an image from another layer that holds the same chain.
    fn read_twin(&self, layer: &Layer, block: Block, buffer: &mut [u8]) -> bool {
        let twins = self.shape.catalog().twins(layer.id);
        twins.into_iter().filter_map(|twin| self.layers.get(twin)).any(|twin| {
            // `read_here` does not repair: two damaged twins would otherwise repair from each other without an end.
            matches!(self.read_here(&RwLock::ranked(Rank::View, View::new(twin, u64::MAX)), block, buffer), Ok(true))
        })
    }

    /// Fills `buffer` from byte `offset`.
    ///
    /// # Errors
    /// As [`Blocks::read_extent`]; [`ErrorKind::OutOfRange`].
    pub fn read(&self, seen: &RwLock<View>, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let bytes = wide(buffer.len());
        seen.read().check_range(offset, bytes)?;
        let mut rest = buffer;
        for piece in self.block_size.pieces(offset..offset + bytes) {
            let (part, behind) = rest.split_at_mut(length(piece.bytes));
            rest = behind;
            if piece.is_whole(self.block_size) {
                self.read_extent(seen, piece.part, part)?;
            } else if !self.read_parts(seen, &piece, part)? {
                let mut blocks = AlignedBuffer::zeroed(self.block_size.len_of(piece.part.indices));
                self.read_extent(seen, piece.part, &mut blocks)?;
                let skip = length(piece.skip);
                part.copy_from_slice(&blocks[skip..skip + part.len()]);
            }
        }
        Ok(())
    }

    /// Fetches what a patched or missing block still lacks, and stores it whole.
    ///
    /// # Errors
    /// As [`Blocks::read_extent`]; no space.
    pub fn bring(&self, seen: &RwLock<View>, whole: ExtentSpan) -> Result<()> {
        let answers = self.answers(&seen.read(), whole)?;
        for (run, answer) in answers {
            let run = whole.extent.part(run);
            match answer {
                Answer::Zero | Answer::Held(_) => {}
                Answer::Missing(root) => self.demand(&root, run.span())?,
                Answer::Patched(layer) => {
                    let mut buffer = AlignedBuffer::zeroed(self.block_size.len());
                    for block in run.blocks() {
                        if let Merged::Unstored(error) = self.merge_block(&layer, block, &mut buffer)? {
                            return Err(error);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Brings blocks of a range that are still at a source, until `wanted` answers an error.
    pub fn prefetch(&self, seen: &RwLock<View>, offset: u64, bytes: u64, wanted: &dyn Fn() -> Result<()>) -> Result<()> {
        seen.read().check_range(offset, bytes)?;
        for piece in self.block_size.pieces(offset..offset + bytes) {
            wanted()?;
            self.bring(seen, piece.part)?;
        }
        Ok(())
    }
}
