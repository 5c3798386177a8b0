//! Connecting to an address while its hydrator goes on.

use std::sync::Arc;

use super::addresses::Connecting;
use super::parts::Parts;

/// Lets readers and backfill look again when it is dropped, behind the end of connecting.
struct Telling(Arc<Parts>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.tell();
    }
}

/// Connects to an address on a thread of the sources, so that one that does not answer holds up nobody.
pub fn connect_aside(parts: &Arc<Parts>, connecting: Connecting) {
    let (telling, uri) = (Telling(Arc::clone(parts)), connecting.uri.clone());
    let connect = move || {
        // The address is connected, or not, before others are told.
        let (parts, connecting) = (&telling.0, connecting);
        if let Err(error) = parts.addresses.source_here(&connecting.uri) {
            parts.note_failure(&connecting.uri, &error, None);
        }
    };
    // Without a thread it is tried again later.
    parts.addresses.aside(&uri, connect);
}
