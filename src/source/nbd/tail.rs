//! The end of an export whose size is no multiple of what its server demands of a request.

use std::ops::Range;

use super::link::{Job, Waiter};
use super::pool::NbdSource;
use crate::source::{Arrival, OnArrival, ReadClass, SourceError, SourceErrorKind};
use crate::sync::atomic::Ordering;
use crate::sync::mpsc;

impl NbdSource {
    /// Finds out how the last bytes can be read: as they are, or in a request that reaches beyond them.
    ///
    /// # Errors
    /// [`SourceErrorKind::Invalid`]: they cannot.
    pub(super) fn find_tail(&self) -> Result<(), SourceError> {
        let (size_bytes, align) = (self.0.size_bytes, u64::from(self.0.align_bytes));
        let start = size_bytes / align * align;
        if start == size_bytes {
            return Ok(());
        }
        for (end, rounds_up) in [(size_bytes, false), (start + align, true)] {
            match self.read_once(start..end) {
                Ok(()) => {
                    self.0.rounds_up.store(rounds_up, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) if error.kind == SourceErrorKind::Failed => {}
                Err(error) => return Err(error),
            }
        }
        let message = format!(
            "{}: the export has {size_bytes} bytes, and its server takes no requests that are not multiples of {align}, so the last {} \
             bytes cannot be read: make its size a multiple of {align}, or serve it without that minimum",
            self.0.uri,
            size_bytes - start
        );
        Err(SourceError { kind: SourceErrorKind::Invalid, message })
    }

    /// Reads bytes of which nobody makes use; an answer that they cannot be read is believed at once.
    fn read_once(&self, range: Range<u64>) -> Result<(), SourceError> {
        let (sender, receiver) = mpsc::channel();
        let arrival = OnArrival::new(move |arrival| {
            if let Arrival::End(result) = arrival {
                // The caller waits for it.
                let _ = sender.send(result);
            }
        });
        self.0.submit(Job { range, waiter: Waiter::Read(ReadClass::Waited, arrival), tries: self.0.options.tries.saturating_sub(1) });
        receiver.recv().unwrap_or_else(|_| Err(self.0.error(SourceErrorKind::Closed, "it was closed")))
    }

    /// The request to make for a range, and who takes its bytes.
    pub(super) fn rounded(&self, range: Range<u64>, mut arrival: OnArrival) -> (Range<u64>, OnArrival) {
        let size_bytes = self.0.size_bytes;
        if range.end != size_bytes || !self.0.rounds_up.load(Ordering::Relaxed) {
            return (range, arrival);
        }
        let end = size_bytes.next_multiple_of(u64::from(self.0.align_bytes));
        let cut = OnArrival::new(move |arrived| match arrived {
            Arrival::Part(part) => part.within(&(0..size_bytes)).into_iter().for_each(|part| arrival.part(part)),
            Arrival::End(result) => std::mem::replace(&mut arrival, OnArrival::new(drop)).end(result),
        });
        (range.start..end, cut)
    }
}
