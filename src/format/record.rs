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
//! ```
//! The layout of `source`, `uris` and `settings` is in `source`, that of `labels` in `label`, that of `lease` and `lessee` in `lease`.
//!
//! # Invariants
//! - Every record has a bound far below that of a frame: what could be larger (presence, blocks to forget) is cut into several.

use super::blocks::{BlockRun, PatchRecord};
use super::bytes::{FormatError, Reader, Writer};
use super::label::{HeldRecord, Labels, read_labels, write_labels};
use super::lease::{LeaseRecord, LesseeRecord, read_id, write_id};
use super::presence::{ForgetRecord, PresenceRecord};
use super::source::{HydrationSettings, SourceRecord, read_settings, read_uris, write_settings, write_uris};
use crate::ids::{LayerId, LeaseId, VolumeId};

/// A layer comes to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRecord {
    /// Its number.
    pub layer: LayerId,
    /// The layer below.
    pub parent: Option<LayerId>,
    /// Identity of the bytes at the store they came from, or empty.
    pub origin: String,
    /// The source below, for a root that stands for one.
    pub source: Option<SourceRecord>,
}

/// A volume comes to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Its number.
    pub volume: VolumeId,
    /// Its open layer.
    pub head: LayerId,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Name.
    pub name: String,
    /// What it was forked from, or empty.
    pub parent: String,
}

/// A snapshot comes to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// The volume it belongs to.
    pub volume: VolumeId,
    /// Its sealed layer.
    pub layer: LayerId,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Name within the volume.
    pub name: String,
}

/// One change, or one part of the state.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A layer comes to be.
    Layer(LayerRecord),
    /// A volume comes to be.
    Volume(VolumeRecord),
    /// A snapshot comes to be.
    Snapshot(SnapshotRecord),
    /// The next unused numbers.
    Counters {
        /// Next volume.
        volume: u64,
        /// Next layer.
        layer: u32,
    },
    /// A volume's head is sealed; the layer `head`, already recorded over it, is the new one.
    Seal {
        /// The volume.
        volume: VolumeId,
        /// Its new open layer.
        head: LayerId,
    },
    /// A volume gets another name.
    Rename {
        /// The volume.
        volume: VolumeId,
        /// Its new name.
        name: String,
    },
    /// A volume gets another size.
    Resize {
        /// The volume.
        volume: VolumeId,
        /// Its new size.
        size_bytes: u64,
    },
    /// A volume and its snapshots go.
    DestroyVolume(VolumeId),
    /// A snapshot goes.
    DestroySnapshot {
        /// The volume it belongs to.
        volume: VolumeId,
        /// Its name.
        name: String,
    },
    /// A root layer does not need its source any more.
    Detach(LayerId),
    /// An operator pauses, resumes or caps hydration.
    Hydration(LayerId, HydrationSettings),
    /// An operator says where the bytes of a root layer can be had.
    Sources(LayerId, Vec<String>),
    /// A root layer needs a source again, for the layers above it with this number or a larger one.
    Attach(LayerId, LayerId, SourceRecord),
    /// What users note about a volume; all of it.
    Labels(VolumeId, Labels),
    /// A sealed layer holds a layer of an image.
    Held(HeldRecord),
    /// Blocks become present.
    Present(BlockRun),
    /// Blocks become zero: they are not present, and hide the parent.
    Zero {
        /// The layer.
        layer: LayerId,
        /// First block.
        first: u32,
        /// Last block, inclusive.
        last: u32,
    },
    /// Blocks that nobody can see are forgotten.
    Drop {
        /// The layer.
        layer: LayerId,
        /// First block.
        first: u32,
        /// Last block, inclusive.
        last: u32,
    },
    /// Blocks of the extent may be overwritten in place from here on.
    Mark(LayerId, u32),
    /// The extent's checksums are on disk and match its blocks.
    Clear(LayerId, u32),
    /// Blocks that were overwritten in place just before their layer was sealed: the round counts only if they match.
    Expect(BlockRun),
    /// Part of a block that the layer does not hold is written. It counts until the block is present, zero or dropped.
    Patch(PatchRecord),
    /// Presence of a layer, or of a part of its blocks.
    Presence(PresenceRecord),
    /// Blocks that nobody can see are forgotten.
    Forget(ForgetRecord),
    /// The store was closed in order: there is nothing to verify.
    Closed,
    /// A fork elsewhere needs a snapshot, from now on or still.
    Lease(LeaseRecord),
    /// A fork elsewhere needs a snapshot no more.
    LeaseOver(LeaseId),
    /// A root layer has a lease at another host.
    Lessee(LesseeRecord),
    /// The lease at another host was given back.
    LesseeOver(LeaseId),
    /// The source of a root layer was written while it was forked: its blocks are of different instants.
    Live(LayerId),
}

