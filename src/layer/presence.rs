//! Which blocks a layer holds, and which it hides.

use std::ops::RangeInclusive;

use roaring::RoaringBitmap;

use crate::limits::EXTENT_BLOCKS;
use crate::place::BlockBits;

/// Two disjoint sets of blocks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Presence {
    /// Blocks with bytes in the layer's file.
    pub present: RoaringBitmap,
    /// Blocks that read as zero, whatever the parent holds.
    pub zeroed: RoaringBitmap,
}

/// The blocks of an extent, numbered within the volume.
pub fn extent_blocks(extent: u32) -> RangeInclusive<u32> {
    let first = extent * EXTENT_BLOCKS;
    first..=first + (EXTENT_BLOCKS - 1)
}

/// The part of a bitmap that lies in an extent.
pub fn extent_bits(bitmap: &RoaringBitmap, extent: u32) -> BlockBits {
    let blocks = extent_blocks(extent);
    // Most extents have nothing or everything, which is told in a fifth of the time.
    if bitmap.is_empty() {
        return BlockBits::EMPTY;
    }
    if bitmap.contains_range(blocks.clone()) {
        return BlockBits::FULL;
    }
    let first = *blocks.start();
    let mut bits = BlockBits::EMPTY;
    let mut runs = bitmap.range(blocks);
    while let Some(run) = runs.next_range() {
        bits = bits.or(&BlockBits::of(run.start() - first..run.end() - first + 1));
    }
    bits
}

/// Adds the blocks of an extent to a bitmap.
pub fn insert_bits(bitmap: &mut RoaringBitmap, extent: u32, bits: &BlockBits) {
    let first = extent * EXTENT_BLOCKS;
    for run in bits.runs() {
        // A container that begins with a range stays a run container, in which single inserts are slow.
        match run.len() {
            1 => drop(bitmap.insert(first + run.start)),
            _ => drop(bitmap.insert_range(first + run.start..=first + (run.end - 1))),
        }
    }
}

/// Takes the blocks of an extent from a bitmap.
pub fn remove_bits(bitmap: &mut RoaringBitmap, extent: u32, bits: &BlockBits) {
    let first = extent * EXTENT_BLOCKS;
    for run in bits.runs() {
        bitmap.remove_range(first + run.start..=first + (run.end - 1));
    }
}

impl Presence {
    /// Blocks of the extent that are present.
    pub fn present_bits(&self, extent: u32) -> BlockBits {
        extent_bits(&self.present, extent)
    }

    /// Blocks of the extent that are zeroed.
    pub fn zeroed_bits(&self, extent: u32) -> BlockBits {
        extent_bits(&self.zeroed, extent)
    }

    /// Blocks that the layer answers for.
    pub fn covered(&self) -> RoaringBitmap {
        &self.present | &self.zeroed
    }

    /// Makes blocks present.
    pub fn insert(&mut self, extent: u32, bits: &BlockBits) {
        insert_bits(&mut self.present, extent, bits);
        if !self.zeroed.is_empty() {
            remove_bits(&mut self.zeroed, extent, bits);
        }
    }

    /// Makes blocks zero.
    pub fn zero(&mut self, blocks: RangeInclusive<u32>) {
        self.present.remove_range(blocks.clone());
        self.zeroed.insert_range(blocks);
    }

    /// Forgets blocks.
    pub fn forget(&mut self, blocks: RangeInclusive<u32>) {
        self.present.remove_range(blocks.clone());
        self.zeroed.remove_range(blocks);
    }

    /// Brings both sets into their smallest form.
    pub fn optimize(&mut self) {
        self.present.optimize();
        self.zeroed.optimize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_extent_of_the_largest_volume_works() {
        let last = u32::MAX / EXTENT_BLOCKS;
        let mut presence = Presence::default();
        presence.insert(last, &BlockBits::FULL);
        assert_eq!(presence.present_bits(last), BlockBits::FULL);
        presence.zero(u32::MAX - 1..=u32::MAX);
        assert_eq!(presence.present_bits(last), BlockBits::of(0..1022));
        assert_eq!(presence.zeroed_bits(last), BlockBits::of(1022..1024));
        presence.insert(last, &BlockBits::of(1023..1024));
        assert_eq!(presence.zeroed_bits(last), BlockBits::of(1022..1023));
        presence.forget(0..=u32::MAX);
        assert!(presence.covered().is_empty());
    }
}
