//! The command line of `volfork`.
//!
//! - `args`, `settings`, `target`, `hints`: what was typed, and what it means.
//! - `request`, `execute`, `transfer`, `output`: what can be asked of an open store, and how it is done.
//! - `reach`, `ask`, `control`: where that happens: here, or in the process that serves the store.
//! - `gate`: whether a host makes a volume.
//! - `serve`, `nbd`, `clients`, `ready`: the serving process.
//! - `fleet`, `origin`: many hosts, and what placement wants to know of a source.
//! - `image`: container images. `trace`: what forks read first.
//! - `check`: what needs a store that nobody has open. `demo`: the whole in one command.
//! - `print`, `bar`, `date`, `failure`, `interrupt`: what the user sees and says.
mod args;
mod ask;
mod bar;
mod check;
mod clients;
mod control;
mod date;
mod demo;
mod execute;
mod failure;
#[cfg(feature = "fleet")]
mod fleet;
mod gate;
mod hints;
#[cfg(feature = "images")]
mod image;
mod interrupt;
mod nbd;
mod origin;
mod output;
mod print;
mod reach;
mod ready;
mod request;
mod serve;
mod settings;
mod target;
mod trace;
mod transfer;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::Arguments;
use crate::failure::{Failure, Result};
use crate::request::{Request, Response};
use crate::settings::{FileArgument, Plan, Settings};

fn main() -> ExitCode {
    let (settings, plan) = match Arguments::try_parse() {
        Ok(arguments) => arguments.settle(),
        Err(error) if error.use_stderr() && wants_json() => {
            print::failure(true, &Failure::usage(&error.render().to_string()));
            return ExitCode::from(2);
        }
        Err(error) => error.exit(),
    };
    let done = match plan {
        Plan::Init { block_size, group_access } => check::init(&settings, block_size, group_access).map(|()| true),
        Plan::Ask { request, file, makes_store } => ask_and_print(&settings, request, file, makes_store),
        Plan::Check => check::check(&settings),
        Plan::Serve(serve) => serve::serve(&settings, &serve).map(|()| true),
        #[cfg(feature = "fleet")]
        Plan::Place(place) => fleet::place(&settings, &place).map(|()| true),
        #[cfg(feature = "fleet")]
        Plan::Fleet(command) => fleet::run(&settings, command).map(|()| true),
        Plan::Demo(demo) => demo::run(&settings, demo).map(|()| true),
        Plan::Completions(shell) => print_completions(shell).map(|()| true),
        #[cfg(feature = "images")]
        Plan::ShowImage { reference, choice } => {
            image::show(&reference, &choice).and_then(|found| print::text(&image::resolved(&settings, &found))).map(|()| true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            print::failure(settings.json, &failure);
            ExitCode::from(failure.status())
        }
    }
}

/// Whether `--json` was given, as far as can be told from arguments that are wrong.
fn wants_json() -> bool {
    std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// `false` if a scrub found damage that it could not repair.
fn ask_and_print(settings: &Settings, request: Request, file: FileArgument, makes_store: bool) -> Result<bool> {
    let response = ask::ask(settings, request.clone(), file, makes_store)?;
    print::response(settings, &request, &response)?;
    Ok(!matches!(response, Response::Scrubbed(report) if !report.errors.is_empty()))
}

fn print_completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "volfork", &mut script);
    let script = String::from_utf8(script).map_err(|error| Failure::new(volfork::ErrorKind::Unsupported, error.to_string()))?;
    print::text(script.trim_end())
}
