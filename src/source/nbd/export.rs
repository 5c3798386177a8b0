//! An NBD export as a source.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::NbdOptions;
use super::address::Address;
use super::handshake::{Topic, connect};
use super::job::{Job, StatusDone, Waiter};
use super::lease::{self, lease_of};
use super::pool::{Export, Shared, block_sizes};
use super::{keeper, tail};
use crate::io::{Reservation, descriptors_max};
use crate::source::{
    About, Lease, LeaseRequest, LeasedSource, OnArrival, ReadClass, Source, SourceError, SourceErrorKind, SourceExtent, SourceStats,
    host_of,
};
use crate::sync::mpsc;
use crate::wire::constants::{EXPORT_CAN_MULTI_CONN, EXPORT_READ_ONLY, STATE_ZERO};
use crate::wire::{HeaderMode, StatusExtent};

/// A source with at least this round trip gets twice as many connections: a lost packet halves the TCP window of one of them only.
const FAR_ROUND_TRIP: Duration = Duration::from_millis(5);

/// An NBD export, read over one or several connections.
///
/// ```
/// # #[cfg(feature = "serve")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// # let volume = store.create_volume("base", 1 << 20)?;
/// # volume.write_at(b"base", 0)?;
/// # volume.create_snapshot("v1")?;
/// # let listener = volfork::serve::Listener::parse(&format!("unix:{}", directory.path().join("nbd.sock").display()))?;
/// # let server = volfork::serve::NbdServer::start(std::sync::Arc::new(store.clone()), vec![listener], Default::default())?;
/// # let uri = |export: &str| server.uris(export).remove(0);
/// use volfork::source::{NbdOptions, NbdSource, Source, SourceExt};
///
/// // Any NBD server will do; this one is a volfork.
/// let source = NbdSource::open(&uri("base@v1"), NbdOptions::default())?;
/// assert_eq!((source.size_bytes(), source.is_writable()), (1 << 20, false));
/// assert_eq!(source.read_blocking(0..4)?, "base");
/// source.close();
/// # drop(server);
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "serve"))]
/// # fn main() {}
/// ```
pub struct NbdSource(Arc<Shared>);

impl std::fmt::Debug for NbdSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NbdSource").finish_non_exhaustive()
    }
}

impl NbdSource {
    /// Asks for the block status of a range on one topic. The extents cover a prefix of the range.
    fn status(&self, topic: Topic, range: Range<u64>) -> Result<Vec<StatusExtent>, SourceError> {
        let range = range.start..range.end.min(range.start.saturating_add(self.0.export.status_bytes_max));
        let (sender, receiver) = mpsc::channel();
        let done: StatusDone = Box::new(move |result| drop(sender.send(result)));
        self.0.submit(Job { range, waiter: Waiter::Status(topic, done), tries: 0, lost_at: None });
        receiver.recv().unwrap_or_else(|_| Err(self.0.error(SourceErrorKind::Closed, "it was closed")))
    }

    /// Connects to the export.
    ///
    /// # Errors
    /// [`SourceErrorKind::Invalid`] for a wrong address or export, [`SourceErrorKind::Lost`] if nobody answers.
    pub fn open(uri: &str, options: NbdOptions) -> Result<Arc<Self>, SourceError> {
        Self::open_with(uri, options, None).map(|(source, _)| source)
    }

    /// As [`NbdSource::open`], with a lease if the server supports leases. The source then reads the snapshot that the lease holds.
    ///
    /// # Errors
    /// As [`NbdSource::open`]; the server refuses the lease.
    pub fn open_leased(uri: &str, options: NbdOptions, request: &LeaseRequest) -> Result<LeasedSource, SourceError> {
        let (source, lease) = Self::open_with(uri, options, Some(request))?;
        Ok(LeasedSource { source, lease })
    }

    /// Renews a lease, or gives it back.
    ///
    /// # Errors
    /// Nobody answers, or the server refuses the lease.
    pub fn lease(uri: &str, options: &NbdOptions, request: &LeaseRequest) -> Result<Option<Lease>, SourceError> {
        lease::ask(uri, options, request)
    }

