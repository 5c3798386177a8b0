//! Standard output and standard error: lines for people, JSON for scripts.

use std::io::{self, Write};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::settings::Settings;

/// Prints `value` as one JSON document.
pub fn json(value: &impl Serialize) -> Result<()> {
    to(io::stdout().lock(), &one_line(value)?)
}

/// A line of a log for scripts: time, event, and its details.
pub fn log(event: &str, about: &Value) -> Value {
    let mut line = json!({ "time": humantime::format_rfc3339_millis(SystemTime::now()).to_string(), "event": event });
    if let (Some(line), Some(about)) = (line.as_object_mut(), about.as_object()) {
        line.extend(about.clone());
    }
    line
}

/// Prints lines for people.
pub fn text(text: &str) -> Result<()> {
    to(io::stdout().lock(), text)
}

/// Prints a note beside the answer.
pub fn note(settings: &Settings, text: &str) {
    match (settings.quiet, settings.json) {
        (true, _) => {}
        (false, true) => note_json(text),
        // There is no other place to report an error of stderr.
        (false, false) => drop(to(io::stderr(), text)),
    }
}

/// As [`note`], for scripts.
pub fn note_json(text: &str) {
    // As in `note`.
    let _ = to(io::stderr(), &log("note", &json!({ "message": text })).to_string());
}

/// Prints why the command failed.
pub fn failure(json: bool, failure: &Failure) {
    let text = match json {
        true => json!({ "error": { "kind": failure.kind, "message": failure.message } }).to_string(),
        false => format!("error: {failure}"),
    };
    // There is no other place to report an error of stderr.
    let _ = to(io::stderr(), &text);
}

/// A reader that has seen enough closes the pipe, which is no failure.
pub(super) fn to(mut stream: impl Write, text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    match stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(b"\n")).and_then(|()| stream.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| Failure::io("print", error)),
    }
}

pub(super) fn one_line(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Failure::io("print", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        to(writer, "nobody reads this").unwrap();
    }
}
