//! Why a command failed, as it is printed and as it crosses the control socket.

mod advice;

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};
use volfork::{Error, ErrorKind};

use self::advice::advice;

/// Result of everything in the binary.
pub type Result<T> = std::result::Result<T, Failure>;

const TIMED_OUT: &str = "timed_out";

/// A kind for scripts and a sentence for people that says what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The engine's [`ErrorKind`] in snake case, or `interrupted`, `timed_out` or `usage`.
    pub kind: String,
    /// What went wrong and what to do, for people.
    pub message: String,
}

impl Failure {
    /// A failure of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error::new(kind, message).into()
    }

    /// An I/O error with what was being done.
    pub fn io(context: impl fmt::Display, cause: impl Into<io::Error>) -> Self {
        let cause = cause.into();
        if cause.kind() == io::ErrorKind::NotFound {
            return Self::new(ErrorKind::NotFound, format!("{context}: {cause}"));
        }
        Error::io(context, cause).into()
    }

    /// The user, or the client's end, stopped the work.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self { kind: "interrupted".into(), message: message.into() }
    }

    /// The time that the user gave ran out.
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self { kind: TIMED_OUT.into(), message: message.into() }
    }

    /// The exit status of a command that ends with it.
    pub fn status(&self) -> u8 {
        if self.kind == TIMED_OUT { 3 } else { 1 }
    }

    /// Wrong usage: what the parser of the arguments says, in one line.
    pub fn usage(text: &str) -> Self {
        let text = text.split("\n\nUsage:").next().unwrap_or(text).split("\n\nFor more").next().unwrap_or(text);
        let text = text.strip_prefix("error: ").unwrap_or(text).split_whitespace().collect::<Vec<_>>().join(" ");
        Self { kind: "usage".into(), message: format!("{text}; 'volfork --help' tells more") }
    }

    /// Whether it is of `kind`.
    pub fn is(&self, kind: ErrorKind) -> bool {
        self.kind == kind_name(kind)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let advice = error.remedy().and_then(advice).map_or_else(String::new, |advice| format!(" ({advice})"));
        Self { kind: kind_name(error.kind()).into(), message: format!("{error}{advice}") }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not_found",
        ErrorKind::Exists => "exists",
        ErrorKind::InvalidInput => "invalid_input",
        ErrorKind::OutOfRange => "out_of_range",
        ErrorKind::ReadOnly => "read_only",
        ErrorKind::Busy => "busy",
        ErrorKind::NoSpace => "no_space",
        ErrorKind::NotDurable => "not_durable",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Io => "io",
        ErrorKind::SourceLost => "source_lost",
        ErrorKind::Poisoned => "poisoned",
        ErrorKind::Closed => "closed",
        ErrorKind::Locked => "locked",
        ErrorKind::Unsupported => "unsupported",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_for_scripts() {
        let failure = Failure::from(Error::new(ErrorKind::SourceLost, "gone"));
        assert_eq!((failure.kind.as_str(), failure.to_string().as_str()), ("source_lost", "gone"));
        assert!(Failure::io("open x", io::Error::from(io::ErrorKind::NotFound)).is(ErrorKind::NotFound));
        assert!(Failure::io("write x", io::Error::from_raw_os_error(libc::ENOSPC)).is(ErrorKind::NoSpace));
    }
}
