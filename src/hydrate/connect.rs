//! Connects to an address in the background.

use std::sync::Arc;

use super::addresses::Connecting;
use super::parts::Parts;
use crate::source::{SourceError, SourceErrorKind};

/// One attempt to connect to an address. Its drop notes a failure and wakes readers and backfill.
struct Attempt {
    parts: Arc<Parts>,
    connecting: Option<Connecting>,
    result: Result<(), SourceError>,
}

impl Attempt {
    fn begin(parts: &Arc<Parts>, connecting: Connecting) -> Self {
        // An attempt that is dropped has failed. Otherwise its hydration would find the address ready at once, and begin the next one.
        let message = format!("{}: there is no thread for it, or too many calls of its host wait for earlier ones", connecting.uri);
        let result = Err(SourceError { kind: SourceErrorKind::Lost, message });
        Self { parts: Arc::clone(parts), connecting: Some(connecting), result }
    }

    fn run(mut self) {
        if let Some(connecting) = &self.connecting {
            self.result = self.parts.addresses.source_here(&connecting.uri).map(drop);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(connecting) = self.connecting.take() else { return };
        if let Err(error) = &self.result {
            self.parts.note_failure(&connecting.uri, error, None);
        }
        // The mark ends before others are woken.
        drop(connecting);
        self.parts.tell();
    }
}

/// Connects to an address on a thread of the source pool, so that an address that hangs delays no other work. If no thread can be had, the
/// attempt has failed.
pub fn connect_aside(parts: &Arc<Parts>, connecting: Connecting) {
    let uri = connecting.uri.clone();
    let attempt = Attempt::begin(parts, connecting);
    parts.addresses.aside(&uri, move || attempt.run());
}
