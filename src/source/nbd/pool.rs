//! The connections of a source.

mod keeper;

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::NbdOptions;
use super::address::Address;
use super::handshake::{Agreed, Contexts, Topic, connect};
use super::lease::lease_of;
use super::link::{Answer, Job, Link, Lost, StatusDone, Waiter};
use super::tries::{self, PAUSES};
use crate::io::{Reservation, descriptors_max, give_way};
use crate::source::{
    About, Lease, LeaseRequest, OnArrival, ReadClass, Source, SourceError, SourceErrorKind, SourceExtent, SourceStats, host_of,
};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::mpsc;
use crate::sync::time::Instant;
use crate::sync::{Condvar, Mutex};
use crate::wire::constants::{EXPORT_CAN_MULTI_CONN, EXPORT_READ_ONLY, PAYLOAD_BYTES_MAX, STATE_ZERO};
use crate::wire::{HeaderMode, StatusExtent};

/// Requests under way on one connection; further ones wait.
const JOBS_MAX: usize = 64;
/// From this round trip on, a source gets twice as many connections: a loss halves the window of one of them only.
const FAR_ROUND_TRIP: Duration = Duration::from_millis(5);
/// Descriptors of one connection.
const LINK_DESCRIPTORS: usize = 3;

struct State {
    links: Vec<Arc<Link>>,
    /// Jobs that somebody waits for, and others.
    waiting: [VecDeque<Job>; 2],
    /// Since when there is no connection.
    lost_since: Option<Instant>,
    /// Since when connections are given up because requests wait too long, and nothing is answered.
    hangs_since: Option<Instant>,
    last_try: Instant,
    last_error: String,
    /// The export is not what it was: no read will succeed.
    changed: Option<String>,
    closed: bool,
    /// One connection is not enough, there was bulk or more than one request at a time. On a short way further ones are made only
    /// then: a reader that waits for the first bytes would wait for their handshakes as well.
    needs_all: bool,
    stats: SourceStats,
}

pub(super) struct Shared {
    pub(super) uri: String,
    /// What shares a way with it.
    host: String,
    address: Address,
    pub(super) options: NbdOptions,
    pub(super) size_bytes: u64,
    pub(super) align_bytes: u32,
    /// A read of the last bytes has to reach beyond them.
    pub(super) rounds_up: AtomicBool,
    read_bytes_max: u32,
    links_max: usize,
    contexts: Contexts,
    identity: Option<String>,
    about: About,
    is_writable: bool,
    status_bytes_max: u64,
    state: Mutex<State>,
    woken: Condvar,
}

/// An NBD export, read over one or several connections.
pub struct NbdSource(pub(super) Arc<Shared>);

impl std::fmt::Debug for NbdSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NbdSource").finish_non_exhaustive()
    }
}

fn block_sizes(agreed: &Agreed) -> (u32, u32) {
    let (minimum, _, maximum) = agreed.info.block_sizes.unwrap_or((1, 4096, PAYLOAD_BYTES_MAX));
    let maximum = maximum.min(PAYLOAD_BYTES_MAX);
    (minimum, 1 << maximum.max(512).ilog2())
}

impl NbdSource {
    /// What the server says on a topic of the bytes from the start of a range.
    fn status(&self, topic: Topic, range: Range<u64>) -> Result<Vec<StatusExtent>, SourceError> {
        let range = range.start..range.end.min(range.start.saturating_add(self.0.status_bytes_max));
        let (sender, receiver) = mpsc::channel();
        let done: StatusDone = Box::new(move |result| drop(sender.send(result)));
        self.0.submit(Job { range, waiter: Waiter::Status(topic, done), tries: 0 });
        receiver.recv().unwrap_or_else(|_| Err(self.0.error(SourceErrorKind::Closed, "it was closed")))
    }

    /// Connects to the export.
    ///
    /// # Errors
    /// [`SourceErrorKind::Invalid`] for a wrong address or export, [`SourceErrorKind::Lost`] if nobody answers.
    pub fn open(uri: &str, options: NbdOptions) -> Result<Arc<Self>, SourceError> {
        Self::open_with(uri, options, None).map(|(source, _)| source)
    }

