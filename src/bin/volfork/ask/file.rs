//! The user's file of an import or export.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::Path;

use volfork::ErrorKind;

use super::output::{self, Output};
use crate::cli::plan::FileArgument;
use crate::failure::{Failure, Result};

/// The file of an import or export; that of an export has its name when it is whole.
pub struct UserFile {
    /// What the request reads or writes, if it does.
    pub file: Option<File>,
    /// What is left to do when it is whole.
    pub output: Option<Output>,
}

impl UserFile {
    /// Opens it.
    pub fn open(argument: FileArgument) -> Result<Self> {
        let is_standard = |path: &Path| path.as_os_str() == "-";
        match argument {
            FileArgument::None => Ok(Self { file: None, output: None }),
            FileArgument::Read(path) if is_standard(&path) => {
                standard(io::stdin(), "standard input is a terminal: pipe an image into the command")
            }
            FileArgument::Write(path) if is_standard(&path) => {
                standard(io::stdout(), "standard output is a terminal: name a file, or pipe the image into a command")
            }
            FileArgument::Read(path) => {
                let file = File::open(&path).map_err(|error| Failure::io(format!("open {}", path.display()), error))?;
                if file.metadata().is_ok_and(|meta| meta.is_dir()) {
                    return Err(Failure::new(ErrorKind::InvalidInput, format!("{} is a directory: name an image", path.display())));
                }
                Ok(Self { file: Some(file), output: None })
            }
            FileArgument::Write(path) => {
                let (file, output) = output::open(&path)?;
                Ok(Self { file: Some(file), output })
            }
        }
    }
}

fn standard(stream: impl AsFd + IsTerminal, refusal: &str) -> Result<UserFile> {
    if stream.is_terminal() {
        return Err(Failure::new(ErrorKind::InvalidInput, refusal));
    }
    let file = stream.as_fd().try_clone_to_owned().map_err(|error| Failure::io("duplicate a standard stream", error))?;
    Ok(UserFile { file: Some(file.into()), output: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_an_image_is_read() {
        let directory = tempfile::tempdir().unwrap();
        assert!(UserFile::open(FileArgument::Read(directory.path().join("none"))).is_err_and(|failure| failure.is(ErrorKind::NotFound)));
        assert!(UserFile::open(FileArgument::Read(directory.path().into())).is_err());
    }
}
