//! The server with its image, and the two programs that copy it.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use volfork::source::{NbdOptions, SourceExt, SourceOpener, UriSources};
use volfork::{Store, StoreOptions, Volume};

use crate::arguments::Arguments;
use crate::compare::median;
use crate::link::{Link, Shape};
use crate::place::{Place, Tcp};
use crate::random::{PIECE, piece};

const SERVER: &str = "10.77.0.1";
const CLIENT: &str = "10.77.0.2";
/// The image, as a client names it.
pub const URI: &str = "nbd://10.77.0.1:10809/disk@s";
/// The same bytes, without an identity.
pub const VOLUME_URI: &str = "nbd://10.77.0.1:10809/disk";
/// The same bytes in a snapshot of which nothing is recorded.
pub const UNRECORDED_URI: &str = "nbd://10.77.0.1:10809/disk@t";
const ADDRESS: &str = "10.77.0.1:10809";
const BLOCK: u64 = 4096;
/// Between requests that are measured one by one.
const PAUSE: Duration = Duration::from_millis(20);
/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Two hosts, and a server with an image on one of them.
pub struct Peers {
    pub directory: PathBuf,
    pub client: Place,
    server_place: Place,
    pub size_bytes: u64,
    sources: UriSources,
    nbdcopy: Vec<String>,
    _server: Server,
}

impl Peers {
    pub fn start(arguments: &Arguments, directory: &Path) -> io::Result<Self> {
        let tcp = Tcp { congestion: arguments.congestion.clone(), buffer_bytes_max: arguments.buffers };
        let server_place = Place::new(&format!("{SERVER}/30"), arguments.mtu, &tcp)?;
        let client = Place::new(&format!("{CLIENT}/30"), arguments.mtu, &tcp)?;
        let size_bytes = arguments.size_bytes();
        let store = directory.join("server");
        make_image(&store, size_bytes);
        let server = Server::start(&server_place, &store)?;
        let mut nbd = NbdOptions::default();
        nbd.connections = arguments.connections.unwrap_or(nbd.connections);
        let mut nbdcopy: Vec<String> = arguments.flush.then(|| "--flush".into()).into_iter().collect();
        if let Some(count) = arguments.nbdcopy_connections {
            nbdcopy.extend([format!("--connections={count}"), format!("--threads={count}")]);
        }
        let directory = directory.to_owned();
        Ok(Self { directory, client, server_place, size_bytes, sources: UriSources { nbd }, nbdcopy, _server: server })
    }

    /// Joins the hosts.
    pub fn link(&self, shape: Shape) -> io::Result<Link> {
        Link::start(self.server_place.tun(), self.client.tun(), shape)
    }

    /// The time for a connection of TCP: one round trip. The best of some, because packets may be lost.
    pub fn round_trip(&self) -> Duration {
        let connect = || {
            let begin = Instant::now();
            drop(TcpStream::connect(ADDRESS).expect("the server listens"));
            begin.elapsed()
        };
        self.client.enter(|| (0..5).map(|_| connect()).min().unwrap_or_default())
    }

    /// The time of one read over a connection that has nothing else to do, without an engine behind it: what a first read of a fork
    /// can be compared with. The middle of some, each after a pause, as a machine that was idle takes longer to wake.
    pub fn plain_read(&self) -> Duration {
        self.client.enter(|| {
            let source = self.sources.open(URI).expect("the server answers");
            let read = |number: u64| {
                std::thread::sleep(PAUSE);
                let begin = Instant::now();
                source.read_blocking(number * BLOCK..(number + 1) * BLOCK).expect("a read");
                begin.elapsed()
            };
            let time = median((0..9).map(read));
            source.close();
            time
        })
    }

    /// `nbdcopy` into a new, sparse file, on the client.
    pub fn nbdcopy(&self) -> Duration {
        let path = self.directory.join("copy");
        let elapsed = self.client.enter(|| {
            let mut command = Command::new("nbdcopy");
            command.args(&self.nbdcopy).arg(URI).arg(&path);
            dies_with_us(&mut command);
            let begin = Instant::now();
            let status = command.status().expect("nbdcopy can be started");
            assert!(status.success(), "nbdcopy: {status}");
            begin.elapsed()
        });
        let file = File::open(&path).expect("the copy");
        self.verify(|bytes, offset| file.read_exact_at(bytes, offset).expect("a read of the copy"));
        std::fs::remove_file(&path).expect("the copy can be removed");
        elapsed
    }

    /// A store on the client; only to be used there.
    pub fn client_store(&self) -> Store {
        let options = StoreOptions::default().with_sources(Arc::new(self.sources.clone()));
        Store::create(self.directory.join("client"), options).expect("a store")
    }

    pub fn remove_client_store(&self) {
        std::fs::remove_dir_all(self.directory.join("client")).expect("the store can be removed");
    }

