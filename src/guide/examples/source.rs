//! Forks from a source of one's own: any read-only bytes that can be read by range.
//!
//! `cargo run --example source`

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use volfork::source::{OnArrival, Part, ReadClass, Source, SourceError, SourceErrorKind, SourceExtent, SourceOpener, UriSources};
use volfork::{Store, StoreOptions};

/// Bytes that are computed: the first half counts, the second is zero. A real source asks an object store or an archive.
struct Numbers {
    size_bytes: u64,
}

fn byte_at(offset: u64, size_bytes: u64) -> u8 {
    if offset < size_bytes / 2 { (offset / 4096).to_le_bytes()[0] } else { 0 }
}

impl Source for Numbers {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Called by many threads at once. A source that has to wait starts the read here, returns, and answers from another thread.
    fn read(&self, range: Range<u64>, _class: ReadClass, mut arrival: OnArrival) {
        let bytes: Vec<u8> = range.clone().map(|offset| byte_at(offset, self.size_bytes)).collect();
        arrival.part(Part::new(range.start, bytes.into()));
        // A callback that is dropped without `end` fails its read.
        arrival.end(Ok(()));
    }

    /// Zero ranges are stored as such, without a read.
    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        let half = self.size_bytes / 2;
        let data = range.end.min(half).saturating_sub(range.start);
        let runs = [SourceExtent { bytes: data, zero: false }, SourceExtent { bytes: range.end - range.start - data, zero: true }];
        Ok(runs.into_iter().filter(|run| run.bytes > 0).collect())
    }

    /// The same for every handle of the same bytes, for ever: forks of one identity share what they fetch.
    fn identity(&self) -> Option<String> {
        Some(format!("numbers-{}", self.size_bytes))
    }

    fn describe(&self) -> String {
        format!("numbers://{}", self.size_bytes)
    }
}

/// Opens `numbers://SIZE`, and every other address as volfork does.
struct Sources(UriSources);

impl SourceOpener for Sources {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        let Some(size) = uri.strip_prefix("numbers://") else { return self.0.open(uri) };
        let size_bytes = size
            .parse()
            .map_err(|error| SourceError { kind: SourceErrorKind::Invalid, message: format!("'{uri}' has no size in bytes: {error}") })?;
        Ok(Arc::new(Numbers { size_bytes }))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let options = StoreOptions::default().with_sources(Arc::new(Sources(UriSources::default())));
    let store = Store::create(directory.path().join("store"), options)?;

    // The address is kept with the fork: a store that is opened again opens the source again.
    let fork = store.fork("numbers://33554432", "machine")?;
    let mut bytes = [0; 4096];
    fork.read_at(&mut bytes, 5 * 4096)?;
    assert_eq!(bytes, [5; 4096]);
    println!("read block 5 through the source");

    assert!(store.wait_hydrated("machine", Duration::from_secs(60))?);
    let info = store.show("machine")?;
    assert_eq!(info.blocks.missing, 0);
    assert!(info.hydration.bytes_fetched <= 17 << 20, "zeros are not fetched");
    println!("complete: fetched {} of {} bytes", info.hydration.bytes_fetched, info.size_bytes);

    let error = store.fork("numbers://many", "other").err().ok_or("a wrong address was opened")?;
    println!("refused: {error}");
    store.close()?;
    Ok(())
}
