//! State of each address of a root layer: failures, waits, rates and pauses. Pure, but for the sources that it keeps.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::source::{Source, SourceError, SourceErrorKind, host_of};

/// First and longest pause before an address that failed is tried again.
const RETRY_PAUSES: Range<Duration> = Duration::from_millis(250)..Duration::from_secs(5);
/// Shortest time before a waited-for read is hedged.
const HEDGE_MIN: Duration = Duration::from_millis(20);
/// Time after which a read is hedged at an address without measurements.
const HEDGE_UNKNOWN: Duration = Duration::from_secs(1);
/// A reader that waits for a bulk request asks another address when nothing has arrived for this long, and for this many times the usual
/// wait.
const BULK_PATIENCE: (Duration, u32) = (Duration::from_millis(500), 4);

/// First and longest pause before a block that an address could not give is requested there again.
const BAD_PAUSES: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(60);
/// Most bad ranges that are kept for an address, and the number of bad ranges in a row that make the whole address fail.
const BAD_MAX: (usize, u32) = (4096, 16);
/// Time after which an unused connection is idle. It is closed if there is nothing to fetch.
const IDLE_AFTER: Duration = Duration::from_secs(10);

/// A range that an address could not give, although it answered.
struct Bad {
    end: u64,
    failures: u32,
    retry_at: Duration,
}

/// State of one address.
pub struct Peer {
    pub uri: String,
    /// Key of its host ([`host_of`]).
    pub host: Arc<str>,
    pub source: Option<Arc<dyn Source>>,
    /// Bytes received from it.
    pub bytes: u64,
    pub errors: u64,
    /// Number of failures in a row.
    pub failures: u32,
    pub retry_at: Duration,
    pub last_error: Option<String>,
    /// The latest error is one that a retry does not mend: the address serves other bytes, or no such export.
    pub refused: bool,
    pub latency: Latency,
    /// When it was last used, and the shortest round trip of its closed connections.
    pub used_at: Duration,
    pub round_trip: Option<Duration>,
    /// Bad ranges by their first blocks, and the number of bad ranges in a row.
    bad: BTreeMap<u64, Bad>,
    bad_in_row: u32,
}

/// Smoothed mean and deviation of the times of waited-for reads, as for the round trips of TCP (RFC 6298).
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    mean: Option<f64>,
    deviation: f64,
    /// The shortest time. It grows slowly, because a path may become longer.
    shortest: f64,
}

impl Latency {
    fn note(&mut self, time: Duration) {
        let time = time.as_secs_f64();
        match &mut self.mean {
            None => (self.mean, self.deviation, self.shortest) = (Some(time), time / 2.0, time),
            Some(mean) => {
                self.deviation += ((time - *mean).abs() - self.deviation) / 4.0;
                *mean += (time - *mean) / 8.0;
                self.shortest = (self.shortest * 1.001).min(time);
            }
        }
    }

    /// The shortest recent time.
    pub fn shortest(&self) -> Duration {
        Duration::from_secs_f64(self.shortest.min(3600.0))
    }

    /// Time after which a read counts as slow; `None` without measurements.
    fn slow(&self) -> Option<Duration> {
        self.mean.map(|mean| Duration::from_secs_f64((mean + 4.0 * self.deviation).min(3600.0)).max(HEDGE_MIN))
    }
}

/// All addresses; the first one is the origin.
#[derive(Default)]
pub struct Peers {
    pub list: Vec<Peer>,
}

impl Peer {
    fn new(uri: String) -> Self {
        Self {
            host: host_of(&uri).into(),
            uri,
            source: None,
            bytes: 0,
            errors: 0,
            failures: 0,
            retry_at: Duration::ZERO,
            last_error: None,
            refused: false,
            latency: Latency::default(),
            used_at: Duration::ZERO,
            round_trip: None,
            bad: BTreeMap::new(),
            bad_in_row: 0,
        }
    }

    /// Whether it has bad ranges.
    pub fn is_bad(&self) -> bool {
        !self.bad.is_empty()
    }

    /// The first part of a range of blocks that may be requested now, in one request.
    pub fn allowed(&self, range: &Range<u64>, now: Duration) -> Option<Range<u64>> {
        let mut at = range.start;
        while at < range.end {
            match self.bad.range(..=at).next_back().map(|(_, bad)| bad).filter(|bad| bad.end > at) {
                Some(bad) if bad.retry_at > now => at = bad.end,
                Some(bad) => return Some(at..bad.end.min(range.end)),
                None => {
                    let next = self.bad.range(at..).next().map_or(range.end, |(start, _)| *start);
                    return Some(at..next.min(range.end));
                }
            }
        }
        None
    }

