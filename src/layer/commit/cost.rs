//! What records cost: bytes of the frame that has them, and bytes by which they lengthen the next state.

use crate::format::{ALL_LABELS_BYTES_MAX, BlocksRecord, PatchRecord, Record, Writer};
use crate::journal::STATE_GROWTH;
use crate::limits::{Limits, NAME_BYTES_MAX};
use crate::place::{Block, BlockSpan, per_extent, wide};

/// Most journal bytes of a change of shape.
pub const SHAPE_BYTES: u64 = 4096;
/// Most journal bytes of changes of shape that are under way: about 4,096 of them.
pub const SHAPING_BYTES_MAX: u64 = 4096 * SHAPE_BYTES;
/// Most bytes of records in memory that wait for a round.
pub const QUEUED_BYTES_MAX: u64 = 1 << 20;
/// Most that the record of one new block costs: a run header of 13 bytes and its checksum.
pub const NEW_BLOCK_BYTES: u64 = 17;
/// Bytes that a range of blocks takes in a bitmap for each container that it fills or begins.
const CONTAINER_BYTES: u64 = 16;
/// Room for one byte of a record is room for this many bytes of the state.
const _: () = assert!(CONTAINER_BYTES.is_multiple_of(STATE_GROWTH));
/// Bytes of a record with a layer and an extent, and of one with a layer and a range.
const EXTENT_RECORD_BYTES: u64 = 9;
const RANGE_RECORD_BYTES: u64 = 13;

// No round is larger than a frame: it has the records that took space in advance, expected blocks, and changes of shape. (A store
// whose frame is refused takes no writes any more.)
const _: () = {
    let limits = Limits::DEFAULT;
    let expected = wide(limits.expect_blocks_max) * NEW_BLOCK_BYTES;
    let shapes = QUEUED_BYTES_MAX + SHAPING_BYTES_MAX;
    assert!(limits.reserved_bytes_max + expected + shapes <= wide(limits.frame_payload_bytes_max));
    // A fork of a snapshot has labels, its own name, and the two of its parent; numbers and lengths take the rest.
    assert!(wide(ALL_LABELS_BYTES_MAX + 3 * NAME_BYTES_MAX) <= SHAPE_BYTES - 256);
    // Blocks of one extent, and the largest record.
    assert!(wide(per_extent(1)) * NEW_BLOCK_BYTES + wide(limits.set_record_bytes_max) <= limits.reserved_bytes_max / 2);
    assert!(limits.fresh_blocks_max * NEW_BLOCK_BYTES + limits.patch_bytes_queued_max <= limits.reserved_bytes_max / 2);
};

/// Journal bytes that a record took in advance, if it is one of those that may use the reserve.
pub fn claimed_bytes(record: &BlocksRecord) -> u64 {
    match record {
        BlocksRecord::Mark(..) | BlocksRecord::Clear(..) => EXTENT_RECORD_BYTES,
        BlocksRecord::Zero { first, last, .. } | BlocksRecord::Drop { first, last, .. } => range_bytes(BlockSpan::closed(*first, *last)),
        BlocksRecord::Forget(forget) => wide(forget.encoded_bytes()),
        BlocksRecord::Present(_) | BlocksRecord::Expect(_) | BlocksRecord::Patch(_) | BlocksRecord::Presence(_) => 0,
    }
}

/// Journal bytes that the record of a patch took in advance.
pub fn patch_bytes(record: &BlocksRecord) -> u64 {
    match record {
        BlocksRecord::Patch(patch) => patch_record_bytes(wide(patch.bytes.len())),
        BlocksRecord::Present(_)
        | BlocksRecord::Zero { .. }
        | BlocksRecord::Drop { .. }
        | BlocksRecord::Mark(..)
        | BlocksRecord::Clear(..)
        | BlocksRecord::Expect(_)
        | BlocksRecord::Presence(_)
        | BlocksRecord::Forget(_) => 0,
    }
}

/// Journal bytes of a patch of `bytes` bytes.
pub fn patch_record_bytes(bytes: u64) -> u64 {
    PatchRecord::HEADER_BYTES + bytes
}

/// Journal bytes of a record of a range of blocks. The range may lengthen the state by a container for each 65,536 blocks, so it takes
/// as much as a record that long.
pub fn range_bytes(blocks: BlockSpan) -> u64 {
    RANGE_RECORD_BYTES + containers_bytes(blocks) / STATE_GROWTH
}

fn containers_bytes(blocks: BlockSpan) -> u64 {
    let container = |block: Option<Block>| block.map_or(0, |block| block.number() >> 16);
    CONTAINER_BYTES * u64::from(container(blocks.last()) - container(blocks.first()))
}

/// Bytes by which a record may lengthen the state beyond [`STATE_GROWTH`] times its size.
pub fn state_growth(record: &BlocksRecord) -> u64 {
    match record {
        BlocksRecord::Zero { first, last, .. } => containers_bytes(BlockSpan::closed(*first, *last)),
        BlocksRecord::Present(_)
        | BlocksRecord::Drop { .. }
        | BlocksRecord::Mark(..)
        | BlocksRecord::Clear(..)
        | BlocksRecord::Expect(_)
        | BlocksRecord::Patch(_)
        | BlocksRecord::Presence(_)
        | BlocksRecord::Forget(_) => 0,
    }
}

/// Bytes that a queued record takes of a frame, without those of records that are counted where they took their space.
pub fn queued_bytes(record: &Record) -> u64 {
    match record {
        Record::Shape(_) => {
            let mut writer = Writer::default();
            record.encode(&mut writer);
            wide(writer.bytes.len())
        }
        Record::Blocks(record) => claimed_bytes(record),
        Record::Closed => 0,
    }
}

#[cfg(test)]
mod tests {
    use roaring::RoaringBitmap;

    use super::*;
    use crate::format::ForgetRecord;
    use crate::ids::LayerId;
    use crate::place::Extent;

    #[test]
    fn a_record_takes_at_least_its_own_size() {
        let layer = LayerId(7);
        let blocks: RoaringBitmap = (0..3000).map(|block| block * 3).collect();
        let zeros = BlocksRecord::Zero { layer, first: Block::FIRST, last: Block::LAST };
        let records = [
            BlocksRecord::Mark(layer, Extent::FIRST),
            BlocksRecord::Clear(layer, Extent::LAST),
            zeros.clone(),
            BlocksRecord::Drop { layer, first: Block::new(5), last: Block::new(5) },
            BlocksRecord::Forget(ForgetRecord { layer, blocks }),
        ];
        for record in records {
            let mut writer = Writer::default();
            Record::Blocks(record.clone()).encode(&mut writer);
            assert!(claimed_bytes(&record) >= wide(writer.bytes.len()), "{record:?}");
        }
        assert!(state_growth(&zeros) >= 65_535 * CONTAINER_BYTES);
        assert!(STATE_GROWTH * claimed_bytes(&zeros) >= STATE_GROWTH * RANGE_RECORD_BYTES + state_growth(&zeros));
    }
}
