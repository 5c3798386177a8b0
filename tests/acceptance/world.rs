//! Three hosts, and the fleet that they share.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bucket;
use crate::server::Server;

pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `look` finds what it looks for.
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

/// A directory with stores, and a fleet in it or in a bucket.
pub struct World {
    pub directory: TempDir,
    pub fleet: String,
    /// Where the objects of the fleet are, for those who wipe it or lie in it.
    objects: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl World {
    pub fn with_directory() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let objects = directory.path().join("fleet");
        fs::create_dir(&objects).unwrap();
        Self { directory, fleet: objects.display().to_string(), objects, environment: Vec::new() }
    }

    pub fn with_bucket() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("s3");
        fs::create_dir(&root).unwrap();
        let environment = bucket::environment(&root);
        let objects = root.join(bucket::BUCKET).join("fleet");
        Self { directory, fleet: format!("s3://{}/fleet", bucket::BUCKET), objects, environment }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn socket(&self, host: &str) -> PathBuf {
        self.path(&format!("{host}.sock"))
    }

    pub fn uri(&self, host: &str, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket(host).display())
    }

    pub fn command(&self, host: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volfork"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.env("VOLFORK_STORE", self.path(host)).env("VOLFORK_FLEET", &self.fleet).envs(self.environment.iter().cloned());
        command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
        command.current_dir(self.directory.path()).arg("--json").args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The answer of a command that must succeed.
    pub fn ok(&self, host: &str, arguments: &[&str]) -> Value {
        let output = self.command(host, arguments).output().unwrap();
        assert!(output.status.success(), "{host} {arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Kind and message of the error of a command that must fail.
    pub fn fails(&self, host: &str, arguments: &[&str]) -> (String, String) {
        let output = self.command(host, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{host} {arguments:?}: {}", text(&output.stdout));
        error_of(&output)
    }

    /// What the fleet knows of its hosts and reservations.
    pub fn list(&self) -> (Vec<Value>, Vec<Value>) {
        let mut list = self.ok("nobody", &["fleet", "list"]);
        let mut part = |name: &str| list[name].as_array_mut().map(std::mem::take).unwrap_or_default();
        (part("hosts"), part("reservations"))
    }

    /// Waits until the fleet knows of a host what `is_right` wants.
    pub fn wait_for(&self, host: &str, is_right: impl Fn(&Value) -> bool) -> Value {
        wait(host, || {
            let (hosts, _) = self.list();
            let found = hosts.iter().find(|found| found["host"] == host);
            found.filter(|found| is_right(found)).cloned().ok_or_else(|| format!("{hosts:?}"))
        })
    }

    /// Takes every object out of the fleet.
    pub fn wipe(&self) {
        for entry in fs::read_dir(&self.objects).unwrap() {
            let path = entry.unwrap().path();
            wait("the wipe", || {
                let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                // A report may come in while its directory goes.
                if path.exists() { Err(format!("{gone:?}")) } else { Ok(()) }
            });
        }
    }

    /// Puts the report of a host that does not exist: that of `like` with these changes.
    pub fn lie(&self, like: &str, name: &str, changes: &[(&str, Value)]) {
        let path = |host: &str| self.objects.join(format!("hosts/{host}.json"));
        let mut report: Value = serde_json::from_slice(&fs::read(path(like)).unwrap()).unwrap();
        report["host"] = name.into();
        changes.iter().for_each(|(key, value)| report[*key] = value.clone());
        fs::write(path(name), report.to_string()).unwrap();
    }

    /// Serves the store of a host that has so much.
    pub fn serve(&self, host: &str, region: &str, cpus: u32, volume_bytes: usize) -> Server {
        let capacity = json!({ "cpus": { "shared": cpus }, "memory_bytes": 8u64 << 30, "volume_bytes": volume_bytes });
        let config = self.path(&format!("{host}.json"));
        // Slow links, so that the bytes that a host has are worth more than the room that another one has.
        let bandwidth = json!({ "download": 1_000_000, "registry": 1_000_000, "upload": 1_000_000 });
        let facts = json!({ "region": region, "zone": host, "capacity": capacity, "bandwidth": bandwidth });
        fs::write(&config, facts.to_string()).unwrap();
        let listen = format!("unix:{}", self.socket(host).display());
        let arguments = ["serve", "--listen", &listen, "--host", host, "--host-config", config.to_str().unwrap()];
        let patience = ["--report-every", "3s", "--source-timeout", "2s"];
        let mut child = self.command(host, &[&arguments[..], &patience].concat()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert!(line.contains("listening"), "{host}: {line}");
        // What it says later is nobody's concern, but it must not wait for a reader.
        std::thread::spawn(move || drop(std::io::copy(&mut output, &mut std::io::sink())));
        Server(child)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

pub fn error_of(output: &Output) -> (String, String) {
    let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    let part = |name: &str| error["error"][name].as_str().unwrap().to_owned();
    (part("kind"), part("message"))
}
