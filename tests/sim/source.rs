//! A source that can fail.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use volfork::source::{
    Checksums, OnArrival, Part, ReadClass, Source, SourceError, SourceErrorKind, SourceExtent, SourceOpener, SourceStats, content_checksum,
};

use crate::model::{SECTOR, VOLUME_BYTES, WINDOW_SECTORS, WINDOW_START, sector_bytes};

/// Tags of the source's sectors: some are zero.
pub fn source_tags() -> Vec<u64> {
    (0..WINDOW_SECTORS as u64).map(|sector| if sector / 16 % 3 == 1 { 0 } else { 1_000_000 + sector }).collect()
}

/// An address whose server fails, lies and goes away as it pleases.
pub const MOODY: &str = "sim://moody";
/// One that does not, unless it is lost.
pub const STEADY: &str = "sim://x";

#[derive(Default)]
pub struct World {
    pub lost: AtomicBool,
    pub bytes_read: AtomicU64,
    /// Reads of the moody one.
    pub moods: AtomicU64,
}

pub struct SimSource(Arc<World>, bool);

#[derive(Clone, Default)]
pub struct SimSources(pub Arc<World>);

impl SourceOpener for SimSources {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        match self.0.lost.load(Ordering::SeqCst) {
            true => Err(lost(uri)),
            false if uri == MOODY && self.0.mood().is_multiple_of(4) => Err(lost(uri)),
            false => Ok(Arc::new(SimSource(Arc::clone(&self.0), uri == MOODY))),
        }
    }
}

fn lost(uri: &str) -> SourceError {
    SourceError { kind: SourceErrorKind::Lost, message: format!("{uri} does not answer") }
}

impl World {
    /// A number that looks random, another one each time.
    fn mood(&self) -> u64 {
        let count = self.moods.fetch_add(1, Ordering::SeqCst) + 1;
        count.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 40
    }
}

impl Source for SimSource {
    fn size_bytes(&self) -> u64 {
        VOLUME_BYTES
    }

    fn read_bytes_max(&self) -> u32 {
        64 << 10
    }

    fn read(&self, range: Range<u64>, _class: ReadClass, mut arrival: OnArrival) {
        if self.0.lost.load(Ordering::SeqCst) {
            return arrival.end(Err(lost("sim://")));
        }
        assert!(range.start < range.end && range.end <= VOLUME_BYTES && range.end - range.start <= 64 << 10);
        self.0.bytes_read.fetch_add(range.end - range.start, Ordering::SeqCst);
        let tags = source_tags();
        let mut bytes = Vec::new();
        for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
            let inside = sector.checked_sub(WINDOW_START / SECTOR);
            bytes.extend(sector_bytes(inside.map_or(0, |sector| tags[sector as usize])));
        }
        let values = bytes.chunks(4096).map(|block| Some(content_checksum(block, 4096))).collect();
        let checksums = Checksums { block_bytes: 4096, first: range.start, values };
        let mood = if self.1 { self.0.mood() % 8 } else { 7 };
        if mood == 0 {
            let at = (self.0.mood() % bytes.len() as u64) as usize;
            bytes[at] ^= 0x10;
        }
        if mood != 1 {
            arrival.part(Part { offset: range.start, bytes: Bytes::from(bytes), checksums });
        }
        arrival.end(match mood {
            1 | 2 => Err(lost(MOODY)),
            3 => Err(SourceError { kind: SourceErrorKind::Failed, message: "an error at the server".into() }),
            4 => Err(SourceError { kind: SourceErrorKind::Changed, message: "the server breaks the protocol".into() }),
            _ => Ok(()),
        });
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        if self.0.lost.load(Ordering::SeqCst) {
            return Err(lost("sim://"));
        }
        let zero = WINDOW_START.saturating_sub(range.start).min(range.end - range.start);
        let mut extents =
            vec![SourceExtent { bytes: zero, zero: true }, SourceExtent { bytes: range.end - range.start - zero, zero: false }];
        extents.retain(|extent| extent.bytes > 0);
        Ok(extents)
    }

    fn identity(&self) -> Option<String> {
        Some("sim/1".into())
    }

    fn describe(&self) -> String {
        "sim://".into()
    }

    fn stats(&self) -> SourceStats {
        SourceStats { bytes_read: self.0.bytes_read.load(Ordering::SeqCst), ..SourceStats::default() }
    }
}
