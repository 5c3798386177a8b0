//! The directory of a demonstration.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// A new directory, removed with all in it when it is dropped, unless it is kept.
pub struct Place {
    path: PathBuf,
    keep: bool,
}

impl Place {
    /// A new directory in `parent`, by default the temporary directory.
    pub fn new(parent: Option<&Path>, keep: bool) -> Result<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        for number in 0..100 {
            let path = parent.join(format!("volfork-demo-{}-{number}", std::process::id()));
            match fs::create_dir_all(&parent).and_then(|()| fs::create_dir(&path)) {
                Ok(()) => return Ok(Self { path, keep }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Failure::io(format!("make {}; name another place with --dir", path.display()), error)),
            }
        }
        Err(Failure::new(
            volfork::ErrorKind::Exists,
            format!("{} is full of old demonstrations: name another place with --dir", parent.display()),
        ))
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.keep {
            // It is in the temporary directory, whose owner sweeps what is left.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
