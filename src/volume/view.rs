//! Reading: who answers for a block, and its verified bytes.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use super::core::Core;
use crate::bits::BlockBits;
use crate::error::{Error, ErrorKind, Result};
use crate::io::AlignedBuffer;
use crate::layer::{BlockRead, Layer, Merged};
use crate::limits::EXTENT_BLOCKS;
use crate::owners::{Leaf, Owner, OwnerMap, OwnerRuns};
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
}

impl Core {
    /// Owners of an extent as the chain below `top` has them.
    pub(super) fn resolve(&self, top: &Layer, extent: u32) -> Leaf {
        let mut leaf = Leaf::default();
        let mut open = BlockBits::FULL;
        let mut give = |open: &mut BlockBits, bits: &BlockBits, owner| {
            for run in open.and(bits).runs() {
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
            let parent = layer.parent.filter(|_| !open.is_empty()).and_then(|parent| self.layers.get(parent));
            let Some(parent) = parent else { return leaf };
            below = parent;
            layer = &below;
        }
    }

    /// Owners of blocks of an extent.
    pub(super) fn owners(&self, view: &View, extent: u32, range: Range<u32>) -> OwnerRuns {
        let mut runs = OwnerRuns::new();
        view.owners.runs(extent, range, || self.resolve(&view.layer, extent), &mut runs);
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
        let (present, zeroed) = layer.extent(extent);
        let asked = BlockBits::of(range);
        let first = answers.len();
        let missing = layer.source_bits(extent).minus(&present).minus(&zeroed);
        answers.extend(present.and(&asked).runs().map(|run| (run, Answer::Held(Arc::clone(layer)))));
        answers.extend(zeroed.and(&asked).runs().map(|run| (run, Answer::Zero)));
        answers.extend(missing.and(&asked).runs().map(|run| (run, Answer::Missing(Arc::clone(layer)))));
        answers[first..].sort_unstable_by_key(|(run, _)| run.start);
    }

    fn split_patched(layer: &Arc<Layer>, extent: u32, range: Range<u32>, answers: &mut Answers) {
        let asked = BlockBits::of(range);
        let patched = layer.patched(extent).and(&asked);
        let first = answers.len();
        answers.extend(patched.runs().map(|run| (run, Answer::Patched(Arc::clone(layer)))));
        answers.extend(asked.minus(&patched).runs().map(|run| (run, Answer::Held(Arc::clone(layer)))));
        answers[first..].sort_unstable_by_key(|(run, _)| run.start);
    }

    /// Brings missing blocks of a root layer. A layer that was detached has none that can be seen.
    pub(super) fn demand(&self, layer: &Layer, blocks: Range<u64>) -> Result<()> {
        self.demands.fetch_add(1, crate::sync::atomic::Ordering::Relaxed);
        match self.hydrator(layer.id) {
            Some(hydrator) => hydrator.demand(blocks),
            None if layer.missing((blocks.start / u64::from(EXTENT_BLOCKS)) as u32).is_empty() => Ok(()),
            None => Err(Error::new(
                ErrorKind::SourceLost,
                format!("block {} was never fetched, and layer {} has no source any more", blocks.start, layer.id),
            )),
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
                    if let (Err(ErrorKind::NoSpace), Some(hydrator)) = (demanded.as_ref().map_err(Error::kind), self.hydrator(layer.id)) {
                        // A full disk must not keep anybody from reading.
                        hydrator.read_through(u64::from(first + run.start), part)?;
                        continue;
                    }
                    demanded?;
                    // What arrived may be data or zeros.
                    self.read_extent(seen, extent, run, part)?;
                    continue;
                }
            };
            let mut done = 0;
            while let BlockRead::Mismatch(block) =
                self.layers.read_blocks(&layer, first + run.start + done, &mut part[done as usize * block_bytes..])?
            {
                let at = (block - first - run.start) as usize;
                self.read_block_settled(seen, block, &mut part[at * block_bytes..(at + 1) * block_bytes])?;
                done = at as u32 + 1;
                if done == run.len() as u32 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Reads one block that did not match: asks anew who answers for it, with its writers held.
    pub(super) fn read_block_settled(&self, seen: &RwLock<View>, block: u32, buffer: &mut [u8]) -> Result<()> {
        let (extent, within) = (block / EXTENT_BLOCKS, block % EXTENT_BLOCKS);
        loop {
            let answer = self.answers(&seen.read(), extent, within..within + 1)?.pop();
            let Some((_, answer)) = answer else { return Ok(()) };
            match answer {
                Answer::Zero => {
                    buffer.fill(0);
                    return Ok(());
                }
                Answer::Missing(layer) => self.demand_seen(seen, &layer, extent, within..within + 1)?,
                Answer::Patched(layer) => {
                    if !matches!(self.merge_block(&layer, block, buffer)?, Merged::Gone) {
                        return Ok(());
                    }
                }
                Answer::Held(layer) => match self.layers.read_settled(&layer, block, buffer) {
                    Ok(Some(())) => return Ok(()),
                    // It was discarded or forgotten between the two looks.
                    Ok(None) => {}
                    Err(error) if error.kind() == ErrorKind::Corrupt => return self.repair(&layer, block, buffer, error),
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// Fetches a damaged block of a root layer again, if its source still has what the checksum says.
    ///
    /// # Errors
    /// `damage`, with why it could not be repaired.
    pub fn repair(&self, layer: &Layer, block: u32, buffer: &mut [u8], damage: Error) -> Result<()> {
        let Some(hydrator) = self.hydrator(layer.id) else { return Err(damage) };
        hydrator.read_through(u64::from(block), buffer).map_err(|error| damage.context(error))?;
        self.layers.repair_block(layer, block, buffer).map_err(|error| damage.context(error))
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
    pub fn at(block_size: crate::ids::BlockSize, offset: u64, bytes: u64) -> Self {
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