    fn open_with(uri: &str, options: NbdOptions, request: Option<&LeaseRequest>) -> Result<(Arc<Self>, Option<Lease>), SourceError> {
        let address = Address::parse(uri)?;
        let Some(_reserved) = Reservation::take(1, 3) else {
            let max = descriptors_max();
            let message = format!("{uri}: this process has used up almost all of its {max} descriptors: raise the limit ('ulimit -n')");
            return Err(SourceError { kind: SourceErrorKind::Lost, message });
        };
        let mut agreed = connect(&address, &options, request).map_err(|refusal| refusal.into_error(uri))?;
        let lease = agreed.lease.take().map(|grant| lease_of(uri, &address, grant)).transpose()?;
        let uri = lease.as_ref().map_or(uri, |lease| &lease.uri);
        let (align_bytes, read_bytes_max) = block_sizes(&agreed);
        let multi = agreed.info.flags & EXPORT_CAN_MULTI_CONN != 0;
        let far = agreed.round_trip >= FAR_ROUND_TRIP;
        let export = Export {
            uri: uri.to_owned(),
            host: host_of(uri),
            address: Address::parse(uri)?,
            size_bytes: agreed.info.size_bytes,
            align_bytes,
            read_bytes_max,
            links_max: if multi { options.connections.max(1) * if far { 2 } else { 1 } + 1 } else { 1 },
            contexts: agreed.contexts,
            identity: agreed.identity.clone(),
            about: agreed.about.clone(),
            is_writable: agreed.info.flags & EXPORT_READ_ONLY == 0,
            status_bytes_max: if agreed.mode == HeaderMode::Extended { u64::MAX } else { (1 << 32) - (64 << 10) },
            options,
        };
        let shared = Shared::new(export, agreed.round_trip, far);
        shared.adopt(agreed)?;
        let source = Arc::new(Self(shared));
        let keeper = keeper::begin(&source.0).map_err(|_| source.0.error(SourceErrorKind::Lost, "no thread can be had for it"))?;
        source.0.set_keeper(keeper);
        tail::find(&source.0)?;
        Ok((source, lease))
    }
}

impl Source for NbdSource {
    fn size_bytes(&self) -> u64 {
        self.0.export.size_bytes
    }

    fn read_bytes_max(&self) -> u32 {
        self.0.export.read_bytes_max
    }

    fn align_bytes(&self) -> u32 {
        self.0.export.align_bytes
    }

    fn read(&self, range: Range<u64>, class: ReadClass, arrival: OnArrival) {
        let (range, arrival) = tail::rounded(&self.0, range, arrival);
        self.0.submit(Job { range, waiter: Waiter::Read(class, arrival), tries: 0, lost_at: None });
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        // A rest at the end that is smaller than a request is not asked for.
        let end =
            if range.end == self.0.export.size_bytes { range.end - range.end % u64::from(self.0.export.align_bytes) } else { range.end };
        if self.0.export.contexts.allocation.is_none() || end <= range.start {
            return Ok(vec![SourceExtent { bytes: range.end - range.start, zero: false }]);
        }
        let range = range.start..end;
        let mut left = range.end - range.start;
        let mut extents: Vec<SourceExtent> = Vec::new();
        for extent in self.status(Topic::Allocation, range)? {
            let (bytes, zero) = (extent.length.min(left), extent.flags & u64::from(STATE_ZERO) != 0);
            left -= bytes;
            match extents.last_mut() {
                Some(last) if last.zero == zero => last.bytes += bytes,
                _ if bytes > 0 => extents.push(SourceExtent { bytes, zero }),
                _ => {}
            }
        }
        Ok(extents)
    }

    fn identity(&self) -> Option<String> {
        self.0.export.identity.clone()
    }

    fn about(&self) -> About {
        self.0.export.about.clone()
    }

    fn is_writable(&self) -> bool {
        self.0.export.is_writable
    }

    fn trace(&self) -> Result<Vec<Range<u64>>, SourceError> {
        if self.0.export.contexts.trace.is_none() {
            return Ok(Vec::new());
        }
        let mut offset = 0u64;
        let mut touched: Vec<(u64, Range<u64>)> = Vec::new();
        for extent in self.status(Topic::Trace, 0..self.0.export.size_bytes)? {
            let end = offset.saturating_add(extent.length).min(self.0.export.size_bytes);
            if extent.flags > 0 && offset < end {
                touched.push((extent.flags, offset..end));
            }
            offset = end;
        }
        touched.sort_unstable_by_key(|(number, _)| *number);
        Ok(touched.into_iter().map(|(_, range)| range).collect())
    }

    fn describe(&self) -> String {
        self.0.export.uri.clone()
    }

    fn stats(&self) -> SourceStats {
        self.0.stats()
    }

    fn close(&self) {
        self.0.close();
    }
}

impl Drop for NbdSource {
    fn drop(&mut self) {
        self.close();
    }
}
