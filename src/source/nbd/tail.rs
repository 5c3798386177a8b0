//! The last bytes of an export whose size is not a multiple of the alignment that its server demands.

use std::ops::Range;

use super::job::{Job, Waiter};
use super::pool::Shared;
use crate::source::{Arrival, OnArrival, ReadClass, SourceError, SourceErrorKind};
use crate::sync::atomic::Ordering;
use crate::sync::mpsc;

/// Finds out whether the last bytes can be read as they are, or only by a request that reaches beyond the size.
///
/// # Errors
/// [`SourceErrorKind::Invalid`]: neither works.
pub(super) fn find(shared: &Shared) -> Result<(), SourceError> {
    let (size_bytes, align) = (shared.export.size_bytes, u64::from(shared.export.align_bytes));
    let start = size_bytes / align * align;
    if start == size_bytes {
        return Ok(());
    }
    for (end, rounds_up) in [(size_bytes, false), (start + align, true)] {
        match read_once(shared, start..end) {
            Ok(()) => {
                shared.rounds_up.store(rounds_up, Ordering::Relaxed);
                return Ok(());
            }
            Err(error) if error.kind == SourceErrorKind::Failed => {}
            Err(error) => return Err(error),
        }
    }
    let message = format!(
        "{}: the export has {size_bytes} bytes, and its server takes no requests that are not multiples of {align}, so the last {} \
         bytes cannot be read: make its size a multiple of {align}, or serve it without that minimum",
        shared.export.uri,
        size_bytes - start
    );
    Err(SourceError { kind: SourceErrorKind::Invalid, message })
}

/// Reads a range and drops its bytes. An error reply is not retried.
fn read_once(shared: &Shared, range: Range<u64>) -> Result<(), SourceError> {
    let (sender, receiver) = mpsc::channel();
    let arrival = OnArrival::new(move |arrival| {
        if let Arrival::End(result) = arrival {
            // The caller waits on the receiver.
            let _ = sender.send(result);
        }
    });
    let tries = shared.export.options.tries.saturating_sub(1);
    shared.submit(Job { range, waiter: Waiter::Read(ReadClass::Waited, arrival), tries, lost_at: None });
    receiver.recv().unwrap_or_else(|_| Err(shared.error(SourceErrorKind::Closed, "it was closed")))
}

/// The range to request for a read, rounded up if the server demands it, and a callback that cuts off the surplus.
pub(super) fn rounded(shared: &Shared, range: Range<u64>, mut arrival: OnArrival) -> (Range<u64>, OnArrival) {
    let size_bytes = shared.export.size_bytes;
    if range.end != size_bytes || !shared.rounds_up.load(Ordering::Relaxed) {
        return (range, arrival);
    }
    let end = size_bytes.next_multiple_of(u64::from(shared.export.align_bytes));
    let cut = OnArrival::new(move |arrived| match arrived {
        Arrival::Part(part) => part.within(&(0..size_bytes)).into_iter().for_each(|part| arrival.part(part)),
        Arrival::End(result) => std::mem::replace(&mut arrival, OnArrival::new(drop)).end(result),
    });
    (range.start..end, cut)
}
