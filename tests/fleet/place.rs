//! Fixture: a fleet in a directory or a bucket, with stores beside it. Used by the fleet and acceptance tests.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::bucket;

pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `look` succeeds; `what` is for the message of a timeout.
pub fn wait<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: {seen}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A directory with stores and with a fleet or the bucket in which that is.
pub struct Place {
    pub directory: TempDir,
    /// Where the objects of the fleet are, for those who look at them, wipe them or lie in them.
    pub objects: PathBuf,
    url: String,
    environment: Vec<(&'static str, String)>,
}

impl Place {
    pub fn with_directory() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let objects = directory.path().join("fleet");
        fs::create_dir(&objects).unwrap();
        Self { directory, url: objects.display().to_string(), objects, environment: Vec::new() }
    }

    pub fn with_bucket() -> Self {
        Self::with_bucket_behind(Duration::ZERO)
    }

    /// A bucket whose clock is behind that of this machine.
    pub fn with_bucket_behind(behind: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("s3");
        fs::create_dir(&root).unwrap();
        let environment = bucket::environment(&root, behind);
        let objects = root.join(bucket::BUCKET).join(bucket::PREFIX);
        Self { directory, url: format!("s3://{}/{}", bucket::BUCKET, bucket::PREFIX), objects, environment }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the server of a store listens.
    pub fn socket(&self, store: &str) -> PathBuf {
        self.path(&format!("{store}.sock"))
    }

    pub fn uri(&self, store: &str, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket(store).display())
    }

    /// The binary, for a store and the fleet.
    pub fn command(&self, store: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volfork"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.env("VOLFORK_STORE", self.path(store)).env("VOLFORK_FLEET", &self.url).envs(self.environment.iter().cloned());
        command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
        command.current_dir(self.directory.path()).args(arguments).stdin(Stdio::null());
        command
    }

    /// Serves a store as a host of its name, and waits until it listens.
    pub fn serve(&self, store: &str, more: &[&str]) -> Server {
        let socket = format!("unix:{}", self.socket(store).display());
        let arguments = ["--json", "serve", "--listen", &socket, "--host", store];
        let mut child = self.command(store, &[&arguments, more].concat()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert!(line.contains("listening"), "{store}: {line}");
        // What it says later is nobody's concern, but it must not wait for a reader.
        std::thread::spawn(move || drop(std::io::copy(&mut output, &mut std::io::sink())));
        Server(child)
    }
}

/// A serving process; killed when dropped.
pub struct Server(pub Child);

impl Server {
    pub fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
