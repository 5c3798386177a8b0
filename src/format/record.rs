//! Records: what frames carry. One record is a tag byte and its fields.
//!
//! ```text
//! tag  record          fields
//!   1  layer           layer u32, parent u32 (u32::MAX: none), origin blob, source? (flag u8, source)
//!   2  volume          volume u64, head u32, size u64, created_at u64, name blob, parent blob
//!   3  snapshot        volume u64, layer u32, size u64, created_at u64, name blob
//!   4  counters        next volume u64, next layer u32
//!   5  seal            volume u64, new head u32
//!   6  rename          volume u64, name blob
//!   7  resize          volume u64, size u64
//!   8  destroy volume  volume u64
//!   9  destroy snapshot volume u64, name blob
//!  10  detach          layer u32
//!  11  hydration       layer u32, settings
//!  12  sources         layer u32, uris
//!  13  labels          volume u64, labels
//!  14  held            layer u32, size u64, blob digest 32 bytes, blob size u64, chain 32 bytes
//!  15  attach          layer u32, first layer that needs it u32, source
//!  20  present         layer u32, block u32, n u32, n checksums u32
//!  21  zero            layer u32, first block u32, last block u32 (inclusive)
//!  22  drop            layer u32, first block u32, last block u32 (inclusive)
//!  23  mark            layer u32, extent u32
//!  24  clear           layer u32, extent u32
//!  25  expect          as 20
//!  26  patch           layer u32, block u32, offset within the block u32, bytes blob (1 byte to the end of the largest block)
//!  30  presence        layer u32, present blob, zeroed blob, marked blob (portable roaring bitmaps); replaces those before it
//!  31  closed          -
//!  32  more presence   as 30; adds to those before it
//!  33  forget          layer u32, blocks blob (a portable roaring bitmap)
//!  34  lease           lease
//!  35  lease over      id 16 bytes
//!  36  lessee          lessee
//!  37  lessee over     id 16 bytes
//!  38  live            layer u32
//!  39  limits          volume u64, limits
//! ```
//! The layout of `source`, `uris` and `settings` is in `source`, that of `labels` in `label`, that of `lease` and `lessee` in `lease`,
//! that of `limits` in `limit`.
//!
//! # Invariants
//! - Each record belongs to one family. No `match` over records has a wildcard arm, so a record that is added and not handled
//!   somewhere does not compile.
//! - Every record has a bound far below that of a frame: what could be larger (presence, blocks to forget) is cut into several.

use super::blocks::BlocksRecord;
use super::bytes::{FormatError, Reader, Writer};
use super::shape::ShapeRecord;

/// One change, or one part of the state.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// Names, layers and sizes.
    Shape(ShapeRecord),
    /// Blocks of a layer.
    Blocks(BlocksRecord),
    /// The store was closed in order: there is nothing to verify.
    Closed,
}

const CLOSED_TAG: u8 = 31;

impl From<ShapeRecord> for Record {
    fn from(record: ShapeRecord) -> Self {
        Self::Shape(record)
    }
}

impl From<BlocksRecord> for Record {
    fn from(record: BlocksRecord) -> Self {
        Self::Blocks(record)
    }
}

