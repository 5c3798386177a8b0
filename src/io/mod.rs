//! The machine below the engine: files, buffers, and rings for many transfers at once.
mod buffer;
mod descriptors;
mod disk;
mod priority;
mod ring;
#[cfg(feature = "sim")]
mod simulated;
mod system;
mod threads;
mod uring;

pub use buffer::AlignedBuffer;
pub use descriptors::{Reservation, descriptors_max};
pub use disk::{Disk, DiskExt, DiskFile, DiskFileExt, IoMode, OpenMode};
pub use priority::give_way;
pub use ring::{Done, Op, Ring, RingKind, RingWaker};
pub use system::SystemDisk;
