//! A request from the command line, from the user's files to the printed answer.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use volfork::ErrorKind;

use crate::bar::Bar;
use crate::control;
use crate::execute::execute;
use crate::failure::{Failure, Result};
use crate::interrupt::{Interrupt, Interruptible};
use crate::reach::{Reached, reach};
use crate::request::{Request, Response};
use crate::settings::{FileArgument, Settings};

/// Carries out `request` here, or has it carried out by the process that owns the store.
pub fn ask(settings: &Settings, request: Request, file: FileArgument, makes_store: bool) -> Result<Response> {
    let mut user_file = UserFile::open(file)?;
    let reached = reach(settings, makes_store)?;
    let mut bar = Bar::new(&settings.label, settings.quiet);
    let response = match reached {
        Reached::Server(stream) => control::ask(&stream, &request, user_file.file.as_ref(), &mut bar)?,
        Reached::Store(store) => {
            let mut watcher = Interruptible { watcher: bar, interrupt: Interrupt::catch()? };
            let done = execute(&store, request, user_file.file.take(), &mut watcher);
            let closed = store.close();
            let response = done?;
            closed?;
            response
        }
    };
    user_file.made = None;
    Ok(response)
}

/// The file of an import or export; one that was made for a failed export is removed.
struct UserFile {
    file: Option<File>,
    made: Option<PathBuf>,
}

impl UserFile {
    fn open(argument: FileArgument) -> Result<Self> {
        let is_standard = |path: &Path| path.as_os_str() == "-";
        match argument {
            FileArgument::None => Ok(Self { file: None, made: None }),
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
                Ok(Self { file: Some(file), made: None })
            }
            FileArgument::Write(path) => Self::open_output(path),
        }
    }

    /// Old bytes stay until the export begins, so that a wrong name costs nothing.
    fn open_output(path: PathBuf) -> Result<Self> {
        let wrong = |error| Failure::io(format!("write {}", path.display()), error);
        match File::options().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => Ok(Self { file: Some(file), made: Some(path) }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let file = File::options().write(true).open(&path).map_err(wrong)?;
                Ok(Self { file: Some(file), made: None })
            }
            Err(error) => Err(wrong(error)),
        }
    }
}

impl Drop for UserFile {
    fn drop(&mut self) {
        if let Some(path) = self.made.take() {
            // The failure of the export is reported; this one would hide it.
            let _ = fs::remove_file(path);
        }
    }
}

fn standard(stream: impl AsFd + IsTerminal, refusal: &str) -> Result<UserFile> {
    if stream.is_terminal() {
        return Err(Failure::new(ErrorKind::InvalidInput, refusal));
    }
    let file = stream.as_fd().try_clone_to_owned().map_err(|error| Failure::io("duplicate a standard stream", error))?;
    Ok(UserFile { file: Some(file.into()), made: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_export_leaves_files_as_they_were() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        drop(UserFile::open(FileArgument::Write(path.clone())).unwrap());
        assert!(!path.exists());
        fs::write(&path, "old").unwrap();
        drop(UserFile::open(FileArgument::Write(path.clone())).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert!(UserFile::open(FileArgument::Read(directory.path().join("none"))).is_err_and(|failure| failure.is(ErrorKind::NotFound)));
        assert!(UserFile::open(FileArgument::Read(directory.path().into())).is_err());
    }
}