const NO_PARENT: u32 = u32::MAX;

fn range(reader: &mut Reader<'_>) -> Result<(LayerId, u32, u32), FormatError> {
    let (layer, first, last) = (LayerId(reader.u32()?), reader.u32()?, reader.u32()?);
    if last < first {
        return Err(FormatError(format!("range from {first} to {last} is backwards")));
    }
    Ok((layer, first, last))
}

impl LayerRecord {
    /// A layer that stands for no source.
    pub fn over(parent: Option<LayerId>, layer: LayerId) -> Self {
        Self { layer, parent, origin: String::new(), source: None }
    }

    fn encode(&self, writer: &mut Writer) {
        writer.u8(1);
        writer.u32(self.layer.0);
        writer.u32(self.parent.map_or(NO_PARENT, |parent| parent.0));
        writer.blob(self.origin.as_bytes());
        writer.u8(u8::from(self.source.is_some()));
        if let Some(source) = &self.source {
            source.encode(writer);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let layer = LayerId(reader.u32()?);
        let parent = Some(reader.u32()?).filter(|parent| *parent != NO_PARENT).map(LayerId);
        let origin = reader.text()?;
        let source = match reader.flag()? {
            false => None,
            true => Some(SourceRecord::decode(reader)?),
        };
        Ok(Self { layer, parent, origin, source })
    }
}

impl Record {
    /// Appends the record.
    pub fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Layer(layer) => layer.encode(writer),
            Self::Volume(VolumeRecord { volume, head, size_bytes, created_at, name, parent }) => {
                writer.u8(2);
                writer.u64(volume.0);
                writer.u32(head.0);
                writer.u64(*size_bytes);
                writer.u64(*created_at);
                writer.blob(name.as_bytes());
                writer.blob(parent.as_bytes());
            }
            Self::Snapshot(SnapshotRecord { volume, layer, size_bytes, created_at, name }) => {
                writer.u8(3);
                writer.u64(volume.0);
                writer.u32(layer.0);
                writer.u64(*size_bytes);
                writer.u64(*created_at);
                writer.blob(name.as_bytes());
            }
            Self::Counters { volume, layer } => {
                writer.u8(4);
                writer.u64(*volume);
                writer.u32(*layer);
            }
            Self::Seal { volume, head } => {
                writer.u8(5);
                writer.u64(volume.0);
                writer.u32(head.0);
            }
            Self::Rename { volume, name } => Self::encode_named(writer, 6, *volume, name),
            Self::Resize { volume, size_bytes } => {
                writer.u8(7);
                writer.u64(volume.0);
                writer.u64(*size_bytes);
            }
            Self::DestroyVolume(volume) => {
                writer.u8(8);
                writer.u64(volume.0);
            }
            Self::DestroySnapshot { volume, name } => Self::encode_named(writer, 9, *volume, name),
            Self::Detach(layer) => {
                writer.u8(10);
                writer.u32(layer.0);
            }
            Self::Hydration(layer, settings) => {
                writer.u8(11);
                writer.u32(layer.0);
                write_settings(writer, *settings);
            }
            Self::Sources(layer, uris) => {
                writer.u8(12);
                writer.u32(layer.0);
                write_uris(writer, uris);
            }
            Self::Attach(layer, needed_from, source) => {
                writer.u8(15);
                writer.u32(layer.0);
                writer.u32(needed_from.0);
                source.encode(writer);
            }
            Self::Labels(volume, labels) => {
                writer.u8(13);
                writer.u64(volume.0);
                write_labels(writer, labels);
            }
            Self::Held(held) => held.encode(writer),
            other => other.encode_presence(writer),
        }
    }

    fn encode_presence(&self, writer: &mut Writer) {
        match self {
            Self::Present(run) => run.encode(20, writer),
            Self::Zero { layer, first, last } => Self::encode_three(writer, 21, [layer.0, *first, *last]),
            Self::Drop { layer, first, last } => Self::encode_three(writer, 22, [layer.0, *first, *last]),
            Self::Mark(layer, extent) => Self::encode_three(writer, 23, [layer.0, *extent]),
            Self::Clear(layer, extent) => Self::encode_three(writer, 24, [layer.0, *extent]),
            Self::Expect(run) => run.encode(25, writer),
            Self::Patch(patch) => patch.encode(writer),
            Self::Presence(presence) => presence.encode(writer),
            Self::Forget(forget) => forget.encode(writer),
            Self::Closed => writer.u8(31),
            other => other.encode_lease(writer),
        }
    }

    fn encode_lease(&self, writer: &mut Writer) {
        match self {
            Self::Lease(lease) => lease.encode(writer),
            Self::LeaseOver(id) => write_id(writer, 35, *id),
            Self::Lessee(lessee) => lessee.encode(writer),
            Self::LesseeOver(id) => write_id(writer, 37, *id),
            Self::Live(layer) => Self::encode_three(writer, 38, [layer.0]),
            _ => {}
        }
    }

    fn encode_named(writer: &mut Writer, tag: u8, volume: VolumeId, name: &str) {
        writer.u8(tag);
        writer.u64(volume.0);
        writer.blob(name.as_bytes());
    }

    fn encode_three<const N: usize>(writer: &mut Writer, tag: u8, fields: [u32; N]) {
        writer.u8(tag);
        for field in fields {
            writer.u32(field);
        }
    }

    /// Takes one record.
    ///
    /// # Errors
    /// Says which field is wrong, or that the tag is unknown.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let tag = reader.u8()?;
        Ok(match tag {
            1 => Self::Layer(LayerRecord::decode(reader)?),
            2 => Self::Volume(VolumeRecord {
                volume: VolumeId(reader.u64()?),
                head: LayerId(reader.u32()?),
                size_bytes: reader.u64()?,
                created_at: reader.u64()?,
                name: reader.text()?,
                parent: reader.text()?,
            }),
            3 => Self::Snapshot(SnapshotRecord {
                volume: VolumeId(reader.u64()?),
                layer: LayerId(reader.u32()?),
                size_bytes: reader.u64()?,
                created_at: reader.u64()?,
                name: reader.text()?,
            }),
            4 => Self::Counters { volume: reader.u64()?, layer: reader.u32()? },
            5 => Self::Seal { volume: VolumeId(reader.u64()?), head: LayerId(reader.u32()?) },
            6 => Self::Rename { volume: VolumeId(reader.u64()?), name: reader.text()? },
            7 => Self::Resize { volume: VolumeId(reader.u64()?), size_bytes: reader.u64()? },
            8 => Self::DestroyVolume(VolumeId(reader.u64()?)),
            9 => Self::DestroySnapshot { volume: VolumeId(reader.u64()?), name: reader.text()? },
            10 => Self::Detach(LayerId(reader.u32()?)),
            11 => Self::Hydration(LayerId(reader.u32()?), read_settings(reader)?),
            12 => Self::Sources(LayerId(reader.u32()?), read_uris(reader)?),
            13 => Self::Labels(VolumeId(reader.u64()?), read_labels(reader)?),
            14 => Self::Held(HeldRecord::decode(reader)?),
            15 => Self::Attach(LayerId(reader.u32()?), LayerId(reader.u32()?), SourceRecord::decode(reader)?),
            _ => return Self::decode_presence(tag, reader),
        })
    }

    fn decode_presence(tag: u8, reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(match tag {
            20 => Self::Present(BlockRun::decode(reader)?),
            21 => {
                let (layer, first, last) = range(reader)?;
                Self::Zero { layer, first, last }
            }
            22 => {
                let (layer, first, last) = range(reader)?;
                Self::Drop { layer, first, last }
            }
            23 => Self::Mark(LayerId(reader.u32()?), reader.u32()?),
            24 => Self::Clear(LayerId(reader.u32()?), reader.u32()?),
            25 => Self::Expect(BlockRun::decode(reader)?),
            26 => Self::Patch(PatchRecord::decode(reader)?),
            30 => Self::Presence(PresenceRecord::decode(false, reader)?),
            31 => Self::Closed,
            32 => Self::Presence(PresenceRecord::decode(true, reader)?),
            33 => Self::Forget(ForgetRecord::decode(reader)?),
            34 => Self::Lease(LeaseRecord::decode(reader)?),
            35 => Self::LeaseOver(read_id(reader)?),
            36 => Self::Lessee(LesseeRecord::decode(reader)?),
            37 => Self::LesseeOver(read_id(reader)?),
            38 => Self::Live(LayerId(reader.u32()?)),
            other => return Err(FormatError(format!("record type {other} is unknown: use a newer program"))),
        })
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

    /// Whether this is a change of shape: names, layers and sizes rather than bytes.
    pub fn is_shape(&self) -> bool {
        matches!(
            self,
            Self::Layer(_)
                | Self::Volume(_)
                | Self::Snapshot(_)
                | Self::Counters { .. }
                | Self::Seal { .. }
                | Self::Rename { .. }
                | Self::Resize { .. }
                | Self::DestroyVolume(_)
                | Self::DestroySnapshot { .. }
                | Self::Detach(_)
                | Self::Hydration(..)
                | Self::Sources(..)
                | Self::Attach(..)
                | Self::Labels(..)
                | Self::Held(_)
                | Self::Lease(_)
                | Self::LeaseOver(_)
                | Self::Lessee(_)
                | Self::LesseeOver(_)
                | Self::Live(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use roaring::RoaringBitmap;

    use super::*;
    use crate::content::{Digest, HeldLayer, ImageLayer};
    use crate::format::HydrationPriority;
    use crate::limits::BLOCK_BYTES_MAX;

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
        let run = || BlockRun { layer: LayerId(3), block: 9, checksums: vec![1, 0xffff_ffff] };
        let settings = HydrationSettings { paused: true, rate_bytes_per_second: 5, deadline: 1 << 40, priority: HydrationPriority::High };
        let uris = || vec!["nbd://h/x".to_owned(), "nbd://i/x".to_owned()];
        let source = SourceRecord { uris: uris(), size_bytes: 1 << 40, settings };
        let held = HeldLayer { layer: ImageLayer { digest: Digest::of(b"l"), bytes: 9 }, chain: Digest::of(b"c") };
        vec![
            Record::Layer(LayerRecord { layer: LayerId(1), parent: Some(LayerId(0)), origin: String::new(), source: None }),
            Record::Layer(LayerRecord { layer: LayerId(2), parent: None, origin: "a/1".into(), source: Some(source.clone()) }),
            Record::Volume(VolumeRecord {
                volume: VolumeId(1),
                head: LayerId(1),
                size_bytes: 7,
                created_at: 8,
                name: "a".into(),
                parent: "b@c".into(),
            }),
            Record::Snapshot(SnapshotRecord { volume: VolumeId(1), layer: LayerId(1), size_bytes: 7, created_at: 8, name: "s".into() }),
            Record::Counters { volume: 4, layer: 5 },
            Record::Seal { volume: VolumeId(1), head: LayerId(2) },
            Record::Rename { volume: VolumeId(1), name: "z".into() },
            Record::Resize { volume: VolumeId(1), size_bytes: 1 << 44 },
            Record::DestroyVolume(VolumeId(1)),
            Record::DestroySnapshot { volume: VolumeId(1), name: "s".into() },
            Record::Detach(LayerId(2)),
            Record::Hydration(LayerId(2), HydrationSettings { rate_bytes_per_second: 100, ..settings }),
            Record::Sources(LayerId(2), uris()),
            Record::Attach(LayerId(2), LayerId(7), source.clone()),
            Record::Labels(VolumeId(1), [("k".to_owned(), "v".to_owned())].into()),
            Record::Held(HeldRecord { layer: LayerId(1), size_bytes: 7, held }),
            Record::Present(run()),
            Record::Zero { layer: LayerId(1), first: 0, last: u32::MAX },
            Record::Drop { layer: LayerId(1), first: 5, last: 5 },
            Record::Mark(LayerId(1), 6),
            Record::Clear(LayerId(1), 6),
            Record::Expect(run()),
            Record::Patch(PatchRecord { layer: LayerId(1), block: 9, offset: BLOCK_BYTES_MAX - 2, bytes: vec![5, 6] }),
            Record::Presence(presence(false)),
            Record::Presence(presence(true)),
            Record::Forget(ForgetRecord { layer: LayerId(1), blocks: (0..5000).collect() }),
            Record::Closed,
            Record::Lease(LeaseRecord {
                id: LeaseId([1; 16]),
                volume: VolumeId(1),
                renewed_at: 9,
                lapse_seconds: 10,
                snapshot: "s".into(),
                fork: "f".into(),
                host: "h".into(),
                address: "10.0.0.1:2".into(),
            }),
            Record::LeaseOver(LeaseId([1; 16])),
            Record::Lessee(LesseeRecord { id: LeaseId([2; 16]), layer: LayerId(2), until: 9, uri: "nbd://h/x@s".into() }),
            Record::LesseeOver(LeaseId([2; 16])),
            Record::Live(LayerId(2)),
        ]
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
        Record::Present(BlockRun { layer: LayerId(3), block: 9, checksums: vec![0x0102_0304] }).encode(&mut writer);
        Record::Zero { layer: LayerId(1), first: 2, last: 3 }.encode(&mut writer);
        Record::Rename { volume: VolumeId(5), name: "ab".into() }.encode(&mut writer);
        let golden =
            b"\x14\x03\0\0\0\x09\0\0\0\x01\0\0\0\x04\x03\x02\x01\x15\x01\0\0\0\x02\0\0\0\x03\0\0\0\x06\x05\0\0\0\0\0\0\0\x02\0\0\0ab";
        assert_eq!(writer.bytes, golden);
        let mut writer = Writer::default();
        Record::Patch(PatchRecord { layer: LayerId(3), block: 9, offset: 0x0102, bytes: b"ab".to_vec() }).encode(&mut writer);
        assert_eq!(writer.bytes, b"\x1a\x03\0\0\0\x09\0\0\0\x02\x01\0\0\x02\0\0\0ab");
        assert_eq!(writer.bytes.len() as u64, PatchRecord::HEADER_BYTES + 2);
    }

    #[test]
    fn nonsense_is_refused() {
        let nonsense: [&[u8]; 6] = [
            b"\xff",
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
