//! The machine below the engine: files, buffers, and rings for many transfers at once.
mod access;
mod buffer;
mod descriptors;
mod disk;
#[cfg(test)]
pub(crate) mod faulty;
mod fiemap;
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
pub use descriptors::{Reservation, descriptors_max};
pub use disk::{Disk, DiskExt, DiskFile, DiskFileExt, IoMode, OpenMode};
pub use priority::give_way;
pub use ring::{Done, Op, Ring, RingKind, RingWaker};
pub use socket::{connect_unix, keep_alive, listen_unix};
pub use system::SystemDisk;
