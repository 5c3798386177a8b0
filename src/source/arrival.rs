//! The events of a read, and the callback that takes them.

use super::{Part, SourceError, SourceErrorKind};

/// One event of a read. It may come on any thread, and before [`super::Source::read`] returns.
///
/// There are no others, and none will be added: a reader that passed over an event could lose bytes, or wait for ever.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("image");
/// # std::fs::write(&path, vec![7; 8192])?;
/// use std::sync::mpsc;
/// use volfork::source::{Arrival, FileSource, OnArrival, ReadClass, Source};
///
/// let (sender, arrivals) = mpsc::channel();
/// FileSource::open(&path)?.read(0..8192, ReadClass::Ahead, OnArrival::new(move |arrival| drop(sender.send(arrival))));
/// let mut bytes = 0;
/// for arrival in arrivals {
///     match arrival {
///         Arrival::Part(part) => bytes += part.bytes.len(),
///         // Nothing comes after it.
///         Arrival::End(result) => result?,
///     }
/// }
/// assert_eq!(bytes, 8192);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum Arrival {
    /// Bytes of the range. Parts come in any order; each begins and ends at a multiple of [`super::PART_ALIGN_BYTES`], or where
    /// the range does. A part may come again after a reconnect.
    Part(Part),
    /// Nothing more comes. `Ok`: every byte of the range has come.
    End(Result<(), SourceError>),
}

/// The callback of one read. It must not block: the thread that calls it may serve other sources.
///
/// # Invariants
/// - The read ends exactly once: [`OnArrival::end`] consumes the callback, and dropping the callback ends the read with
///   [`SourceErrorKind::Closed`]. A source that loses a callback, or panics while it has one, costs that read and nothing else.
///
/// # Examples
/// ```
/// use std::sync::mpsc;
/// use volfork::source::{Arrival, OnArrival, Part, SourceErrorKind};
///
/// let (sender, arrivals) = mpsc::channel();
/// let mut arrival = OnArrival::new(move |arrival| drop(sender.send(arrival)));
/// arrival.part(Part::new(0, "abc".into()));
/// // Lost before its end: the reader hears of it all the same.
/// drop(arrival);
/// assert!(matches!(arrivals.recv(), Ok(Arrival::Part(part)) if part.bytes == "abc"));
/// assert!(matches!(arrivals.recv(), Ok(Arrival::End(Err(error))) if error.kind == SourceErrorKind::Closed));
/// ```
pub struct OnArrival(Option<Box<dyn FnMut(Arrival) + Send>>);

impl std::fmt::Debug for OnArrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnArrival").finish_non_exhaustive()
    }
}

impl OnArrival {
    /// Calls `arrival` for each part, and for the end.
    pub fn new(arrival: impl FnMut(Arrival) + Send + 'static) -> Self {
        Self(Some(Box::new(arrival)))
    }

    /// Delivers some bytes of the range.
    pub fn part(&mut self, part: Part) {
        if let Some(arrival) = &mut self.0 {
            arrival(Arrival::Part(part));
        }
    }

    /// Ends the read. `Ok` means that every byte of the range was delivered.
    pub fn end(mut self, result: Result<(), SourceError>) {
        if let Some(mut arrival) = self.0.take() {
            arrival(Arrival::End(result));
        }
    }
}

impl Drop for OnArrival {
    fn drop(&mut self) {
        if let Some(mut arrival) = self.0.take() {
            let message = "the source dropped a read without an answer".into();
            arrival(Arrival::End(Err(SourceError { kind: SourceErrorKind::Closed, message })));
        }
    }
}