    /// Notes a bad range. The halves of a range of several blocks are requested separately later, until the bad block is known.
    fn note_bad(&mut self, run: &Range<u64>, now: Duration) {
        if run.end - run.start <= 1 {
            let bad = self.bad.entry(run.start).or_insert(Bad { end: run.end, failures: 0, retry_at: now });
            let pause = BAD_PAUSES.start.saturating_mul(1 << bad.failures.min(8)).min(BAD_PAUSES.end);
            (bad.end, bad.failures, bad.retry_at) = (run.end, bad.failures.saturating_add(1), now + pause);
            return;
        }
        self.forget_bad(run);
        let middle = run.start + (run.end - run.start) / 2;
        for half in [run.start..middle, middle..run.end] {
            self.bad.insert(half.start, Bad { end: half.end, failures: 0, retry_at: now });
        }
    }

    fn forget_bad(&mut self, run: &Range<u64>) {
        while let Some((start, _)) = self.bad.range(run.clone()).next() {
            let start = *start;
            self.bad.remove(&start);
        }
    }

    fn is_ready(&self, now: Duration) -> bool {
        self.failures == 0 || now >= self.retry_at
    }

    /// Whether a request to it would be a retry after a failure, which the budget must allow. False after [`Peers::retry_now`].
    pub fn is_retried(&self) -> bool {
        self.failures > 0 && self.retry_at > Duration::ZERO
    }

    /// Puts the next try off, with a growing pause.
    pub fn put_off(&mut self, now: Duration) {
        let pause = RETRY_PAUSES.start.saturating_mul(1 << self.failures.saturating_sub(1).min(8));
        self.retry_at = now + pause.min(RETRY_PAUSES.end);
    }
}

impl Peers {
    /// Replaces the addresses; those that stay keep their state. Returns the sources of the removed ones.
    pub fn set(&mut self, uris: &[String]) -> Vec<Arc<dyn Source>> {
        let mut old = std::mem::take(&mut self.list);
        for uri in uris {
            let known = old.iter().position(|peer| peer.uri == *uri);
            self.list.push(known.map_or_else(|| Peer::new(uri.clone()), |at| old.swap_remove(at)));
        }
        old.into_iter().filter_map(|peer| peer.source).collect()
    }

    /// The best untried address for a waited-for read. Its order: addresses that may be tried now; those with fewer failures in a row;
    /// connected ones, because connecting may take long, and backfill does it in the background; those with shorter waits. An address
    /// without measurements counts as quick.
    pub fn for_waited(&self, now: Duration, tried: &[String]) -> Option<usize> {
        let ready = self.list.iter().enumerate().filter(|(_, peer)| !tried.contains(&peer.uri));
        let mean = |peer: &Peer| peer.latency.mean.unwrap_or(0.0);
        let (number, _) = ready.min_by(|(_, left), (_, right)| {
            let order = right.is_ready(now).cmp(&left.is_ready(now));
            let connected = right.source.is_some().cmp(&left.source.is_some());
            order.then(left.failures.cmp(&right.failures)).then(connected).then(mean(left).total_cmp(&mean(right)))
        })?;
        Some(number)
    }

