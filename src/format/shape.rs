//! Records of shape: names, layers and sizes rather than bytes. Their layout is in `record`.

use super::bytes::{FormatError, Reader, Writer};
use super::label::{HeldRecord, Labels, read_labels, write_labels};
use super::lease::{LeaseRecord, LesseeRecord, read_id};
use super::limit::VolumeLimits;
use super::source::{HydrationSettings, SourceRecord, read_settings, read_uris, write_settings, write_uris};
use super::tags::tags;
use crate::ids::{LayerId, LeaseId, VolumeId};

/// A new layer.
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

/// A new volume.
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
    /// Name of the volume or snapshot that it was forked from, or empty.
    pub parent: String,
}

/// A new snapshot.
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

/// One change of the shape, or one part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShapeRecord {
    /// A new layer.
    Layer(LayerRecord),
    /// A new volume.
    Volume(VolumeRecord),
    /// A new snapshot.
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
    /// All labels of a volume.
    Labels(VolumeId, Labels),
    /// A sealed layer holds a layer of an image.
    Held(HeldRecord),
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
    /// The limits of a volume.
    Limits(VolumeId, VolumeLimits),
}

tags! {
    /// Tags of [`ShapeRecord`].
    Tag {
        Layer = 1,
        Volume = 2,
        Snapshot = 3,
        Counters = 4,
        Seal = 5,
        Rename = 6,
        Resize = 7,
        DestroyVolume = 8,
        DestroySnapshot = 9,
        Detach = 10,
        Hydration = 11,
        Sources = 12,
        Labels = 13,
        Held = 14,
        Attach = 15,
        Lease = 34,
        LeaseOver = 35,
        Lessee = 36,
        LesseeOver = 37,
        Live = 38,
        Limits = 39,
    }
}

const NO_PARENT: u32 = u32::MAX;

impl LayerRecord {
    /// A layer that stands for no source.
    pub fn over(parent: Option<LayerId>, layer: LayerId) -> Self {
        Self { layer, parent, origin: String::new(), source: None }
    }

    fn encode(&self, writer: &mut Writer) {
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

impl VolumeRecord {
    fn encode(&self, writer: &mut Writer) {
        writer.u64(self.volume.0);
        writer.u32(self.head.0);
        writer.u64(self.size_bytes);
        writer.u64(self.created_at);
        writer.blob(self.name.as_bytes());
        writer.blob(self.parent.as_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            volume: VolumeId(reader.u64()?),
            head: LayerId(reader.u32()?),
            size_bytes: reader.u64()?,
            created_at: reader.u64()?,
            name: reader.text()?,
            parent: reader.text()?,
        })
    }
}

impl SnapshotRecord {
    fn encode(&self, writer: &mut Writer) {
        writer.u64(self.volume.0);
        writer.u32(self.layer.0);
        writer.u64(self.size_bytes);
        writer.u64(self.created_at);
        writer.blob(self.name.as_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            volume: VolumeId(reader.u64()?),
            layer: LayerId(reader.u32()?),
            size_bytes: reader.u64()?,
            created_at: reader.u64()?,
            name: reader.text()?,
        })
    }
}

