//! Programs that embed the server: exports that panic, hang or come and go cost their own connections only.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use volfork::serve::{Export, Exports, Listener, NbdServer, NbdServerOptions};
use volfork::source::{NbdOptions, NbdSource, Source, SourceExt};
use volfork::wire::constants::{CMD_READ, CMD_WRITE, ESHUTDOWN, OPT_EXTENDED_HEADERS, OPT_GO, REP_ACK};
use volfork::wire::{Chunk, GoRequest, HeaderMode, OptionReply, OptionRequest, ReplyHeader, Request};
use volfork::{Store, StoreOptions};

const PATIENCE: Duration = Duration::from_secs(60);
/// Says to this program that it is the child of a test.
const CHILD: &str = "VOLFORK_TEST_CHILD";

/// Exports of a store; some names do what no export should.
struct Odd {
    store: Store,
    released: Mutex<bool>,
    changed: Condvar,
    gives_up: AtomicBool,
}

impl Odd {
    fn hang(&self) {
        let mut released = self.released.lock();
        while !*released {
            self.changed.wait(&mut released);
        }
    }

    fn release(&self) {
        *self.released.lock() = true;
        self.changed.notify_all();
    }
}

impl Exports for Odd {
    fn open(&self, name: &str) -> volfork::Result<Export> {
        match name {
            "panics" => panic!("an export panics"),
            "hangs" => self.hang(),
            _ => {}
        }
        Exports::open(&self.store, name)
    }

    fn names(&self) -> Vec<String> {
        panic!("names panic");
    }

    fn give_up_waiting(&self) {
        self.gives_up.store(true, Ordering::SeqCst);
        self.hang();
    }
}

struct Host {
    directory: tempfile::TempDir,
    exports: Arc<Odd>,
    server: Option<NbdServer>,
}

