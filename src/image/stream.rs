//! Errors that cross `std::io`, which knows none of ours.

use std::io;

use crate::error::{Error, ErrorKind};

/// The error that ended a stream: the library's own, if one is inside.
pub(super) fn error_of(context: &str, error: io::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(inner) = cause {
        if let Some(own) = inner.downcast_ref::<Error>() {
            return own.clone();
        }
        // A wrapped `io::Error` gives what is in it here, not as its source.
        cause = match inner.downcast_ref::<io::Error>() {
            Some(wrapped) => wrapped.get_ref().map(|inner| inner as _),
            None => inner.source(),
        };
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
            Error::new(ErrorKind::InvalidInput, format!("{context} is not valid: {error}"))
        }
        _ => Error::io(format!("read {context}"), error),
    }
}
