//! Whether a host makes a volume that a user asks it for.

use std::collections::BTreeMap;
use std::ops::Range;

use volfork::placement::{MachineHints, RESERVATION_LABEL};
use volfork::{Error, ErrorKind, Result, Store};

/// Labels of a volume.
pub type Labels = BTreeMap<String, String>;

/// Asked before a volume is made or grows.
pub trait Gate: Send + Sync {
    /// Lets a volume of this name, size and labels be made, which it may complete; the answer is to be told what became of it.
    ///
    /// # Errors
    /// It may not be made.
    fn admit(&self, store: &Store, name: &str, size_bytes: u64, labels: &mut Labels) -> Result<Admission>;

    /// Lets a volume grow from one size to another; the answer is to be told what became of it.
    ///
    /// # Errors
    /// It may not grow.
    fn grow(&self, store: &Store, name: &str, sizes: Range<u64>) -> Result<Admission>;
}

/// Told whether the volume was made, or has grown.
#[derive(Default)]
pub struct Admission(Option<Box<dyn FnOnce(bool)>>);

impl Admission {
    /// `tell` is told.
    #[cfg(feature = "fleet")]
    pub fn telling(tell: impl FnOnce(bool) + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    /// Tells what became of the volume, and answers that.
    pub fn conclude<T>(self, made: Result<T>) -> Result<T> {
        let is_there = made.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::NotDurable);
        if let Some(tell) = self.0 {
            tell(is_there);
        }
        made
    }
}

/// The gate of a host that is in no fleet: nobody says what it has, and nothing is reserved on it.
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

/// Whatever labels say, and whatever room there is.
pub struct Forced;

impl Gate for Forced {
    fn admit(&self, _: &Store, _: &str, _: u64, _: &mut Labels) -> Result<Admission> {
        Ok(Admission::default())
    }

    fn grow(&self, _: &Store, _: &str, _: Range<u64>) -> Result<Admission> {
        Ok(Admission::default())
    }
}

/// Says how the user gets what he asked for all the same.
pub fn forceable(error: Error) -> Error {
    Error::new(error.kind(), format!("{error}; --force does it all the same"))
}