    pub(super) fn open_with(
        uri: &str,
        options: NbdOptions,
        request: Option<&LeaseRequest>,
    ) -> Result<(Arc<Self>, Option<Lease>), SourceError> {
        let mut address = Address::parse(uri)?;
        let Some(_reserved) = Reservation::take(LINK_DESCRIPTORS, 3) else {
            let max = descriptors_max();
            let message = format!("{uri}: of the {max} descriptors of this process hardly any is left: raise the limit ('ulimit -n')");
            return Err(SourceError { kind: SourceErrorKind::Lost, message });
        };
        let mut agreed = connect(&address, &options, request).map_err(|refusal| refusal.into_error(uri))?;
        let lease = agreed.lease.take().map(|grant| lease_of(uri, &address, grant)).transpose()?;
        let uri = lease.as_ref().map_or(uri, |lease| &lease.uri);
        address = Address::parse(uri)?;
        let (align_bytes, read_bytes_max) = block_sizes(&agreed);
        let multi = agreed.info.flags & EXPORT_CAN_MULTI_CONN != 0;
        let far = agreed.round_trip >= FAR_ROUND_TRIP;
        let state = State {
            links: Vec::new(),
            waiting: [VecDeque::new(), VecDeque::new()],
            lost_since: None,
            hangs_since: None,
            last_try: Instant::now(),
            last_error: String::new(),
            changed: None,
            closed: false,
            needs_all: far,
            stats: SourceStats { round_trip: Some(agreed.round_trip), ..SourceStats::default() },
        };
        let shared = Arc::new(Shared {
            uri: uri.to_owned(),
            host: host_of(uri),
            address,
            size_bytes: agreed.info.size_bytes,
            align_bytes,
            rounds_up: AtomicBool::new(false),
            read_bytes_max,
            links_max: if multi { options.connections.max(1) * if far { 2 } else { 1 } + 1 } else { 1 },
            contexts: agreed.contexts,
            identity: agreed.identity.clone(),
            about: agreed.about.clone(),
            is_writable: agreed.info.flags & EXPORT_READ_ONLY == 0,
            status_bytes_max: if agreed.mode == HeaderMode::Extended { u64::MAX } else { (1 << 32) - (64 << 10) },
            options,
            state: Mutex::new(state),
            woken: Condvar::new(),
        });
        shared.adopt(agreed)?;
        let weak = Arc::downgrade(&shared);
        crate::sync::thread::Builder::new()
            .name("nbd-keeper".into())
            .spawn(move || {
                while catch_unwind(AssertUnwindSafe(|| keeper::keep(&weak))).is_err() {
                    crate::sync::thread::sleep(PAUSES.end);
                }
            })
            .map_err(|error| shared.error(SourceErrorKind::Lost, format!("cannot start a thread: {error}")))?;
        let source = Arc::new(Self(shared));
        source.find_tail()?;
        Ok((source, lease))
    }
}

impl Shared {
    pub(super) fn error(&self, kind: SourceErrorKind, text: impl std::fmt::Display) -> SourceError {
        SourceError { kind, message: format!("{}: {text}", self.uri) }
    }

