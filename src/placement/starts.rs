//! How long starts took: the measure that placement is judged by.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::units::{real, whole};

/// Longest time that is told apart, in microseconds: a day.
const MICROS_MAX: u64 = 24 * 3600 * 1_000_000;

/// Times of starts from request to ready, in histograms of bounded size: three digits are kept, from a microsecond to a day.
///
/// ```
/// use volfork::placement::StartTimes;
///
/// let mut starts = StartTimes::default();
/// starts.record(1.5, 0.5, false); // Seconds of fetching and of all else.
/// starts.record(0.0, 0.01, true); // Everything was here.
/// let summary = starts.summary();
/// assert_eq!((summary.cached.count, summary.fetched.count), (1, 1));
/// assert!((summary.fetched.total.max_seconds - 2.0).abs() < 0.01);
/// ```
#[derive(Clone, Debug)]
pub struct StartTimes {
    cached: Times,
    fetched: Times,
}

#[derive(Clone, Debug)]
struct Times {
    total: Histogram<u64>,
    fetch: Histogram<u64>,
    prepare: Histogram<u64>,
}

/// Quantiles of one kind of time, in seconds; zero if there was no start.
///
/// ```
/// use volfork::placement::{StartTimes, TimeSummary};
///
/// let mut starts = StartTimes::default();
/// for seconds in 1..=100 {
///     starts.record(f64::from(seconds), 0.0, false);
/// }
/// let fetch: TimeSummary = starts.summary().fetched.fetch;
/// // Seconds, to three digits.
/// assert!((fetch.p50_seconds - 50.0).abs() < 0.1 && (fetch.p99_seconds - 99.0).abs() < 0.1);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimeSummary {
    /// Arithmetic mean of all times.
    pub mean_seconds: f64,
    /// Median: half of them were shorter.
    pub p50_seconds: f64,
    /// 99th percentile: one in a hundred took longer.
    pub p99_seconds: f64,
    /// Longest time.
    pub max_seconds: f64,
}

/// Times of starts of one kind.
///
/// ```
/// use volfork::placement::{StartSummary, StartTimes};
///
/// let mut starts = StartTimes::default();
/// starts.record(2.0, 1.0, false);
/// let fetched: StartSummary = starts.summary().fetched;
/// // From request to ready is fetching and everything else.
/// let parts = fetched.fetch.mean_seconds + fetched.prepare.mean_seconds;
/// assert!((fetched.total.mean_seconds - parts).abs() < 0.01);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StartSummary {
    /// Number of starts.
    pub count: u64,
    /// From request to ready.
    pub total: TimeSummary,
    /// Waiting for bytes from elsewhere.
    pub fetch: TimeSummary,
    /// The rest of it, such as unpacking.
    pub prepare: TimeSummary,
}

/// Times of all starts.
///
/// ```
/// use volfork::placement::{StartTimes, StartsSummary};
///
/// let mut starts = StartTimes::default();
/// for cached in [true, true, true, false] {
///     starts.record(if cached { 0.0 } else { 3.0 }, 0.1, cached);
/// }
/// let StartsSummary { cached, fetched } = starts.summary();
/// assert_eq!(cached.count * 100 / (cached.count + fetched.count), 75, "per cent of starts that fetched nothing");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StartsSummary {
    /// Those for which everything was here.
    pub cached: StartSummary,
    /// Those that had to fetch.
    pub fetched: StartSummary,
}

impl Default for StartTimes {
    fn default() -> Self {
        let empty = Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("these bounds are valid");
        let times = Times { total: empty.clone(), fetch: empty.clone(), prepare: empty };
        Self { cached: times.clone(), fetched: times }
    }
}

impl StartTimes {
    /// Counts one start. Times that are negative or not numbers count as zero.
    pub fn record(&mut self, fetch_seconds: f64, prepare_seconds: f64, cached: bool) {
        let times = if cached { &mut self.cached } else { &mut self.fetched };
        let micros = |seconds: f64| whole((seconds.max(0.0) * 1e6).round());
        let (fetch, prepare) = (micros(fetch_seconds), micros(prepare_seconds));
        times.fetch.saturating_record(fetch);
        times.prepare.saturating_record(prepare);
        times.total.saturating_record(fetch.saturating_add(prepare));
    }

    /// A summary of all starts so far.
    pub fn summary(&self) -> StartsSummary {
        StartsSummary { cached: self.cached.summary(), fetched: self.fetched.summary() }
    }
}

impl Times {
    fn summary(&self) -> StartSummary {
        let [total, fetch, prepare] = [&self.total, &self.fetch, &self.prepare].map(|times| {
            let at = |quantile| real(times.value_at_quantile(quantile)) / 1e6;
            TimeSummary {
                mean_seconds: times.mean() / 1e6,
                p50_seconds: at(0.5),
                p99_seconds: at(0.99),
                max_seconds: real(times.max()) / 1e6,
            }
        });
        StartSummary { count: self.total.len(), total, fetch, prepare }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_kept_apart_for_cached_and_fetched_starts() {
        let mut starts = StartTimes::default();
        assert_eq!(starts.summary(), StartsSummary::default());
        for number in 1..=100 {
            starts.record(f64::from(number), 0.5, false);
        }
        starts.record(0.0, 0.001, true);
        let StartsSummary { cached, fetched } = starts.summary();
        assert_eq!((cached.count, fetched.count), (1, 100));
        let near = |seen: f64, wanted: f64| assert!((seen / wanted - 1.0).abs() < 0.001, "{seen} is not {wanted}");
        near(fetched.fetch.p50_seconds, 50.0);
        near(fetched.fetch.p99_seconds, 99.0);
        near(fetched.total.max_seconds, 100.5);
        near(fetched.total.mean_seconds, 51.0);
        near(fetched.prepare.p99_seconds, 0.5);
        near(cached.total.p50_seconds, 0.001);
    }

    #[test]
    fn nonsense_is_counted_within_the_bounds() {
        let mut starts = StartTimes::default();
        starts.record(f64::NAN, -1.0, false);
        starts.record(f64::INFINITY, 1e300, false);
        let summary = starts.summary().fetched;
        assert_eq!((summary.count, summary.total.p50_seconds), (2, 0.0));
        assert!(summary.total.max_seconds >= real(MICROS_MAX) / 1e6);
    }
}
