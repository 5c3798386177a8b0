//! Reading: who answers for a block, and its verified bytes.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use super::core::Core;
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::LayerId;
use crate::io::AlignedBuffer;
use crate::layer::{BlockRead, Layer, Merged};
use crate::limits::EXTENT_BLOCKS;
use crate::owners::{Leaf, Owner, OwnerMap, OwnerRuns};
use crate::place::{Block, BlockBits, Extent, IndexSpan};
use crate::sync::RwLock;

/// A layer with its chain, as a reader sees it.
#[derive(Clone)]
pub struct View {
    /// The layer on top.
    pub layer: Arc<Layer>,
    /// Owners of all blocks.
    pub owners: OwnerMap,
    /// Bytes behind this are not there.
    pub size_bytes: u64,
}

/// Who answers for a run of blocks, with the state of a root that stands for a source taken into account.
#[derive(Clone)]
pub enum Answer {
    /// Nobody: zeros.
    Zero,
    /// The layer has the blocks.
    Held(Arc<Layer>),
    /// The source of this root layer has them.
    Missing(Arc<Layer>),
    /// The layer has parts of them; the rest is below, perhaps at a source.
    Patched(Arc<Layer>),
}

/// Looks at a block that moves from layer to layer while it is read, after which the read fails.
pub(super) const LOOKS_MAX: u32 = 1000;

/// Runs of blocks within an extent and who answers for them. Most requests lie in one.
pub type Answers = SmallVec<[(Range<u32>, Answer); 1]>;

impl View {
    /// A view of `layer` of which nothing is resolved yet.
    pub fn new(layer: Arc<Layer>, size_bytes: u64) -> Self {
        // The owners of a layer over nothing are found without walking.
        let owners = OwnerMap::default();
        Self { layer, owners, size_bytes }
    }

    /// Refuses a range that does not lie within the size.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`].
    pub fn check_range(&self, offset: u64, bytes: u64) -> Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(Error::new(
                ErrorKind::OutOfRange,
                format!("{bytes} bytes at offset {offset} end behind the volume, which has {} bytes", self.size_bytes),
            )),
        }
    }

    /// As [`View::check_range`]; a range that ends before it begins has no bytes.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`].
    pub fn check_run(&self, range: &Range<u64>) -> Result<()> {
        self.check_range(range.start, range.end.saturating_sub(range.start))
    }
}

impl Core {
    /// Owners of an extent as the chain below `top` has them. What a layer that is gone would have answered for stays its own, so
    /// that a reader of a chain that was destroyed gets an error, and never what lies below, or zeros.
    pub(super) fn resolve(&self, top: &Layer, extent: u32) -> Leaf {
        let extent = Extent::clamped(extent);
        let mut leaf = Leaf::default();
        let mut open = BlockBits::FULL;
        let mut give = |open: &mut BlockBits, bits: &BlockBits, owner| {
            for run in open.and(bits).spans() {
                leaf.set(run, owner);
            }
            *open = open.minus(bits);
        };
        let mut below;
        let mut layer = top;
        loop {
            if layer.source_blocks().is_some() {
                // Its presence grows under its readers: it answers for all it may ever have.
                give(&mut open, &layer.source_bits(extent), Owner::Layer(layer.id));
            } else {
                let (present, zeroed) = layer.answered(extent);
                give(&mut open, &present, Owner::Layer(layer.id));
                give(&mut open, &zeroed, Owner::Zero);
            }
            let Some(parent) = layer.parent.filter(|_| !open.is_empty()) else { return leaf };
            let Some(entry) = self.layers.get(parent) else {
                give(&mut open, &BlockBits::FULL, Owner::Layer(parent));
                return leaf;
            };
            below = entry;
            layer = &below;
        }
    }

    /// Owners of blocks of an extent.
    pub(super) fn owners(&self, view: &View, extent: u32, range: Range<u32>) -> OwnerRuns {
        let mut runs = OwnerRuns::new();
        view.owners.runs(Extent::clamped(extent), IndexSpan::new(range.start, range.end), || self.resolve(&view.layer, extent), &mut runs);
        runs
    }

    /// Who answers for blocks of an extent.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the volume was destroyed meanwhile.
    pub(super) fn answers(&self, view: &View, extent: u32, range: Range<u32>) -> Result<Answers> {
        let owners = self.owners(view, extent, range);
        let mut answers = Answers::new();
        for (run, owner) in owners {
            let run = run.range();
            match owner {
                Owner::Zero => answers.push((run, Answer::Zero)),
                Owner::Layer(id) => {
                    let layer = if id == view.layer.id { Arc::clone(&view.layer) } else { self.layers.require(id)? };
                    match layer.source_blocks() {
                        None if layer.has_patches() => Self::split_patched(&layer, extent, run, &mut answers),
                        None => answers.push((run, Answer::Held(layer))),
                        Some(_) => Self::split_root(&layer, extent, run, &mut answers),
                    }
                }
            }
        }
        Ok(answers)
    }

