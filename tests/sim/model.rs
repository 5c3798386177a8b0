//! The oracle: what a store may hold.
//!
//! A sector holds a tag, repeated. Writes stay in a window around an extent boundary, so that volumes are larger than the part that is
//! compared.

use std::collections::BTreeMap;
use std::ops::Range;

use volfork::content::Digest;
use volfork::volume::VolumeLimits;

/// First byte of the window, and its sectors.
pub const WINDOW_START: u64 = (4 << 20) - (32 << 10);
pub const WINDOW_SECTORS: usize = 128;
pub const SECTOR: u64 = 512;
/// Size of every volume before it is resized.
pub const VOLUME_BYTES: u64 = WINDOW_START + WINDOW_SECTORS as u64 * SECTOR;

/// Bytes of a sector with a tag.
pub fn sector_bytes(tag: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    for part in bytes.as_chunks_mut::<8>().0 {
        *part = tag.to_le_bytes();
    }
    bytes
}

/// One volume, as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeModel {
    /// What reads must give while the power is on.
    pub live: Vec<u64>,
    /// What was live when the volume was last flushed.
    pub durable: Vec<u64>,
    /// Tags written since.
    pub pending: Vec<Vec<u64>>,
    pub size_bytes: u64,
    pub snapshots: BTreeMap<String, SnapshotModel>,
    pub labels: BTreeMap<String, String>,
    pub limits: VolumeLimits,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotModel {
    pub sectors: Vec<u64>,
    pub size_bytes: u64,
    /// The chain of an image that it was taken as.
    pub chain: Option<Digest>,
}

impl VolumeModel {
    pub fn new(sectors: Vec<u64>, size_bytes: u64) -> Self {
        let pending = vec![Vec::new(); WINDOW_SECTORS];
        let (snapshots, labels, limits) = (BTreeMap::new(), BTreeMap::new(), VolumeLimits::default());
        Self { durable: sectors.clone(), live: sectors, pending, size_bytes, snapshots, labels, limits }
    }

    /// A write that was asked for: from now on it may be there.
    pub fn begin_write(&mut self, sectors: Range<usize>, tag: u64) {
        for sector in sectors {
            self.pending[sector].push(tag);
        }
    }

    /// Notes that a write has completed.
    pub fn end_write(&mut self, sectors: Range<usize>, tag: u64) {
        self.live[sectors].fill(tag);
    }

    /// A flush completed, or a change of shape that implies one.
    pub fn flush(&mut self) {
        self.durable.clone_from(&self.live);
        self.pending.iter_mut().for_each(Vec::clear);
    }

    /// A shrink cut these sectors off: from now on they are zeros, if the volume grows again.
    pub fn cut(&mut self, sectors: Range<usize>) {
        self.live[sectors.clone()].fill(0);
        self.durable[sectors.clone()].fill(0);
        self.pending[sectors].iter_mut().for_each(Vec::clear);
    }

    /// Sectors of the window within the size.
    pub fn sectors(&self) -> usize {
        (self.size_bytes.saturating_sub(WINDOW_START) / SECTOR) as usize
    }

    /// Checks what was found after a crash, and takes it for the truth.
    pub fn accept(&mut self, found: &[u64]) -> Result<(), String> {
        for (sector, tag) in found.iter().enumerate() {
            let allowed = *tag == self.durable[sector] || self.pending[sector].contains(tag);
            if !allowed {
                return Err(format!(
                    "sector {sector} holds {tag}; flushed was {}, written since {:?}",
                    self.durable[sector], self.pending[sector]
                ));
            }
        }
        for (sector, tag) in found.iter().enumerate() {
            self.live[sector] = *tag;
        }
        self.flush();
        Ok(())
    }
}

/// All volumes by name.
pub type Model = BTreeMap<String, VolumeModel>;
