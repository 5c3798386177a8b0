//! The command line of `volfork`.
//!
//! Imports point down only; `tests/tidy` reads this table.
//!
//! ```text
//! 0  failure settings   errors; settings of every command
//! 1  request            requests to a store, and their answers
//! 2  cli control        arguments; the socket of the process that serves a store
//! 3  act show           actions on an open store; output
//! 4  ask                runs a command here, or through the process that serves the store
//! 5  fleet              commands about many hosts
//! 6  serve              the process that serves a store
//! 7  demo               the whole in one command
//! ```
mod act;
mod ask;
mod cli;
mod control;
mod demo;
mod failure;
#[cfg(feature = "fleet")]
mod fleet;
mod request;
mod serve;
mod settings;
mod show;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::ask::check;
use crate::cli::arguments::Arguments;
use crate::cli::plan::{FileArgument, Plan};
use crate::failure::{Failure, Result};
use crate::request::Request;
use crate::request::response::Response;
use crate::settings::Settings;
use crate::show::stream;

fn main() -> ExitCode {
    let (settings, plan) = match Arguments::try_parse() {
        Ok(arguments) => arguments.settle(),
        Err(error) if error.use_stderr() && wants_json() => {
            stream::failure(true, &Failure::usage(&error.render().to_string()));
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
        Plan::Place(place) => fleet::place::place(&settings, &place).map(|()| true),
        #[cfg(feature = "fleet")]
        Plan::Fleet(command) => fleet::run(&settings, command).map(|()| true),
        Plan::Demo(demo) => demo::run(&settings, demo).map(|()| true),
        Plan::Completions(shell) => print_completions(shell).map(|()| true),
        #[cfg(feature = "images")]
        Plan::ShowImage { reference, choice } => {
            act::image::show(&reference, &choice).and_then(|found| stream::text(&show::image::resolved(&settings, &found))).map(|()| true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            stream::failure(settings.json, &failure);
            ExitCode::from(failure.status())
        }
    }
}

/// Whether arguments that do not parse contain `--json`.
fn wants_json() -> bool {
    std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// `false` if a scrub found damage that it could not repair.
fn ask_and_print(settings: &Settings, request: Request, file: FileArgument, makes_store: bool) -> Result<bool> {
    let response = ask::ask(settings, request.clone(), file, makes_store)?;
    show::response::response(settings, &request, &response)?;
    Ok(!matches!(response, Response::Scrubbed(report) if !report.errors.is_empty()))
}

fn print_completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "volfork", &mut script);
    let script = String::from_utf8(script).map_err(|error| Failure::new(volfork::ErrorKind::Unsupported, error.to_string()))?;
    stream::text(script.trim_end())
}
