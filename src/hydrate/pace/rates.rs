//! The rate cap, the share of bandwidth beside readers, start jitter, and the measured rate.

use std::time::Duration;

use crate::tokens::{Flow, Tokens};
use crate::units::{real, whole};

/// The rate cap of a hydration. The caller passes the time.
#[derive(Debug, Default)]
pub struct Pace(Tokens);

/// The bucket holds what a cap allows in this time.
const BURST: Duration = Duration::from_millis(200);

impl Pace {
    /// Takes tokens for `bytes` if there are enough; a cap of 0 is no limit. An error is the time to wait.
    pub fn take(&mut self, now: Duration, cap_bytes_per_second: u64, bytes: u64) -> Result<(), Duration> {
        match cap_bytes_per_second {
            0 => self.0.skip(now),
            per_second => self.0.take(now, Flow { per_second, burst: BURST }, bytes)?,
        }
        Ok(())
    }

    /// Returns the tokens of a request that was not made.
    pub fn give_back(&mut self, bytes: u64) {
        self.0.give_back(bytes);
    }
}

/// Share of the bandwidth of a host that backfill uses while readers wait: as much as does not prolong their waits, but at least an eighth.
#[derive(Debug)]
pub struct Share(f64);

impl Default for Share {
    fn default() -> Self {
        Self(0.25)
    }
}

impl Share {
    const LEAST: f64 = 0.125;
    /// Accepted length of a wait, relative to the shortest one, and in addition in seconds.
    const PATIENCE: f64 = 1.2;
    const SLACK_SECONDS: f64 = 0.0005;

    /// Adjusts the share after a wait of a reader; `shortest` is the shortest recent wait.
    pub fn note(&mut self, waited: Duration, shortest: Duration) {
        let longer = waited.as_secs_f64() > shortest.as_secs_f64() * Self::PATIENCE + Self::SLACK_SECONDS;
        self.0 = if longer { (self.0 * 0.7).max(Self::LEAST) } else { (self.0 * 1.05).min(1.0) };
    }

    /// The share, from an eighth to 1.
    pub fn of_way(&self) -> f64 {
        self.0
    }
}

/// When readers waited.
#[derive(Debug, Default)]
pub struct Waits {
    last: Option<Duration>,
    /// The last wait that came soon after another one.
    again: Option<Duration>,
}

impl Waits {
    /// Readers that waited twice within this time will probably wait again.
    pub const MEMORY: Duration = Duration::from_millis(100);

    /// Notes the end of a wait.
    pub fn note(&mut self, now: Duration) {
        if self.last.is_some_and(|at| now.saturating_sub(at) < Self::MEMORY) {
            self.again = Some(now);
        }
        self.last = Some(now);
    }

    /// Whether any wait has ended so far.
    pub fn any(&self) -> bool {
        self.last.is_some()
    }

    /// Whether more waits are expected. A single wait predicts none.
    pub fn more_to_come(&self, now: Duration) -> bool {
        self.again.is_some_and(|at| now.saturating_sub(at) < Self::MEMORY)
    }
}

/// Start jitter: hydrations that start together, in one store or in many, begin at random times. The range of the jitter is `START_APART`
/// for each hydration of the store, and at most `START_APART_MAX`.
const START_APART: Duration = Duration::from_millis(20);
const START_APART_MAX: Duration = Duration::from_secs(2);

/// The jitter of a hydration, drawn from `random`; the store has this many hydrations.
pub fn start_pause(hydrations: usize, random: u64) -> Duration {
    let hydrations = u32::try_from(hydrations).unwrap_or(u32::MAX).max(1);
    let longest = START_APART.saturating_mul(hydrations).min(START_APART_MAX);
    longest.mul_f64(real(random >> 11) / real(1 << 53))
}

/// Measured rate of the last seconds.
#[derive(Debug, Default)]
pub struct Rate {
    samples: std::collections::VecDeque<(Duration, u64)>,
}

const RATE_WINDOW: Duration = Duration::from_secs(5);

impl Rate {
    /// Notes the total number of bytes so far.
    pub fn note(&mut self, now: Duration, total_bytes: u64) {
        let recent = self.samples.back().is_some_and(|(at, _)| now.saturating_sub(*at) < Duration::from_millis(100));
        if !recent {
            self.samples.push_back((now, total_bytes));
        }
        while self.samples.len() > 2 && self.samples.front().is_some_and(|(at, _)| now.saturating_sub(*at) > RATE_WINDOW) {
            self.samples.pop_front();
        }
    }

    /// The rate over the window, in bytes a second.
    pub fn bytes_per_second(&self, now: Duration, total_bytes: u64) -> u64 {
        let Some((at, bytes)) = self.samples.front() else { return 0 };
        let elapsed = now.saturating_sub(*at).as_secs_f64();
        if elapsed < 0.001 { 0 } else { whole(real(total_bytes - bytes) / elapsed) }
    }
}

