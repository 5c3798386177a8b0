//! Actions on an open store.
pub mod clients;
pub mod execution;
pub mod gate;
mod hydration;
#[cfg(feature = "images")]
pub mod image;
pub mod origin;
mod trace;
pub mod transfer;