    /// The addresses that bulk may use now. All are used in parallel, up to their windows.
    pub fn for_bulk(&self, now: Duration) -> impl Iterator<Item = usize> + '_ {
        self.list.iter().enumerate().filter(move |(_, peer)| peer.is_ready(now)).map(|(number, _)| number)
    }

    /// Time after which a waited-for read of this address is hedged; `None` if there is no other address.
    pub fn hedge_after(&self, uri: &str) -> Option<Duration> {
        let others = self.list.iter().any(|peer| peer.uri != uri);
        let peer = self.list.iter().find(|peer| peer.uri == uri && others)?;
        Some(peer.latency.slow().unwrap_or(HEDGE_UNKNOWN))
    }

    /// How long a reader waits for a stalled bulk request before it asks another address; `None` if there is none.
    pub fn bulk_patience(&self) -> Option<Duration> {
        let slowest = self.list.iter().filter_map(|peer| peer.latency.slow()).max().unwrap_or(HEDGE_UNKNOWN / BULK_PATIENCE.1);
        (self.list.len() > 1).then(|| (slowest * BULK_PATIENCE.1).max(BULK_PATIENCE.0))
    }

    /// When a failed address may be tried again.
    pub fn retry_at(&self, uri: &str) -> Duration {
        let peer = self.list.iter().find(|peer| peer.uri == uri && peer.failures > 0);
        peer.map_or(Duration::ZERO, |peer| peer.retry_at)
    }

    /// Key of the host of an address.
    pub fn host(&self, uri: &str) -> Option<&str> {
        self.list.iter().find(|peer| peer.uri == uri).map(|peer| &*peer.host)
    }

    fn by_uri(&mut self, uri: &str) -> Option<&mut Peer> {
        self.list.iter_mut().find(|peer| peer.uri == uri)
    }

    /// Notes a successful read of these blocks. Returns whether the address had failed before.
    pub fn note_read(&mut self, uri: &str, now: Duration, run: &Range<u64>, waited: Option<Duration>) -> bool {
        let Some(peer) = self.by_uri(uri) else { return false };
        peer.used_at = now;
        peer.forget_bad(run);
        peer.bad_in_row = 0;
        peer.refused = false;
        if let Some(time) = waited {
            peer.latency.note(time);
        }
        std::mem::take(&mut peer.failures) > 0
    }

    /// The shortest recent wait for this address.
    pub fn shortest_wait(&mut self, uri: &str) -> Duration {
        self.by_uri(uri).map_or(Duration::MAX, |peer| peer.latency.shortest())
    }

    /// Counts received bytes.
    pub fn note_bytes(&mut self, uri: &str, bytes: u64) {
        if let Some(peer) = self.by_uri(uri) {
            peer.bytes += bytes;
        }
    }

    /// Notes that an address has failed, or cannot give these blocks. Returns its source if that must be closed.
    pub fn note_error(&mut self, uri: &str, now: Duration, error: &SourceError, run: Option<&Range<u64>>) -> Option<Arc<dyn Source>> {
        let peer = self.by_uri(uri)?;
        peer.last_error = Some(error.message.clone());
        peer.errors += 1;
        if let (Some(run), SourceErrorKind::Failed | SourceErrorKind::Damaged) = (run, error.kind) {
            peer.bad_in_row += 1;
            if peer.bad.len() < BAD_MAX.0 && peer.bad_in_row < BAD_MAX.1 {
                peer.note_bad(run, now);
                return None;
            }
        }
        peer.refused = matches!(error.kind, SourceErrorKind::Changed | SourceErrorKind::Invalid);
        peer.failures = peer.failures.saturating_add(1);
        peer.put_off(now);
        // Closed, so that the next try opens the export again: it may be the right one by then.
        if error.kind == SourceErrorKind::Changed { peer.source.take() } else { None }
    }

    /// If all addresses fail: when the next one may be tried.
    pub fn all_failing(&self) -> Option<Duration> {
        let failing = !self.list.is_empty() && self.list.iter().all(|peer| peer.failures > 0);
        failing.then(|| self.list.iter().map(|peer| peer.retry_at).min().unwrap_or_default())
    }

    /// Forgets failures, so that every address is tried at once.
    pub fn retry_now(&mut self) {
        for peer in &mut self.list {
            peer.retry_at = Duration::ZERO;
            peer.bad.values_mut().for_each(|bad| bad.retry_at = Duration::ZERO);
        }
    }

    /// Whether each address fails or has bad ranges.
    pub fn all_bad(&self) -> bool {
        !self.list.is_empty() && self.list.iter().all(|peer| peer.failures > 0 || peer.is_bad())
    }

    /// When the next bad range may be requested again.
    pub fn next_bad_retry(&self) -> Option<Duration> {
        self.list.iter().flat_map(|peer| peer.bad.values()).map(|bad| bad.retry_at).min()
    }

    /// When the next failed address may be tried again.
    pub fn next_retry(&self) -> Option<Duration> {
        self.list.iter().filter(|peer| peer.failures > 0).map(|peer| peer.retry_at).min()
    }

    /// Takes the idle connections that no other thread holds, and returns when the next one may become idle.
    pub fn take_idle(&mut self, now: Duration) -> (Vec<Arc<dyn Source>>, Option<Duration>) {
        let (mut idle, mut next) = (Vec::new(), None);
        for peer in &mut self.list {
            let Some(source) = &peer.source else { continue };
            let until = peer.used_at + IDLE_AFTER;
            if now < until || Arc::strong_count(source) > 1 {
                next = Some(next.map_or(until, |next: Duration| next.min(until)));
                continue;
            }
            idle.extend(peer.source.take());
        }
        (idle, next)
    }

    /// Notes that an address is used.
    pub fn note_use(&mut self, uri: &str, now: Duration) {
        if let Some(peer) = self.by_uri(uri) {
            peer.used_at = now;
        }
    }

    /// Takes all connections.
    pub fn take_sources(&mut self) -> Vec<Arc<dyn Source>> {
        self.list.iter_mut().filter_map(|peer| peer.source.take()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_address_that_works_is_asked_first_and_each_once() {
        let mut peers = Peers::default();
        peers.set(&["nbd://a/x".into(), "nbd://b/x".into(), "nbd://c/x".into()]);
        for (uri, millis) in [("nbd://a/x", 50), ("nbd://b/x", 2), ("nbd://c/x", 10)] {
            peers.note_read(uri, Duration::ZERO, &(0..1), Some(Duration::from_millis(millis)));
        }
        let now = Duration::from_secs(1);
        let mut tried = Vec::new();
        while let Some(number) = peers.for_waited(now, &tried) {
            tried.push(peers.list[number].uri.clone());
        }
        assert_eq!(tried, ["nbd://b/x", "nbd://c/x", "nbd://a/x"]);
        let error = SourceError { kind: SourceErrorKind::Lost, message: "gone".into() };
        peers.note_error("nbd://b/x", now, &error, None);
        assert_eq!(peers.for_waited(now, &[]), Some(2));
        assert_eq!(peers.for_bulk(now).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(peers.all_failing(), None);
        peers.note_error("nbd://a/x", now, &error, None);
        peers.note_error("nbd://c/x", now, &error, Some(&(0..1)));
        assert!(peers.all_failing().is_some_and(|at| at > now));
        assert_eq!(peers.for_waited(now, &[]).map(|number| peers.list[number].failures), Some(1), "the last resort is to ask anyway");
    }

    #[test]
    fn a_block_that_cannot_be_had_is_found_and_let_be_alone() {
        let mut peers = Peers::default();
        peers.set(&["a".into()]);
        let (now, error) = (Duration::from_secs(1), SourceError { kind: SourceErrorKind::Damaged, message: "damaged".into() });
        let (all, bad) = (0..1024u64, 700);
        let mut requests = 0;
        let mut got = std::collections::BTreeSet::new();
        // What a pass does, again and again: the parts that may be asked for.
        while let Some(start) = (0..1024).find(|block| !got.contains(block) && peers.list[0].allowed(&(*block..*block + 1), now).is_some())
        {
            let end = (start..1024).find(|block| got.contains(block)).unwrap_or(all.end);
            let run = peers.list[0].allowed(&(start..end), now).unwrap();
            requests += 1;
            match run.contains(&bad) {
                true => assert!(peers.note_error("a", now, &error, Some(&run)).is_none()),
                false => {
                    peers.note_read("a", now, &run, None);
                    got.extend(run);
                }
            }
            assert_eq!((peers.list[0].failures, peers.all_failing()), (0, None), "the address works");
        }
        assert_eq!(got.len(), 1023);
        assert!(requests <= 21, "{requests} requests");
        assert!(peers.all_bad());
        let retry_at = peers.next_bad_retry().unwrap();
        assert!(retry_at > now && peers.list[0].allowed(&(bad..bad + 1), retry_at).is_some());
        // It is asked for more and more seldom, and no more when it was had.
        peers.note_error("a", retry_at, &error, Some(&(bad..bad + 1)));
        assert!(peers.next_bad_retry().unwrap() - retry_at > retry_at - now);
        peers.note_read("a", now, &(bad..bad + 1), None);
        assert!(!peers.all_bad());
        // One that cannot give anything fails as a whole.
        for block in 0..u64::from(BAD_MAX.1) {
            peers.note_error("a", now, &error, Some(&(block..block + 1)));
        }
        assert!(peers.all_failing().is_some());
    }

    #[test]
    fn a_slow_read_is_one_far_beyond_the_usual() {
        let mut peers = Peers::default();
        peers.set(&["a".into(), "b".into()]);
        assert_eq!(peers.hedge_after("a"), Some(HEDGE_UNKNOWN), "one that never answered must not be waited for without end");
        for _ in 0..100 {
            peers.note_read("a", Duration::ZERO, &(0..1), Some(Duration::from_millis(100)));
        }
        let after = peers.hedge_after("a").unwrap();
        assert!((100..130).contains(&after.as_millis()), "{after:?}");
        peers.set(&["a".into()]);
        assert_eq!(peers.hedge_after("a"), None, "there is nobody else");
    }
}
