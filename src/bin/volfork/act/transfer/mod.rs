//! Images in and out of a store.
pub mod export;
pub mod import;
mod pipe;
pub mod ranges;
mod writes;
