//! Arguments, and the requests that they stand for.
pub mod address;
pub mod arguments;
#[cfg(feature = "fleet")]
pub mod fleet;
pub mod hints;
#[cfg(feature = "images")]
pub mod image;
pub mod limits;
pub mod plan;
pub mod tls;
pub mod trace;
pub mod values;
