//! Changes of shape: creating, forking, snapshotting, altering and destroying.
//!
//! The cast: [`Volumes`] changes the volumes of this store; [`Remote`] forks what other hosts have, and steers what is fetched;
//! [`Lending`] gives other hosts leases of snapshots.

mod addresses;
mod alter;
mod create;
mod fork;
mod heads;
mod lending;
mod options;
mod remote;
mod steer;

pub use create::Volumes;
pub use heads::Heads;
pub use lending::Lending;
pub use options::{Admit, Difference, ForkOptions, ForkSource, LocalSource, VolumeOptions};
pub use remote::Remote;
