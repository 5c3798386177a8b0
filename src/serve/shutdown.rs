//! How connections learn that the server ends.

use crate::error::{Error, Result};
use crate::io::RingWaker;

/// Tells connections that the server ends.
pub struct Shutdown {
    /// Readable when no further clients are taken.
    pub closed: RingWaker,
    /// Readable from the moment the server shuts down: no further requests are taken.
    pub asked: RingWaker,
    /// Readable when there is no more time: nothing is waited for any longer.
    pub forced: RingWaker,
}

impl Shutdown {
    /// # Errors
    /// The machine has no more descriptors.
    pub fn new() -> Result<Self> {
        let waker = || RingWaker::new().map_err(|error| Error::io("cannot make an event descriptor", error));
        Ok(Self { closed: waker()?, asked: waker()?, forced: waker()? })
    }
}
