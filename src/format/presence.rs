//! Sets of blocks, as records carry them. Their layout is in `record`.

use roaring::RoaringBitmap;

use super::bytes::{FormatError, Reader, Writer};
use crate::ids::LayerId;
use crate::place::{BlockSpan, Extent, set_of};

/// Presence of a layer, or of a part of its blocks.
///
/// A layer with many runs does not fit into one record of bounded size: it is cut by ranges of blocks into several, which add up.
#[derive(Clone, Debug, PartialEq)]
pub struct PresenceRecord {
    /// The layer.
    pub layer: LayerId,
    /// Adds to the records before it; otherwise it replaces them.
    pub more: bool,
    /// Blocks it holds.
    pub present: RoaringBitmap,
    /// Blocks that it hides with zeros.
    pub zeroed: RoaringBitmap,
    /// Extents with a dirty mark.
    pub marked: RoaringBitmap,
}

/// Dead blocks are forgotten.
#[derive(Clone, Debug, PartialEq)]
pub struct ForgetRecord {
    /// The layer.
    pub layer: LayerId,
    /// The blocks.
    pub blocks: RoaringBitmap,
}

fn write_bitmap(writer: &mut Writer, bitmap: &RoaringBitmap) {
    writer.count(bitmap.serialized_size());
    // Writing to memory cannot fail.
    let _ = bitmap.serialize_into(&mut writer.bytes);
}

fn read_bitmap(reader: &mut Reader<'_>) -> Result<RoaringBitmap, FormatError> {
    let bytes = reader.blob()?;
    // Each container costs at least a few bytes of input, so the input bounds what this reserves.
    RoaringBitmap::deserialize_from(bytes).map_err(|error| FormatError::damaged(format!("bitmap is damaged: {error}")))
}

/// The part of a set that lies in a window, in its smallest form.
fn part(set: &RoaringBitmap, window: &RoaringBitmap) -> RoaringBitmap {
    // Faster than to remove what is outside, which moves the containers behind for each container that goes.
    let mut part = set & window;
    part.optimize();
    part
}

impl PresenceRecord {
    /// Bytes of the record.
    fn encoded_bytes(&self) -> usize {
        let sets = [&self.present, &self.zeroed, &self.marked];
        5 + sets.iter().map(|set| 4 + set.serialized_size()).sum::<usize>()
    }

    /// The records that say the same, none of which is larger than `bytes_max` (unless that is less than an extent needs).
    pub fn split(self, bytes_max: usize) -> Vec<Self> {
        let mut records = Vec::new();
        self.split_into(BlockSpan::ALL, bytes_max, &mut records);
        records
    }

    fn split_into(self, blocks: BlockSpan, bytes_max: usize, records: &mut Vec<Self>) {
        let cut = (self.encoded_bytes() > bytes_max).then(|| blocks.halves()).flatten();
        let Some(cut) = cut else {
            // The first one replaces what there was, even if it is empty.
            let more = !records.is_empty();
            if !(more && self.present.is_empty() && self.zeroed.is_empty() && self.marked.is_empty()) {
                records.push(Self { more, ..self });
            }
            return;
        };
        for blocks in cut {
            let mut extents = RoaringBitmap::new();
            extents.insert_range(blocks.extent_numbers());
            let window = set_of(blocks);
            let half = Self {
                layer: self.layer,
                more: false,
                present: part(&self.present, &window),
                zeroed: part(&self.zeroed, &window),
                marked: part(&self.marked, &extents),
            };
            half.split_into(blocks, bytes_max, records);
        }
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.u32(self.layer.0);
        write_bitmap(writer, &self.present);
        write_bitmap(writer, &self.zeroed);
        write_bitmap(writer, &self.marked);
    }

    pub(super) fn decode(more: bool, reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let layer = LayerId(reader.u32()?);
        let (present, zeroed, marked) = (read_bitmap(reader)?, read_bitmap(reader)?, read_bitmap(reader)?);
        match marked.max().map_or(Some(Extent::FIRST), Extent::new) {
            Some(_) => Ok(Self { layer, more, present, zeroed, marked }),
            None => Err(FormatError::damaged("a marked extent lies behind the end of the largest volume")),
        }
    }
}

