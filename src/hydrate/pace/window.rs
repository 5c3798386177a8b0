//! The window of a host: how many bytes to have under way to it, which is twice what the path holds.
//!
//! Follows BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", 2016) one level up, with requests in the place of
//! packets: the highest delivery rate seen lately times the lowest latency seen is what the path holds; twice that keeps it full.
//! The window first doubles while the rate grows. Periodically it lets the path drain, to measure its latency anew.

use crate::place::wide;
use crate::units::{real, whole};
use std::time::Duration;

/// First and smallest window, in bytes.
const BYTES_START: u64 = 2 << 20;
const BYTES_MIN: u64 = 512 << 10;
/// Most bytes under way to all hosts together.
const BYTES_MAX: u64 = 64 << 20;
/// Smallest and largest request, in bytes.
const REQUEST_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=4 << 20;
/// Approximate number of requests in a full window.
const REQUESTS: u64 = 8;
/// Shortest transfer time of a request; at least four are under way. Smaller requests cost more than they help, and with fewer bytes under
/// way a short path drains whenever one of the hosts is busy for a moment.
const REQUEST_SECONDS: f64 = 0.004;
/// Rounds without growth of the rate after which the window stops doubling.
const STEADY_AFTER: u32 = 3;
/// Interval between two probes, in which the path drains, and the number of requests that then measure its latency.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
const PROBE_REQUESTS: u32 = 4;
/// Shortest time for which a rate counts as the highest recent one.
const RATE_MEMORY: Duration = Duration::from_secs(2);

/// A request under way, with the counters at its start.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    at: Duration,
    delivered: u64,
    bytes: u64,
}

/// The window of one host.
#[derive(Debug)]
pub struct Window {
    limit: u64,
    under_way: u64,
    delivered: u64,
    /// Highest rates of this period and the one before, in bytes a second.
    rates: [f64; 2],
    period_at: Duration,
    latency: Duration,
    /// Time of the last probe, and number of requests that still have to measure the latency.
    probe: (Duration, u32),
    /// `delivered` at the end of the current round, and the rate at its start.
    round: (u64, f64),
    rounds_without_growth: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            limit: BYTES_START,
            under_way: 0,
            delivered: 0,
            rates: [0.0; 2],
            period_at: Duration::ZERO,
            latency: Duration::MAX,
            probe: (Duration::ZERO, 0),
            round: (0, 0.0),
            rounds_without_growth: 0,
        }
    }
}

impl Window {
    /// Whether `bytes` more fit into the window. `hosts` is the number of hosts with bytes under way. One request always fits.
    pub fn has_room(&self, bytes: u64, hosts: usize) -> bool {
        self.is_empty() || self.under_way + bytes <= self.limit_beside(hosts)
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way == 0
    }

    /// The limit of this window, at most its equal part of `BYTES_MAX`: this bounds memory, and a host that does not answer takes only its
    /// part from others.
    fn limit_beside(&self, hosts: usize) -> u64 {
        self.limit.min(BYTES_MAX / (wide(hosts)).max(1)).max(*REQUEST_BYTES.start())
    }

    /// Suitable bytes of a request: small ones for a small window, so that several are under way. `hosts` is the number of hosts with bytes
    /// under way.
    pub fn request_bytes(&self, hosts: usize) -> u64 {
        let limit = self.limit_beside(hosts);
        // A request that never ends must leave room for others.
        let share = (limit / REQUESTS).max(whole(self.rate() * REQUEST_SECONDS)).min(limit / 4);
        1 << share.clamp(*REQUEST_BYTES.start(), *REQUEST_BYTES.end()).ilog2()
    }

    /// Counts a request as under way.
    pub fn begin(&mut self, now: Duration, bytes: u64) -> Sent {
        self.under_way += bytes;
        Sent { at: now, delivered: self.delivered, bytes }
    }

    /// Ends a request. Only a successful one measures the path.
    pub fn end(&mut self, now: Duration, sent: Sent, succeeded: bool) {
        self.under_way = self.under_way.saturating_sub(sent.bytes);
        if !succeeded {
            return;
        }
        self.delivered += sent.bytes;
        let elapsed = now.saturating_sub(sent.at).max(Duration::from_micros(10));
        self.note_rate(now, real(self.delivered - sent.delivered) / elapsed.as_secs_f64());
        self.note_latency(now, sent.at, elapsed);
        if self.delivered >= self.round.0 {
            self.end_round();
        }
        if self.probe.1 > 0 {
            self.limit = BYTES_MIN;
        } else if self.rounds_without_growth >= STEADY_AFTER {
            let path = self.rate() * (2.0 * self.latency.as_secs_f64()).max(4.0 * REQUEST_SECONDS);
            self.limit = whole(path).clamp(BYTES_MIN, BYTES_MAX);
        }
    }

