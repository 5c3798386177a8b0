//! What the engine tells the crate `tracing`, with the feature of that name; without it nothing.
//!
//! # Invariants
//! - Nothing is told while a lock is held: a subscriber is code of the embedder, and may take its time or call the store.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]

/// Tells one event, as `tracing::event!` with the target `volfork`.
#[cfg(feature = "tracing")]
macro_rules! tell {
    ($level:ident, $($rest:tt)+) => {
        ::tracing::event!(target: "volfork", ::tracing::Level::$level, $($rest)+)
    };
}
#[cfg(not(feature = "tracing"))]
macro_rules! tell {
    ($($rest:tt)+) => {
        ()
    };
}

pub(crate) use tell;

/// Whether a subscriber wants to be told of events.
pub(crate) fn is_on() -> bool {
    #[cfg(feature = "tracing")]
    return ::tracing::enabled!(target: "volfork", ::tracing::Level::ERROR);
    #[cfg(not(feature = "tracing"))]
    false
}
