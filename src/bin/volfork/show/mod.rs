//! Output: answers, tables, events, progress.
pub mod bar;
pub mod date;
pub mod event;
#[cfg(feature = "fleet")]
pub mod fleet;
mod hydration;
#[cfg(feature = "images")]
pub mod image;
pub mod response;
pub mod stream;
pub mod table;
#[cfg(test)]
mod tests;
mod trace;
mod volume;
