//! Names: of the files of a store, and of volumes and snapshots.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::LayerId;
use crate::limits::NAME_BYTES_MAX;

/// Paths of the files of a store.
#[derive(Clone, Debug)]
pub struct StorePaths {
    root: PathBuf,
}

/// A file of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerFile {
    /// Blocks; the number counts files of [`crate::limits::SEGMENT_BYTES`].
    Data(u32),
    /// Checksum pages.
    Checksums,
    /// In which order forks touched blocks.
    Trace,
}

impl StorePaths {
    /// The paths below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Held locked by the process that owns the store.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The two superblock slots.
    pub fn superblock(&self) -> PathBuf {
        self.root.join("superblock")
    }

    /// Space for the next journal, which is written into this file.
    pub fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// The log of changes that no frame has yet: 0 or 1.
    pub fn unrecorded(&self, number: usize) -> PathBuf {
        self.root.join(format!("unrecorded.{number}"))
    }

    /// A journal file.
    pub fn journal(&self, number: u64) -> PathBuf {
        self.root.join(format!("journal.{number}"))
    }

    /// Whether a name in the directory of a store is that of something that belongs to it: a file, or a socket of its server.
    pub fn is_own(name: &str) -> bool {
        matches!(name, "lock" | "superblock" | "reserve" | "layers" | "unrecorded.0" | "unrecorded.1")
            || Self::journal_number(name).is_some()
            || name.contains(".sock")
    }

    /// The number in the name of a journal file.
    pub fn journal_number(name: &str) -> Option<u64> {
        name.strip_prefix("journal.")?.parse().ok()
    }

    /// The directory of the layers' files.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// A file of a layer.
    pub fn layer(&self, layer: LayerId, file: LayerFile) -> PathBuf {
        self.layers().join(match file {
            LayerFile::Data(0) => format!("{layer}.data"),
            LayerFile::Data(segment) => format!("{layer}.data.{segment}"),
            LayerFile::Checksums => format!("{layer}.crc"),
            LayerFile::Trace => format!("{layer}.trace"),
        })
    }

    /// The layer and file that a name in the layers' directory stands for.
    pub fn parse_layer(name: &str) -> Option<(LayerId, LayerFile)> {
        let (id, kind) = name.split_once('.')?;
        let file = match kind {
            "data" => LayerFile::Data(0),
            "crc" => LayerFile::Checksums,
            "trace" => LayerFile::Trace,
            _ => LayerFile::Data(kind.strip_prefix("data.")?.parse().ok()?),
        };
        Some((LayerId(id.parse().ok()?), file))
    }
}

/// Prefix of the names of snapshots that are taken for leases. No name of a user begins with a dot.
const INSTANT: &str = ".lease-";

/// Name of the snapshot of a layer that is taken for a lease. Numbers of layers are never used twice, so it stands for one instant.
pub fn instant_name(layer: LayerId) -> String {
    format!("{INSTANT}{layer}")
}

/// Whether a snapshot was taken for a lease, and goes with the last one.
pub fn is_instant(name: &str) -> bool {
    name.starts_with(INSTANT)
}

/// Checks the name of a volume or snapshot.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] unless the name is 1 to 255 bytes of letters, digits, `.`, `_`, `-` and begins with a letter or
/// digit: such a name is safe in a URI, a path, a table and `NAME@SNAP`.
pub fn valid_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(good) || !name.starts_with(char::is_alphanumeric) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "'{name}' is not a name: use 1 to {NAME_BYTES_MAX} bytes of letters, digits, '.', '_' and '-', a letter or digit first"
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_names_go_both_ways() {
        let paths = StorePaths::new(Path::new("s"));
        for file in [LayerFile::Data(0), LayerFile::Data(3), LayerFile::Checksums, LayerFile::Trace] {
            let path = paths.layer(LayerId(12), file);
            let name = path.file_name().and_then(|name| name.to_str()).unwrap();
            assert_eq!(StorePaths::parse_layer(name), Some((LayerId(12), file)));
        }
        for name in ["x.data", "1", "1.dat", "1.data.x", ".crc"] {
            assert_eq!(StorePaths::parse_layer(name), None, "{name}");
        }
        assert_eq!(StorePaths::journal_number("journal.12"), Some(12));
        for own in [paths.lock(), paths.superblock(), paths.reserve(), paths.layers(), paths.journal(3), "s/control.sock".into()] {
            assert!(StorePaths::is_own(own.file_name().unwrap().to_str().unwrap()), "{own:?}");
        }
        assert!(!StorePaths::is_own("notes") && !StorePaths::is_own("journal.old"));
    }

    #[test]
    fn names_are_safe_everywhere() {
        for name in ["a", "db-1.2_x", "9", "größe"] {
            valid_name(name).unwrap();
        }
        for name in ["", "-a", "a/b", "a@b", "a b", "..", "a\n", &instant_name(LayerId(1)), &"x".repeat(256)] {
            assert_eq!(valid_name(name).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
        }
    }
}
