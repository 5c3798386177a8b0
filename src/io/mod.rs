//! The machine below the engine.
mod disk;

pub use disk::{Disk, DiskExt, DiskFile, DiskFileExt, IoMode, OpenMode};

/// How a queue talks to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingKind {
    /// io_uring.
    Uring,
    /// A pool of threads that call `pread` and `pwrite`.
    Threads,
}