impl ForgetRecord {
    /// A record that forgets the first blocks of a set, no larger than `bytes_max`, and the other blocks.
    pub fn first_of(layer: LayerId, blocks: &RoaringBitmap, bytes_max: usize) -> (Self, RoaringBitmap) {
        let mut span = BlockSpan::ALL;
        let mut first = blocks.clone();
        while first.is_empty() || Self::bytes_of(&first) > bytes_max {
            let Some([lower, upper]) = span.halves() else { break };
            let half = part(blocks, &set_of(lower));
            (span, first) = if half.is_empty() { (upper, part(blocks, &set_of(upper))) } else { (lower, half) };
            if first.is_empty() {
                break;
            }
        }
        let mut rest = blocks.clone();
        rest.remove_range(BlockSpan::new(0, span.end()).numbers());
        (Self { layer, blocks: first }, rest)
    }

    /// Bytes of a record that forgets these blocks.
    fn bytes_of(blocks: &RoaringBitmap) -> usize {
        9 + blocks.serialized_size()
    }

    /// Bytes of the record.
    pub fn encoded_bytes(&self) -> usize {
        Self::bytes_of(&self.blocks)
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.u32(self.layer.0);
        write_bitmap(writer, &self.blocks);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self { layer: LayerId(reader.u32()?), blocks: read_bitmap(reader)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::BlocksRecord;

    fn fragmented() -> PresenceRecord {
        let scattered = |step: u32, of: u32| (0..40_000u32).filter(move |n| n % step == 1).map(move |n| n * of);
        PresenceRecord {
            layer: LayerId(3),
            more: false,
            present: scattered(2, 3).chain(scattered(3, 65_536)).chain([u32::MAX]).collect(),
            zeroed: scattered(5, 7).map(|block| block + 1).collect(),
            marked: scattered(7, 100).chain([Extent::LAST.number()]).collect(),
        }
    }

    #[test]
    fn records_of_presence_are_bounded_and_add_up() {
        let whole = fragmented();
        for bytes_max in [crate::limits::SET_RECORD_BYTES_MIN, 64 << 10, 1 << 20] {
            let records = whole.clone().split(bytes_max);
            assert!(bytes_max == 1 << 20 || records.len() > 1, "{bytes_max}");
            let mut sum = PresenceRecord {
                layer: LayerId(3),
                more: false,
                present: RoaringBitmap::new(),
                zeroed: RoaringBitmap::new(),
                marked: RoaringBitmap::new(),
            };
            for (number, record) in records.iter().enumerate() {
                assert_eq!(record.more, number > 0);
                let mut writer = Writer::default();
                BlocksRecord::Presence(record.clone()).encode(&mut writer);
                assert_eq!(writer.bytes.len(), record.encoded_bytes());
                assert!(writer.bytes.len() <= bytes_max, "{} of {bytes_max}", writer.bytes.len());
                assert!(sum.present.is_disjoint(&record.present), "none is named twice");
                sum.present |= &record.present;
                sum.zeroed |= &record.zeroed;
                sum.marked |= &record.marked;
            }
            assert_eq!(sum, whole);
        }
        let empty = PresenceRecord { present: RoaringBitmap::new(), zeroed: RoaringBitmap::new(), marked: RoaringBitmap::new(), ..whole };
        assert_eq!(empty.clone().split(1 << 20), [empty], "that a layer has nothing is said, too");
    }

    #[test]
    fn blocks_are_forgotten_in_bounded_records_each_once() {
        let dead: RoaringBitmap = (0..3_000_000u32).map(|n| n * 2).chain([0x8000_0000, u32::MAX]).collect();
        let (mut rest, mut forgotten, mut records) = (dead.clone(), RoaringBitmap::new(), 0);
        while !rest.is_empty() {
            let (record, left) = ForgetRecord::first_of(LayerId(1), &rest, 64 << 10);
            assert!(!record.blocks.is_empty() && record.encoded_bytes() <= 64 << 10);
            assert!(forgotten.is_disjoint(&record.blocks));
            forgotten |= &record.blocks;
            rest = left;
            records += 1;
        }
        assert_eq!(forgotten, dead);
        assert!((2..100).contains(&records), "{records}");
    }
}