    /// A fork in a new store, on the client, until it needs the server no more.
    pub fn volfork(&self) -> Hydration {
        let (store, hydration) = self.client.enter(|| {
            let store = self.client_store();
            let begin = Instant::now();
            let fork = store.fork(URI, "f").expect("a fork");
            let forked = begin.elapsed();
            // In the middle, far from where backfill begins.
            fork.read_at(&mut [0; BLOCK as usize], self.size_bytes / 2).expect("a read");
            let read = begin.elapsed() - forked;
            wait(&store, "f");
            let total = begin.elapsed();
            (store, Hydration { fork: forked, read, total })
        });
        self.verify_volume(&store.volume("f").expect("the fork"));
        store.close().expect("the store closes");
        self.remove_client_store();
        hydration
    }

    /// Compares every byte with the image.
    pub fn verify_volume(&self, volume: &Volume) {
        self.verify(|bytes, offset| volume.read_at(bytes, offset).expect("a read of the volume"));
    }

    fn verify(&self, read: impl Fn(&mut [u8], u64)) {
        let (mut expected, mut got) = (vec![0; PIECE], vec![0; PIECE]);
        for offset in (0..self.size_bytes).step_by(PIECE) {
            let length = PIECE.min((self.size_bytes - offset) as usize);
            piece(offset, &mut expected[..length]);
            read(&mut got[..length], offset);
            assert!(got[..length] == expected[..length], "the copy is not the image, in the MiB at {offset}");
        }
    }
}

/// How long a fork took from its beginning.
#[derive(Clone, Copy, Debug)]
pub struct Hydration {
    /// Until the volume existed.
    pub fork: Duration,
    /// The first read, of a block that was still missing, right after that.
    pub read: Duration,
    /// Until the volume needed its source no more, all of the above included.
    pub total: Duration,
}

/// Waits until a volume is complete.
pub fn wait(store: &Store, name: &str) {
    assert!(store.wait_hydrated(name, PATIENCE).expect("a volume"), "'{name}' is still not complete after {PATIENCE:?}");
}

/// What earlier runs have left to write would slow the next one.
pub fn settle() {
    // SAFETY: takes nothing.
    unsafe { libc::sync() };
}

fn make_image(path: &Path, size_bytes: u64) {
    let store = Store::create(path, StoreOptions::default()).expect("a store");
    let volume = store.create_volume("disk", size_bytes).expect("a volume");
    write_image(&volume);
    store.create_snapshot("disk", "s").expect("a snapshot");
    // Written anew, so that the next snapshot is another one.
    let mut first = [0; 4096];
    volume.read_at(&mut first, 0).and_then(|()| volume.write_at(&first, 0)).expect("a write");
    store.create_snapshot("disk", "t").expect("a snapshot");
    drop(volume);
    store.close().expect("the store closes");
}

/// Fills a volume with the bytes of the image.
pub fn write_image(volume: &Volume) {
    let mut bytes = vec![0; PIECE];
    for offset in (0..volume.size_bytes()).step_by(PIECE) {
        let length = PIECE.min((volume.size_bytes() - offset) as usize);
        piece(offset, &mut bytes[..length]);
        volume.write_at(&bytes[..length], offset).expect("a write");
    }
    volume.flush().expect("a flush");
}

/// The child is killed when the thread that starts it ends, so also when this process is killed.
pub fn dies_with_us(command: &mut Command) {
    // SAFETY: between fork and exec only a system call without pointers is made.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// `volfork serve`, with a thread that keeps it: the server ends with it, also when this process is killed.
struct Server {
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Server {
    fn start(place: &Place, store: &Path) -> io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let (ready, is_ready) = channel();
        let (place, store) = (place.try_clone()?, store.to_owned());
        let keeper = std::thread::spawn(move || match serve(&place, &store) {
            Ok((mut child, stderr)) => {
                let _ = ready.send(Ok(()));
                // Ends when the sender is dropped.
                let _ = stopped.recv();
                child.kill().and_then(|()| child.wait()).expect("the server can be ended");
                drop(stderr);
            }
            Err(error) => drop(ready.send(Err(error))),
        });
        is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("the server's thread panicked")))?;
        Ok(Self { stop: Some(stop), keeper: Some(keeper) })
    }
}

fn serve(place: &Place, store: &Path) -> io::Result<(Child, BufReader<ChildStderr>)> {
    place.enter_for_good()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_volfork"));
    command.arg("--store").arg(store).args(["serve", "--insecure", "--listen", ADDRESS]).stderr(Stdio::piped());
    dies_with_us(&mut command);
    let mut child = command.spawn()?;
    let mut stderr = BufReader::new(child.stderr.take().ok_or_else(|| io::Error::other("the server has no standard error"))?);
    let mut line = String::new();
    stderr.read_line(&mut line)?;
    if !line.starts_with("listening on") {
        child.kill().and_then(|()| child.wait())?;
        return Err(io::Error::other(format!("the server says: {line}")));
    }
    Ok((child, stderr))
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take() {
            // A panic in the thread was printed there.
            let _ = keeper.join();
        }
    }
}