    fn split_root(layer: &Arc<Layer>, extent: u32, range: Range<u32>, answers: &mut Answers) {
        let extent = Extent::clamped(extent);
        let (present, zeroed) = layer.extent(extent);
        let asked = BlockBits::of(IndexSpan::new(range.start, range.end));
        let first = answers.len();
        let missing = layer.source_bits(extent).minus(&present).minus(&zeroed);
        answers.extend(present.and(&asked).spans().map(|run| (run.range(), Answer::Held(Arc::clone(layer)))));
        answers.extend(zeroed.and(&asked).spans().map(|run| (run.range(), Answer::Zero)));
        answers.extend(missing.and(&asked).spans().map(|run| (run.range(), Answer::Missing(Arc::clone(layer)))));
        answers[first..].sort_unstable_by_key(|(run, _)| run.start);
    }

    fn split_patched(layer: &Arc<Layer>, extent: u32, range: Range<u32>, answers: &mut Answers) {
        let asked = BlockBits::of(IndexSpan::new(range.start, range.end));
        let patched = layer.patched(Extent::clamped(extent)).and(&asked);
        let first = answers.len();
        answers.extend(patched.spans().map(|run| (run.range(), Answer::Patched(Arc::clone(layer)))));
        answers.extend(asked.minus(&patched).spans().map(|run| (run.range(), Answer::Held(Arc::clone(layer)))));
        answers[first..].sort_unstable_by_key(|(run, _)| run.start);
    }

    /// Brings missing blocks of a root layer. A layer that was detached has none that can be seen.
    pub(super) fn demand(&self, layer: &Layer, blocks: Range<u64>) -> Result<()> {
        self.demands.fetch_add(1, crate::sync::atomic::Ordering::Relaxed);
        match self.hydrator(layer.id) {
            Some(hydrator) => hydrator.demand(blocks),
            None if layer.missing(Block::at(blocks.start).unwrap_or(Block::LAST).extent()).is_empty() => Ok(()),
            None => {
                let why = if self.can_hydrate() { "its source is not needed any more" } else { "this store was opened without sources" };
                Err(Error::new(ErrorKind::SourceLost, format!("block {} was never fetched, and {why}", blocks.start)))
            }
        }
    }

