//! Leases, on both sides: of a snapshot that forks of other hosts need, and of a fork that needs a snapshot of another host.
//!
//! ```text
//! lease        id 16 bytes, volume u64, renewed_at u64, lapse u64, snapshot blob, fork blob, host blob, address blob
//! lease over   id 16 bytes
//! lessee       id 16 bytes, layer u32, until u64, address blob
//! lessee over  id 16 bytes
//! live         layer u32
//! ```
//! A record with the id of an earlier one replaces it.

use super::bytes::{FormatError, Reader, Writer};
use crate::ids::{LayerId, LeaseId, VolumeId};

/// Most bytes of the name of a fork, the name of a host, or the address of a peer.
pub const LEASE_TEXT_BYTES_MAX: usize = 255;

/// A fork elsewhere needs a snapshot of this store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its number.
    pub id: LeaseId,
    /// Volume of the snapshot.
    pub volume: VolumeId,
    /// When the fork asked for it the last time, in seconds since the Unix epoch.
    pub renewed_at: u64,
    /// Seconds after which it lapses, as the server said.
    pub lapse_seconds: u64,
    /// Name of the snapshot within the volume.
    pub snapshot: String,
    /// Name of the fork, as its host tells it.
    pub fork: String,
    /// Name of the host, as it tells it.
    pub host: String,
    /// Where the host connected from.
    pub address: String,
}

/// A root layer of this store needs a snapshot of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LesseeRecord {
    /// Number of the lease.
    pub id: LeaseId,
    /// The root layer.
    pub layer: LayerId,
    /// When the lease lapses at the latest if it is not renewed, in seconds since the Unix epoch.
    pub until: u64,
    /// Address of the snapshot.
    pub uri: String,
}

fn text(reader: &mut Reader<'_>) -> Result<String, FormatError> {
    let text = reader.text()?;
    match text.len() {
        0..=LEASE_TEXT_BYTES_MAX => Ok(text),
        bytes => Err(FormatError::damaged(format!("a name in a lease has {bytes} bytes, at most {LEASE_TEXT_BYTES_MAX} are taken"))),
    }
}

pub(super) fn read_id(reader: &mut Reader<'_>) -> Result<LeaseId, FormatError> {
    Ok(LeaseId(reader.array()?))
}

impl LeaseRecord {
    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.raw(&self.id.0);
        writer.u64(self.volume.0);
        writer.u64(self.renewed_at);
        writer.u64(self.lapse_seconds);
        for text in [&self.snapshot, &self.fork, &self.host, &self.address] {
            writer.blob(text.as_bytes());
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            id: read_id(reader)?,
            volume: VolumeId(reader.u64()?),
            renewed_at: reader.u64()?,
            lapse_seconds: reader.u64()?,
            snapshot: text(reader)?,
            fork: text(reader)?,
            host: text(reader)?,
            address: text(reader)?,
        })
    }
}

impl LesseeRecord {
    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.raw(&self.id.0);
        writer.u32(self.layer.0);
        writer.u64(self.until);
        writer.blob(self.uri.as_bytes());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self { id: read_id(reader)?, layer: LayerId(reader.u32()?), until: reader.u64()?, uri: reader.text()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let id = LeaseId([7; 16]);
        let mut writer = Writer::default();
        let lease = LeaseRecord {
            id,
            volume: VolumeId(1),
            renewed_at: 2,
            lapse_seconds: 3,
            snapshot: "s".into(),
            fork: "f".into(),
            host: "h".into(),
            address: "a".into(),
        };
        lease.encode(&mut writer);
        let tail = b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0s\x01\0\0\0f\x01\0\0\0h\x01\0\0\0a";
        assert_eq!(writer.bytes, [&[7; 16][..], tail].concat());
        let mut writer = Writer::default();
        LesseeRecord { id, layer: LayerId(3), until: 4, uri: "u".into() }.encode(&mut writer);
        assert_eq!(writer.bytes, [&[7; 16][..], b"\x03\0\0\0\x04\0\0\0\0\0\0\0\x01\0\0\0u"].concat());
        let mut writer = Writer::default();
        LeaseRecord { host: "h".repeat(256), ..lease }.encode(&mut writer);
        assert!(LeaseRecord::decode(&mut Reader::new(&writer.bytes)).is_err());
    }
}
