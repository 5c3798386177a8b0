//! A token bucket, for every rate that the engine keeps.
#![cfg_attr(not(feature = "serve"), allow(dead_code, reason = "only the server takes tokens ahead"))]
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]

use std::time::Duration;

use crate::units::real;

/// What fills a bucket.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Tokens a second, at least one.
    pub per_second: u64,
    /// The bucket holds what flows in this time.
    pub burst: Duration,
}

impl Flow {
    fn rate(self) -> f64 {
        real(self.per_second.max(1))
    }

    fn full(self) -> f64 {
        (self.rate() * self.burst.as_secs_f64()).max(1.0)
    }

    /// The time in which so many tokens flow.
    fn time(self, tokens: f64) -> Duration {
        Duration::try_from_secs_f64(tokens / self.rate()).unwrap_or(if tokens > 0.0 { Duration::MAX } else { Duration::ZERO })
    }
}

/// The tokens of a bucket, which may be less than none. The caller passes the time, and what fills the bucket, which may change.
#[derive(Debug, Default)]
pub struct Tokens {
    level: f64,
    at: Duration,
}

/// The shortest wait of a taker that asks again.
const WAIT_MIN: Duration = Duration::from_millis(1);

impl Tokens {
    /// A full bucket.
    pub fn full(now: Duration, flow: Flow) -> Self {
        Self { level: flow.full(), at: now }
    }

    /// Adds what has flowed until now. A time that another thread has overtaken adds nothing.
    pub fn fill(&mut self, now: Duration, flow: Flow) {
        self.level = (self.level + now.saturating_sub(self.at).as_secs_f64() * flow.rate()).min(flow.full());
        self.at = self.at.max(now);
    }

    /// Nothing is kept until now, because there is no limit.
    pub fn skip(&mut self, now: Duration) {
        self.at = self.at.max(now);
    }

    /// Takes tokens if there are enough. If more are asked for than the bucket holds, a full one is enough, and is in debt afterwards. An
    /// error is the time after which to ask again.
    pub fn take(&mut self, now: Duration, flow: Flow, tokens: u64) -> Result<(), Duration> {
        self.fill(now, flow);
        let needed = real(tokens).min(flow.full());
        if self.level >= needed {
            self.level -= real(tokens);
            return Ok(());
        }
        Err(flow.time(needed - self.level).max(WAIT_MIN))
    }

    /// Takes tokens in any case, and answers how long the taker has to wait: until the debt of those before it is paid. So takers go in
    /// the order in which they take, none asks twice, and the rate is exact over time, whatever the amounts and however late they go.
    pub fn take_ahead(&mut self, now: Duration, flow: Flow, tokens: u64) -> Duration {
        self.fill(now, flow);
        let wait = flow.time((-self.level).max(0.0));
        self.level -= real(tokens);
        wait
    }

    /// Returns tokens that were taken for something that was not done.
    pub fn give_back(&mut self, tokens: u64) {
        self.level += real(tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn takers_ahead_keep_the_rate_whatever_they_take() {
        for (per_second, tokens) in [(5000, 1), (1 << 20, 4 << 20), (100 << 20, 256 << 10), (1, 1), (3, 100)] {
            let flow = Flow { per_second, burst: Duration::from_millis(100) };
            let mut bucket = Tokens::full(SECOND, flow);
            let (mut now, mut taken) = (SECOND, 0);
            while now < 1000 * SECOND {
                // Each wakes late, which costs nothing while the bucket holds what flows meanwhile.
                let wait = bucket.take_ahead(now, flow, tokens);
                now += wait + if wait > Duration::ZERO { Duration::from_micros(300) } else { Duration::ZERO };
                taken += tokens;
            }
            let most = flow.full() + real(2 * tokens);
            let excess = real(taken) - real(per_second) * (now - SECOND).as_secs_f64();
            assert!((0.0..=most).contains(&excess), "{per_second} a second by {tokens}: {excess} too many");
        }
    }

    #[test]
    fn a_bucket_holds_one_burst_and_never_more() {
        let flow = Flow { per_second: 100, burst: 2 * SECOND };
        let mut bucket = Tokens::full(SECOND, flow);
        for now in [SECOND, 10_000 * SECOND] {
            let at_once = (0..1000).take_while(|_| bucket.take_ahead(now, flow, 1) == Duration::ZERO).count();
            assert_eq!(at_once, 201, "the last one takes the bucket below zero");
            bucket.give_back(799);
        }
    }

    #[test]
    fn what_was_given_back_is_taken_again() {
        let flow = Flow { per_second: 10, burst: SECOND };
        let mut bucket = Tokens::full(SECOND, flow);
        assert_eq!(bucket.take_ahead(SECOND, flow, 110), Duration::ZERO);
        assert_eq!(bucket.take_ahead(SECOND, flow, 1), 10 * SECOND);
        // Time that another thread read earlier fills nothing twice.
        bucket.fill(Duration::ZERO, flow);
        bucket.give_back(111);
        assert_eq!(bucket.take_ahead(SECOND, flow, 10), Duration::ZERO);
        assert_eq!(bucket.take_ahead(SECOND, flow, 1), Duration::ZERO);
        assert_eq!(bucket.take_ahead(SECOND, flow, 1), SECOND / 10);
        assert_eq!(bucket.take_ahead(SECOND, flow, u64::MAX), SECOND / 5);
        assert!(bucket.take_ahead(SECOND, flow, u64::MAX) > 1_000_000_000 * SECOND);
        let slow = Flow { per_second: 0, ..flow };
        assert!(bucket.take_ahead(SECOND, slow, 1) > 1_000_000_000 * SECOND);
        let waits = [u64::MAX; 3].map(|tokens| bucket.take_ahead(SECOND, slow, tokens));
        assert!(waits.is_sorted());
        assert_eq!(bucket.take_ahead(SECOND, slow, 1), Duration::MAX);
        assert_eq!(bucket.take(SECOND, slow, 1), Err(Duration::MAX));
    }
}
