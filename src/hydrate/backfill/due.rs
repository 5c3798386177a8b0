//! Whether a hydration is late for its deadline.

use std::time::Duration;

use crate::hydrate::pace::is_late;

/// How often the rate that a deadline needs is computed.
const INTERVAL: Duration = Duration::from_secs(1);

/// The latest result for a deadline, and when it was computed.
#[derive(Debug, Default)]
pub struct Due {
    is_late: bool,
    looked_at: Option<Duration>,
}

impl Due {
    /// Whether the deadline needs a higher rate than that of the last seconds. `left` is called when the result is computed anew, and
    /// returns the missing bytes, the time left, and the present rate in bytes a second; `None` if there is no deadline.
    pub fn look(&mut self, now: Duration, left: Option<impl FnOnce() -> (u64, Duration, u64)>) -> bool {
        let Some(left) = left else { return false };
        if self.looked_at.is_none_or(|at| now.saturating_sub(at) >= INTERVAL) {
            let (left_bytes, left, bytes_per_second) = left();
            (self.is_late, self.looked_at) = (is_late(left_bytes, left, bytes_per_second), Some(now));
        }
        self.is_late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_worked_out_once_in_a_while() {
        let (mut due, mut looks) = (Due::default(), 0);
        for millis in (0..3000).step_by(100) {
            let left = || {
                looks += 1;
                (1 << 40, Duration::from_secs(60), 1)
            };
            assert!(due.look(Duration::from_millis(millis), Some(left)));
        }
        assert_eq!(looks, 3);
        assert!(!due.look(Duration::from_secs(9), None::<fn() -> (u64, Duration, u64)>), "there is none");
        assert!(!due.look(Duration::from_secs(9), Some(|| (1, Duration::from_secs(3600), 1 << 20))));
    }
}
