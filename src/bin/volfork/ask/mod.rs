//! A request from the command line, from the user's files to the printed answer.
pub mod check;
mod file;
pub mod interrupt;
mod output;
pub mod reach;
pub mod sources;

use volfork::ErrorKind;

use file::UserFile;
use interrupt::{Interrupt, Interruptible};
use reach::{Reached, reach};

use crate::act::clients::Clients;
use crate::act::execution::execute;
use crate::act::gate::Alone;
use crate::cli::plan::FileArgument;
use crate::control;
use crate::failure::{Failure, Result};
use crate::request::response::Response;
use crate::request::{Request, TraceAction};
use crate::settings::Settings;
use crate::show::bar::Bar;

/// Carries out `request` here, or has it carried out by the process that owns the store.
pub fn ask(settings: &Settings, request: Request, file: FileArgument, makes_store: bool) -> Result<Response> {
    let mut user_file = UserFile::open(file)?;
    let reached = reach(settings, makes_store)?;
    let mut bar = Bar::new(&settings.label, settings);
    let response = match reached {
        Reached::Server(stream) => control::ask(&stream, &request, user_file.file.as_ref(), &mut bar)?,
        Reached::Store(_) if matches!(request, Request::Trace { action: TraceAction::Record, .. }) => {
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