    /// Takes a connection into use.
    fn adopt(self: &Arc<Self>, agreed: Agreed) -> Result<(), SourceError> {
        let lost = |error: std::io::Error| self.error(SourceErrorKind::Lost, error);
        let round_trip = agreed.round_trip;
        let (link, socket) = {
            let mut state = self.state.lock();
            if state.closed {
                // It was closed meanwhile, and nobody would ever end this connection.
                return Err(self.error(SourceErrorKind::Closed, "it was closed"));
            }
            // One of them is for those who wait, the others are for bulk.
            let in_background = state.links.iter().any(|link| !link.in_background);
            let (link, socket) = Link::new(agreed, self.options.request_timeout, in_background).map_err(lost)?;
            let link = Arc::new(link);
            state.stats.round_trip = state.stats.round_trip.map(|shortest| shortest.min(round_trip));
            state.links.push(Arc::clone(&link));
            state.reserve_one();
            (link, socket)
        };
        let (shared, reading) = (Arc::clone(self), Arc::clone(&link));
        let reader = crate::sync::thread::Builder::new().name("nbd-reader".into()).spawn(move || {
            if reading.in_background {
                give_way();
            }
            // Whatever ends the thread, what the connection has under way does not end with it.
            let run = || reading.run(socket, |job, answer| shared.complete(job, answer));
            let lost = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| reading.give_up("its reader panicked".into()));
            shared.lose(&reading, lost);
        });
        if let Err(error) = reader {
            // It may have got something to do already.
            self.lose(&link, link.give_up(error.to_string()));
            return Err(lost(error));
        }
        tries::succeed(&self.host);
        self.state.lock().lost_since = None;
        self.send_waiting();
        Ok(())
    }

    /// A connection is gone: what it had under way waits for another one.
    fn lose(&self, link: &Arc<Link>, Lost { reason, unanswered, jobs }: Lost) {
        let mut state = self.state.lock();
        state.links.retain(|other| !Arc::ptr_eq(other, link));
        state.reserve_one();
        if state.links.is_empty() && state.lost_since.is_none() {
            state.lost_since = Some(Instant::now());
        }
        state.last_error.clone_from(&reason);
        // A server that never answers a request, or always hangs up at it, must not be asked for ever.
        let (again, over): (Vec<Job>, Vec<Job>) = jobs.into_iter().map(Job::tried).partition(|job| job.tries < self.options.tries);
        state.stats.errors += over.len() as u64;
        again.into_iter().for_each(|job| state.wait(job));
        let closed = state.closed;
        // When a further connection has got no answer, those who wait for one would wait as long in turn.
        let hangs = unanswered && state.hangs_since.get_or_insert_with(Instant::now).elapsed() > self.options.request_timeout / 2;
        drop(state);
        for job in over {
            finish(job.waiter, Err(self.error(SourceErrorKind::Lost, &reason)));
        }
        if closed {
            return self.fail_waiting(&self.error(SourceErrorKind::Closed, "it was closed"));
        }
        if hangs {
            self.fail_waiting(&self.error(SourceErrorKind::Lost, &reason));
        }
        self.woken.notify_all();
        self.send_waiting();
    }

    pub(super) fn submit(&self, job: Job) {
        let mut state = self.state.lock();
        let refusal = if state.closed {
            Some(self.error(SourceErrorKind::Closed, "it was closed"))
        } else if let Some(changed) = &state.changed {
            Some(self.error(SourceErrorKind::Changed, changed))
        } else if self.is_given_up(&state) && state.last_try.elapsed() < PAUSES.end {
            // Tried a moment ago: fails at once rather than after another wait.
            Some(self.error(SourceErrorKind::Lost, &state.last_error))
        } else {
            None
        };
        if let Some(error) = refusal {
            state.stats.errors += 1;
            drop(state);
            return finish(job.waiter, Err(error));
        }
        state.wait(job);
        drop(state);
        self.send_waiting();
        self.woken.notify_all();
    }

    /// Hands waiting jobs to the connections, the least loaded first; those that somebody waits for before all others.
    fn send_waiting(&self) {
        loop {
            let (job, link) = {
                let mut state = self.state.lock();
                let Some(found) = state.next_to_send() else { return };
                found
            };
            if let Err(job) = link.send(job) {
                self.wait(job);
            }
        }
    }

    /// Lets a job wait for a connection, unless there will never be one.
    fn wait(&self, job: Job) {
        let mut state = self.state.lock();
        if !state.closed {
            return state.wait(job);
        }
        state.stats.errors += 1;
        drop(state);
        finish(job.waiter, Err(self.error(SourceErrorKind::Closed, "it was closed")));
    }

    fn complete(&self, mut job: Job, answer: Answer) {
        let result = match answer {
            Answer::Error(error, text) => {
                job.tries += 1;
                if job.tries < self.options.tries {
                    self.wait(job);
                    return self.send_waiting();
                }
                let place = format!("the server cannot read {} bytes at {}", job.range.end - job.range.start, job.range.start);
                let text = if text.is_empty() { String::new() } else { format!(": {text}") };
                Err(self.error(SourceErrorKind::Failed, format!("{place} (error {error}){text}")))
            }
            answer => Ok(answer),
        };
        {
            let mut state = self.state.lock();
            state.stats.requests += 1;
            state.hangs_since = None;
            match &result {
                Ok(Answer::Read) => state.stats.bytes_read += job.range.end - job.range.start,
                Ok(_) => {}
                Err(_) => state.stats.errors += 1,
            }
        }
        finish(job.waiter, result);
        self.send_waiting();
    }

    /// Ends every waiting job.
    fn fail_waiting(&self, error: &SourceError) {
        let jobs = {
            let mut state = self.state.lock();
            let jobs: Vec<Job> = state.waiting.iter_mut().flat_map(std::mem::take).collect();
            state.stats.errors += jobs.len() as u64;
            jobs
        };
        for job in jobs {
            finish(job.waiter, Err(error.clone()));
        }
    }

    /// Makes one more connection, if it is the same export.
    fn reconnect(self: &Arc<Self>) -> Result<(), SourceError> {
        self.state.lock().last_try = Instant::now();
        let agreed = connect(&self.address, &self.options, None).map_err(|refusal| refusal.into_error(&self.uri))?;
        if agreed.info.size_bytes != self.size_bytes {
            let what = format!("the export has {} bytes now, it had {}", agreed.info.size_bytes, self.size_bytes);
            return Err(self.error(SourceErrorKind::Changed, what));
        }
        let (align, most) = block_sizes(&agreed);
        if agreed.identity != self.identity {
            let name = |identity: &Option<String>| identity.clone().unwrap_or_else(|| "an export without identity".into());
            let what = format!("the export is another one now: {}, it was {}", name(&agreed.identity), name(&self.identity));
            return Err(self.error(SourceErrorKind::Changed, what));
        }
        if align > self.align_bytes || most < self.read_bytes_max || !agreed.contexts.is_like(&self.contexts) {
            return Err(self.error(SourceErrorKind::Changed, "the export has other limits now"));
        }
        self.adopt(agreed)
    }
}

