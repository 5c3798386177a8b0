//! Calls of a source opener that may hang or panic, made so that a caller can stop waiting for them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::error::caught;
use super::guarded::Guarded;
use super::threads;
use super::{Lease, LeaseRequest, LeasedSource, Source, SourceError, SourceErrorKind, SourceOpener, host_of};
use crate::io::{Job, Refusal};
use crate::sync::time::Instant;
use crate::sync::{Condvar, Mutex, Rank};

/// How long a call waits for earlier calls of its host and for a thread.
const QUEUE_PATIENCE: Duration = Duration::from_secs(30);

/// State of one call of the opener.
enum Answer<T> {
    /// It waits for a thread.
    Queued,
    Awaited,
    /// The call has returned; its answer is being handed over.
    Ready,
    Here(Result<T, SourceError>),
    Taken,
    /// The caller has stopped waiting.
    Unwanted,
}

#[derive(Default)]
struct State {
    /// Number of calls of [`Connector::give_up`] so far.
    given_up: u64,
    /// Hosts with a call that timed out and has not returned yet.
    silent: BTreeSet<String>,
    closed: bool,
}

/// A moment. [`Connector::give_up`] ends the waits that began with an earlier one.
#[derive(Clone, Copy)]
pub(crate) struct Since(u64);

struct Shared {
    state: Mutex<State>,
    /// Notified when a call has its answer, and by [`Connector::give_up`].
    changed: Condvar,
}

/// Opens addresses by an opener that is not trusted.
///
/// # Invariants
/// - The opener runs on a thread of the process's pool ([`super::threads`]), so that [`Connector::give_up`] ends every wait for it. A call
///   that gets no thread in time ends as [`SourceErrorKind::Lost`].
/// - A source that is opened after its caller has stopped waiting is closed.
pub(crate) struct Connector {
    opener: Arc<dyn SourceOpener>,
    shared: Arc<Shared>,
}

impl Connector {
    pub fn new(opener: Arc<dyn SourceOpener>) -> Self {
        let shared = Shared { state: Mutex::ranked(Rank::SourceConnector, State::default()), changed: Condvar::new() };
        Self { opener, shared: Arc::new(shared) }
    }

    /// The opener itself.
    pub fn opener(&self) -> Arc<dyn SourceOpener> {
        Arc::clone(&self.opener)
    }

    /// The present moment, for calls that a later [`Connector::give_up`] ends.
    pub fn now(&self) -> Since {
        Since(self.shared.state.lock().given_up)
    }

    /// Whether a source at `uri` may support leases.
    pub fn lends(&self, uri: &str) -> bool {
        caught(uri, || self.opener.lends(uri)).unwrap_or(true)
    }

    /// Connects to `uri` and waits for it.
    ///
    /// # Errors
    /// That of the opener; [`SourceErrorKind::Closed`] if waiting was given up since that moment.
    pub fn open(&self, uri: &str, since: Since) -> Result<Arc<dyn Source>, SourceError> {
        self.ask(uri, since, None, open_here, |_, _, _| {})
    }

    /// As [`Connector::open`], with a lease if the source supports leases. `unwanted` is called with a lease that is granted after the
    /// caller has stopped waiting.
    ///
    /// # Errors
    /// As [`Connector::open`], or the source refuses the lease.
    pub fn open_leased(
        &self,
        uri: &str,
        since: Since,
        request: LeaseRequest,
        unwanted: impl FnOnce(&dyn SourceOpener, &str, &Lease) + Send + 'static,
    ) -> Result<LeasedSource, SourceError> {
        let call = move |opener: &dyn SourceOpener, uri: &str| open_leased_here(opener, uri, &request);
        self.ask(uri, since, None, call, |opener, uri, opened: LeasedSource| {
            opened.source.close();
            if let Some(lease) = &opened.lease {
                unwanted(opener, uri, lease);
            }
        })
    }

    /// Connects to `uri` on the caller's thread. Only jobs of [`Connector::aside`] may call it, because it may hang.
    ///
    /// # Errors
    /// That of the opener.
    pub fn open_here(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        open_here(&*self.opener, uri)
    }

