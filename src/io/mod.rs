//! The machine below the engine.
mod buffer;
mod disk;
mod system;
pub use buffer::AlignedBuffer;
pub use system::SystemDisk;

pub use disk::{Disk, DiskExt, DiskFile, DiskFileExt, IoMode, OpenMode};

/// How a queue talks to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingKind {
    /// io_uring.
    Uring,
    /// A pool of threads that call `pread` and `pwrite`.
    Threads,
}
