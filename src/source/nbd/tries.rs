//! When a host that does not answer is tried again. All sources of the process share one schedule per host, so that many sources of a lost
//! host try it no more often than one would.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::sync::StaticMutex;
use crate::sync::time::Instant;

/// First and longest pause between tries to connect.
pub(super) const PAUSES: Range<Duration> = Duration::from_millis(20)..Duration::from_secs(1);
/// A host that was not tried for this long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// A host that was tried and has not answered since.
struct Lost {
    pause: Duration,
    due: Instant,
}

/// Hosts that do not answer.
struct Hosts(BTreeMap<String, Lost>);

static HOSTS: StaticMutex<Hosts> = StaticMutex::new(Hosts(BTreeMap::new()));

impl Hosts {
    fn begin(&mut self, host: &str, now: Instant) -> Result<(), Duration> {
        let Some(lost) = self.0.get_mut(host) else {
            self.0.retain(|_, lost| now.saturating_duration_since(lost.due) < FORGET_AFTER);
            self.0.insert(host.to_owned(), Lost { pause: PAUSES.start, due: now + PAUSES.start });
            return Ok(());
        };
        if lost.due > now {
            return Err(lost.due - now);
        }
        lost.pause = (lost.pause * 2).min(PAUSES.end);
        lost.due = now + lost.pause;
        Ok(())
    }
}

/// Begins a try. An error is the time to wait before one.
pub(super) fn begin(host: &str, now: Instant) -> Result<(), Duration> {
    HOSTS.lock().begin(host, now)
}

/// A host has answered: every source may connect to it.
pub(super) fn succeed(host: &str) {
    HOSTS.lock().0.remove(host);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_sources_try_a_host_as_often_as_one() {
        let tries = |sources: usize| {
            let (mut hosts, begun) = (Hosts(BTreeMap::new()), Instant::now());
            let tried = |hosts: &mut Hosts, millis| hosts.begin("lost", begun + Duration::from_millis(millis)).is_ok();
            (0..10_000).map(|millis| (0..sources).filter(|_| tried(&mut hosts, millis)).count()).sum::<usize>()
        };
        assert_eq!(tries(200), tries(1));
        assert!((10..20).contains(&tries(1)), "{}", tries(1));
        // A host that has answered has no pause, and a host that was not tried for long is forgotten.
        let (mut hosts, now) = (Hosts(BTreeMap::new()), Instant::now());
        hosts.begin("lost", now).unwrap();
        assert_eq!(hosts.begin("lost", now), Err(PAUSES.start));
        hosts.begin("other", now + FORGET_AFTER * 2).unwrap();
        assert_eq!(hosts.0.len(), 1);
        hosts.0.remove("other");
        hosts.begin("other", now).unwrap();
    }
}
