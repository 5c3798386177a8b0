//! Bitmaps of blocks and of extents, which have their numbers as 32 bits.

use roaring::RoaringBitmap;

use super::bits::BlockBits;
use super::block::{Block, Extent};
use super::span::{BlockSpan, IndexSpan};

/// The blocks of a span as a bitmap.
pub fn set_of(span: BlockSpan) -> RoaringBitmap {
    let mut set = RoaringBitmap::new();
    set.insert_range(span.numbers());
    set
}

/// The runs of a bitmap of blocks, in order.
pub fn runs_of(set: &RoaringBitmap) -> impl Iterator<Item = BlockSpan> {
    let mut runs = set.iter();
    std::iter::from_fn(move || runs.next_range().map(|run| BlockSpan::of_run(&run)))
}

/// The extents in which a bitmap of blocks has blocks, in order.
pub fn extents_of(set: &RoaringBitmap) -> impl Iterator<Item = Extent> {
    extents_from(set, Block::FIRST)
}

/// As [`extents_of`], for blocks from `from` on.
fn extents_from(set: &RoaringBitmap, from: Block) -> impl Iterator<Item = Extent> {
    let mut next = Some(from);
    std::iter::from_fn(move || {
        let extent = set.range(next?.number()..).next().map(|block| Block::new(block).extent())?;
        next = extent.last().next();
        Some(extent)
    })
}

/// The block behind the run of a bitmap of blocks that a block lies in; `None` if the bitmap has not got the block. Costs as much as
/// the run has containers.
pub fn end_of_run(set: &RoaringBitmap, block: u64) -> Option<u64> {
    let block = u32::try_from(block).ok()?;
    let run = set.range(block..).next_range()?;
    (*run.start() == block).then(|| u64::from(*run.end()) + 1)
}

/// The part of a bitmap of blocks that lies in an extent.
pub fn extent_bits(set: &RoaringBitmap, extent: Extent) -> BlockBits {
    let blocks = extent.span().numbers();
    // Most extents have nothing or everything; these two checks take a fifth of the time of the loop.
    if set.is_empty() {
        return BlockBits::EMPTY;
    }
    if set.contains_range(blocks.clone()) {
        return BlockBits::FULL;
    }
    let mut bits = BlockBits::EMPTY;
    let mut runs = set.range(blocks);
    while let Some(run) = runs.next_range() {
        let indices = Block::new(*run.start()).index().number()..Block::new(*run.end()).index().number() + 1;
        bits = bits.or(&BlockBits::of(IndexSpan::new(indices.start, indices.end)));
    }
    bits
}

/// Adds blocks of an extent to a bitmap of blocks.
pub fn insert_bits(set: &mut RoaringBitmap, extent: Extent, bits: &BlockBits) {
    for run in bits.spans() {
        let part = extent.part(run);
        // A container that begins with a range stays a run container, in which single inserts are slow.
        match run.len() {
            1 => drop(set.insert(part.first().number())),
            _ => drop(set.insert_range(part.span().numbers())),
        }
    }
}

/// Takes blocks of an extent from a bitmap of blocks.
pub fn remove_bits(set: &mut RoaringBitmap, extent: Extent, bits: &BlockBits) {
    for run in bits.spans() {
        set.remove_range(extent.part(run).span().numbers());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_where_its_last_block_does() {
        let mut set = RoaringBitmap::from_iter([1, 2, 7]);
        assert_eq!([0, 1, 2, 3, 7].map(|block| end_of_run(&set, block)), [None, Some(3), Some(3), None, Some(8)]);
        set.insert_range(100_000..=u32::MAX);
        assert_eq!(end_of_run(&set, 70_000_000), Some(1 << 32), "across containers");
        assert_eq!(end_of_run(&set, 1 << 32), None);
    }

    #[test]
    fn bits_of_an_extent_go_into_a_bitmap_and_out_again() {
        let mut set = set_of(BlockSpan::new(1000, 1100));
        set.insert(u32::MAX);
        let extents: Vec<Extent> = extents_of(&set).collect();
        assert_eq!(extents.iter().map(|extent| extent.number()).collect::<Vec<_>>(), [0, 1, Extent::LAST.number()]);
        let mut copy = RoaringBitmap::new();
        for extent in extents {
            let bits = extent_bits(&set, extent);
            insert_bits(&mut copy, extent, &bits);
            remove_bits(&mut set, extent, &bits);
        }
        assert!(set.is_empty());
        assert_eq!(runs_of(&copy).collect::<Vec<_>>(), [BlockSpan::new(1000, 1100), Block::LAST.span()]);
        assert_eq!(extents_from(&copy, Block::new(1100)).collect::<Vec<_>>(), [Extent::LAST]);
    }
}
