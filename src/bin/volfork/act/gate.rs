//! Whether a host may make or grow a volume.

use std::collections::BTreeMap;
use std::ops::Range;

use volfork::placement::{MachineHints, RESERVATION_LABEL};
use volfork::{Error, ErrorKind, Result, Store};

/// Labels of a volume.
pub type Labels = BTreeMap<String, String>;

/// Admits a volume before it is created or grows.
pub trait Gate: Send + Sync {
    /// Admits a new volume of this name, size and labels, and may add labels. The caller reports the outcome to the admission.
    ///
    /// # Errors
    /// The volume is refused.
    fn admit(&self, store: &Store, name: &str, size_bytes: u64, labels: &mut Labels) -> Result<Admission>;

    /// Admits the growth of a volume from one size to another. The caller reports the outcome to the admission.
    ///
    /// # Errors
    /// The growth is refused.
    fn grow(&self, store: &Store, name: &str, sizes: Range<u64>) -> Result<Admission>;
}

/// Permission for one change, which waits for the outcome of the change.
#[derive(Default)]
pub struct Admission(Option<Box<dyn FnOnce(bool)>>);

impl Admission {
    /// Calls `tell` with the outcome.
    #[cfg(feature = "fleet")]
    pub fn telling(tell: impl FnOnce(bool) + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    /// Reports the outcome, and returns it.
    pub fn conclude<T>(self, made: Result<T>) -> Result<T> {
        let is_there = made.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::NotDurable);
        if let Some(tell) = self.0 {
            tell(is_there);
        }
        made
    }
}

/// The gate of a host without a fleet: it knows no capacity and no reservations.
pub struct Alone;

impl Gate for Alone {
    fn admit(&self, _: &Store, _: &str, _: u64, labels: &mut Labels) -> Result<Admission> {
        MachineHints::from_labels(labels).map_err(forceable)?;
        match labels.get(RESERVATION_LABEL) {
            None => Ok(Admission::default()),
            Some(id) => {
                let shown: String = id.chars().take(100).collect();
                let message = format!("reservation {shown} cannot be checked: serve the store with 'volfork serve --fleet URL' first");
                Err(forceable(Error::new(ErrorKind::Unsupported, message)))
            }
        }
    }

    fn grow(&self, _: &Store, _: &str, _: Range<u64>) -> Result<Admission> {
        Ok(Admission::default())
    }
}

/// The gate for `--force`: admits every change.
pub struct Forced;

impl Gate for Forced {
    fn admit(&self, _: &Store, _: &str, _: u64, _: &mut Labels) -> Result<Admission> {
        Ok(Admission::default())
    }

    fn grow(&self, _: &Store, _: &str, _: Range<u64>) -> Result<Admission> {
        Ok(Admission::default())
    }
}

/// Adds to a refusal how the user can override it.
pub fn forceable(error: Error) -> Error {
    Error::new(error.kind(), format!("{error}; --force does it all the same"))
}
