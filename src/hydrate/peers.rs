//! The addresses at which the bytes of a root layer can be had, and how each of them does.

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
        }
    }

    fn is_ready(&self, now: Duration) -> bool {
        self.failures == 0 || now >= self.retry_at
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

    fn by_uri(&mut self, uri: &str) -> Option<&mut Peer> {
        self.list.iter_mut().find(|peer| peer.uri == uri)
    }

    /// A read has ended well.
    pub fn note_read(&mut self, uri: &str, waited: Option<Duration>) {
        if let Some(peer) = self.by_uri(uri) {
            peer.failures = 0;
            peer.refused = false;
            if let Some(time) = waited {
                peer.latency.note(time);
            }
        }
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

    /// An address has failed. Answers its source if that is of no use any more.
    pub fn note_error(&mut self, uri: &str, now: Duration, error: &SourceError) -> Option<Arc<dyn Source>> {
        let peer = self.by_uri(uri)?;
        peer.last_error = Some(error.message.clone());
        peer.errors += 1;
        peer.refused = matches!(error.kind, SourceErrorKind::Changed | SourceErrorKind::Invalid);
        peer.failures = peer.failures.saturating_add(1);
        let pause = RETRY_PAUSES.start.saturating_mul(1 << (peer.failures - 1).min(8));
        peer.retry_at = now + pause.min(RETRY_PAUSES.end);
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
        self.list.iter_mut().for_each(|peer| peer.retry_at = Duration::ZERO);
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
            peers.note_read(uri, Some(Duration::from_millis(millis)));
        }
        let now = Duration::from_secs(1);
        let mut tried = Vec::new();
        while let Some(number) = peers.for_waited(now, &tried) {
            tried.push(peers.list[number].uri.clone());
        }
        assert_eq!(tried, ["nbd://b/x", "nbd://c/x", "nbd://a/x"]);
        let error = SourceError { kind: SourceErrorKind::Lost, message: "gone".into() };
        peers.note_error("nbd://b/x", now, &error);
        assert_eq!(peers.for_waited(now, &[]), Some(2));
        assert_eq!(peers.for_bulk(now).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(peers.all_failing(), None);
        peers.note_error("nbd://a/x", now, &error);
        peers.note_error("nbd://c/x", now, &error);
        assert!(peers.all_failing().is_some_and(|at| at > now));
        assert_eq!(peers.for_waited(now, &[]).map(|number| peers.list[number].failures), Some(1), "the last resort is to ask anyway");
    }

    #[test]
    fn a_slow_read_is_one_far_beyond_the_usual() {
        let mut peers = Peers::default();
        peers.set(&["a".into(), "b".into()]);
        assert_eq!(peers.hedge_after("a"), Some(HEDGE_UNKNOWN), "one that never answered must not be waited for without end");
        for _ in 0..100 {
            peers.note_read("a", Some(Duration::from_millis(100)));
        }
        let after = peers.hedge_after("a").unwrap();
        assert!((100..130).contains(&after.as_millis()), "{after:?}");
        peers.set(&["a".into()]);
        assert_eq!(peers.hedge_after("a"), None, "there is nobody else");
    }
}
