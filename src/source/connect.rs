//! Connecting to a source, however long its opener takes and whatever it does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::guarded::{Guarded, caught};
use super::{Lease, LeaseRequest, LeasedSource, Source, SourceError, SourceErrorKind, SourceOpener, host_of};
use crate::sync::thread::Builder;
use crate::sync::time::Instant;
use crate::sync::{Condvar, Mutex, Rank};

/// Connections that may be under way although nobody waits for them any more: an opener that never answers does not get further
/// threads.
const ABANDONED_MAX: usize = 16;

/// What became of one call of the opener.
enum Answer<T> {
    Awaited,
    Here(Result<T, SourceError>),
    Taken,
    /// Nobody waits for it any longer.
    Unwanted,
}

#[derive(Default)]
struct State {
    /// Threads that open an address, and callers that wait for one.
    opening: usize,
    waiting: usize,
    /// How often it was said that nobody is to wait any longer.
    given_up: u64,
    /// Hosts that have not ended a call for which nobody waits any longer, because they took too long.
    silent: BTreeSet<String>,
    closed: bool,
}

/// A moment: who waits since then is told when waiting is given up.
#[derive(Clone, Copy)]
pub(crate) struct Since(u64);

struct Shared {
    state: Mutex<State>,
    /// Notified when a thread has its answer, and when waiting is given up.
    changed: Condvar,
}

/// Opens addresses by an opener of which nothing is believed.
///
/// # Invariants
/// - The opener runs on a thread of its own, so that [`Connector::give_up`] ends every wait for it.
/// - A source that comes when nobody waits any longer is closed.
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

    /// This moment.
    pub fn now(&self) -> Since {
        Since(self.shared.state.lock().given_up)
    }

    /// Whether a source at `uri` may know leases.
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

    /// As [`Connector::open`], with a lease if the source knows leases. `unwanted` is told of one that is given when nobody waits any
    /// longer.
    ///
    /// # Errors
    /// As there; that of a lease that is refused.
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

    /// Renews a lease or gives it back, and waits for that, for at most so long.
    ///
    /// # Errors
    /// As [`Connector::open`]; [`SourceErrorKind::Lost`] after that time.
    pub fn lease(&self, uri: &str, since: Since, request: LeaseRequest, patience: Duration) -> Result<Option<Lease>, SourceError> {
        let call = move |opener: &dyn SourceOpener, uri: &str| {
            // One that panics has refused nothing: nobody knows whether the host was asked.
            caught(uri, || opener.lease(uri, &request)).map_err(|error| SourceError { kind: SourceErrorKind::Lost, ..error })?
        };
        self.ask(uri, since, Some(patience), call, |_, _, _| {})
    }

    /// Gives a lease back on this thread, also when nobody is to wait any longer. One that is not heard lapses.
    pub fn give_back(&self, uri: &str, request: &LeaseRequest) {
        let _ = caught(uri, || self.opener.lease(uri, request));
    }

    /// Calls the opener and waits for its answer; `unwanted` gets one for which nobody waits any longer.
    fn ask<T: Send + 'static>(
        &self,
        uri: &str,
        since: Since,
        patience: Option<Duration>,
        call: impl Fn(&dyn SourceOpener, &str) -> Result<T, SourceError> + Send + Sync + 'static,
        unwanted: impl FnOnce(&dyn SourceOpener, &str, T) + Send + 'static,
    ) -> Result<T, SourceError> {
        let given_up = || SourceError { kind: SourceErrorKind::Closed, message: format!("{uri} is not waited for any longer") };
        let host = host_of(uri);
        {
            let mut state = self.shared.state.lock();
            if state.closed || state.given_up != since.0 {
                return Err(given_up());
            }
            // One that never answers must not use up the threads of all.
            let is_silent = patience.is_some() && state.silent.contains(&host);
            if is_silent || state.opening.saturating_sub(state.waiting) >= ABANDONED_MAX {
                let message = format!("{uri}: earlier tries to connect have not ended");
                return Err(SourceError { kind: SourceErrorKind::Lost, message });
            }
            state.opening += 1;
            state.waiting += 1;
        }
        let _waiting = Waiting(&self.shared);
        let call = Arc::new(call);
        let until = patience.map(|patience| Instant::now() + patience);
        let answer = Arc::new(Mutex::ranked(Rank::SourceAnswer, Answer::Awaited));
        let opening = Opening { shared: Arc::clone(&self.shared), answer: Arc::clone(&answer), host: host.clone() };
        let (opener, address, calling) = (Arc::clone(&self.opener), uri.to_owned(), Arc::clone(&call));
        let run = move || {
            let mut unwanted = Some(unwanted);
            // Before the caller goes on: what it keeps shows whether anybody still waits.
            let late = opening.answer(calling(&*opener, &address), || drop(unwanted.take()));
            if let (Some(Ok(late)), Some(unwanted)) = (late, unwanted) {
                // What panics here was unwanted anyway.
                let _ = caught(&address, || unwanted(&*opener, &address, late));
            }
        };
        if Builder::new().name("source-open".into()).spawn(run).is_err() {
            return call(&*self.opener, uri);
        }
        let mut state = self.shared.state.lock();
        loop {
            {
                let mut answer = answer.lock();
                if let Answer::Here(_) = *answer
                    && let Answer::Here(opened) = std::mem::replace(&mut *answer, Answer::Taken)
                {
                    return opened;
                }
                if state.given_up != since.0 {
                    *answer = Answer::Unwanted;
                    return Err(given_up());
                }
                if until.is_some_and(|until| Instant::now() >= until) {
                    *answer = Answer::Unwanted;
                    state.silent.insert(host);
                    return Err(SourceError { kind: SourceErrorKind::Lost, message: format!("{uri} does not answer") });
                }
            }
            match until {
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

/// A caller that waits; counted until it is dropped.
struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
    }
}

/// One call of an opener; counted until it has answered, or is dropped.
struct Opening<T> {
    shared: Arc<Shared>,
    answer: Arc<Mutex<Answer<T>>>,
    host: String,
}

impl<T> Opening<T> {
    /// Hands over what was opened, after `wanted`. Gives it back if nobody waits for it any longer.
    fn answer(&self, opened: Result<T, SourceError>, wanted: impl FnOnce()) -> Option<Result<T, SourceError>> {
        let mut state = self.shared.state.lock();
        let mut answer = self.answer.lock();
        let Answer::Awaited = *answer else { return Some(opened) };
        wanted();
        *answer = Answer::Here(opened);
        state.opening -= 1;
        self.shared.changed.notify_all();
        None
    }
}

impl<T> Drop for Opening<T> {
    fn drop(&mut self) {
        let message = "connecting ended without an answer".into();
        let unused = self.answer(Err(SourceError { kind: SourceErrorKind::Lost, message }), || {});
        if unused.is_some() && matches!(*self.answer.lock(), Answer::Unwanted) {
            let mut state = self.shared.state.lock();
            state.opening -= 1;
            state.silent.remove(&self.host);
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
