//! Extents: where the blocks of a file are.

use arcbox_ext4::constants::{EXTENT_HEADER_MAGIC, inode_flags};
use arcbox_ext4::types::{ExtentHeader, ExtentIndex, ExtentLeaf, Inode};

use super::blocks;
use super::layout::{BLOCK_BYTES, BLOCK_STEP, EXTENT_BLOCKS_MAX, Run, damaged, refused, short};
use super::space::Space;
use crate::error::Result;
use crate::place::index;
use crate::volume::Volume;

/// Extents, or indexes, in an inode.
const INLINE_MAX: usize = 4;
const LEAVES_PER_BLOCK: usize = (BLOCK_BYTES - ExtentHeader::SIZE) / ExtentLeaf::SIZE;

fn header(entries: usize, max: usize, depth: u16) -> ExtentHeader {
    ExtentHeader { magic: EXTENT_HEADER_MAGIC, entries: short(entries), max: short(max), depth, generation: 0 }
}

fn write_leaves(into: &mut [u8], runs: &[Run], max: usize, first: u32) -> u32 {
    header(runs.len(), max, 0).write_to(&mut into[..ExtentHeader::SIZE]);
    let mut logical = first;
    for (run, place) in runs.iter().zip(into[ExtentHeader::SIZE..].chunks_exact_mut(ExtentLeaf::SIZE)) {
        ExtentLeaf { block: logical, len: short(index(run.blocks)), start_hi: 0, start_lo: run.start }.write_to(place);
        logical += run.blocks;
    }
    logical
}

fn read_leaves(from: &[u8], runs: &mut Vec<Run>) {
    let entries = usize::from(ExtentHeader::read_from(from).entries);
    for place in from[ExtentHeader::SIZE..].chunks_exact(ExtentLeaf::SIZE).take(entries) {
        let leaf = ExtentLeaf::read_from(place);
        runs.push(Run { start: leaf.start_lo, blocks: u32::from(leaf.len).min(EXTENT_BLOCKS_MAX) });
    }
}

/// Notes in an inode that its content is in `runs`.
pub(super) fn set_extents(space: &mut Space<'_>, inode: &mut Inode, runs: &[Run]) -> Result<()> {
    inode.flags |= inode_flags::EXTENTS;
    inode.block = [0; 60];
    let mut blocks: u64 = runs.iter().map(|run| u64::from(run.blocks)).sum();
    if runs.len() <= INLINE_MAX {
        write_leaves(&mut inode.block, runs, INLINE_MAX, 0);
    } else {
        let parts: Vec<_> = runs.chunks(LEAVES_PER_BLOCK).collect();
        if parts.len() > INLINE_MAX {
            return Err(refused(format!("a file of the image would have {} pieces: give the volume a larger size", runs.len())));
        }
        header(parts.len(), INLINE_MAX, 1).write_to(&mut inode.block[..ExtentHeader::SIZE]);
        let mut logical = 0;
        for (number, part) in parts.iter().enumerate() {
            let leaf = space.allocate_one()?;
            let at = ExtentHeader::SIZE + number * ExtentIndex::SIZE;
            ExtentIndex { block: logical, leaf_lo: leaf, leaf_hi: 0, unused: 0 }.write_to(&mut inode.block[at..at + ExtentIndex::SIZE]);
            let mut bytes = vec![0; BLOCK_BYTES];
            logical = write_leaves(&mut bytes, part, LEAVES_PER_BLOCK, logical);
            blocks::write(space.volume, leaf, &bytes)?;
            blocks += 1;
        }
    }
    if inode.xattr_block_lo != 0 {
        blocks += 1;
    }
    count_blocks(inode, blocks);
    Ok(())
}

/// Where the content of an inode is; and the blocks that say so.
pub(super) fn extents(volume: &Volume, inode: &Inode) -> Result<(Vec<Run>, Vec<Run>)> {
    let (mut runs, mut leaves) = (Vec::new(), Vec::new());
    if inode.flags & inode_flags::EXTENTS == 0 {
        return Ok((runs, leaves));
    }
    let top = ExtentHeader::read_from(&inode.block);
    if top.magic != EXTENT_HEADER_MAGIC || usize::from(top.entries) > INLINE_MAX || top.depth > 1 {
        return Err(damaged("the extents of an inode are not valid"));
    }
    if top.depth == 0 {
        read_leaves(&inode.block, &mut runs);
        return Ok((runs, leaves));
    }
    for place in inode.block[ExtentHeader::SIZE..].chunks_exact(ExtentIndex::SIZE).take(usize::from(top.entries)) {
        let leaf = ExtentIndex::read_from(place).leaf_lo;
        leaves.push(Run::one(leaf));
        read_leaves(&blocks::read(volume, leaf)?, &mut runs);
    }
    Ok((runs, leaves))
}

/// An inode counts its blocks in sectors of 512 bytes.
pub(super) fn count_blocks(inode: &mut Inode, blocks: u64) {
    let [a, b, c, d, e, f, ..] = (blocks * (BLOCK_STEP / 512)).to_le_bytes();
    inode.blocks_lo = u32::from_le_bytes([a, b, c, d]);
    inode.blocks_hi = u16::from_le_bytes([e, f]);
}
