//! The servers that are compared.

#[path = "../../src/random.rs"]
mod random;

use std::fs::File;
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use volfork::{Store, StoreOptions};

use random::Random;

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between looks whether it listens.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// First TCP port of the servers.
const PORT: u16 = 10_850;
const PIECE_BYTES: usize = 1 << 20;

/// Random bytes, so that no server finds zeros.
///
/// # Errors
/// The file cannot be written.
pub fn make_image(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut random = Random::new(7);
    let mut piece = vec![0; PIECE_BYTES];
    for _ in 0..bytes / PIECE_BYTES as u64 {
        for word in piece.chunks_mut(8) {
            word.copy_from_slice(&random.number().to_le_bytes());
        }
        file.write_all(&piece)?;
    }
    file.sync_all()
}

/// A server with one export.
pub struct Server {
    name: &'static str,
    uri: String,
    child: Child,
}

/// Where a server listens.
enum Door {
    Path(PathBuf),
    Port(u16),
}

impl Server {
    /// The servers of others, and volfork as the last one.
    ///
    /// # Errors
    /// A program cannot be started, or does not listen in time.
    pub fn start_all(directory: &Path, image: &Path, bytes: u64, tcp: bool) -> io::Result<Vec<Self>> {
        let copy = |name: &str| -> io::Result<PathBuf> {
            let to = directory.join(name);
            std::fs::copy(image, &to)?;
            Ok(to)
        };
        let store = make_store(directory, image, bytes)?;
        let door = |number: u16, name: &str| if tcp { Door::Port(PORT + number) } else { Door::Path(directory.join(name)) };
        let mut servers = Vec::new();
        for (number, name) in (0..).zip(["nbdkit file", "nbdkit memory", "qemu-nbd", "volfork"]) {
            let door = door(number, &format!("{number}.sock"));
            let mut command = match name {
                "nbdkit file" => nbdkit(&door, &["file".as_ref(), copy("file")?.as_os_str()]),
                "nbdkit memory" => nbdkit(&door, &["memory".as_ref(), bytes.to_string().as_ref()]),
                "qemu-nbd" => qemu_nbd(&door, &copy("qemu")?),
                _ => volfork(&door, &store),
            };
            let export = if name == "volfork" { "disk" } else { "" };
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).spawn()?;
            let server = Self { name, uri: door.uri(export), child };
            door.wait(name)?;
            if name == "nbdkit memory" {
                fill(image, &server.uri)?;
            }
            servers.push(server);
        }
        Ok(servers)
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Door {
    fn uri(&self, export: &str) -> String {
        match self {
            Self::Path(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Self::Port(port) => format!("nbd://127.0.0.1:{port}/{export}"),
        }
    }

    /// Waits until a server listens.
    fn wait(&self, name: &str) -> io::Result<()> {
        let begin = Instant::now();
        loop {
            let listens = match self {
                Self::Path(path) => UnixStream::connect(path).is_ok(),
                Self::Port(port) => TcpStream::connect(("127.0.0.1", *port)).is_ok(),
            };
            if listens {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{name} does not listen")));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

fn nbdkit(door: &Door, plugin: &[&std::ffi::OsStr]) -> Command {
    let mut command = Command::new("nbdkit");
    command.arg("--foreground").args(match door {
        Door::Path(path) => ["--unix".into(), path.as_os_str().to_owned()],
        Door::Port(port) => ["--port".into(), port.to_string().into()],
    });
    command.args(plugin);
    command
}

fn qemu_nbd(door: &Door, file: &Path) -> Command {
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--shared=8", "--format=raw", "--cache=writeback"]);
    match door {
        Door::Path(path) => command.arg("--socket").arg(path),
        Door::Port(port) => command.args(["--bind=127.0.0.1", &format!("--port={port}")]),
    };
    command.arg(file);
    command
}

fn volfork(door: &Door, store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_volfork"));
    command.arg("--store").arg(store).args(["serve", "--listen"]).arg(match door {
        Door::Path(path) => format!("unix:{}", path.display()),
        Door::Port(port) => format!("127.0.0.1:{port}"),
    });
    command
}

/// A store with the image as the volume `disk`.
fn make_store(directory: &Path, image: &Path, bytes: u64) -> io::Result<PathBuf> {
    let path = directory.join("store");
    let store = Store::create(&path, StoreOptions::default())?;
    let volume = store.create_volume("disk", bytes)?;
    let image = Bytes::from(std::fs::read(image)?);
    for (number, piece) in (0..).zip(image.chunks(PIECE_BYTES)) {
        volume.write_at(piece, number * PIECE_BYTES as u64)?;
    }
    volume.flush()?;
    drop(volume);
    store.close()?;
    Ok(path)
}

fn fill(image: &Path, uri: &str) -> io::Result<()> {
    match Command::new("nbdcopy").arg(image).arg(uri).status()?.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("nbdcopy cannot fill {uri}"))),
    }
}