impl Host {
    fn new(options: NbdServerOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path().join("store"), StoreOptions::default()).unwrap();
        store.create_volume("v", 64 << 20).unwrap().write_at(&[7; 1 << 20], 0).unwrap();
        let exports = Odd { store, released: Mutex::default(), changed: Condvar::new(), gives_up: AtomicBool::new(false) };
        let exports = Arc::new(exports);
        let listener = Listener::parse(&format!("unix:{}", directory.path().join("sock").display())).unwrap();
        let server = NbdServer::start(Arc::clone(&exports) as _, vec![listener], options).unwrap();
        Self { directory, exports, server: Some(server) }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    /// A connection that has asked for an export.
    fn ask(&self, export: &str) -> UnixStream {
        let mut socket = UnixStream::connect(self.socket()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.read_exact(&mut [0; 18]).unwrap();
        socket.write_all(&3u32.to_be_bytes()).unwrap();
        socket.write_all(&OptionRequest::encode(OPT_EXTENDED_HEADERS, &[])).unwrap();
        assert_eq!(option_reply(&mut socket), REP_ACK);
        let go = GoRequest { name: export.into(), infos: Vec::new() };
        socket.write_all(&OptionRequest::encode(OPT_GO, &go.encode())).unwrap();
        socket
    }

    fn client(&self, export: &str) -> UnixStream {
        let mut socket = self.ask(export);
        while option_reply(&mut socket) != REP_ACK {}
        socket
    }

    fn await_connections(&self, count: usize) {
        let until = Instant::now() + PATIENCE;
        while self.server.as_ref().unwrap().connections() != count {
            assert!(Instant::now() < until, "{} connections", self.server.as_ref().unwrap().connections());
            std::thread::yield_now();
        }
    }

    /// Shuts the server down, in bounded time.
    fn shut_down(&mut self) {
        let (server, (sender, receiver)) = (self.server.take().unwrap(), channel());
        std::thread::spawn(move || {
            server.shutdown();
            // The test has failed if nobody listens.
            let _ = sender.send(());
        });
        receiver.recv_timeout(PATIENCE).expect("the shutdown waits without end");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.exports.release();
    }
}

fn option_reply(socket: &mut UnixStream) -> u32 {
    let mut header = [0; OptionReply::BYTES];
    socket.read_exact(&mut header).unwrap();
    let reply = OptionReply::decode(&header).unwrap();
    socket.read_exact(&mut vec![0; reply.length as usize]).unwrap();
    reply.reply
}

fn send_read(socket: &mut UnixStream, bytes: u64) {
    let request = Request { flags: 0, command: CMD_READ, cookie: 1, offset: 0, length: bytes };
    socket.write_all(&request.encode(true)).unwrap();
}

/// The error of the first chunk of a reply.
fn read_error(socket: &mut UnixStream) -> u32 {
    let mut header = [0; 32];
    socket.read_exact(&mut header).unwrap();
    let ReplyHeader::Chunk(chunk) = ReplyHeader::decode(&header, HeaderMode::Extended).unwrap() else { panic!("no chunk") };
    let mut payload = vec![0; chunk.length as usize];
    socket.read_exact(&mut payload).unwrap();
    match Chunk::decode(chunk.kind, &payload).unwrap() {
        Chunk::Error(number, _) => number,
        _ => 0,
    }
}

#[test]
fn a_panic_of_an_export_costs_its_own_connection() {
    let mut host = Host::new(NbdServerOptions::default().with_connections_max(1));
    for _ in 0..5 {
        let mut client = host.ask("panics");
        assert_eq!(client.read(&mut [0; 64]).unwrap(), 0, "its client is told");
        host.await_connections(0);
    }
    // The only place is free, for a client that is served.
    let mut client = host.client("v");
    send_read(&mut client, 4096);
    assert_eq!(read_error(&mut client), 0);
    host.shut_down();
}

#[test]
fn a_shutdown_ends_although_an_export_hangs() {
    let mut host = Host::new(NbdServerOptions::default().with_shutdown_timeout(Duration::ZERO));
    let mut clients: Vec<_> = ["hangs", "hangs", "v"].map(|export| host.ask(export)).into();
    host.await_connections(3);
    host.shut_down();
    assert!(host.exports.gives_up.load(Ordering::SeqCst), "exports are told");
    for client in &mut clients {
        // Whatever came before: it ends.
        while client.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0) {}
    }
}

#[test]
fn clients_of_a_closed_store_are_told_and_their_connections_end() {
    let mut host = Host::new(NbdServerOptions::default());
    let mut client = host.client("v");
    send_read(&mut client, 4096);
    assert_eq!(read_error(&mut client), 0);
    host.exports.store.close().unwrap();
    send_read(&mut client, 4096);
    assert_eq!(read_error(&mut client), ESHUTDOWN);
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "the connection goes on");
    host.await_connections(0);
    host.shut_down();
}

/// Writes that touch the same blocks and extents wait for one another, so that threads look after queues that are not theirs.
#[test]
fn every_reply_is_sent_without_another_request() {
    let mut host = Host::new(NbdServerOptions::default());
    std::thread::scope(|scope| {
        for number in 0..8u64 {
            let mut client = host.client("v");
            scope.spawn(move || {
                for round in 0..500u64 {
                    let offset = (number * 7 + round) % 32 * 512;
                    let request = Request { flags: 0, command: CMD_WRITE, cookie: round, offset, length: 512 };
                    client.write_all(&[request.encode(true), vec![number as u8; 512]].concat()).unwrap();
                    assert_eq!(read_error(&mut client), 0, "client {number}, round {round}");
                }
            });
        }
    });
    host.shut_down();
}

#[test]
fn times_that_never_come_are_no_panic() {
    let long = Duration::MAX;
    let mut host = Host::new(NbdServerOptions::default().with_handshake_timeout(long).with_shutdown_timeout(long));
    let uri = format!("nbd+unix:///v?socket={}", host.socket().display());
    let options = NbdOptions::default().with_connect_timeout(long).with_request_timeout(long).with_give_up_after(long);
    let source = NbdSource::open(&uri, options).unwrap();
    assert!(source.read_blocking(0..4096).unwrap() == [7; 4096][..]);
    source.close();
    host.shut_down();
}