    /// Brings missing blocks of an extent, unless they are not missing any more for whoever looks: a layer above may hold them
    /// by now, and then the root may have forgotten them and let its source go.
    pub(super) fn demand_seen(&self, seen: &RwLock<View>, root: &Layer, extent: u32, range: Range<u32>) -> Result<()> {
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
    pub(super) fn read_extent(&self, seen: &RwLock<View>, extent: u32, range: Range<u32>, buffer: &mut [u8]) -> Result<()> {
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
                    if let Some(hydrator) = self.hydrator(layer.id).filter(|_| unstored) {
                        // A disk that is full, or refuses writes, must not keep anybody from reading.
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

    /// Reads one block as it is here. `false`: it is missing, or does not match; whoever may wait for a source looks again.
    ///
    /// # Errors
    /// An I/O error; [`ErrorKind::NotFound`] when the volume was destroyed.
    pub(super) fn read_here(&self, seen: &RwLock<View>, block: u32, buffer: &mut [u8]) -> Result<bool> {
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

    /// Reads one block that did not match: asks anew who answers for it, with its writers held.
    ///
    /// 1. A layer that answers and does not hold the block has lost it between the two looks: to a discard, or to a write into a
    ///    layer above, after which reclaim forgot it. If neither is the case, the block is lost, and no ancestor's bytes or zeros
    ///    stand for it.
    /// 2. Between the moment at which a write fills its block and that at which the owner map names the head, the map is stale.
    ///    So it is not asked again: the extent is resolved anew from what the layers hold.
    /// 3. A block that moves at each look is one that somebody changes all the time. Looks are counted all the same, so that a
    ///    fault of the engine ends as an error and not as a loop.
    ///
    /// # Errors
    /// Damage, a lost source, an I/O error; [`ErrorKind::NotFound`] when the volume was destroyed.
    pub(super) fn read_block_settled(&self, seen: &RwLock<View>, block: u32, buffer: &mut [u8]) -> Result<()> {
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

    /// Resolves the extent of a block anew that `loser` does not hold any more. `false`: nothing has taken its place. Other maps
    /// that share the old leaf keep it.
    fn renew_owners(&self, seen: &RwLock<View>, loser: &Layer, block: u32) -> bool {
        let (extent, within) = (block / EXTENT_BLOCKS, block % EXTENT_BLOCKS);
        // Behind this lock no write changes the map; what a write fills meanwhile is named by it or by the resolved leaf.
        let mut view = seen.write();
        let owners = self.owners(&view, extent, within..within + 1);
        if owners.iter().any(|(_, owner)| *owner != Owner::Layer(loser.id)) {
            // Somebody was quicker.
            return true;
        }
        let mut layer = Arc::clone(&view.layer);
        loop {
            let (present, zeroed) = layer.answered(Extent::clamped(extent));
            if present.or(&zeroed).contains(Block::new(block).index()) {
                break;
            }
            if layer.id == loser.id {
                // An open layer over nothing forgets what is discarded.
                if layer.parent.is_some() || layer.is_sealed() {
                    return false;
                }
                break;
            }
            let Some(parent) = layer.parent.and_then(|parent| self.layers.get(parent)) else { return false };
            layer = parent;
        }
        let leaf = self.resolve(&view.layer, extent);
        view.owners.renew(Extent::clamped(extent), leaf);
        true
    }

    pub(super) fn never_settles(&self, layer: &Layer, block: u32) -> Error {
        self.layers.blocks.corruption(layer, Block::new(block), "the layer answers for it and does not have it")
    }

    /// Fetches a damaged block of a root layer again, if its source still has what the checksum says; that of a layer of an image is
    /// taken from another layer that holds the same. What stays damaged is noted: see [`Core::is_whole`].
    ///
    /// # Errors
    /// `damage`, with why it could not be repaired.
    pub fn repair(&self, layer: &Layer, block: u32, buffer: &mut [u8], damage: Error) -> Result<()> {
        let found = match self.hydrator(layer.id) {
            Some(hydrator) => hydrator.read_through(u64::from(block), buffer).map_err(|error| damage.context(error)),
            None if self.read_twin(layer, block, buffer) => Ok(()),
            None => Err(damage.clone()),
        };
        let repaired =
            found.and_then(|()| self.layers.settled.repair(layer, Block::new(block), buffer).map_err(|error| damage.context(error)));
        layer.note_damage(Block::new(block), repaired.is_err());
        repaired
    }

    /// Fills `buffer` with a block of a layer of an image as another layer has it that holds the same chain.
    fn read_twin(&self, layer: &Layer, block: u32, buffer: &mut [u8]) -> bool {
        let twins = self.catalog().twins(layer.id);
        twins.into_iter().filter_map(|twin| self.layers.get(twin)).any(|twin| {
            // Nothing is repaired for it, or two damaged ones would ask each other for ever.
            matches!(self.read_here(&RwLock::new(View::new(twin, u64::MAX)), block, buffer), Ok(true))
        })
    }

    /// Whether no block that is damaged was met in a layer and those below it, or each was repaired.
    pub(super) fn is_whole(&self, catalog: &Catalog, layer: LayerId) -> bool {
        catalog.chain(layer).all(|(id, _)| self.layers.get(id).is_none_or(|layer| !layer.has_damage()))
    }

    /// Fills `buffer` from byte `offset`.
    ///
    /// # Errors
    /// As [`Core::read_extent`]; [`ErrorKind::OutOfRange`].
    pub(super) fn read(&self, seen: &RwLock<View>, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
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
}

/// The part of a request that lies in one extent.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The extent.
    pub extent: u32,
    /// Blocks within it that the bytes touch.
    pub blocks: Range<u32>,
    /// Bytes of the first block before the request's first byte.
    pub skip: u64,
    /// Bytes of the request.
    pub bytes: u64,
}

impl Piece {
    /// The part of `bytes` at `offset` that lies in the extent of `offset`.
    pub fn at(block_size: crate::place::BlockSize, offset: u64, bytes: u64) -> Self {
        let extent_bytes = block_size.extent_bytes();
        let within = offset % extent_bytes;
        let bytes = bytes.min(extent_bytes - within);
        let start = block_size.block_of(within) as u32;
        let end = block_size.blocks_for(within + bytes) as u32;
        Self { extent: (offset / extent_bytes) as u32, blocks: start..end, skip: within - block_size.offset_of(u64::from(start)), bytes }
    }

    /// Whether it begins and ends with whole blocks.
    pub fn is_whole(&self, block_bytes: u64) -> bool {
        self.skip == 0 && self.bytes.is_multiple_of(block_bytes)
    }
}