/// Whether `left_bytes` take longer than `left` at this rate. It aims at an earlier end, by a tenth of the time and by the window of the
/// rate, which shows a slower pace only afterwards.
pub fn is_late(left_bytes: u64, left: Duration, bytes_per_second: u64) -> bool {
    let left = (left - left / 10).saturating_sub(RATE_WINDOW);
    real(bytes_per_second) * left.as_secs_f64() <= real(left_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_deadline_is_met_by_one_that_is_fast_while_it_is_late() {
        const FAST: u64 = 50 << 20;
        for (total_bytes, deadline) in [(800u64 << 20, 24u64), (2 << 30, 120), (1 << 30, 3600)] {
            let (mut left_bytes, mut rate, mut fast) = (total_bytes, Rate::default(), 0);
            let mut now = Duration::ZERO;
            while left_bytes > 0 && now < Duration::from_secs(deadline) {
                rate.note(now, total_bytes - left_bytes);
                let is_fast =
                    is_late(left_bytes, Duration::from_secs(deadline) - now, rate.bytes_per_second(now, total_bytes - left_bytes));
                fast += u64::from(is_fast);
                left_bytes = left_bytes.saturating_sub(if is_fast { FAST } else { 1 << 20 });
                now += Duration::from_secs(1);
            }
            assert_eq!(left_bytes, 0, "{total_bytes} bytes in {deadline} s");
            assert!(fast <= total_bytes / FAST + 1, "{fast} s of {deadline}");
        }
        assert!(is_late(1, Duration::ZERO, u64::MAX >> 12), "what is too late already is not slowed down");
    }

    #[test]
    fn the_share_grows_until_readers_feel_it() {
        let mut share = Share::default();
        let (mut least, mut most) = (1.0f64, 0.0f64);
        for number in 0..1000 {
            // Beyond half of the way there is a queue.
            let waited = Duration::from_secs_f64(0.02 + (share.of_way() - 0.5).max(0.0) * 0.1);
            share.note(waited, Duration::from_millis(20));
            if number > 100 {
                (least, most) = (least.min(share.of_way()), most.max(share.of_way()));
            }
        }
        assert!((0.35..0.5).contains(&least) && (0.5..0.7).contains(&most), "{least} to {most}");
        (0..100).for_each(|_| share.note(Duration::from_secs(1), Duration::from_millis(20)));
        assert_eq!(share.of_way(), Share::LEAST);
    }

    #[test]
    fn hydrations_that_begin_at_once_begin_apart() {
        let mut random = Random::new(1);
        for (hydrations, longest) in [(1, 20), (50, 1000), (5000, 2000)] {
            let mut pauses: Vec<Duration> = (0..1000).map(|_| start_pause(hydrations, random.number())).collect();
            pauses.sort_unstable();
            let longest = Duration::from_millis(longest);
            assert!(pauses[999] < longest && pauses[0] < longest / 50, "{hydrations}: {:?} to {:?}", pauses[0], pauses[999]);
            // No tenth of the time has much more than a tenth of the beginnings.
            let crowd = pauses.windows(150).map(|some| some[149] - some[0]).min();
            assert!(crowd.is_some_and(|time| time > longest / 10), "{hydrations}: {crowd:?}");
        }
    }

    #[test]
    fn readers_that_waited_twice_are_expected_again_for_a_while() {
        let (mut waits, millis) = (Waits::default(), Duration::from_millis);
        assert!(!waits.any());
        waits.note(millis(1000));
        assert!(waits.any() && !waits.more_to_come(millis(1001)), "one says nothing");
        waits.note(millis(1100));
        assert!(!waits.more_to_come(millis(1101)), "nor do two that are far apart");
        waits.note(millis(1199));
        assert!(waits.more_to_come(millis(1200)) && waits.more_to_come(millis(1298)));
        assert!(!waits.more_to_come(millis(1299)), "it is long ago");
    }

    #[test]
    fn the_cap_holds_over_a_long_time() {
        let (mut pace, mut now, mut bytes) = (Pace::default(), Duration::ZERO, 0u64);
        while now < Duration::from_secs(100) {
            match pace.take(now, 1 << 20, 256 << 10) {
                Ok(()) => bytes += 256 << 10,
                Err(wait) => now += wait,
            }
        }
        let expected = 100 << 20;
        assert!(bytes.abs_diff(expected) < 2 << 20, "{bytes} bytes in 100 s at 1 MiB/s");
        assert_eq!(pace.take(now, 0, u64::MAX), Ok(()));
    }
}
