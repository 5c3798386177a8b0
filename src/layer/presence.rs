//! Which blocks a layer holds, and which it hides.

use roaring::RoaringBitmap;

use crate::place::{BlockBits, BlockSpan, Extent, extent_bits, insert_bits, remove_bits};

/// Two disjoint sets of blocks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Presence {
    /// Blocks with bytes in the layer's file.
    pub present: RoaringBitmap,
    /// Blocks that read as zero, whatever the parent holds.
    pub zeroed: RoaringBitmap,
}

impl Presence {
    /// Blocks of the extent that are present.
    pub fn present_bits(&self, extent: Extent) -> BlockBits {
        extent_bits(&self.present, extent)
    }

    /// Blocks of the extent that are zeroed.
    pub fn zeroed_bits(&self, extent: Extent) -> BlockBits {
        extent_bits(&self.zeroed, extent)
    }

    /// Blocks that the layer answers for.
    pub fn covered(&self) -> RoaringBitmap {
        &self.present | &self.zeroed
    }

    /// Makes blocks present.
    pub fn insert(&mut self, extent: Extent, bits: &BlockBits) {
        insert_bits(&mut self.present, extent, bits);
        if !self.zeroed.is_empty() {
            remove_bits(&mut self.zeroed, extent, bits);
        }
    }

    /// Makes blocks zero.
    pub fn zero(&mut self, blocks: BlockSpan) {
        self.present.remove_range(blocks.numbers());
        self.zeroed.insert_range(blocks.numbers());
    }

    /// Forgets blocks.
    pub fn forget(&mut self, blocks: BlockSpan) {
        self.present.remove_range(blocks.numbers());
        self.zeroed.remove_range(blocks.numbers());
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
    use crate::place::IndexSpan;

    #[test]
    fn the_last_extent_of_the_largest_volume_works() {
        let bits = |start, end| BlockBits::of(IndexSpan::new(start, end));
        let last = Extent::LAST;
        let end = BlockSpan::ALL.end();
        let mut presence = Presence::default();
        presence.insert(last, &BlockBits::FULL);
        assert_eq!(presence.present_bits(last), BlockBits::FULL);
        presence.zero(BlockSpan::new(end - 2, end));
        assert_eq!(presence.present_bits(last), bits(0, 1022));
        assert_eq!(presence.zeroed_bits(last), bits(1022, 1024));
        presence.insert(last, &bits(1023, 1024));
        assert_eq!(presence.zeroed_bits(last), bits(1022, 1023));
        presence.forget(BlockSpan::ALL);
        assert!(presence.covered().is_empty());
    }
}
