//! The connections of a source, and the queue of jobs that wait for them.
//!
//! # Descriptors
//! A connection uses one descriptor. Half of the descriptors that the process may have, divided by the number of open sources, is the
//! share of a source: the most connections it may have, but always at least one. As more sources are opened, idle connections beyond the
//! share are closed. Connections after the first are made only while less than half of all descriptors are in use.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::NbdOptions;
use super::address::Address;
use super::handshake::{Agreed, Contexts, connect};
use super::job::{Answer, Job, Waiter};
use super::link::{Link, Lost};
use super::reactor::{Driven, reactor};
use super::replies::Replies;
use super::tries::{self, PAUSES};
use crate::io::{Task, descriptors_max};
use crate::place::wide;
use crate::source::{About, ReadClass, SourceError, SourceErrorKind, SourceStats};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::time::Instant;
use crate::sync::{Mutex, OnceLock, PerProcess, Rank};
use crate::wire::constants::PAYLOAD_BYTES_MAX;

/// Most requests under way on one connection; further ones wait.
const JOBS_MAX: usize = 64;

/// Number of open sources.
static OPEN: PerProcess<AtomicUsize> = PerProcess::new(|| AtomicUsize::new(0));

/// Guard of an open source, which counts in `OPEN` until dropped.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub fn begin() -> Self {
        let open = OPEN.get();
        open.fetch_add(1, Ordering::AcqRel);
        Self(open)
    }

    /// Connections that each source may have.
    fn share(&self) -> usize {
        (descriptors_max() / 2 / self.0.load(Ordering::Acquire).max(1)).max(1)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Attempts to reconnect that are under way.
pub(super) struct Attempts {
    pub under_way: usize,
    /// Those that still wait for a thread.
    pub queued: usize,
    /// No further connection is tried before this time.
    pub after: Instant,
    /// Whether one of the ended attempts has connected; `None` if none has ended.
    outcome: Option<bool>,
}

impl Attempts {
    pub fn end(&mut self, made: bool) {
        self.under_way -= 1;
        self.outcome = Some(made || self.outcome == Some(true));
    }

    /// Takes the outcome: whether one attempt has connected. `None` while attempts are under way.
    pub fn take_outcome(&mut self) -> Option<bool> {
        if self.under_way == 0 { self.outcome.take() } else { None }
    }
}

pub(super) struct State {
    pub links: Vec<Arc<Link>>,
    /// Jobs with a waiting reader, and the other jobs.
    waiting: [VecDeque<Job>; 2],
    /// Since when there is no connection.
    lost_since: Option<Instant>,
    /// Since when connections have been given up for timeouts without any reply in between.
    hangs_since: Option<Instant>,
    last_try: Instant,
    last_error: String,
    /// Why the export is not the one that was opened: no read will succeed.
    changed: Option<String>,
    pub closed: bool,
    /// One connection is not enough: there was bulk, or more than one request at a time. With a short round trip, further connections are
    /// made only then: their handshakes would delay a reader that waits for the first bytes.
    needs_all: bool,
    pub attempts: Attempts,
    pub stats: SourceStats,
}

/// Constants of a source.
pub(super) struct Export {
    pub uri: String,
    /// Key of its host ([`crate::source::host_of`]).
    pub host: String,
    pub address: Address,
    pub options: NbdOptions,
    pub size_bytes: u64,
    pub align_bytes: u32,
    pub read_bytes_max: u32,
    pub links_max: usize,
    pub contexts: Contexts,
    pub identity: Option<String>,
    pub about: About,
    pub is_writable: bool,
    pub status_bytes_max: u64,
}

pub(super) struct Shared {
    pub export: Export,
    /// The server demands whole blocks: a read of the last bytes must reach beyond the size.
    pub rounds_up: AtomicBool,
    /// Most connections that its share of the descriptors allows.
    share: AtomicUsize,
    open: Counted,
    pub state: Mutex<State>,
    /// The task that reconnects; empty before it has begun.
    keeper: OnceLock<Task>,
}

/// Alignment of requests and longest read, in bytes.
pub(super) fn block_sizes(agreed: &Agreed) -> (u32, u32) {
    let (minimum, _, maximum) = agreed.info.block_sizes.unwrap_or((1, 4096, PAYLOAD_BYTES_MAX));
    let maximum = maximum.min(PAYLOAD_BYTES_MAX);
    (minimum, 1 << maximum.max(512).ilog2())
}

/// A connection as its reactor drives it.
struct Connection {
    shared: Arc<Shared>,
    link: Arc<Link>,
    replies: Mutex<Replies>,
}

impl Driven for Connection {
    fn socket(&self) -> BorrowedFd<'_> {
        self.link.socket.as_fd()
    }

    fn ready(&self, readable: bool, writable: bool, buffer: &mut [u8]) -> io::Result<()> {
        if writable {
            self.link.send_unsent()?;
        }
        if !readable {
            return Ok(());
        }
        // Only the thread of the reactor takes this lock.
        self.replies.lock().take(&self.link, buffer, &mut |job, answer| self.shared.complete(job, answer))
    }

    fn tick(&self) -> io::Result<()> {
        self.replies.lock().tick(&self.link)
    }

    fn give_up(&self, reason: String) {
        self.shared.lose(&self.link, self.link.give_up(reason));
    }
}

