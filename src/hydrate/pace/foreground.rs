//! Latencies of the foreground (the reads and writes of a store's volumes), and the rate of backfill that does not raise them.
//!
//! Backfill pauses periodically to measure the latency of the undisturbed foreground. If the latency is higher while backfill runs, the
//! rate falls by a third; otherwise it rises by a tenth (multiplicative increase and decrease, as in congestion control). The rate never
//! falls below a floor, so that constant load does not stop hydration.

use std::time::Duration;

use crate::place::{index, length, wide};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::units::{real, whole_micros};

/// Buckets of the latency histogram for each power of two of microseconds. It reaches up to some hours.
const OCTAVE_BUCKETS: usize = 16;
const BUCKETS: usize = 32 * OCTAVE_BUCKETS;
/// Interval between two adjustments of the rate.
const TICK: Duration = Duration::from_millis(100);
/// Ticks of one cycle. The first ones are a pause: requests under way end in the first of them, and in the others the foreground is
/// undisturbed.
const CYCLE_TICKS: u32 = 40;
const PAUSE_TICKS: u32 = 3;
/// Number of ticks whose median counts, because single ones are noisy.
const LOOKS: usize = 5;
/// A tick with fewer requests counts as one without load.
const REQUESTS_MIN: u32 = 10;
/// Accepted latency beside backfill, relative to that of the undisturbed foreground.
const LATENCY_RATIO: f64 = 1.15;
/// Accepted difference in addition, in microseconds.
const LATENCY_SLACK_MICROS: f64 = 20.0;
/// The floor of the rate: the larger of a share of the highest rate seen, and an absolute rate.
const FLOOR_SHARE: f64 = 0.05;
const FLOOR_BYTES_PER_SECOND: f64 = 4.0 * 1024.0 * 1024.0;

/// Histogram of the latencies of the foreground.
#[derive(Debug)]
pub struct Latencies {
    /// Set while a hydration reads the histogram.
    watched: AtomicBool,
    counts: [AtomicU32; BUCKETS],
}

impl Default for Latencies {
    fn default() -> Self {
        Self { watched: AtomicBool::new(false), counts: std::array::from_fn(|_| AtomicU32::new(0)) }
    }
}

fn bucket(micros: u64) -> usize {
    let micros = micros.max(wide(OCTAVE_BUCKETS));
    let octave = micros.ilog2();
    let within = length(micros >> (octave - OCTAVE_BUCKETS.ilog2())) % OCTAVE_BUCKETS;
    (index(octave) * OCTAVE_BUCKETS + within).min(BUCKETS - 1)
}

/// The middle of a bucket, in microseconds.
fn micros(bucket: usize) -> f64 {
    let (octave, within) = (bucket / OCTAVE_BUCKETS, bucket % OCTAVE_BUCKETS);
    real(1 << octave) * (1.0 + (real(wide(within)) + 0.5) / real(wide(OCTAVE_BUCKETS)))
}

impl Latencies {
    /// Whether latencies are needed. If not, callers need not read the clock.
    pub fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    pub(super) fn watch(&self, watched: bool) {
        self.watched.store(watched, Ordering::Relaxed);
    }

    /// Counts one request.
    pub fn note(&self, latency: Duration) {
        self.counts[bucket(whole_micros(latency))].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the counts since the last call: the number of requests, and the 99th percentile of their latencies in microseconds.
    fn take(&self) -> (u32, f64) {
        let counts: Vec<u32> = self.counts.iter().map(|count| count.swap(0, Ordering::Relaxed)).collect();
        let total: u32 = counts.iter().sum();
        let mut above = total - total / 100;
        for (bucket, count) in counts.iter().enumerate() {
            if above <= *count {
                return (total, micros(bucket));
            }
            above -= count;
        }
        (total, 0.0)
    }
}

/// The latest values of a noisy measurement.
#[derive(Debug, Default)]
struct Looks {
    latest: [f64; LOOKS],
    count: usize,
}

impl Looks {
    fn note(&mut self, value: f64) {
        self.latest[self.count % LOOKS] = value;
        self.count += 1;
    }

    /// The median; `None` if there are fewer than `least` values.
    fn middle(&self, least: usize) -> Option<f64> {
        let mut known = self.latest[..self.count.min(LOOKS)].to_vec();
        known.sort_unstable_by(f64::total_cmp);
        (self.count >= least).then(|| known[known.len() / 2])
    }
}

/// Controller and token bucket of the rate of backfill. Pure: the caller passes the time and the latencies.
#[derive(Debug, Default)]
pub struct Guard {
    tick_at: Duration,
    tick: u32,
    /// Latencies in microseconds without backfill (`alone`) and with it (`beside`).
    alone: Looks,
    beside: Looks,
    /// Rate limit in bytes a second; `None` if there is no load.
    limit: Option<f64>,
    bytes: u64,
    fastest: f64,
    available: f64,
    filled_at: Duration,
}

impl Guard {
    /// Whether backfill pauses now to measure the undisturbed foreground.
    fn is_quiet(&self) -> bool {
        self.limit.is_some() && self.tick < PAUSE_TICKS
    }

