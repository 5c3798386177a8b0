//! What an operator does with three hosts and the fleet that they share.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

pub use crate::place::{PATIENCE, Place as World, Server, text, wait};

impl World {
    /// A command whose answer is read by a program.
    pub fn told(&self, host: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(host, &[&["--json"], arguments].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The answer of a command that must succeed.
    pub fn ok(&self, host: &str, arguments: &[&str]) -> Value {
        let output = self.told(host, arguments).output().unwrap();
        assert!(output.status.success(), "{host} {arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Kind and message of the error of a command that must fail.
    pub fn fails(&self, host: &str, arguments: &[&str]) -> (String, String) {
        let output = self.told(host, arguments).output().unwrap();
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
    pub fn host(&self, host: &str, region: &str, cpus: u32, volume_bytes: usize) -> Server {
        let capacity = json!({ "cpus": { "shared": cpus }, "memory_bytes": 8u64 << 30, "volume_bytes": volume_bytes });
        let config = self.path(&format!("{host}.json"));
        // Slow links, so that the bytes that a host has are worth more than the room that another one has.
        let bandwidth = json!({ "download": 1_000_000, "registry": 1_000_000, "upload": 1_000_000 });
        let facts = json!({ "region": region, "zone": host, "capacity": capacity, "bandwidth": bandwidth });
        fs::write(&config, facts.to_string()).unwrap();
        self.serve(host, &["--host-config", config.to_str().unwrap(), "--report-every", "3s", "--source-timeout", "2s"])
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
