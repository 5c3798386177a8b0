//! Changes of the limits of a volume's clients.

use serde::{Deserialize, Serialize};
use volfork::volume::VolumeLimits;

/// The new value of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// No limit.
    None,
    /// This one.
    To(u64),
}

/// The limits that change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsChange {
    /// Operations a second.
    pub iops: Option<Setting>,
    /// Bytes a second.
    pub bytes_per_second: Option<Setting>,
    /// Length of a burst.
    pub burst_millis: Option<Setting>,
}

/// Whether these are no limits: a request does not tell them then, so that an older server understands it.
pub fn is_none(limits: &VolumeLimits) -> bool {
    !limits.is_some()
}

impl LimitsChange {
    /// Limits after the change. The burst goes with the last rate, unless it is given.
    pub fn apply(self, mut limits: VolumeLimits) -> VolumeLimits {
        let change = |limit: &mut Option<u64>, setting| match setting {
            None => {}
            Some(Setting::None) => *limit = None,
            Some(Setting::To(value)) => *limit = Some(value),
        };
        change(&mut limits.iops, self.iops);
        change(&mut limits.bytes_per_second, self.bytes_per_second);
        if limits.iops.is_none() && limits.bytes_per_second.is_none() {
            limits.burst_millis = None;
        }
        change(&mut limits.burst_millis, self.burst_millis);
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let old = VolumeLimits::default().with_iops(5).with_bytes_per_second(6).with_burst_millis(7);
        let change = LimitsChange::default();
        assert_eq!(change.apply(old), old);
        let change = LimitsChange { iops: Some(Setting::None), ..change };
        assert_eq!(change.apply(old), VolumeLimits::default().with_bytes_per_second(6).with_burst_millis(7));
        let change = LimitsChange { bytes_per_second: Some(Setting::None), ..change };
        assert_eq!(change.apply(old), VolumeLimits::default());
        let change = LimitsChange { iops: Some(Setting::To(9)), burst_millis: Some(Setting::None), ..change };
        assert_eq!(change.apply(old), VolumeLimits::default().with_iops(9));
    }
}
