//! Fixture: programs that make images, read file systems, and serve a registry. Used by the image and acceptance tests.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs a program to its end; answers whether it was content, and what it printed.
pub fn output(program: &str, arguments: &[&str]) -> (bool, Vec<u8>) {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): see .ci/run for the packages"));
    let text = if output.status.success() { output.stdout } else { [output.stdout, output.stderr].concat() };
    (output.status.success(), text)
}

/// Runs a program that must be content.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let (content, text) = output(program, arguments);
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(content, "{program} {arguments:?} failed: {text}");
    text
}

/// The image of a file system is valid.
pub fn check(image: &Path) {
    run("/sbin/e2fsck", &["-fn", image.to_str().unwrap()]);
}

/// The answer of `debugfs` to a request.
pub fn debugfs(image: &Path, request: &str) -> Vec<u8> {
    let (content, text) = output("/sbin/debugfs", &["-R", request, image.to_str().unwrap()]);
    assert!(content, "debugfs {request}: {}", String::from_utf8_lossy(&text));
    text
}

/// An image layout that `umoci` makes.
pub struct Umoci(String);

impl Umoci {
    pub fn new(layout: &Path) -> Self {
        let layout = layout.display().to_string();
        run("umoci", &["init", "--layout", &layout]);
        Self(layout)
    }

    pub fn name(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.0)
    }

    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.0)
    }

    /// A new image, with the layers of another one or without any.
    pub fn begin(&self, tag: &str, other: Option<&str>) {
        match other {
            None => run("umoci", &["new", "--image", &self.image(tag)]),
            Some(other) => run("umoci", &["tag", "--image", &self.image(other), tag]),
        };
    }

    /// A layer on top of an image: the file or directory `from` as `to`.
    pub fn insert(&self, tag: &str, from: &Path, to: &str) {
        run("umoci", &["insert", "--rootless", "--image", &self.image(tag), from.to_str().unwrap(), to]);
    }

    /// Copies an image to a registry, `HOST:PORT/NAME:TAG`.
    pub fn push(&self, tag: &str, to: &str, format: &str) {
        let (from, to) = (self.name(tag), format!("docker://{to}"));
        run("skopeo", &["--insecure-policy", "copy", "--format", format, "--dest-tls-verify=false", &from, &to]);
    }
}

/// A registry on this machine, which ends with the test.
pub struct Registry {
    child: Child,
    /// Where it listens: host and port, or a socket.
    pub address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// At a socket, where a registry that ended may have listened before, or on a port. That is free when it is chosen; if another
    /// program is faster, the registry ends, and the next one is tried.
    pub fn start(directory: &Path, socket: Option<&Path>) -> Self {
        let listen = || match socket {
            Some(socket) => {
                let _ = std::fs::remove_file(socket);
                Self::listen(directory, "unix", socket.display().to_string(), |socket| UnixStream::connect(socket).map(drop))
            }
            None => {
                let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
                Self::listen(directory, "tcp", address, |address| TcpStream::connect(address).map(drop))
            }
        };
        (0..10).find_map(|_| listen()).expect("the registry ended at once, ten times")
    }

    /// Starts one whose images are below `directory`, and waits for it; `None` if it ends.
    fn listen(directory: &Path, net: &str, address: String, connect: impl Fn(&str) -> io::Result<()>) -> Option<Self> {
        let config = directory.join("registry.yml");
        let root = directory.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: true}}, level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
             http: {{net: {net}, addr: \"{address}\"}}\n",
            root.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", config.to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("docker-registry cannot be run ({error}): install Debian's package docker-registry"));
        let mut registry = Self { child, address };
        let begun = Instant::now();
        while registry.child.try_wait().unwrap().is_none() {
            if connect(&registry.address).is_ok() {
                return Some(registry);
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "the registry does not listen");
            std::thread::yield_now();
        }
        None
    }
}
