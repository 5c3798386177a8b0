//! A request from the command line, from the user's files to the printed answer.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::Path;

use volfork::ErrorKind;

use crate::bar::Bar;
use crate::clients::Clients;
use crate::control;
use crate::execute::execute;
use crate::failure::{Failure, Result};
use crate::gate::Alone;
use crate::interrupt::{Interrupt, Interruptible};
use crate::output::{self, Output};
use crate::reach::{Reached, reach};
use crate::request::{Request, Response};
use crate::settings::{FileArgument, Settings};
use crate::trace::Action;

/// Carries out `request` here, or has it carried out by the process that owns the store.
pub fn ask(settings: &Settings, request: Request, file: FileArgument, makes_store: bool) -> Result<Response> {
    let mut user_file = UserFile::open(file)?;
    let reached = reach(settings, makes_store)?;
    let mut bar = Bar::new(&settings.label, settings);
    let response = match reached {
        Reached::Server(stream) => control::ask(&stream, &request, user_file.file.as_ref(), &mut bar)?,
        Reached::Store(_) if matches!(request, Request::Trace { action: Action::Record, .. }) => {
            let message = "a fork is recorded while its store is served: run 'volfork serve', then this command";
            return Err(Failure::new(ErrorKind::Unsupported, message));
        }
        Reached::Store(store) => {
            let mut watcher = Interruptible { watcher: bar, interrupt: Interrupt::catch()? };
            let done = execute(&store, &Clients::default(), request, user_file.file.take(), &Alone, &mut watcher);
            let closed = store.close();
            let mut response = done?;
            closed?;
            response.say_stopped();
            response
        }
    };
    if let Some(output) = user_file.output {
        output.keep()?;
    }
    Ok(response)
}

/// The file of an import or export; that of an export has its name when it is whole.
struct UserFile {
    file: Option<File>,
    output: Option<Output>,
}

impl UserFile {
    fn open(argument: FileArgument) -> Result<Self> {
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
