//! What a source gives of a read, and the callback that takes it.

use super::{Part, SourceError, SourceErrorKind};

/// What a source gives of a read, on any thread, perhaps before [`super::Source::read`] returns.
#[derive(Debug)]
pub enum Arrival {
    /// Bytes of the range. Parts come in any order; each begins and ends at a multiple of [`super::PART_ALIGN_BYTES`], or where
    /// the range does. A part may come again after a reconnect.
    Part(Part),
    /// Nothing more comes. `Ok`: every byte of the range has come.
    End(Result<(), SourceError>),
}

/// Takes what arrives for one read. It must not block: the thread that calls it may serve other sources.
///
/// # Invariants
/// - The read ends exactly once: [`OnArrival::end`] consumes the callback, and dropping the callback ends the read with
///   [`SourceErrorKind::Closed`]. A source that loses a callback, or panics while it has one, costs that read and nothing else.
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

    /// Some bytes have come.
    pub fn part(&mut self, part: Part) {
        if let Some(arrival) = &mut self.0 {
            arrival(Arrival::Part(part));
        }
    }

    /// Nothing more comes. `Ok`: every byte of the range has come.
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
