//! The thread that connects a source again.

use std::sync::{Arc, Weak};

use super::{LINK_DESCRIPTORS, Shared, State};
use crate::io::Reservation;
use crate::source::nbd::tries::{self, PAUSES};
use crate::source::{SourceError, SourceErrorKind};
use crate::sync::time::Instant;

/// Keeps as many connections as are wanted, until the source is closed.
pub(super) fn keep(shared: &Weak<Shared>) {
    let (mut pause, mut behind_since) = (PAUSES.start, None);
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let is_lost = {
            let mut state = shared.state.lock();
            if state.closed {
                return;
            }
            let wanted = match state.links.len() {
                // Given up: tried again when somebody asks.
                0 if shared.is_given_up(&state) => state.waiting.iter().any(|queue| !queue.is_empty()),
                count => count < shared.links_wanted(&state),
            };
            if !wanted || state.changed.is_some() {
                (pause, behind_since) = (PAUSES.start, None);
                shared.woken.wait_for(&mut state, PAUSES.end);
                continue;
            }
            state.links.is_empty()
        };
        let now = Instant::now();
        if let (true, Err(wait)) = (is_lost, tries::begin(&shared.host, now)) {
            // Others try it. If one of them is answered, it is the turn of this one soon; who waits here does not wait for longer.
            if now - *behind_since.get_or_insert(now) > PAUSES.end * 2 {
                shared.give_up_waiting();
            }
            let mut state = shared.state.lock();
            if !state.closed {
                shared.woken.wait_for(&mut state, wait);
            }
            continue;
        }
        behind_since = None;
        if shared.connect_missing() {
            pause = PAUSES.start;
            continue;
        }
        let mut state = shared.state.lock();
        if !state.closed {
            shared.woken.wait_for(&mut state, pause);
        }
        pause = (pause * 2).min(PAUSES.end);
    }
}

impl Shared {
    /// Makes the connections that are missing, all at once: each takes some round trips. Answers whether one was made.
    fn connect_missing(self: &Arc<Self>) -> bool {
        let (there, wanted) = {
            let state = self.state.lock();
            let there = state.links.len();
            // Whether anybody answers is found out with one.
            (there, if there == 0 { 1 } else { self.links_wanted(&state) })
        };
        // Further ones make it faster, which others must not pay for.
        let reserved: Vec<_> = (there..wanted).map_while(|_| Reservation::take(LINK_DESCRIPTORS, 2)).collect();
        let missing = reserved.len().max(usize::from(there == 0));
        if missing == 0 {
            return false;
        }
        let results: Vec<_> = crate::sync::thread::scope(|scope| {
            // Where no further thread can be had, the others do.
            let connect = |_| crate::sync::thread::Builder::new().name("nbd-connect".into()).spawn_scoped(scope, || self.reconnect()).ok();
            let threads: Vec<_> = (1..missing).filter_map(connect).collect();
            let own = self.reconnect();
            [own].into_iter().chain(threads.into_iter().filter_map(|thread| thread.join().ok())).collect()
        });
        let made = results.iter().filter(|result| result.is_ok()).count() as u64;
        self.state.lock().stats.reconnects += made;
        if let (0, Some(Err(error))) = (made, results.into_iter().next()) {
            self.note_failure(&error);
        }
        made > 0
    }

    /// Connections that there should be.
    fn links_wanted(&self, state: &State) -> usize {
        if state.needs_all { self.links_max } else { 1 }
    }

    fn note_failure(&self, error: &SourceError) {
        let given_up = {
            let mut state = self.state.lock();
            // Whoever is told of it names the address again.
            let text = error.message.strip_prefix(&self.uri).and_then(|text| text.strip_prefix(": "));
            text.unwrap_or(&error.message).clone_into(&mut state.last_error);
            if error.kind == SourceErrorKind::Changed && state.links.is_empty() {
                state.changed = Some(state.last_error.clone());
            }
            state.links.is_empty() && (state.changed.is_some() || self.is_given_up(&state))
        };
        if given_up {
            self.fail_waiting(error);
        }
        if error.kind != SourceErrorKind::Lost {
            // The host has answered, though not as it should.
            tries::succeed(&self.host);
        }
    }

    /// Whether there is no connection, and was none for too long.
    pub(super) fn is_given_up(&self, state: &State) -> bool {
        state.lost_since.is_some_and(|since| since.elapsed() > self.options.give_up_after)
    }

    /// Fails those that wait, if that was for too long.
    fn give_up_waiting(&self) {
        let error = {
            let state = self.state.lock();
            self.is_given_up(&state).then(|| self.error(SourceErrorKind::Lost, &state.last_error))
        };
        if let Some(error) = error {
            self.fail_waiting(&error);
        }
    }
}
