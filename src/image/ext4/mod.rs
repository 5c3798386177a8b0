//! An ext4 file system inside a volume, changed one layer of an image at a time.
//!
//! Metadata stands at fixed places, so that a layer stores its own files and the metadata blocks that they touch, and shares all
//! others with the layers below. What is written depends on the content of the layers alone: no clock and no random number is
//! read, so the same layers give the same blocks everywhere.
//!
//! The structures on disk are those of the `arcbox-ext4` crate; its formatter is not used, because it moves all metadata with
//! each layer, needs the layers below once more, and knows no devices. Layout of a group (128 MiB):
//!
//! ```text
//! group 0      superblock | descriptors, room for 131,072 groups | block bitmap | inode bitmap | inodes | data
//! other groups                                                     block bitmap | inode bitmap | inodes | data
//! ```
//!
//! There is no journal: the kernel mounts it, and `tune2fs -j` adds one.
//!
//! [`FileSystem`] is put together of parts that own what they are about: `space` (the volume, and in `groups` what of it is free),
//! `inodes` and `directories` (what of them is in memory). `extent`, `inode` and `directory` say how one of each is written, `layout`
//! where it stands, and `tree` what a layer can do.
mod blocks;
mod directories;
mod directory;
mod extent;
mod filesystem;
mod groups;
mod inode;
mod inodes;
mod layout;
mod space;
mod superblock;
#[cfg(test)]
mod tests;
mod tree;

pub(super) use filesystem::FileSystem;
pub(super) use inode::{Attributes, Kind, Time};
pub(super) use layout::{MAX_BYTES, NEW_BYTES, ROOT, fitting_bytes};
