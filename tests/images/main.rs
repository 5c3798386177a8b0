//! Container images: found, checked, and imported as volumes.
//!
//! Needs the programs that `.ci/run` installs; a missing one fails the test that needs it.
#![cfg(feature = "images")]

mod archives;
mod files;
mod fixture;
mod hostile;
mod layers;
mod peers;
mod registry;
mod together;

use std::process::{Command, Stdio};

/// Runs a program to its end; answers whether it was content, and what it printed.
fn output(program: &str, arguments: &[&str]) -> (bool, Vec<u8>) {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): see .ci/run for the packages"));
    let text = if output.status.success() { output.stdout } else { [output.stdout, output.stderr].concat() };
    (output.status.success(), text)
}

/// Runs a program that must be content.
fn run(program: &str, arguments: &[&str]) -> String {
    let (content, text) = output(program, arguments);
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(content, "{program} {arguments:?} failed: {text}");
    text
}

/// The image of a file system is valid.
fn check(image: &std::path::Path) {
    run("/sbin/e2fsck", &["-fn", image.to_str().unwrap()]);
}

/// The answer of `debugfs` to a request.
fn debugfs(image: &std::path::Path, request: &str) -> Vec<u8> {
    let (content, text) = output("/sbin/debugfs", &["-R", request, image.to_str().unwrap()]);
    assert!(content, "debugfs {request}: {}", String::from_utf8_lossy(&text));
    text
}
