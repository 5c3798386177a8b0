//! The machine below the engine: files, buffers, and rings for many transfers at once.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![deny(clippy::cast_precision_loss)]
mod access;
mod buffer;
mod descriptors;
mod disk;
#[cfg(test)]
pub(crate) mod faulty;
mod fiemap;
mod fixed;
mod guess;
mod op;
mod overlay;
mod poller;
mod priority;
mod regions;
mod ring;
#[cfg(feature = "sim")]
mod simulated;
mod slots;
mod socket;
mod system;
mod threads;
mod transfers;
mod uring;
mod waker;
mod workers;
mod write_back;

pub use access::Access;
pub use buffer::AlignedBuffer;
pub(crate) use descriptors::{Reservation, descriptors_max};
pub use disk::{Disk, DiskExt, DiskFile, DiskFileExt, DiskSpace, IoMode, OpenMode};
pub(crate) use guess::Guess;
pub(crate) use overlay::OverlayDisk;
pub(crate) use poller::Poller;
#[cfg(feature = "tls")]
pub(crate) use poller::Ready;
pub(crate) use priority::give_way;
pub use ring::RingKind;
pub(crate) use slots::Slots;
#[cfg(feature = "tls")]
pub(crate) use socket::Outcome;
pub(crate) use socket::Socket;
// For the benches and the binary of this package.
#[doc(hidden)]
pub use socket::{connect_unix, listen_unix};
pub use system::SystemDisk;
pub(crate) use workers::{Bounds, Job, Next, Refusal, Task, Workers};
#[doc(hidden)]
pub use {
    buffer::is_zero,
    op::{Done, Op, ReadBuffer},
    ring::Ring,
    waker::RingWaker,
};