    /// As [`Connector::open_here`], with a lease if the source supports leases.
    ///
    /// # Errors
    /// As [`Connector::open_here`], or the source refuses the lease.
    pub fn open_leased_here(&self, uri: &str, request: &LeaseRequest) -> Result<LeasedSource, SourceError> {
        open_leased_here(&*self.opener, uri, request)
    }

    /// Runs a call of a source on a thread of the pool, behind earlier calls of its host. If no thread can be had, the job is dropped.
    pub fn aside(&self, uri: &str, job: Job) {
        drop(threads::calls().run(&self.key(uri), job));
    }

    /// Key of the host for the pool. Two openers may reach different hosts by the same address, so the key contains the opener.
    fn key(&self, uri: &str) -> String {
        format!("{:p} {}", Arc::as_ptr(&self.opener), host_of(uri))
    }

    /// Renews or gives back a lease and waits for the answer, for at most `patience`.
    ///
    /// # Errors
    /// As [`Connector::open`]; [`SourceErrorKind::Lost`] after `patience`.
    pub fn lease(&self, uri: &str, since: Since, request: LeaseRequest, patience: Duration) -> Result<Option<Lease>, SourceError> {
        let call = move |opener: &dyn SourceOpener, uri: &str| {
            // A panic is no refusal: it is unknown whether the host was asked.
            caught(uri, || opener.lease(uri, &request)).map_err(|error| SourceError { kind: SourceErrorKind::Lost, ..error })?
        };
        self.ask(uri, since, Some(patience), call, |_, _, _| {})
    }

    /// Gives a lease back on this thread, also after [`Connector::close`]. If the host does not hear it, the lease lapses.
    pub fn give_back(&self, uri: &str, request: &LeaseRequest) {
        let _ = caught(uri, || self.opener.lease(uri, request));
    }

    /// Calls the opener and waits for its answer. `unwanted` gets an answer that comes after the caller has stopped waiting.
    fn ask<T: Send + 'static>(
        &self,
        uri: &str,
        since: Since,
        patience: Option<Duration>,
        call: impl FnOnce(&dyn SourceOpener, &str) -> Result<T, SourceError> + Send + 'static,
        unwanted: impl FnOnce(&dyn SourceOpener, &str, T) + Send + 'static,
    ) -> Result<T, SourceError> {
        let given_up = || SourceError { kind: SourceErrorKind::Closed, message: format!("{uri}: waiting for it was given up") };
        let lost = |what: &str| SourceError { kind: SourceErrorKind::Lost, message: format!("{uri}: {what}") };
        let host = host_of(uri);
        {
            let state = self.shared.state.lock();
            if state.closed || state.given_up != since.0 {
                return Err(given_up());
            }
            // A host whose earlier call has timed out and not returned is not waited for again.
            if patience.is_some() && state.silent.contains(&host) {
                return Err(lost("the host has not answered an earlier call"));
            }
        }
        let answer = Arc::new(Mutex::ranked(Rank::SourceAnswer, Answer::Queued));
        let opening = Opening { shared: Arc::clone(&self.shared), answer: Arc::clone(&answer), host: host.clone() };
        let (opener, address) = (Arc::clone(&self.opener), uri.to_owned());
        let job = Box::new(move || opening.run(&*opener, &address, call, unwanted));
        match threads::calls().run(&self.key(uri), job) {
            Err(refused) if refused.why == Refusal::NoThread => (refused.job)(),
            Err(_) => return Err(lost("too many calls of this host wait already")),
            Ok(()) => {}
        }
        let begun = Instant::now();
        let (until, queued_until) = (patience.map(|patience| begun + patience), begun + QUEUE_PATIENCE);
        let mut state = self.shared.state.lock();
        loop {
            let is_queued = {
                let mut answer = answer.lock();
                match &*answer {
                    Answer::Here(_) => {
                        if let Answer::Here(opened) = std::mem::replace(&mut *answer, Answer::Taken) {
                            return opened;
                        }
                    }
                    Answer::Ready => {}
                    _ if state.given_up != since.0 => {
                        *answer = Answer::Unwanted;
                        return Err(given_up());
                    }
                    Answer::Queued if Instant::now() >= queued_until => {
                        *answer = Answer::Unwanted;
                        return Err(lost("no thread was free in time: this host, or too many others, have not answered earlier calls"));
                    }
                    _ if until.is_some_and(|until| Instant::now() >= until) => {
                        *answer = Answer::Unwanted;
                        state.silent.insert(host);
                        return Err(lost("the host does not answer"));
                    }
                    _ => {}
                }
                matches!(*answer, Answer::Queued)
            };
            match until.into_iter().chain(is_queued.then_some(queued_until)).min() {
                Some(until) => drop(self.shared.changed.wait_until(&mut state, until)),
                None => self.shared.changed.wait(&mut state),
            }
        }
    }

    /// Ends every wait for the opener that has begun.
    pub fn give_up(&self) {
        self.shared.state.lock().given_up += 1;
        self.shared.changed.notify_all();
    }

    /// Ends every wait for the opener, also those that begin later.
    pub fn close(&self) {
        self.shared.state.lock().closed = true;
        self.give_up();
    }
}