impl ShapeRecord {
    fn tag(&self) -> Tag {
        match self {
            Self::Layer(_) => Tag::Layer,
            Self::Volume(_) => Tag::Volume,
            Self::Snapshot(_) => Tag::Snapshot,
            Self::Counters { .. } => Tag::Counters,
            Self::Seal { .. } => Tag::Seal,
            Self::Rename { .. } => Tag::Rename,
            Self::Resize { .. } => Tag::Resize,
            Self::DestroyVolume(_) => Tag::DestroyVolume,
            Self::DestroySnapshot { .. } => Tag::DestroySnapshot,
            Self::Detach(_) => Tag::Detach,
            Self::Hydration(..) => Tag::Hydration,
            Self::Sources(..) => Tag::Sources,
            Self::Labels(..) => Tag::Labels,
            Self::Held(_) => Tag::Held,
            Self::Attach(..) => Tag::Attach,
            Self::Lease(_) => Tag::Lease,
            Self::LeaseOver(_) => Tag::LeaseOver,
            Self::Lessee(_) => Tag::Lessee,
            Self::LesseeOver(_) => Tag::LesseeOver,
            Self::Live(_) => Tag::Live,
            Self::Limits(..) => Tag::Limits,
        }
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.u8(self.tag().byte());
        match self {
            Self::Layer(layer) => layer.encode(writer),
            Self::Volume(volume) => volume.encode(writer),
            Self::Snapshot(snapshot) => snapshot.encode(writer),
            Self::Counters { volume, layer } => {
                writer.u64(*volume).u32(*layer);
            }
            Self::Seal { volume, head } => {
                writer.u64(volume.0).u32(head.0);
            }
            Self::Rename { volume, name } | Self::DestroySnapshot { volume, name } => {
                writer.u64(volume.0).text(name);
            }
            Self::Resize { volume, size_bytes } => {
                writer.u64(volume.0).u64(*size_bytes);
            }
            Self::DestroyVolume(volume) => {
                writer.u64(volume.0);
            }
            Self::Detach(layer) | Self::Live(layer) => {
                writer.u32(layer.0);
            }
            Self::Hydration(layer, settings) => {
                writer.u32(layer.0);
                write_settings(writer, *settings);
            }
            Self::Sources(layer, uris) => {
                writer.u32(layer.0);
                write_uris(writer, uris);
            }
            Self::Labels(volume, labels) => {
                writer.u64(volume.0);
                write_labels(writer, labels);
            }
            Self::Held(held) => held.encode(writer),
            Self::Attach(layer, needed_from, source) => {
                writer.u32(layer.0);
                writer.u32(needed_from.0);
                source.encode(writer);
            }
            Self::Lease(lease) => lease.encode(writer),
            Self::Lessee(lessee) => lessee.encode(writer),
            Self::LeaseOver(id) | Self::LesseeOver(id) => {
                writer.raw(&id.0);
            }
            Self::Limits(volume, limits) => {
                writer.u64(volume.0);
                limits.encode(writer);
            }
        }
    }

    /// Takes the fields of a record with this tag; `None` if no record of shape has it.
    pub(super) fn decode(tag: u8, reader: &mut Reader<'_>) -> Result<Option<Self>, FormatError> {
        let Some(tag) = Tag::of(tag) else { return Ok(None) };
        Ok(Some(match tag {
            Tag::Layer => Self::Layer(LayerRecord::decode(reader)?),
            Tag::Volume => Self::Volume(VolumeRecord::decode(reader)?),
            Tag::Snapshot => Self::Snapshot(SnapshotRecord::decode(reader)?),
            Tag::Counters => Self::Counters { volume: reader.u64()?, layer: reader.u32()? },
            Tag::Seal => Self::Seal { volume: VolumeId(reader.u64()?), head: LayerId(reader.u32()?) },
            Tag::Rename => Self::Rename { volume: VolumeId(reader.u64()?), name: reader.text()? },
            Tag::Resize => Self::Resize { volume: VolumeId(reader.u64()?), size_bytes: reader.u64()? },
            Tag::DestroyVolume => Self::DestroyVolume(VolumeId(reader.u64()?)),
            Tag::DestroySnapshot => Self::DestroySnapshot { volume: VolumeId(reader.u64()?), name: reader.text()? },
            Tag::Detach => Self::Detach(LayerId(reader.u32()?)),
            Tag::Hydration => Self::Hydration(LayerId(reader.u32()?), read_settings(reader)?),
            Tag::Sources => Self::Sources(LayerId(reader.u32()?), read_uris(reader)?),
            Tag::Labels => Self::Labels(VolumeId(reader.u64()?), read_labels(reader)?),
            Tag::Held => Self::Held(HeldRecord::decode(reader)?),
            Tag::Attach => Self::Attach(LayerId(reader.u32()?), LayerId(reader.u32()?), SourceRecord::decode(reader)?),
            Tag::Lease => Self::Lease(LeaseRecord::decode(reader)?),
            Tag::LeaseOver => Self::LeaseOver(read_id(reader)?),
            Tag::Lessee => Self::Lessee(LesseeRecord::decode(reader)?),
            Tag::LesseeOver => Self::LesseeOver(read_id(reader)?),
            Tag::Live => Self::Live(LayerId(reader.u32()?)),
            Tag::Limits => Self::Limits(VolumeId(reader.u64()?), VolumeLimits::decode(reader)?),
        }))
    }
}