    /// Adjusts the limit if a tick has passed.
    pub fn advance(&mut self, now: Duration, latencies: &Latencies) {
        let elapsed = now.saturating_sub(self.tick_at);
        if elapsed < TICK {
            return;
        }
        let (requests, latency) = latencies.take();
        let pace = real(self.bytes) / elapsed.as_secs_f64();
        (self.bytes, self.tick_at) = (0, now);
        let (was_paused, was_settling) = (self.is_quiet(), self.tick == 0);
        self.tick = (self.tick + 1) % CYCLE_TICKS;
        if requests < REQUESTS_MIN {
            // There is no load: no limit.
            (self.limit, self.alone, self.beside) = (None, Looks::default(), Looks::default());
            return;
        }
        self.fastest = (self.fastest * 0.999).max(pace);
        let floor = (self.fastest * FLOOR_SHARE).max(FLOOR_BYTES_PER_SECOND);
        let Some(limit) = self.limit else {
            // The load has begun: the cycle starts with a pause, which measures the foreground alone.
            (self.limit, self.tick) = (Some(pace.max(floor)), 0);
            return;
        };
        if was_paused {
            if !was_settling {
                self.alone.note(latency);
            }
            return;
        }
        self.beside.note(latency);
        let (Some(alone), Some(beside)) = (self.alone.middle(2), self.beside.middle(LOOKS)) else { return };
        // A limit that backfill does not use is not raised.
        let raised = if pace > limit / 2.0 { limit * 1.1 } else { limit };
        if beside <= alone * LATENCY_RATIO + LATENCY_SLACK_MICROS {
            self.limit = Some(raised.max(floor));
        } else {
            self.limit = Some((limit * 0.67).max(floor));
            // The next median is of values at the new rate only.
            self.beside.count = 0;
        }
    }

    /// Takes tokens for `bytes` if there are enough. An error is the time to wait.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Result<(), Duration> {
        let elapsed = now.saturating_sub(self.filled_at).as_secs_f64();
        self.filled_at = now;
        let Some(limit) = self.limit else {
            self.available = 0.0;
            self.bytes += bytes;
            return Ok(());
        };
        // A pause still gives the floor.
        let rate = if self.is_quiet() { FLOOR_BYTES_PER_SECOND.min(limit) } else { limit };
        self.available = (self.available + elapsed * rate).min((rate / 10.0).max(1.0));
        if self.available < 0.0 || (self.available < real(bytes) && self.available < rate / 20.0) {
            let missing = real(bytes).min(rate / 20.0) - self.available;
            return Err(Duration::from_secs_f64((missing / rate).clamp(0.001, 0.1)));
        }
        self.available -= real(bytes);
        self.bytes += bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs backfill against a foreground whose latency depends on the pace; answers the average pace of the second half.
    fn run(latency: impl Fn(f64) -> f64, requests_per_second: u32, seconds: u64) -> f64 {
        let (mut guard, latencies) = (Guard::default(), Latencies::default());
        let (mut now, mut total, mut late, mut recent) = (Duration::ZERO, 0u64, 0u64, 0.0f64);
        let end = Duration::from_secs(seconds);
        while now < end {
            // The machine cannot do more than 1000 MB/s.
            let mut room = 1_000_000u64;
            let before = total;
            while room > 0 && guard.take(now, 250_000).is_ok() {
                total += 250_000;
                room -= 250_000;
            }
            recent = recent * 0.98 + real(total - before) * 1000.0 * 0.02;
            for _ in 0..requests_per_second / 1000 {
                latencies.note(Duration::from_secs_f64(latency(recent) / 1e6));
            }
            guard.advance(now, &latencies);
            if now > end / 2 {
                late += total - before;
            }
            now += Duration::from_millis(1);
        }
        real(late) / (real(seconds) / 2.0)
    }

    #[test]
    fn nobody_disturbed_means_no_limit() {
        assert!(run(|_| 100.0, 0, 10) > 900e6);
        assert!(run(|_| 100.0, 2000, 60) > 500e6, "a foreground that does not suffer is no reason to be slow");
    }

    #[test]
    fn a_foreground_that_suffers_is_left_alone_as_far_as_the_floor() {
        // Latency doubles at 200 MB/s.
        let pace = run(|pace| 200.0 * (1.0 + pace / 200e6), 2000, 60);
        assert!((5e6..120e6).contains(&pace), "{pace}");
        let pace = run(|pace| 200.0 * (1.0 + pace / 1e6), 2000, 60);
        assert!(pace > 3e6, "hydration never starves: {pace}");
    }

    #[test]
    fn latencies_are_told_within_a_sixteenth() {
        for micros_in in [16u64, 77, 1000, 123_456] {
            let latencies = Latencies::default();
            for _ in 0..100 {
                latencies.note(Duration::from_micros(micros_in));
            }
            let (count, told) = latencies.take();
            assert!(count == 100 && (told / real(micros_in) - 1.0).abs() < 1.0 / 16.0, "{micros_in}: {told}");
        }
    }
}
