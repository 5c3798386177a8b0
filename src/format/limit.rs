//! Limits of the requests of a volume's clients.
//!
//! ```text
//! limits  iops u64, bytes a second u64, burst in milliseconds u64; 0 is none
//! ```

use super::bytes::{FormatError, Reader, Writer};
use crate::error::{Error, ErrorKind};
use crate::options::with_methods;

/// Longest burst, in milliseconds: an hour.
pub const BURST_MILLIS_MAX: u64 = 3_600_000;

/// Limits of what the clients of a volume may ask of it together, kept by the NBD server ([`crate::serve`]). Calls and queues of this
/// process have no limits.
///
/// A read, a write, a discard, a zeroing and a prefetch are one operation each. Only reads and writes count bytes, because the others
/// transfer none. Flushes and questions for the status of blocks are free. A request that is larger than what is left passes, and those
/// behind it wait until its bytes are paid for, so that the rates hold over time whatever the size of a request.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::volume::{VolumeLimits, VolumeOptions};
///
/// let limits = VolumeLimits::default().with_iops(5000).with_bytes_per_second(100 << 20).with_burst_millis(2000);
/// let volume = store.create_volume_with("web", 1 << 30, &VolumeOptions::default().with_limits(limits))?;
/// assert_eq!(volume.info()?.limits, limits);
///
/// // At once, also for clients that are connected.
/// volume.set_limits(VolumeLimits::default())?;
/// assert!(!store.show("web")?.limits.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct VolumeLimits {
    /// Most operations a second.
    pub iops: Option<u64>,
    /// Most bytes a second that are read and written together.
    pub bytes_per_second: Option<u64>,
    /// A volume that was idle may do at once what its rates allow in this time, up to an hour; without it, in a tenth of a second.
    pub burst_millis: Option<u64>,
}

with_methods! { VolumeLimits:
    with_iops(iops: Some<u64>);
    with_bytes_per_second(bytes_per_second: Some<u64>);
    with_burst_millis(burst_millis: Some<u64>);
}

impl VolumeLimits {
    /// Whether there is a limit.
    pub fn is_some(&self) -> bool {
        *self != Self::default()
    }

    /// Refuses limits that let nothing pass, and a burst of no rate.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`].
    pub(crate) fn check(&self) -> crate::error::Result<()> {
        let refused = |message: String| Err(Error::new(ErrorKind::InvalidInput, message));
        let all = [("iops", self.iops), ("bandwidth", self.bytes_per_second), ("burst", self.burst_millis)];
        if let Some((what, _)) = all.iter().find(|(_, limit)| *limit == Some(0)) {
            return refused(format!("a limit of 0 ({what}) would let nothing pass: give a larger one, or none"));
        }
        match self.burst_millis {
            Some(burst) if burst > BURST_MILLIS_MAX => refused(format!("a burst is at most {} seconds long", BURST_MILLIS_MAX / 1000)),
            Some(_) if self.iops.is_none() && self.bytes_per_second.is_none() => {
                refused("a burst needs a limit of iops or bandwidth: give one".into())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        for limit in [self.iops, self.bytes_per_second, self.burst_millis] {
            writer.u64(limit.unwrap_or(0));
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let [iops, bytes_per_second, burst_millis] =
            [reader.u64()?, reader.u64()?, reader.u64()?].map(|limit| Some(limit).filter(|limit| *limit > 0));
        Ok(Self { iops, bytes_per_second, burst_millis })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut writer = Writer::default();
        VolumeLimits::default().with_iops(0x0102).with_burst_millis(3).encode(&mut writer);
        assert_eq!(writer.bytes, b"\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
    }

    #[test]
    fn limits_that_let_nothing_pass_are_refused() {
        let none = VolumeLimits::default();
        let hour = none.with_iops(1).with_burst_millis(BURST_MILLIS_MAX);
        assert!([none, none.with_iops(1), none.with_bytes_per_second(1), hour].iter().all(|limits| limits.check().is_ok()));
        for wrong in [
            none.with_iops(0),
            none.with_bytes_per_second(0),
            none.with_iops(1).with_burst_millis(0),
            none.with_iops(1).with_burst_millis(BURST_MILLIS_MAX + 1),
            none.with_burst_millis(1),
        ] {
            assert_eq!(wrong.check().unwrap_err().kind(), ErrorKind::InvalidInput, "{wrong:?}");
        }
    }
}