impl State {
    /// Lets a job wait for a connection.
    fn wait(&mut self, job: Job) {
        let ahead = matches!(job.waiter, Waiter::Read(ReadClass::Ahead, _));
        self.needs_all |= ahead || self.links.iter().any(|link| link.load().is_some_and(|(jobs, _)| jobs > 0));
        self.waiting[usize::from(ahead)].push_back(job);
    }

    /// Of several connections, one takes only jobs that somebody waits for.
    fn reserve_one(&mut self) {
        let several = self.links.len() > 1;
        for link in &self.links {
            link.reserved.store(several && !link.in_background, Ordering::Relaxed);
        }
    }

    /// The first waiting job that a connection has room for.
    fn next_to_send(&mut self) -> Option<(Job, Arc<Link>)> {
        for queue in &mut self.waiting {
            let Some(job) = queue.front() else { continue };
            let free = self.links.iter().filter(|link| link.takes(job)).filter_map(|link| Some((link.load()?, link)));
            let link = free.filter(|((jobs, _), _)| *jobs < JOBS_MAX).min_by_key(|((jobs, bytes), _)| (*bytes, *jobs));
            let link = link.map(|(_, link)| Arc::clone(link));
            if let Some(link) = link {
                return queue.pop_front().map(|job| (job, link));
            }
        }
        None
    }
}

fn finish(waiter: Waiter, result: Result<Answer, SourceError>) {
    match (waiter, result) {
        (Waiter::Read(_, arrival), result) => arrival.end(result.map(drop)),
        (Waiter::Status(_, done), Ok(Answer::Extents(extents))) => done(Ok(extents)),
        (Waiter::Status(_, done), Err(error)) => done(Err(error)),
        // A link answers status requests with extents.
        (Waiter::Status(_, done), Ok(_)) => done(Err(mismatch())),
    }
}

fn mismatch() -> SourceError {
    SourceError { kind: SourceErrorKind::Changed, message: "a reply is not for its request".into() }
}

impl Source for NbdSource {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    fn read_bytes_max(&self) -> u32 {
        self.0.read_bytes_max
    }

    fn align_bytes(&self) -> u32 {
        self.0.align_bytes
    }

    fn read(&self, range: Range<u64>, class: ReadClass, arrival: OnArrival) {
        let (range, arrival) = self.rounded(range, arrival);
        self.0.submit(Job { range, waiter: Waiter::Read(class, arrival), tries: 0 });
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        // What is less than a request at the end is not asked for.
        let end = if range.end == self.0.size_bytes { range.end - range.end % u64::from(self.0.align_bytes) } else { range.end };
        if self.0.contexts.allocation.is_none() || end <= range.start {
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
        self.0.identity.clone()
    }

    fn about(&self) -> About {
        self.0.about.clone()
    }

    fn is_writable(&self) -> bool {
        self.0.is_writable
    }

    fn trace(&self) -> Result<Vec<Range<u64>>, SourceError> {
        if self.0.contexts.trace.is_none() {
            return Ok(Vec::new());
        }
        let mut offset = 0u64;
        let mut touched: Vec<(u64, Range<u64>)> = Vec::new();
        for extent in self.status(Topic::Trace, 0..self.0.size_bytes)? {
            let end = offset.saturating_add(extent.length).min(self.0.size_bytes);
            if extent.flags > 0 && offset < end {
                touched.push((extent.flags, offset..end));
            }
            offset = end;
        }
        touched.sort_unstable_by_key(|(number, _)| *number);
        Ok(touched.into_iter().map(|(_, range)| range).collect())
    }

    fn describe(&self) -> String {
        self.0.uri.clone()
    }

    fn stats(&self) -> SourceStats {
        self.0.state.lock().stats
    }

    fn close(&self) {
        let links = {
            let mut state = self.0.state.lock();
            state.closed = true;
            state.links.clone()
        };
        self.0.woken.notify_all();
        for link in links {
            link.close();
        }
        self.0.fail_waiting(&self.0.error(SourceErrorKind::Closed, "it was closed"));
    }
}

impl Drop for NbdSource {
    fn drop(&mut self) {
        self.close();
    }
}
