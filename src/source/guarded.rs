//! A wrapper around every source that the engine uses: the source inside is not trusted.
//!
//! # Invariants
//! - No panic of a source reaches its caller.
//! - [`Guarded::close`] ends every read under way, whether the source answers it or not. Later answers are dropped.
//! - Neither it nor the destructor calls code of the source, so the caller may hold locks. The exception: without a thread to be had, or
//!   with thousands of closings of the same host before it, the source is dropped by the caller instead, who waits for its destructor.
//! - Size, alignment and other constants are asked once. Impossible values are refused.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::closing;
use super::error::caught;
use super::threads;
use super::{About, Arrival, OnArrival, ReadClass, Source, SourceError, SourceErrorKind, SourceExtent, SourceStats};
use crate::io::{Next, Task};
use crate::sync::{Mutex, Rank};

/// The pause of a task that does nothing.
const NEVER: Duration = Duration::from_secs(1 << 30);

/// A source that is not trusted, with a slot for each read under way.
pub(crate) struct Guarded {
    /// `None` while this is dropped.
    inner: Option<Arc<dyn Source>>,
    uri: String,
    size_bytes: u64,
    read_bytes_max: u32,
    align_bytes: u32,
    identity: Option<String>,
    about: About,
    is_writable: bool,
    reads: Arc<Mutex<Reads>>,
    /// Keeps the lead of the pool running. A thread with low priority may close this source, and a lead that it started would inherit that.
    _keeps_lead: Option<Task>,
}

/// The callback of a read; `None` once the read has ended.
type Slot = Arc<Mutex<Option<OnArrival>>>;

/// The reads under way of a source.
#[derive(Default)]
struct Reads {
    open: BTreeMap<u64, Slot>,
    next: u64,
    closed: bool,
}

impl Guarded {
    /// # Errors
    /// The source gives an impossible size, alignment or limit, or panics.
    pub fn new(uri: &str, inner: Arc<dyn Source>) -> Result<Arc<Self>, SourceError> {
        let told = caught(uri, || {
            let (size_bytes, identity, about) = (inner.size_bytes(), inner.identity(), inner.about());
            (size_bytes, inner.read_bytes_max(), inner.align_bytes(), identity, about, inner.is_writable())
        });
        let made = told.and_then(|(size_bytes, read_bytes_max, align_bytes, identity, about, is_writable)| {
            if !read_bytes_max.is_power_of_two() || !align_bytes.is_power_of_two() || align_bytes > read_bytes_max {
                let what =
                    format!("the source of {uri} takes reads of {align_bytes} to {read_bytes_max} bytes: both must be powers of two");
                return Err(SourceError { kind: SourceErrorKind::Invalid, message: what });
            }
            // Without a thread it is tried again when something is to be closed.
            let keeps_lead = Task::begin(&threads::calls(), None, || Next::After(NEVER)).ok();
            Ok(Arc::new(Self {
                inner: Some(Arc::clone(&inner)),
                uri: uri.to_owned(),
                size_bytes,
                read_bytes_max,
                align_bytes,
                identity,
                about: about.believed(),
                is_writable,
                reads: Arc::new(Mutex::ranked(Rank::SourceReads, Reads::default())),
                _keeps_lead: keeps_lead,
            }))
        });
        if made.is_err() {
            closing::close(uri, inner);
        }
        made
    }

    /// What the source answers.
    fn ask<T>(&self, ask: impl FnOnce(&dyn Source) -> T) -> Result<T, SourceError> {
        let inner = self.inner.as_ref().ok_or_else(|| self.closed())?;
        caught(&self.uri, || ask(&**inner))
    }

    /// Ends the reads under way, and refuses others. `false`: that was done before.
    fn end_reads(&self) -> bool {
        let open = {
            let mut reads = self.reads.lock();
            if std::mem::replace(&mut reads.closed, true) {
                return false;
            }
            std::mem::take(&mut reads.open)
        };
        for slot in open.values() {
            end(slot, Err(self.closed()));
        }
        true
    }

    fn closed(&self) -> SourceError {
        SourceError { kind: SourceErrorKind::Closed, message: format!("{}: it was closed", self.uri) }
    }
}

/// One read under way: its number, and its callback until it has ended.
struct Read {
    reads: Arc<Mutex<Reads>>,
    uri: String,
    number: u64,
    slot: Slot,
}

impl Read {
    fn take(&self, arrival: Arrival) {
        match arrival {
            Arrival::Part(part) => {
                if let Some(arrival) = &mut *self.slot.lock() {
                    arrival.part(part);
                }
            }
            Arrival::End(result) => {
                let closed = {
                    let mut reads = self.reads.lock();
                    reads.open.remove(&self.number);
                    reads.closed
                };
                // Only the engine closes a source. A source that reports `Closed` by itself breaks its contract, like one that drops a
                // callback.
                let result = result.map_err(|error| match error.kind {
                    SourceErrorKind::Closed if !closed => {
                        SourceError { kind: SourceErrorKind::Changed, message: format!("{}: {}", self.uri, error.message) }
                    }
                    _ => error,
                });
                end(&self.slot, result);
            }
        }
    }
}

/// Ends a read, unless it has ended.
fn end(slot: &Slot, result: Result<(), SourceError>) {
    let taken = slot.lock().take();
    if let Some(arrival) = taken {
        arrival.end(result);
    }
}

impl Source for Guarded {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_bytes_max(&self) -> u32 {
        self.read_bytes_max
    }

    fn align_bytes(&self) -> u32 {
        self.align_bytes
    }

    fn read(&self, range: Range<u64>, class: ReadClass, arrival: OnArrival) {
        let slot = Arc::new(Mutex::ranked(Rank::SourceRead, Some(arrival)));
        let number = {
            let mut reads = self.reads.lock();
            reads.next += 1;
            let number = reads.next;
            (!reads.closed).then(|| {
                reads.open.insert(number, Arc::clone(&slot));
                number
            })
        };
        let Some(number) = number else { return end(&slot, Err(self.closed())) };
        let read = Read { reads: Arc::clone(&self.reads), uri: self.uri.clone(), number, slot: Arc::clone(&slot) };
        let arrival = OnArrival::new(move |arrival| read.take(arrival));
        if let Err(error) = self.ask(|inner| inner.read(range, class, arrival)) {
            // After a panic the source may never end this read, so it ends here.
            self.reads.lock().open.remove(&number);
            end(&slot, Err(error));
        }
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        self.ask(|inner| inner.extents(range))?
    }

    fn identity(&self) -> Option<String> {
        self.identity.clone()
    }

    fn about(&self) -> About {
        self.about.clone()
    }

    fn is_writable(&self) -> bool {
        self.is_writable
    }

    fn trace(&self) -> Result<Vec<Range<u64>>, SourceError> {
        self.ask(|inner| inner.trace())?
    }

    fn describe(&self) -> String {
        self.uri.clone()
    }

    fn stats(&self) -> SourceStats {
        self.ask(|inner| inner.stats()).unwrap_or_default()
    }

    fn close(&self) {
        if self.end_reads() {
            self.inner.iter().for_each(|inner| closing::close(&self.uri, Arc::clone(inner)));
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        if self.end_reads() { closing::close(&self.uri, inner) } else { closing::release(&self.uri, inner) }
    }
}