impl Record {
    /// Appends the record.
    pub fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Shape(record) => record.encode(writer),
            Self::Blocks(record) => record.encode(writer),
            Self::Closed => {
                writer.u8(CLOSED_TAG);
            }
        }
    }

    /// The record of blocks that it is, if it is one.
    pub fn blocks(&self) -> Option<&BlocksRecord> {
        match self {
            Self::Blocks(record) => Some(record),
            Self::Shape(_) | Self::Closed => None,
        }
    }

    /// Takes one record.
    ///
    /// # Errors
    /// Says which field is wrong, or that the tag is unknown.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let tag = reader.u8()?;
        if tag == CLOSED_TAG {
            return Ok(Self::Closed);
        }
        if let Some(record) = ShapeRecord::decode(tag, reader)? {
            return Ok(Self::Shape(record));
        }
        match BlocksRecord::decode(tag, reader)? {
            Some(record) => Ok(Self::Blocks(record)),
            None => Err(FormatError::unsupported(format!("record type {tag} is unknown: use a newer program"))),
        }
    }

    /// Takes all records of a payload.
    ///
    /// # Errors
    /// As [`Record::decode`]; a payload with a wrong record is refused whole.
    pub fn decode_all(payload: &[u8]) -> Result<Vec<Self>, FormatError> {
        let mut reader = Reader::new(payload);
        let mut records = Vec::new();
        while !reader.is_empty() {
            records.push(Self::decode(&mut reader)?);
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use roaring::RoaringBitmap;

    use super::*;
    use crate::content::{Digest, HeldLayer, ImageLayer};
    use crate::format::HydrationPriority;
    use crate::format::{BlockRun, ForgetRecord, HeldRecord, HydrationSettings, LayerRecord, LeaseRecord, LesseeRecord, PatchRecord};
    use crate::format::{PresenceRecord, SnapshotRecord, SourceRecord, VolumeLimits, VolumeRecord};
    use crate::ids::{LayerId, LeaseId, VolumeId};
    use crate::limits::BLOCK_BYTES_MAX;
    use crate::place::{Block, Extent};

    fn presence(more: bool) -> PresenceRecord {
        PresenceRecord {
            layer: LayerId(1),
            more,
            present: (0..5000).collect(),
            zeroed: RoaringBitmap::new(),
            marked: [7].into_iter().collect(),
        }
    }

    fn examples() -> Vec<Record> {
        let run = || BlockRun { layer: LayerId(3), block: Block::new(9), checksums: vec![1, 0xffff_ffff] };
        let settings = HydrationSettings { paused: true, rate_bytes_per_second: 5, deadline: 1 << 40, priority: HydrationPriority::High };
        let uris = || vec!["nbd://h/x".to_owned(), "nbd://i/x".to_owned()];
        let source = SourceRecord { uris: uris(), size_bytes: 1 << 40, settings };
        let held = HeldLayer { layer: ImageLayer { digest: Digest::of(b"l"), bytes: 9 }, chain: Digest::of(b"c") };
        let shape = [
            ShapeRecord::Layer(LayerRecord { layer: LayerId(1), parent: Some(LayerId(0)), origin: String::new(), source: None }),
            ShapeRecord::Layer(LayerRecord { layer: LayerId(2), parent: None, origin: "a/1".into(), source: Some(source.clone()) }),
            ShapeRecord::Volume(VolumeRecord {
                volume: VolumeId(1),
                head: LayerId(1),
                size_bytes: 7,
                created_at: 8,
                name: "a".into(),
                parent: "b@c".into(),
            }),
            ShapeRecord::Snapshot(SnapshotRecord {
                volume: VolumeId(1),
                layer: LayerId(1),
                size_bytes: 7,
                created_at: 8,
                name: "s".into(),
            }),
            ShapeRecord::Counters { volume: 4, layer: 5 },
            ShapeRecord::Seal { volume: VolumeId(1), head: LayerId(2) },
            ShapeRecord::Rename { volume: VolumeId(1), name: "z".into() },
            ShapeRecord::Resize { volume: VolumeId(1), size_bytes: 1 << 44 },
            ShapeRecord::DestroyVolume(VolumeId(1)),
            ShapeRecord::DestroySnapshot { volume: VolumeId(1), name: "s".into() },
            ShapeRecord::Detach(LayerId(2)),
            ShapeRecord::Hydration(LayerId(2), HydrationSettings { rate_bytes_per_second: 100, ..settings }),
            ShapeRecord::Sources(LayerId(2), uris()),
            ShapeRecord::Attach(LayerId(2), LayerId(7), source.clone()),
            ShapeRecord::Labels(VolumeId(1), [("k".to_owned(), "v".to_owned())].into()),
            ShapeRecord::Held(HeldRecord { layer: LayerId(1), size_bytes: 7, held }),
            ShapeRecord::Lease(LeaseRecord {
                id: LeaseId([1; 16]),
                volume: VolumeId(1),
                renewed_at: 9,
                lapse_seconds: 10,
                snapshot: "s".into(),
                fork: "f".into(),
                host: "h".into(),
                address: "10.0.0.1:2".into(),
            }),
            ShapeRecord::LeaseOver(LeaseId([1; 16])),
            ShapeRecord::Lessee(LesseeRecord { id: LeaseId([2; 16]), layer: LayerId(2), until: 9, uri: "nbd://h/x@s".into() }),
            ShapeRecord::LesseeOver(LeaseId([2; 16])),
            ShapeRecord::Live(LayerId(2)),
            ShapeRecord::Limits(VolumeId(1), VolumeLimits::default()),
            ShapeRecord::Limits(VolumeId(1), VolumeLimits::default().with_iops(5000).with_burst_millis(2000)),
        ];
        let blocks = [
            BlocksRecord::Present(run()),
            BlocksRecord::Zero { layer: LayerId(1), first: Block::FIRST, last: Block::LAST },
            BlocksRecord::Drop { layer: LayerId(1), first: Block::new(5), last: Block::new(5) },
            BlocksRecord::Mark(LayerId(1), Extent::FIRST),
            BlocksRecord::Clear(LayerId(1), Extent::LAST),
            BlocksRecord::Expect(run()),
            BlocksRecord::Patch(PatchRecord { layer: LayerId(1), block: Block::new(9), offset: BLOCK_BYTES_MAX - 2, bytes: vec![5, 6] }),
            BlocksRecord::Presence(presence(false)),
            BlocksRecord::Presence(presence(true)),
            BlocksRecord::Forget(ForgetRecord { layer: LayerId(1), blocks: (0..5000).collect() }),
        ];
        shape.map(Record::Shape).into_iter().chain(blocks.map(Record::Blocks)).chain([Record::Closed]).collect()
    }

    #[test]
    fn records_survive_the_round_trip_and_every_cut() {
        let mut writer = Writer::default();
        for record in examples() {
            record.encode(&mut writer);
        }
        assert_eq!(Record::decode_all(&writer.bytes).unwrap(), examples());
        for record in examples() {
            let mut one = Writer::default();
            record.encode(&mut one);
            for cut in 1..one.bytes.len() {
                let mut reader = Reader::new(&one.bytes[..cut]);
                assert!(Record::decode(&mut reader).is_err(), "{record:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn golden_bytes() {
        let mut writer = Writer::default();
        BlocksRecord::Present(BlockRun { layer: LayerId(3), block: Block::new(9), checksums: vec![0x0102_0304] }).encode(&mut writer);
        BlocksRecord::Zero { layer: LayerId(1), first: Block::new(2), last: Block::new(3) }.encode(&mut writer);
        ShapeRecord::Rename { volume: VolumeId(5), name: "ab".into() }.encode(&mut writer);
        let golden =
            b"\x14\x03\0\0\0\x09\0\0\0\x01\0\0\0\x04\x03\x02\x01\x15\x01\0\0\0\x02\0\0\0\x03\0\0\0\x06\x05\0\0\0\0\0\0\0\x02\0\0\0ab";
        assert_eq!(writer.bytes, golden);
        let mut writer = Writer::default();
        BlocksRecord::Patch(PatchRecord { layer: LayerId(3), block: Block::new(9), offset: 0x0102, bytes: b"ab".to_vec() })
            .encode(&mut writer);
        assert_eq!(writer.bytes, b"\x1a\x03\0\0\0\x09\0\0\0\x02\x01\0\0\x02\0\0\0ab");
        assert_eq!(writer.bytes.len() as u64, PatchRecord::HEADER_BYTES + 2);
    }

    #[test]
    fn nonsense_is_refused() {
        let nonsense: [&[u8]; 7] = [
            b"\xff",
            b"\x17\x01\0\0\0\0\0\x40\0",
            b"\x14\x01\0\0\0\xff\xff\xff\xff\x02\0\0\0",
            b"\x15\x01\0\0\0\x05\0\0\0\x04\0\0\0",
            b"\x1a\x01\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0",
            b"\x1a\x01\0\0\0\x01\0\0\0\xff\xff\0\0\x02\0\0\0ab",
            b"\x1a\x01\0\0\0\x01\0\0\0\xff\xff\xff\xff\x02\0\0\0ab",
        ];
        for bytes in nonsense {
            assert!(Record::decode_all(bytes).is_err());
        }
    }
}
