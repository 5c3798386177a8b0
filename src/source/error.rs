//! How a read or a call of a source fails.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The error of a read or another call of a [`super::Source`].
///
/// ```
/// use volfork::source::{FileSource, SourceError, SourceErrorKind};
///
/// let error: SourceError = FileSource::open("/no/such/image").unwrap_err();
/// assert_eq!(error.kind, SourceErrorKind::Invalid);
/// assert!(error.to_string().contains("/no/such/image"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceError {
    /// Whether another try may succeed.
    pub kind: SourceErrorKind,
    /// A sentence that names the source and what failed.
    pub message: String,
}

/// Whether another try may succeed.
///
/// ```
/// use volfork::source::SourceErrorKind;
///
/// /// Whether a fork asks this address again.
/// fn may_come_back(kind: SourceErrorKind) -> bool {
///     match kind {
///         SourceErrorKind::Lost | SourceErrorKind::Failed | SourceErrorKind::Damaged => true,
///         // Other bytes than before, a wrong address, or the end of this handle.
///         SourceErrorKind::Changed | SourceErrorKind::Invalid | SourceErrorKind::Closed => false,
///         _ => false,
///     }
/// }
/// assert!(may_come_back(SourceErrorKind::Lost) && !may_come_back(SourceErrorKind::Changed));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceErrorKind {
    /// The source does not answer, after the bounded retries of the source itself. It may come back.
    Lost,
    /// The source answered that it cannot give this range (EIO at its side). It may be able to later.
    Failed,
    /// The source is not what it was (another size), or breaks the protocol. Retrying is useless.
    Changed,
    /// The bytes are not what their checksums say.
    Damaged,
    /// This handle was closed.
    Closed,
    /// The address or an option is wrong.
    Invalid,
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SourceError {}

/// The error for a block that arrived damaged.
pub(crate) fn damaged_error(source: &str, offset: u64) -> SourceError {
    let message = format!("{source} sent bytes at offset {offset} that do not match their checksum");
    SourceError { kind: SourceErrorKind::Damaged, message }
}

/// Calls `ask`; a panic becomes an error that names `uri`.
pub(super) fn caught<T>(uri: &str, ask: impl FnOnce() -> T) -> Result<T, SourceError> {
    catch_unwind(AssertUnwindSafe(ask))
        .map_err(|_| SourceError { kind: SourceErrorKind::Failed, message: format!("the source of {uri} panicked") })
}