impl Shared {
    pub fn error(&self, kind: SourceErrorKind, text: impl std::fmt::Display) -> SourceError {
        SourceError { kind, message: format!("{}: {text}", self.export.uri) }
    }

    /// A source without connections. `round_trip` is that of the first connection, which the caller adopts next.
    pub fn new(export: Export, round_trip: Duration, is_far: bool) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            links: Vec::new(),
            waiting: [VecDeque::new(), VecDeque::new()],
            lost_since: None,
            hangs_since: None,
            last_try: now,
            last_error: String::new(),
            changed: None,
            closed: false,
            needs_all: is_far,
            attempts: Attempts { under_way: 0, queued: 0, after: now, outcome: None },
            stats: SourceStats { round_trip: Some(round_trip), ..SourceStats::default() },
        };
        let open = Counted::begin();
        let share = AtomicUsize::new(open.share());
        Arc::new(Self {
            export,
            rounds_up: AtomicBool::new(false),
            share,
            open,
            state: Mutex::ranked(Rank::NbdSource, state),
            keeper: OnceLock::new(),
        })
    }

    /// Sets the task that reconnects.
    pub fn set_keeper(&self, keeper: Task) {
        self.keeper.get_or_init(|| keeper);
    }

    pub fn wake_keeper(&self) {
        self.keeper.get().into_iter().for_each(Task::wake);
    }

    /// Adds a connection and gives it to its reactor.
    pub fn adopt(self: &Arc<Self>, agreed: Agreed) -> Result<(), SourceError> {
        let link = self.add(agreed)?;
        let connection =
            Connection { shared: Arc::clone(self), link: Arc::clone(&link), replies: Mutex::ranked(Rank::NbdReplies, Replies::default()) };
        match reactor(link.in_background).add(Arc::new(connection)) {
            Ok(place) => link.set_place(place),
            Err(error) => {
                // Jobs may have been sent on it already.
                self.lose(&link, link.give_up(error.to_string()));
                return Err(self.error(SourceErrorKind::Lost, error));
            }
        }
        self.note_driven(&link);
        tries::succeed(&self.export.host);
        self.send_waiting();
        Ok(())
    }

    fn add(&self, agreed: Agreed) -> Result<Arc<Link>, SourceError> {
        let round_trip = agreed.round_trip;
        let mut state = self.state.lock();
        if state.closed {
            // The source was closed meanwhile: nothing would ever end this connection.
            return Err(self.error(SourceErrorKind::Closed, "it was closed"));
        }
        // The first connection is for waiting readers, the others are for bulk.
        let in_background = state.links.iter().any(|link| !link.in_background);
        let link = Link::new(agreed, self.export.options.request_timeout, in_background);
        let link = Arc::new(link.map_err(|error| self.error(SourceErrorKind::Lost, error))?);
        state.stats.round_trip = state.stats.round_trip.map(|shortest| shortest.min(round_trip));
        state.links.push(Arc::clone(&link));
        state.reserve_one();
        Ok(link)
    }

    /// Ends the time without a connection, unless the reactor has lost this one already. Otherwise the source would never be given up, and
    /// its requests would wait without end.
    fn note_driven(&self, link: &Arc<Link>) {
        let mut state = self.state.lock();
        if state.links.iter().any(|other| Arc::ptr_eq(other, link)) {
            state.lost_since = None;
        }
    }

    /// Removes a lost connection. Its jobs under way are queued for another one.
    fn lose(&self, link: &Arc<Link>, Lost { reason, unanswered, jobs }: Lost) {
        let mut state = self.state.lock();
        state.links.retain(|other| !Arc::ptr_eq(other, link));
        state.reserve_one();
        if state.links.is_empty() && state.lost_since.is_none() {
            state.lost_since = Some(Instant::now());
        }
        state.last_error.clone_from(&reason);
        // Bounds the tries of a job that the server never answers, or always hangs up at.
        let tried = jobs.into_iter().map(|job| job.lost(link.made));
        let (again, over): (Vec<Job>, Vec<Job>) = tried.partition(|job| job.tries < self.export.options.tries);
        state.stats.errors += wide(over.len());
        again.into_iter().for_each(|job| state.wait(job));
        let closed = state.closed;
        // If a second connection has timed out as well, queued jobs would only wait for the same timeout in turn.
        let hangs = unanswered && state.hangs_since.get_or_insert_with(Instant::now).elapsed() > self.export.options.request_timeout / 2;
        drop(state);
        for job in over {
            job.finish(Err(self.error(SourceErrorKind::Lost, &reason)));
        }
        if closed {
            return self.fail_waiting(&self.error(SourceErrorKind::Closed, "it was closed"));
        }
        if hangs {
            self.fail_waiting(&self.error(SourceErrorKind::Lost, &reason));
        }
        self.wake_keeper();
        self.send_waiting();
    }

    pub fn submit(&self, job: Job) {
        let mut state = self.state.lock();
        let refusal = if state.closed {
            Some(self.error(SourceErrorKind::Closed, "it was closed"))
        } else if let Some(changed) = &state.changed {
            Some(self.error(SourceErrorKind::Changed, changed))
        } else if self.is_given_up(&state) && state.last_try.elapsed() < PAUSES.end {
            // Connecting failed a moment ago: the job fails at once instead of after another wait.
            Some(self.error(SourceErrorKind::Lost, &state.last_error))
        } else {
            None
        };
        if let Some(error) = refusal {
            state.stats.errors += 1;
            drop(state);
            return job.finish(Err(error));
        }
        state.wait(job);
        let may_connect = state.attempts.under_way == 0 && self.missing(&state) > 0;
        drop(state);
        self.send_waiting();
        if may_connect {
            self.wake_keeper();
        }
    }

    /// Sends queued jobs on the least loaded connections. Jobs with a waiting reader go first.
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

    /// Queues a job, or fails it if no connection can be expected.
    fn wait(&self, job: Job) {
        let mut state = self.state.lock();
        if !state.closed {
            return state.wait(job);
        }
        state.stats.errors += 1;
        drop(state);
        job.finish(Err(self.error(SourceErrorKind::Closed, "it was closed")));
    }

    fn complete(&self, mut job: Job, answer: Answer) {
        let result = match answer {
            Answer::Error(error, text) => {
                job.tries += 1;
                if job.tries < self.export.options.tries {
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
        job.finish(result);
        self.send_waiting();
    }

    /// Fails all queued jobs.
    fn fail_waiting(&self, error: &SourceError) {
        let jobs = {
            let mut state = self.state.lock();
            let jobs: Vec<Job> = state.waiting.iter_mut().flat_map(std::mem::take).collect();
            state.stats.errors += wide(jobs.len());
            jobs
        };
        for job in jobs {
            job.finish(Err(error.clone()));
        }
    }

    /// Ends all connections and fails all jobs, queued and under way.
    pub fn close(&self) {
        let links = {
            let mut state = self.state.lock();
            state.closed = true;
            state.links.clone()
        };
        self.wake_keeper();
        for link in links {
            link.close();
        }
        self.fail_waiting(&self.error(SourceErrorKind::Closed, "it was closed"));
    }

    /// Counters since the source was opened.
    pub fn stats(&self) -> SourceStats {
        self.state.lock().stats
    }

    /// Updates the share of descriptors.
    pub fn set_share(&self) {
        self.share.store(self.open.share(), Ordering::Relaxed);
    }

    /// Number of connections that the source should have.
    fn links_wanted(&self, state: &State) -> usize {
        if state.needs_all { self.export.links_max.min(self.share.load(Ordering::Relaxed)) } else { 1 }
    }

    /// Number of connections to make.
    pub fn missing(&self, state: &State) -> usize {
        match state.links.len() {
            _ if state.changed.is_some() => 0,
            // Given up: tried again when a job arrives.
            0 if self.is_given_up(state) => usize::from(state.waiting.iter().any(|queue| !queue.is_empty())),
            count => self.links_wanted(state).saturating_sub(count),
        }
    }

    /// Ends an idle connection if the source has more than its share.
    pub fn close_surplus(&self) {
        let mut links = {
            let state = self.state.lock();
            let surplus = state.links.len() > self.share.load(Ordering::Relaxed);
            if surplus { state.links.clone() } else { Vec::new() }
        };
        links.retain(|link| link.in_background);
        links.iter().any(|link| link.close_if_idle());
    }

    /// Notes a failed attempt to connect.
    pub fn note_failure(&self, error: &SourceError) {
        let given_up = {
            let mut state = self.state.lock();
            // The address is cut off, because errors made of this text begin with it.
            let text = error.message.strip_prefix(&self.export.uri).and_then(|text| text.strip_prefix(": "));
            text.unwrap_or(&error.message).clone_into(&mut state.last_error);
            if error.kind == SourceErrorKind::Changed && state.links.is_empty() {
                state.changed = Some(state.last_error.clone());
            }
            state.links.is_empty() && (state.changed.is_some() || self.is_given_up(&state))
        };
        if given_up {
            self.fail_waiting(error);
        }
    }

    /// Whether the source has had no connection for longer than `give_up_after`.
    fn is_given_up(&self, state: &State) -> bool {
        state.lost_since.is_some_and(|since| since.elapsed() > self.export.options.give_up_after)
    }

    /// Fails all queued jobs if the source is given up.
    pub fn give_up_waiting(&self) {
        let error = {
            let state = self.state.lock();
            self.is_given_up(&state).then(|| self.error(SourceErrorKind::Lost, &state.last_error))
        };
        if let Some(error) = error {
            self.fail_waiting(&error);
        }
    }

    /// Makes one more connection. Refuses it if the export has changed.
    pub fn reconnect(self: &Arc<Self>) -> Result<(), SourceError> {
        self.state.lock().last_try = Instant::now();
        let agreed = connect(&self.export.address, &self.export.options, None).map_err(|refusal| refusal.into_error(&self.export.uri))?;
        if agreed.info.size_bytes != self.export.size_bytes {
            let what = format!("the export has {} bytes now, it had {}", agreed.info.size_bytes, self.export.size_bytes);
            return Err(self.error(SourceErrorKind::Changed, what));
        }
        let (align, most) = block_sizes(&agreed);
        if agreed.identity != self.export.identity {
            let name = |identity: &Option<String>| identity.clone().unwrap_or_else(|| "an export without identity".into());
            let what = format!("the export is another one now: {}, it was {}", name(&agreed.identity), name(&self.export.identity));
            return Err(self.error(SourceErrorKind::Changed, what));
        }
        if align > self.export.align_bytes || most < self.export.read_bytes_max || !agreed.contexts.is_like(&self.export.contexts) {
            return Err(self.error(SourceErrorKind::Changed, "the export has other limits now"));
        }
        self.adopt(agreed)
    }
}

impl State {
    /// Queues a job.
    fn wait(&mut self, job: Job) {
        let ahead = matches!(job.waiter, Waiter::Read(ReadClass::Ahead, _));
        self.needs_all |= ahead || self.links.iter().any(|link| link.load().is_some_and(|(jobs, _)| jobs > 0));
        self.waiting[usize::from(ahead)].push_back(job);
    }

    /// Reserves one of several connections for jobs with a waiting reader.
    fn reserve_one(&mut self) {
        let several = self.links.len() > 1;
        for link in &self.links {
            link.reserved.store(several && !link.in_background, Ordering::Relaxed);
        }
    }

    /// Takes the first queued job for which a connection has room.
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::io::Socket;
    use crate::wire::{ExportInfo, HeaderMode};

    #[test]
    fn a_source_whose_connection_ends_at_once_is_lost() {
        let uri = "nbd://host/x";
        let export = Export {
            uri: uri.into(),
            host: "host".into(),
            address: Address::parse(uri).unwrap(),
            options: NbdOptions::default(),
            size_bytes: 1 << 20,
            align_bytes: 1,
            read_bytes_max: 1 << 20,
            links_max: 1,
            contexts: Contexts::default(),
            identity: None,
            about: About::default(),
            is_writable: false,
            status_bytes_max: 1 << 20,
        };
        let info = ExportInfo { size_bytes: 1 << 20, flags: 1, block_sizes: None };
        let (mode, contexts, about, round_trip) = (HeaderMode::Simple, Contexts::default(), About::default(), Duration::ZERO);
        let socket = Socket::Unix(UnixStream::pair().unwrap().0);
        let agreed = Agreed { lease: None, socket, mode, info, contexts, identity: None, about, round_trip };
        let shared = Shared::new(export, Duration::ZERO, false);
        let link = shared.add(agreed).unwrap();
        // The reactor sees the end before the thread that has connected goes on.
        shared.lose(&link, link.give_up("the server hangs up".into()));
        shared.note_driven(&link);
        assert!(shared.state.lock().lost_since.is_some());
    }
}
