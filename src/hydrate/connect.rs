//! Connects to an address in the background.

use std::sync::Arc;

use super::addresses::Connecting;
use super::parts::Parts;

/// Guard that wakes readers and backfill when connecting has ended.
struct Telling(Arc<Parts>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.tell();
    }
}

/// Connects to an address on a thread of the source pool, so that an address that hangs delays no other work.
pub fn connect_aside(parts: &Arc<Parts>, connecting: Connecting) {
    let (telling, uri) = (Telling(Arc::clone(parts)), connecting.uri.clone());
    let connect = move || {
        // `connecting` is moved here, so that its mark ends before `telling` wakes the others.
        let (parts, connecting) = (&telling.0, connecting);
        if let Err(error) = parts.addresses.source_here(&connecting.uri) {
            parts.note_failure(&connecting.uri, &error, None);
        }
    };
    // If no thread can be had, the job is dropped, and the address is tried again later.
    parts.addresses.aside(&uri, connect);
}