#[test]
fn exports_are_reached_by_the_uris_of_their_server() {
    let (directory, listener) = (tempfile::tempdir().unwrap(), |address: &str| Listener::parse(address).unwrap());
    let store = Store::create(directory.path().join("store"), StoreOptions::default()).unwrap();
    store.create_volume("v", 1 << 20).unwrap().write_at(&[7; 4096], 0).unwrap();
    let listeners = vec![listener("127.0.0.1:0"), listener(&format!("unix:{}", directory.path().join("a socket?").display()))];
    let server = NbdServer::start(Arc::new(store), listeners, NbdServerOptions::default()).unwrap();
    let uris = server.uris("v");
    assert!(uris[0].starts_with("nbd://127.0.0.1:") && uris[1].starts_with("nbd+unix:///v?"), "{uris:?}");
    for uri in &uris {
        let source = NbdSource::open(uri, NbdOptions::default()).unwrap();
        assert_eq!(source.read_blocking(0..4096).unwrap(), [7; 4096][..]);
        source.close();
    }
    assert!(server.uris("a/b?c")[0].ends_with("/a%2Fb%3Fc"));
}

#[test]
fn a_server_with_an_impossible_depth_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), StoreOptions::default()).unwrap();
    for depth in [0, u32::MAX] {
        let started = NbdServer::start(Arc::new(store.clone()), Vec::new(), NbdServerOptions::default().with_depth(depth));
        assert_eq!(started.map(drop).unwrap_err().kind(), volfork::ErrorKind::InvalidInput, "{depth}");
    }
}

/// Runs one test of this program again in a process of its own, by a line of shell that ends with `exec "$@"`.
fn again(test: &str, shell: &str) {
    let program = std::env::current_exe().unwrap();
    let output = Command::new("sh")
        .args(["-c", shell, "sh"])
        .arg(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{}: {text}", output.status);
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

#[test]
fn sockets_that_were_passed_have_one_owner() {
    if is_child() {
        let first = Listener::from_environment().unwrap();
        assert_eq!(first.len(), 1);
        assert!(Listener::from_environment().unwrap().is_empty(), "a second owner of the same descriptor");
        drop(first);
        // The number is free for others, and nobody closes it any more.
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(Listener::from_environment().unwrap().is_empty());
        file.metadata().unwrap();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("sock")).unwrap();
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let shell = format!("LISTEN_FDS=1 LISTEN_PID=$$; export LISTEN_FDS LISTEN_PID; exec \"$@\" 3<&{}", listener.as_raw_fd());
    again("sockets_that_were_passed_have_one_owner", &shell);
}

/// Whatever the disposition of SIGPIPE, which belongs to the host.
#[test]
fn peers_that_leave_do_not_end_the_process() {
    if !is_child() {
        return again("peers_that_leave_do_not_end_the_process", "exec \"$@\"");
    }
    // SAFETY: no handler is installed; the process is a child of its own for this test.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let mut host = Host::new(NbdServerOptions::default());
    for _ in 0..20 {
        let mut client = host.client("v");
        send_read(&mut client, 32 << 20);
        // It leaves in the middle of the reply.
        client.read_exact(&mut [0; 64]).unwrap();
        drop(client);
        host.await_connections(0);
    }
    host.shut_down();
    // A server that takes a client and leaves: the client writes into nothing.
    let path = host.directory.path().join("gone");
    let listener = UnixListener::bind(&path).unwrap();
    let leaver = std::thread::spawn(move || (0..5).for_each(|_| drop(listener.accept())));
    for _ in 0..5 {
        let uri = format!("nbd+unix:///v?socket={}", Path::display(&path));
        assert!(NbdSource::open(&uri, NbdOptions::default()).is_err());
    }
    leaver.join().unwrap();
}
