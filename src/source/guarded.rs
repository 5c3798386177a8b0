//! A wrapper around every source that the engine uses: the source inside is not trusted.
//!
//! # Invariants
//! - No panic of a source reaches its caller.
//! - [`Guarded::close`] ends every read under way, whether the source answers it or not. Later answers are dropped.
//! - Size, alignment and other constants are asked once. Impossible values are refused.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::threads;
use super::uri::host_of;
use super::{About, Arrival, OnArrival, ReadClass, Source, SourceError, SourceErrorKind, SourceExtent, SourceStats};
use crate::io::Refusal;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::mpsc::channel;
use crate::sync::{Mutex, PerProcess};

/// How long [`Guarded::close`] waits for the source; afterwards the source closes in the background.
const CLOSE_PATIENCE: Duration = Duration::from_millis(200);

/// Sources that took longer to close and have not ended yet. While there is one, closing waits for no other source, so that closing
/// many hung sources costs one wait.
static OVERDUE: PerProcess<AtomicUsize> = PerProcess::new(|| AtomicUsize::new(0));

/// A source that is not trusted, with a slot for each read under way.
pub(crate) struct Guarded {
    inner: Arc<dyn Source>,
    uri: String,
    size_bytes: u64,
    read_bytes_max: u32,
    align_bytes: u32,
    identity: Option<String>,
    about: About,
    is_writable: bool,
    reads: Arc<Mutex<Reads>>,
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

/// Calls `ask`; a panic becomes an error that names `uri`.
pub(super) fn caught<T>(uri: &str, ask: impl FnOnce() -> T) -> Result<T, SourceError> {
    catch_unwind(AssertUnwindSafe(ask))
        .map_err(|_| SourceError { kind: SourceErrorKind::Failed, message: format!("the source of {uri} panicked") })
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
            let (inner, reads, about, uri) = (Arc::clone(&inner), Arc::default(), about.believed(), uri.to_owned());
            Ok(Arc::new(Self { inner, uri, size_bytes, read_bytes_max, align_bytes, identity, about, is_writable, reads }))
        });
        if made.is_err() {
            close_aside(uri, &inner);
        }
        made
    }

    fn closed(&self) -> SourceError {
        SourceError { kind: SourceErrorKind::Closed, message: format!("{}: it was closed", self.uri) }
    }
}

/// Counts a source that takes long to close, until it is dropped.
struct Overdue(Arc<AtomicUsize>);

impl Overdue {
    fn begin() -> Self {
        let overdue = OVERDUE.get();
        overdue.fetch_add(1, Ordering::AcqRel);
        Self(overdue)
    }
}

impl Drop for Overdue {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Closes a source on a thread of the pool, because it may hang or panic, and waits for a bounded time.
fn close_aside(uri: &str, source: &Arc<dyn Source>) {
    let (closing, name) = (Arc::clone(source), uri.to_owned());
    // Empty once the source is closed.
    let overdue = Arc::new(Mutex::new(Some(None)));
    let ending = Arc::clone(&overdue);
    let (sender, receiver) = channel();
    let close = move || {
        // The panic was printed. The source is not used any more.
        let _ = caught(&name, || closing.close());
        drop(closing);
        drop(ending.lock().take());
        // The receiver is gone if closing took longer than the patience.
        let _ = sender.send(());
    };
    match threads::calls().run(&format!("close {}", host_of(uri)), Box::new(close)) {
        Ok(()) if OVERDUE.get().load(Ordering::Acquire) > 0 => {}
        Ok(()) => {
            if receiver.recv_timeout(CLOSE_PATIENCE).is_err()
                && let Some(slot) = &mut *overdue.lock()
            {
                *slot = Some(Overdue::begin());
            }
        }
        Err(refused) if refused.why == Refusal::NoThread => (refused.job)(),
        // Too many calls of this host wait already: this source closes when it is dropped.
        Err(_) => {}
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
        let slot = Arc::new(Mutex::new(Some(arrival)));
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
        if let Err(error) = caught(&self.uri, || self.inner.read(range, class, arrival)) {
            // After a panic the source may never end this read, so it ends here.
            self.reads.lock().open.remove(&number);
            end(&slot, Err(error));
        }
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        caught(&self.uri, || self.inner.extents(range))?
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
        caught(&self.uri, || self.inner.trace())?
    }

    fn describe(&self) -> String {
        self.uri.clone()
    }

    fn stats(&self) -> SourceStats {
        caught(&self.uri, || self.inner.stats()).unwrap_or_default()
    }

    fn close(&self) {
        let open = {
            let mut reads = self.reads.lock();
            if std::mem::replace(&mut reads.closed, true) {
                return;
            }
            std::mem::take(&mut reads.open)
        };
        for slot in open.values() {
            end(slot, Err(self.closed()));
        }
        close_aside(&self.uri, &self.inner);
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.close();
    }
}