/// One call of an opener. It answers, or is dropped.
struct Opening<T> {
    shared: Arc<Shared>,
    answer: Arc<Mutex<Answer<T>>>,
    host: String,
}

impl<T> Opening<T> {
    /// Calls the opener if the caller still waits. `unwanted` gets an answer that comes too late.
    fn run(
        &self,
        opener: &dyn SourceOpener,
        uri: &str,
        call: impl FnOnce(&dyn SourceOpener, &str) -> Result<T, SourceError>,
        unwanted: impl FnOnce(&dyn SourceOpener, &str, T),
    ) {
        match &mut *self.answer.lock() {
            queued @ Answer::Queued => *queued = Answer::Awaited,
            _ => return,
        }
        let opened = call(opener, uri);
        if self.is_wanted() {
            // Dropped before the caller goes on, so that the caller does not see what `unwanted` holds as still in use. No lock is held,
            // because the drop may run any code.
            drop(unwanted);
            self.answer(opened);
        } else if let Ok(late) = opened {
            // A panic here only loses an answer that came too late.
            let _ = caught(uri, || unwanted(opener, uri, late));
        }
    }

    /// Marks the call as answered, so that the caller waits for the hand-over. False if the caller has stopped waiting.
    fn is_wanted(&self) -> bool {
        match &mut *self.answer.lock() {
            awaited @ Answer::Awaited => {
                *awaited = Answer::Ready;
                true
            }
            _ => false,
        }
    }

    fn answer(&self, opened: Result<T, SourceError>) {
        // The caller reads the answer under this lock: without it the notification could be missed.
        let _state = self.shared.state.lock();
        *self.answer.lock() = Answer::Here(opened);
        self.shared.changed.notify_all();
    }
}

impl<T> Drop for Opening<T> {
    fn drop(&mut self) {
        let is_unwanted = match &*self.answer.lock() {
            Answer::Here(_) | Answer::Taken => return,
            Answer::Unwanted => true,
            Answer::Queued | Answer::Awaited | Answer::Ready => false,
        };
        if is_unwanted {
            self.shared.state.lock().silent.remove(&self.host);
        } else {
            let message = "connecting ended without an answer".into();
            self.answer(Err(SourceError { kind: SourceErrorKind::Lost, message }));
        }
    }
}

/// Connects on the caller's thread.
fn open_here(opener: &dyn SourceOpener, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
    let source = caught(uri, || opener.open(uri))??;
    Ok(Guarded::new(uri, source)?)
}

/// As [`open_here`], with a lease. The source is known by the address that it holds.
fn open_leased_here(opener: &dyn SourceOpener, uri: &str, request: &LeaseRequest) -> Result<LeasedSource, SourceError> {
    let LeasedSource { source, lease } = caught(uri, || opener.open_leased(uri, request))??;
    let held = lease.as_ref().map_or(uri, |lease| &lease.uri);
    Ok(LeasedSource { source: Guarded::new(held, source)?, lease })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::UriSources;

    #[test]
    fn state_for_a_late_answer_is_freed_when_it_arrives() {
        let connector = Connector::new(Arc::new(UriSources::default()));
        let kept = Arc::new(());
        for _ in 0..200 {
            let late = Arc::clone(&kept);
            connector.ask("x://", connector.now(), None, |_, _| Ok(()), |_, _, ()| drop(late)).unwrap();
            assert_eq!(Arc::strong_count(&kept), 1);
        }
    }
}
