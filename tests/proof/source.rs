//! Remote sources of forks: slow, and at times unreachable or wrong.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use volfork::source::{
    Checksums, OnArrival, Part, ReadClass, Source, SourceError, SourceErrorKind, SourceExtent, SourceOpener, content_checksum,
};
use volfork::sync::sim;

use crate::bytes::sector_bytes;
use crate::disk::SimDisk;
use crate::image::SECTOR;
use crate::plan::Plan;
use crate::sector::Tag;

/// Most bytes of a read.
const READ_BYTES_MAX: u32 = 64 << 10;
/// Bytes that a server has a checksum for.
const CHECKED_BYTES: usize = 4096;
/// Longer than anybody waits for a server.
pub const FOR_EVER: Duration = Duration::from_secs(120);

/// What the server with this number has: in some blocks zeros.
pub fn tag_of(server: Tag, sector: usize) -> Tag {
    if (sector as u64 / 16 + server) % 3 == 1 { 0 } else { server }
}

/// The address of a server.
pub fn uri(server: Tag) -> String {
    format!("sim://{server}")
}

/// All servers.
#[derive(Clone)]
pub struct Servers {
    start: u64,
    size_bytes: u64,
    /// Its weather is that of the servers.
    disk: SimDisk,
}

#[derive(Clone)]
struct Server {
    servers: Servers,
    number: Tag,
}

impl Servers {
    pub fn new(plan: &Plan, disk: &SimDisk) -> Self {
        Self { start: plan.start(), size_bytes: plan.size_bytes(plan.window as u64), disk: disk.clone() }
    }

    fn fails(&self) -> bool {
        let one_in = self.disk.medium().weather.servers;
        one_in > 0 && sim::below(one_in) == 0
    }
}

fn error(kind: SourceErrorKind) -> SourceError {
    SourceError { kind, message: format!("the server is {kind:?}") }
}

impl SourceOpener for Servers {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        let number = uri.rsplit('/').next().and_then(|number| number.parse().ok()).ok_or_else(|| error(SourceErrorKind::Invalid))?;
        crate::threads::point();
        if self.fails() { Err(error(SourceErrorKind::Lost)) } else { Ok(Arc::new(Server { servers: self.clone(), number })) }
    }
}

impl Server {
    fn part(&self, range: &Range<u64>) -> Part {
        let sectors = range.start / SECTOR as u64..range.end / SECTOR as u64;
        let start = self.servers.start / SECTOR as u64;
        let bytes: Vec<u8> = sectors
            .flat_map(|sector| match sector.checked_sub(start) {
                Some(sector) => sector_bytes(tag_of(self.number, sector as usize), sector as usize),
                None => [0; SECTOR],
            })
            .collect();
        let values = bytes.chunks(CHECKED_BYTES).map(|block| Some(content_checksum(block, CHECKED_BYTES))).collect();
        let checksums = Checksums { block_bytes: CHECKED_BYTES as u32, first: range.start, values };
        Part { offset: range.start, bytes: Bytes::from(bytes), checksums }
    }

    fn answer(&self, range: &Range<u64>, mut arrival: OnArrival) {
        if !self.servers.fails() {
            arrival.part(self.part(range));
            return arrival.end(Ok(()));
        }
        match sim::below(5) {
            0 => {
                let mut part = self.part(range);
                let mut bytes = part.bytes.to_vec();
                bytes[sim::below(part.bytes.len() as u64) as usize] ^= 0x10;
                part.bytes = Bytes::from(bytes);
                arrival.part(part);
                arrival.end(Ok(()));
            }
            1 => {
                arrival.part(self.part(range));
                arrival.end(Err(error(SourceErrorKind::Lost)));
            }
            2 => arrival.end(Err(error(SourceErrorKind::Failed))),
            3 => {
                crate::threads::sleep(FOR_EVER);
                arrival.end(Err(error(SourceErrorKind::Lost)));
            }
            // It forgets the request.
            _ => drop(arrival),
        }
    }
}

impl Source for Server {
    fn size_bytes(&self) -> u64 {
        self.servers.size_bytes
    }

    fn read_bytes_max(&self) -> u32 {
        READ_BYTES_MAX
    }

    fn align_bytes(&self) -> u32 {
        CHECKED_BYTES as u32
    }

    fn read(&self, range: Range<u64>, _: ReadClass, arrival: OnArrival) {
        let range = range.start..range.end;
        if !sim::is_running() {
            return self.answer(&range, arrival);
        }
        let server = self.clone();
        let delay = Duration::from_micros([0, 100, 5_000][sim::below(3) as usize] * (1 + sim::below(4)));
        // Where no thread can be started, it forgets the request.
        let _ = crate::threads::try_spawn("server", move || {
            crate::threads::sleep(delay);
            server.answer(&range, arrival);
        });
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        crate::threads::point();
        if self.servers.fails() {
            return Err(error(SourceErrorKind::Lost));
        }
        let zeros = self.servers.start.saturating_sub(range.start).min(range.end - range.start);
        let extents = [SourceExtent { bytes: zeros, zero: true }, SourceExtent { bytes: range.end - range.start - zeros, zero: false }];
        Ok(extents.into_iter().filter(|extent| extent.bytes > 0).collect())
    }

    fn identity(&self) -> Option<String> {
        // Forks of a server that has one share what is fetched.
        self.number.is_multiple_of(2).then(|| uri(self.number))
    }

    fn describe(&self) -> String {
        uri(self.number)
    }
}
