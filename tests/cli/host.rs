//! A store, the binary, and a serving process.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A store in a directory of its own, and the binary to use it with.
pub struct Host {
    /// Removed at the end, with all in it.
    pub directory: TempDir,
}

impl Host {
    /// A place without a store.
    pub fn bare() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// A place with an empty store.
    pub fn new() -> Self {
        let host = Self::bare();
        host.ok(&["init"]);
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volfork"));
        command.env("VOLFORK_STORE", self.store()).env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
        command.current_dir(self.directory.path()).args(arguments).stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&with_json(arguments))).unwrap()
    }

    /// An export prints its summary to standard error, because the image may be on standard output.
    pub fn json_of_stderr(&self, arguments: &[&str]) -> Value {
        let output = self.run(&with_json(arguments));
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stderr).unwrap()
    }

    /// Standard error of a command that must fail with `status`.
    pub fn fails(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
        assert!(error.contains("error"), "{arguments:?}: {error}");
        error
    }

    /// The kind of the failure of a command that must fail.
    pub fn kind(&self, arguments: &[&str]) -> String {
        let error: Value = serde_json::from_str(&self.fails(1, &with_json(arguments))).unwrap();
        assert!(!error["error"]["message"].as_str().unwrap().is_empty());
        error["error"]["kind"].as_str().unwrap().to_owned()
    }

    /// The exported bytes of a volume or snapshot.
    pub fn bytes(&self, target: &str) -> Vec<u8> {
        let output = self.run(&["export", target, "-"]);
        assert!(output.status.success(), "{target}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Imports an image with bytes that belong to `seed`.
    pub fn import(&self, name: &str, seed: u8) -> Vec<u8> {
        let path = self.path(&format!("{name}.img"));
        let bytes = make_image(&path, seed);
        self.ok(&["import", name, path.to_str().unwrap()]);
        bytes
    }

    /// Imports bytes through a pipe.
    pub fn pipe_in(&self, name: &str, bytes: &[u8]) {
        let mut child = self.command(&["import", name, "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        assert!(wait(&mut child).success());
    }

    pub fn volumes(&self) -> Vec<String> {
        names(&self.json(&["list"]))
    }

    pub fn serve(&self, arguments: &[&str]) -> Server {
        let mut all = vec!["--json", "serve"];
        all.extend(arguments);
        self.served(self.command(&all))
    }

    /// As `serve`, by a process that may have so many descriptors open.
    pub fn serve_with_descriptors(&self, descriptors: u32, arguments: &[&str]) -> Server {
        let command = self.command(&[]);
        let limited = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(limited).arg(command.get_program()).args(["--json", "serve"]).args(arguments).stdin(Stdio::null());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(key, value),
                None => shell.env_remove(key),
            };
        }
        self.served(shell)
    }

    /// A server that a command starts.
    pub fn served(&self, mut command: Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut server = Server { child, uris: Vec::new() };
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        server.uris = ready["listening"].as_array().unwrap().iter().map(|uri| uri.as_str().unwrap().to_owned()).collect();
        server
    }
}

/// A serving process; killed when dropped.
pub struct Server {
    /// The process.
    pub child: Child,
    /// Where it listens.
    pub uris: Vec<String>,
}

impl Server {
    /// Ends it in peace.
    pub fn stop(mut self) {
        signal(&self.child, libc::SIGTERM);
        assert!(wait(&mut self.child).success());
    }

    /// Whether it carries out a command.
    pub fn has_a_command(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let name = |thread: io::Result<fs::DirEntry>| fs::read_to_string(thread.unwrap().path().join("comm")).unwrap_or_default();
        threads.map(name).any(|name| name.trim() == "control-client")
    }

    /// The address of an export.
    pub fn uri(&self, export: &str) -> String {
        let uri = &self.uris[0];
        match uri.split_once('?') {
            Some((base, query)) => format!("{}/{export}?{query}", base.strip_suffix('/').unwrap_or(base)),
            None => format!("{}/{export}", uri.strip_suffix('/').unwrap_or(uri)),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(child: &Child, signal: i32) {
    // SAFETY: kill takes no pointers, and the child was not waited for, so its number is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

pub fn wait(child: &mut Child) -> ExitStatus {
    let mut status = None;
    until("the process ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// Waits for what another process does.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "in {PATIENCE:?} it does not come to this: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn with_json<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["--json"];
    all.extend(arguments);
    all
}

pub fn names(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|info| info["name"].as_str().unwrap().to_owned()).collect()
}

/// 12 MiB and 512 bytes: text at the beginning, a hole, data across a MiB boundary, explicit zeroes, a last sector.
pub fn make_image(path: &Path, seed: u8) -> Vec<u8> {
    let size_bytes = (12 << 20) + 512;
    let file = File::create(path).unwrap();
    file.set_len(size_bytes).unwrap();
    let noise: Vec<u8> = (0..300_000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect();
    file.write_all_at(b"beginning of the image", 0).unwrap();
    file.write_all_at(&noise, (4 << 20) - 150_001).unwrap();
    file.write_all_at(&[0; 65_536], 6 << 20).unwrap();
    file.write_all_at(&noise[..512], size_bytes - 512).unwrap();
    fs::read(path).unwrap()
}
