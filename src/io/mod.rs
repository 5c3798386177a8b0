//! The machine below the engine: files, buffers, and rings for many transfers at once.
mod access;
mod buffer;
mod descriptors;
mod disk;
#[cfg(test)]
pub(crate) mod faulty;
mod fiemap;
mod overlay;
mod priority;
mod ring;
#[cfg(feature = "sim")]
mod simulated;
mod socket;
mod system;
mod threads;
mod uring;

pub use access::Access;
pub use buffer::AlignedBuffer;
pub(crate) use descriptors::{Reservation, descriptors_max};
pub use disk::{Disk, DiskExt, DiskFile, DiskFileExt, DiskSpace, IoMode, OpenMode};
pub(crate) use overlay::OverlayDisk;
pub(crate) use priority::give_way;
pub use ring::RingKind;
pub(crate) use ring::RingWaker;
// For the benches and the binary of this package.
#[doc(hidden)]
pub use ring::{Done, Op, ReadBuffer, Ring};
pub(crate) use socket::keep_alive;
#[doc(hidden)]
pub use socket::{connect_unix, listen_unix};
pub use system::SystemDisk;
