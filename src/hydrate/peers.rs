//! The addresses at which the bytes of a root layer can be had, and how each of them does.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::source::{Source, SourceError, SourceErrorKind, host_of};

/// First and longest pause before an address that failed is tried again.
const RETRY_PAUSES: Range<Duration> = Duration::from_millis(250)..Duration::from_secs(5);
/// A waited-for read is never asked for a second time earlier than this.
const HEDGE_MIN: Duration = Duration::from_millis(20);
/// A read of an address of which nothing is known yet is slow after so long.
const HEDGE_UNKNOWN: Duration = Duration::from_secs(1);
/// Who waits for bulk asks elsewhere when nothing has come for so long, and for so many times of what is usual.
const BULK_PATIENCE: (Duration, u32) = (Duration::from_millis(500), 4);

/// First and longest pause before a block that an address could not give is asked for there again.
const BAD_PAUSES: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(60);
/// Ranges that one address could not give and that are kept in mind, and how many in a row make the whole address fail.
const BAD_MAX: (usize, u32) = (4096, 16);
/// A connection that is not used for so long is given up, if nothing is to be fetched.
const IDLE_AFTER: Duration = Duration::from_secs(10);

/// Blocks that an address could not give, though it answered.
struct Bad {
    end: u64,
    failures: u32,
    retry_at: Duration,
}

/// One address.
pub struct Peer {
    pub uri: String,
    /// What shares a way with it.
    pub host: Arc<str>,
    pub source: Option<Arc<dyn Source>>,
    /// Bytes taken from it.
    pub bytes: u64,
    pub errors: u64,
    /// In a row.
    pub failures: u32,
    pub retry_at: Duration,
    pub last_error: Option<String>,
    /// It will not do however often it is tried, unless it becomes another one.
    pub refused: bool,
    pub latency: Latency,
    /// When it was last used, and its shortest round trip, known from a connection that was given up.
    pub used_at: Duration,
    pub round_trip: Option<Duration>,
    /// Ranges that it could not give, by their first blocks, and how often in a row that was so.
    bad: BTreeMap<u64, Bad>,
    bad_in_row: u32,
}

/// Mean and deviation of the time of waited-for reads, smoothed as TCP smooths round trips (RFC 6298).
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    mean: Option<f64>,
    deviation: f64,
    /// The shortest; creeps up, since a way may become longer.
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

    /// The shortest time lately.
    pub fn shortest(&self) -> Duration {
        Duration::from_secs_f64(self.shortest.min(3600.0))
    }

    /// A read that takes longer than this is slow.
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

    /// Whether there are blocks that it could not give.
    pub fn is_bad(&self) -> bool {
        !self.bad.is_empty()
    }

    /// The first part of a range of blocks that may be asked for now, in one request.
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

    /// A range could not be given. Of several blocks the halves are asked for by themselves, until it is known which one it is.
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

    /// Whether to ask it is to try it again, and nobody has said that this is to be done at once.
    pub fn is_retried(&self) -> bool {
        self.failures > 0 && self.retry_at > Duration::ZERO
    }

    /// It failed, or is not to be tried yet: the next time is later.
    pub fn put_off(&mut self, now: Duration) {
        let pause = RETRY_PAUSES.start.saturating_mul(1 << self.failures.saturating_sub(1).min(8));
        self.retry_at = now + pause.min(RETRY_PAUSES.end);
    }
}

impl Peers {
    /// These addresses; those that stay keep what is known of them. Answers the sources that are not used any more.
    pub fn set(&mut self, uris: &[String]) -> Vec<Arc<dyn Source>> {
        let mut old = std::mem::take(&mut self.list);
        for uri in uris {
            let known = old.iter().position(|peer| peer.uri == *uri);
            self.list.push(known.map_or_else(|| Peer::new(uri.clone()), |at| old.swap_remove(at)));
        }
        old.into_iter().filter_map(|peer| peer.source).collect()
    }

    /// The addresses that may be asked now and were not yet, the quickest first; one that is not known is tried before a slow one,
    /// but none that has to be connected to first: that may take long, and backfill does it aside.
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

    /// The addresses that bulk may come from now. All are kept busy as far as their windows reach, so each gives as much as it can.
    pub fn for_bulk(&self, now: Duration) -> impl Iterator<Item = usize> + '_ {
        self.list.iter().enumerate().filter(move |(_, peer)| peer.is_ready(now)).map(|(number, _)| number)
    }

    /// When a waited-for read of this address is slow, if there is another one to ask.
    pub fn hedge_after(&self, uri: &str) -> Option<Duration> {
        let others = self.list.iter().any(|peer| peer.uri != uri);
        let peer = self.list.iter().find(|peer| peer.uri == uri && others)?;
        Some(peer.latency.slow().unwrap_or(HEDGE_UNKNOWN))
    }

    /// How long bulk may bring nothing before who waits for it asks elsewhere, if there is another address.
    pub fn bulk_patience(&self) -> Option<Duration> {
        let slowest = self.list.iter().filter_map(|peer| peer.latency.slow()).max().unwrap_or(HEDGE_UNKNOWN / BULK_PATIENCE.1);
        (self.list.len() > 1).then(|| (slowest * BULK_PATIENCE.1).max(BULK_PATIENCE.0))
    }

    /// When an address that failed the last time is tried again.
    pub fn retry_at(&self, uri: &str) -> Duration {
        let peer = self.list.iter().find(|peer| peer.uri == uri && peer.failures > 0);
        peer.map_or(Duration::ZERO, |peer| peer.retry_at)
    }

    /// What shares a way with an address.
    pub fn host(&self, uri: &str) -> Option<&str> {
        self.list.iter().find(|peer| peer.uri == uri).map(|peer| &*peer.host)
    }

    fn by_uri(&mut self, uri: &str) -> Option<&mut Peer> {
        self.list.iter_mut().find(|peer| peer.uri == uri)
    }

    /// A read of these blocks has ended well. Answers whether the address had failed before.
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

    /// The shortest time that somebody waited for this address lately.
    pub fn shortest_wait(&mut self, uri: &str) -> Duration {
        self.by_uri(uri).map_or(Duration::MAX, |peer| peer.latency.shortest())
    }

    /// Bytes have come.
    pub fn note_bytes(&mut self, uri: &str, bytes: u64) {
        if let Some(peer) = self.by_uri(uri) {
            peer.bytes += bytes;
        }
    }

    /// An address has failed, or has answered that it cannot give these blocks. Answers its source if that is of no use any more.
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
        // What is there at the next try may be the right export again.
        if error.kind == SourceErrorKind::Changed { peer.source.take() } else { None }
    }

    /// Whether no address answers, and when one is tried again.
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

    /// Whether each address fails, or could not give some blocks.
    pub fn all_bad(&self) -> bool {
        !self.list.is_empty() && self.list.iter().all(|peer| peer.failures > 0 || peer.is_bad())
    }

    /// When blocks that could not be given are asked for again.
    pub fn next_bad_retry(&self) -> Option<Duration> {
        self.list.iter().flat_map(|peer| peer.bad.values()).map(|bad| bad.retry_at).min()
    }

    /// When the next address that failed is tried again.
    pub fn next_retry(&self) -> Option<Duration> {
        self.list.iter().filter(|peer| peer.failures > 0).map(|peer| peer.retry_at).min()
    }

    /// Gives up the connections that nobody has, and that nobody has used for long; otherwise says when the next one may be.
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

    /// An address is used.
    pub fn note_use(&mut self, uri: &str, now: Duration) {
        if let Some(peer) = self.by_uri(uri) {
            peer.used_at = now;
        }
    }

    /// Gives up all connections.
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