    fn note_latency(&mut self, now: Duration, sent_at: Duration, elapsed: Duration) {
        if self.probe.0 == Duration::ZERO {
            self.probe.0 = now;
        }
        match self.probe {
            (at, 0) if now.saturating_sub(at) > PROBE_INTERVAL => {
                self.probe = (now, PROBE_REQUESTS);
                self.latency = Duration::MAX;
            }
            (at, left @ 1..) if sent_at > at => {
                self.latency = self.latency.min(elapsed);
                self.probe = (at, left - 1);
            }
            (_, 0) => self.latency = self.latency.min(elapsed),
            _ => {}
        }
    }

    fn note_rate(&mut self, now: Duration, rate: f64) {
        let period = RATE_MEMORY.max(self.latency.min(Duration::from_secs(10)) * 4);
        if now.saturating_sub(self.period_at) > period {
            self.rates = [0.0, self.rates[0]];
            self.period_at = now;
        }
        self.rates[0] = self.rates[0].max(rate);
    }

    /// Highest recent rate, in bytes a second.
    pub fn rate(&self) -> f64 {
        self.rates[0].max(self.rates[1])
    }

    /// Ends a round: as many bytes as the window holds have been delivered.
    fn end_round(&mut self) {
        let rate = self.rate();
        if self.rounds_without_growth < STEADY_AFTER {
            match rate > self.round.1 * 1.25 {
                true => self.rounds_without_growth = 0,
                false => self.rounds_without_growth += 1,
            }
            self.limit = (self.limit * 2).min(BYTES_MAX);
        }
        self.round = (self.delivered + self.limit, rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path with a rate, a latency and a queue: the time in which so many bytes come, and the window at the end.
    fn transfer(rate: f64, latency: f64, total: u64) -> (f64, u64) {
        let (mut window, mut now, mut free_at, mut sent_bytes, mut received) = (Window::default(), 0.0f64, 0.0f64, 0u64, 0u64);
        let mut under_way = std::collections::VecDeque::new();
        while received < total {
            let bytes = window.request_bytes(1);
            if sent_bytes < total && window.has_room(bytes, 1) {
                let sent = window.begin(Duration::from_secs_f64(now), bytes);
                free_at = free_at.max(now + latency / 2.0) + real(bytes) / rate;
                under_way.push_back((free_at + latency / 2.0, sent));
                sent_bytes += bytes;
                continue;
            }
            let (at, sent) = under_way.pop_front().expect("something is under way");
            now = at;
            received += sent.bytes;
            window.end(Duration::from_secs_f64(now), sent, true);
        }
        (now, window.limit)
    }

    #[test]
    fn paths_of_every_length_are_filled() {
        for (rate, latency) in [(125e6, 0.0002), (125e6, 0.02), (125e6, 0.1), (12.5e6, 0.1), (1.25e9, 0.0001)] {
            let total = 2 << 30;
            let (time, limit) = transfer(rate, latency, total);
            let used = real(total) / rate / time;
            assert!(used > 0.97, "{used:.3} of a path of {rate} B/s and {latency} s is used");
            let path = rate * latency;
            assert!(real(limit) <= (6.0 * path + rate * 0.016).max(1e6), "{limit} bytes under way on a path of {path}");
        }
    }

    #[test]
    fn one_request_that_hangs_leaves_room_for_others() {
        let mut window = Window::default();
        window.begin(Duration::ZERO, window.request_bytes(1));
        for millis in 1..100_000u64 {
            let bytes = window.request_bytes(1);
            assert!(window.has_room(bytes, 1), "{window:?}");
            let (start, end) = (Duration::from_millis(millis), Duration::from_millis(millis) + Duration::from_micros(1 + millis % 900));
            let sent = window.begin(start, bytes);
            window.end(end, sent, true);
        }
    }

    #[test]
    fn failures_keep_the_window_and_one_request_is_always_allowed() {
        let mut window = Window::default();
        let sent = window.begin(Duration::ZERO, 1 << 30);
        assert!(!window.has_room(1, 1));
        window.end(Duration::from_secs(1), sent, false);
        assert_eq!((window.limit, window.has_room(1 << 40, 1)), (BYTES_START, true));
    }

    #[test]
    fn many_hosts_have_no_more_under_way_than_few() {
        for hosts in [1, 10, 100, 1000] {
            let mut windows: Vec<Window> = (0..hosts).map(|_| Window { limit: BYTES_MAX, ..Window::default() }).collect();
            let mut total = 0;
            for window in &mut windows {
                let bytes = window.request_bytes(hosts);
                while window.has_room(bytes, hosts) {
                    window.begin(Duration::ZERO, bytes);
                    total += bytes;
                }
            }
            assert!((BYTES_MAX / 2..=BYTES_MAX).contains(&total), "{total} bytes to {hosts} hosts");
        }
    }
}
