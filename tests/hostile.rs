//! Hostile NBD clients and servers: their cost is bounded, and other clients and volumes are not affected.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use volfork::serve::{Listener, NbdServer, NbdServerOptions};
use volfork::source::{
    About, Checksums, NbdOptions, NbdSource, OnArrival, Part, ReadClass, Source, SourceError, SourceExt, SourceExtent, SourceOpener,
};
use volfork::volume::ForkOptions;
use volfork::wire::constants::{
    CMD_BLOCK_STATUS, CMD_FLAG_PAYLOAD_LEN, CMD_READ, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, MAGIC_NBD, MAGIC_OPTION, OPT_EXTENDED_HEADERS,
    OPT_GO, OPT_SET_META_CONTEXT, REP_ACK, REP_INFO, REP_META_CONTEXT,
};
use volfork::wire::{
    Chunk, ChunkHeader, ContextQuery, ExportInfo, GoRequest, HeaderMode, OptionReply, OptionRequest, ReplyHeader, Request, StatusExtent,
    StatusQuery, encode_chunk_header,
};
use volfork::{Error, ErrorKind, Store, StoreOptions};

const PATIENCE: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;

/// A store with a volume `v`, full of data, and `zeros`, and a server for it.
struct Host {
    directory: tempfile::TempDir,
    store: Store,
    server: Option<NbdServer>,
}

impl Host {
    fn new(options: NbdServerOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path().join("store"), StoreOptions::default()).unwrap();
        let data: Vec<u8> = (0..32 * MIB as u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
        store.create_volume("v", data.len() as u64).unwrap().write_at(&data, 0).unwrap();
        store.create_volume("zeros", 1 << 30).unwrap();
        let listener = Listener::parse(&format!("unix:{}", directory.path().join("sock").display())).unwrap();
        let server = NbdServer::start(Arc::new(store.clone()), vec![listener], options).unwrap();
        Self { directory, store, server: Some(server) }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(self.socket()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// A client that agreed on an export with extended headers and one context.
    fn client(&self, export: &str) -> UnixStream {
        let mut socket = self.connect();
        socket.read_exact(&mut [0; 18]).unwrap();
        socket.write_all(&3u32.to_be_bytes()).unwrap();
        let query = ContextQuery { name: export.into(), queries: vec!["base:allocation".into()] };
        let go = GoRequest { name: export.into(), infos: Vec::new() };
        for (option, data) in [(OPT_EXTENDED_HEADERS, Vec::new()), (OPT_SET_META_CONTEXT, query.encode()), (OPT_GO, go.encode())] {
            socket.write_all(&OptionRequest::encode(option, &data)).unwrap();
            while option_reply(&mut socket) != REP_ACK {}
        }
        socket
    }
}

fn option_reply(socket: &mut UnixStream) -> u32 {
    let mut header = [0; OptionReply::BYTES];
    socket.read_exact(&mut header).unwrap();
    let reply = OptionReply::decode(&header).unwrap();
    assert!(reply.reply >> 31 == 0, "refused: {reply:?}");
    socket.read_exact(&mut vec![0; reply.length as usize]).unwrap();
    reply.reply
}

fn request(command: u16, flags: u16, length: u64) -> Vec<u8> {
    Request { flags, command, cookie: 1, offset: 0, length }.encode(true)
}

/// The error of a reply (0 is success), and its bytes.
fn reply(socket: &mut UnixStream) -> (u32, usize) {
    let (mut error, mut bytes) = (0, 0);
    loop {
        let mut header = [0; 32];
        socket.read_exact(&mut header).unwrap();
        let ReplyHeader::Chunk(chunk) = ReplyHeader::decode(&header, HeaderMode::Extended).unwrap() else { panic!("no chunk") };
        let mut payload = vec![0; chunk.length as usize];
        socket.read_exact(&mut payload).unwrap();
        match Chunk::decode(chunk.kind, &payload).unwrap() {
            Chunk::Error(number, _) => error = number,
            Chunk::Data(_, data) => bytes += data.len(),
            _ => {}
        }
        if chunk.done {
            return (error, bytes);
        }
    }
}

/// Megabytes of memory that this process has, by a line of its status.
fn memory_mib(line: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() >> 10
}

#[test]
fn a_client_that_reads_no_replies_holds_bounded_memory() {
    let host = Host::new(NbdServerOptions::default());
    let before = memory_mib("VmRSS");
    let mut greedy = host.client("v");
    greedy.write_all(&request(CMD_READ, 0, 32 * MIB as u64).repeat(100)).unwrap();
    // Its replies begin to come, and others are served, while all the rest waits.
    greedy.read_exact(&mut [0; 32]).unwrap();
    let mut other = host.client("v");
    for _ in 0..50 {
        other.write_all(&request(CMD_READ, 0, MIB as u64)).unwrap();
        assert_eq!(reply(&mut other), (0, MIB));
    }
    let grown = memory_mib("VmHWM").saturating_sub(before);
    assert!(grown < 600, "{grown} MiB more than before");
}

#[test]
fn all_requests_are_answered_however_many_come_at_once() {
    let host = Host::new(NbdServerOptions::default().with_depth(4));
    for export in ["zeros", "v"] {
        for hangs_up in [false, true] {
            let mut client = host.client(export);
            client.write_all(&request(CMD_READ, 0, 512).repeat(1000)).unwrap();
            if hangs_up {
                client.shutdown(std::net::Shutdown::Write).unwrap();
            }
            for _ in 0..1000 {
                assert_eq!(reply(&mut client).0, 0);
            }
        }
    }
}

#[test]
fn sending_byte_by_byte_gains_a_client_no_time() {
    let host = Host::new(NbdServerOptions::default().with_handshake_timeout(Duration::from_millis(300)));
    let mut slow = host.connect();
    slow.read_exact(&mut [0; 18]).unwrap();
    slow.write_all(&3u32.to_be_bytes()).unwrap();
    slow.write_all(&OptionRequest::encode(OPT_GO, &[0; 60_000])[..16]).unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let begin = Instant::now();
    while slow.write_all(&[0]).is_ok() && slow.read(&mut [0; 64]).is_err() {
        assert!(begin.elapsed() < PATIENCE, "it is still listened to");
    }
}

#[test]
fn stopping_does_not_wait_for_unfinished_handshakes() {
    let long = Duration::from_secs(3600);
    let mut host = Host::new(NbdServerOptions::default().with_handshake_timeout(long).with_shutdown_timeout(long));
    let mut idle = host.connect();
    idle.read_exact(&mut [0; 18]).unwrap();
    let server = host.server.take().unwrap();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        server.shutdown();
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(PATIENCE).expect("the server waits");
}

#[test]
fn a_status_that_names_a_context_twice_is_refused() {
    let host = Host::new(NbdServerOptions::default());
    let mut client = host.client("v");
    for (contexts, error) in [(vec![1], 0), (vec![1, 1], 22), (vec![1; 64], 22), (vec![1], 0)] {
        let payload = StatusQuery { length: 4096, contexts }.encode();
        client.write_all(&request(CMD_BLOCK_STATUS, CMD_FLAG_PAYLOAD_LEN, payload.len() as u64)).unwrap();
        client.write_all(&payload).unwrap();
        assert_eq!(reply(&mut client).0, error);
    }
    assert!(host.store.volume("v").is_ok());
}

#[test]
fn what_is_no_socket_is_not_removed_to_listen_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    std::fs::write(&path, "bytes").unwrap();
    let Err(error) = Listener::parse(&format!("unix:{}", path.display())) else { panic!("it listens") };
    assert_eq!(error.kind(), volfork::ErrorKind::Exists, "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"bytes");
    // A socket that was left behind is replaced.
    let stale = directory.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    Listener::parse(&format!("unix:{}", stale.display())).unwrap();
}

/// How a server misbehaves; an error ends the connection.
type Act = fn(&mut UnixStream) -> io::Result<()>;

/// A server that does what `act` says to every connection.
fn evil(act: Act) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut socket = socket;
                // The client leaves: that is what is wanted.
                let _ = act(&mut socket);
            });
        }
    });
    let uri = format!("nbd+unix:///v?socket={}", Path::display(&path));
    (directory, uri)
}

fn greet(socket: &mut UnixStream) -> io::Result<()> {
    let flags = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES;
    socket.write_all(&[&MAGIC_NBD.to_be_bytes()[..], &MAGIC_OPTION.to_be_bytes(), &flags.to_be_bytes()].concat())?;
    socket.read_exact(&mut [0; 4])
}

/// Agrees on extended headers and an export of 1 MiB.
fn agree(socket: &mut UnixStream) -> io::Result<()> {
    greet(socket)?;
    loop {
        let mut header = [0; OptionRequest::BYTES];
        socket.read_exact(&mut header)?;
        let option = OptionRequest::decode(&header).unwrap();
        socket.read_exact(&mut vec![0; option.length as usize])?;
        if option.option == OPT_GO {
            let info = ExportInfo { size_bytes: MIB as u64, flags: 1, block_sizes: None };
            socket.write_all(&OptionReply::encode(OPT_GO, REP_INFO, &info.encode_export()))?;
        }
        socket.write_all(&OptionReply::encode(option.option, REP_ACK, &[]))?;
        if option.option == OPT_GO {
            return Ok(());
        }
    }
}

fn next_request(socket: &mut UnixStream) -> io::Result<Request> {
    let mut header = [0; 32];
    socket.read_exact(&mut header)?;
    Ok(Request::decode(&header, true).unwrap())
}

/// What a client makes of such a server, in bounded time.
fn outcome(act: Act) -> Result<(), SourceError> {
    let (_directory, uri) = evil(act);
    let short = Duration::from_millis(300);
    let options = NbdOptions::default().with_connect_timeout(short).with_request_timeout(short).with_give_up_after(short);
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let read = NbdSource::open(&uri, options).and_then(|source| {
            let read = source.read_blocking(0..MIB as u64).map(drop);
            source.close();
            read
        });
        // The test is over if nobody listens.
        let _ = sender.send(read);
    });
    receiver.recv_timeout(PATIENCE).expect("it hangs")
}

#[test]
fn servers_that_never_come_to_an_end_are_given_up() {
    let greets_slowly: Act = |socket| loop {
        socket.write_all(b"N")?;
        std::thread::park_timeout(Duration::from_millis(20));
    };
    let options_without_end: Act = |socket| {
        greet(socket)?;
        loop {
            socket.write_all(&OptionReply::encode(OPT_EXTENDED_HEADERS, REP_INFO, &[0]))?;
            std::thread::park_timeout(Duration::from_millis(20));
        }
    };
    let chunks_without_end: Act = |socket| {
        agree(socket)?;
        let request = next_request(socket)?;
        loop {
            let header = ChunkHeader { done: false, kind: 0, cookie: request.cookie, length: 0 };
            socket.write_all(&encode_chunk_header(HeaderMode::Extended, header, 0))?;
        }
    };
    let errors_without_end: Act = |socket| {
        agree(socket)?;
        let request = next_request(socket)?;
        let (kind, payload) = Chunk::Error(5, "again".into()).encode(true);
        let header = ChunkHeader { done: false, kind, cookie: request.cookie, length: payload.len() as u64 };
        loop {
            socket.write_all(&[encode_chunk_header(HeaderMode::Extended, header, 0), payload.clone()].concat())?;
        }
    };
    let single_bytes: Act = |socket| {
        agree(socket)?;
        let request = next_request(socket)?;
        for offset in (0..request.length).step_by(2) {
            let (kind, payload) = Chunk::Data(offset, &[1]).encode(true);
            let header = ChunkHeader { done: false, kind, cookie: request.cookie, length: payload.len() as u64 };
            socket.write_all(&[encode_chunk_header(HeaderMode::Extended, header, 0), payload].concat())?;
        }
        loop {
            next_request(socket)?;
        }
    };
    let stops_in_a_reply: Act = |socket| {
        agree(socket)?;
        let request = next_request(socket)?;
        let header = ChunkHeader { done: true, kind: 1, cookie: request.cookie, length: request.length + 8 };
        socket.write_all(&[encode_chunk_header(HeaderMode::Extended, header, 0), vec![0; 108]].concat())?;
        loop {
            next_request(socket)?;
        }
    };
    let hangs_up: Act = agree;
    for (name, act) in [
        ("hangs up", hangs_up),
        ("greets slowly", greets_slowly),
        ("options without end", options_without_end),
        ("chunks without end", chunks_without_end),
        ("errors without end", errors_without_end),
        ("single bytes", single_bytes),
        ("stops in a reply", stops_in_a_reply),
    ] {
        let error = outcome(act).expect_err(name);
        assert!(error.message.contains("nbd+unix"), "{name}: {error:?}");
    }
}

/// Numbers of contexts are those of one connection.
/// Bytes of its replies that a server sends before it hangs up, each time anew.
static CUT: AtomicUsize = AtomicUsize::new(0);

#[test]
fn a_reply_may_end_at_each_byte() {
    let act: Act = |socket| {
        agree(socket)?;
        let request = next_request(socket)?;
        let header = ChunkHeader { done: true, kind: 1, cookie: request.cookie, length: request.length + 8 };
        let reply = [encode_chunk_header(HeaderMode::Extended, header, 0), vec![0; 8 + 24]].concat();
        socket.write_all(&reply[..CUT.load(Ordering::SeqCst)])
    };
    for cut in 0..=64 {
        CUT.store(cut, Ordering::SeqCst);
        let error = outcome(act).expect_err("a reply without its bytes");
        assert!(error.message.contains("nbd+unix"), "{cut}: {error:?}");
    }
}

#[test]
fn a_server_that_numbers_contexts_anew_is_the_same_server() {
    static CONNECTIONS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let act: Act = |socket| {
        let number = 100 + CONNECTIONS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        greet(socket)?;
        loop {
            let mut header = [0; OptionRequest::BYTES];
            socket.read_exact(&mut header)?;
            let option = OptionRequest::decode(&header).unwrap().option;
            socket.read_exact(&mut vec![0; OptionRequest::decode(&header).unwrap().length as usize])?;
            if option == OPT_SET_META_CONTEXT {
                let context = [&number.to_be_bytes()[..], b"base:allocation"].concat();
                socket.write_all(&OptionReply::encode(option, REP_META_CONTEXT, &context))?;
            }
            if option == OPT_GO {
                let info = ExportInfo { size_bytes: MIB as u64, flags: 1, block_sizes: None };
                socket.write_all(&OptionReply::encode(OPT_GO, REP_INFO, &info.encode_export()))?;
            }
            socket.write_all(&OptionReply::encode(option, REP_ACK, &[]))?;
            if option == OPT_GO {
                break;
            }
        }
        // One answer, and it hangs up.
        let request = next_request(socket)?;
        let chunk = match request.command {
            CMD_READ => Chunk::Data(request.offset, &vec![1; request.length as usize]).encode(true),
            _ => Chunk::Status(number, vec![StatusExtent { length: request.length, flags: 3 }]).encode(true),
        };
        let header = ChunkHeader { done: true, kind: chunk.0, cookie: request.cookie, length: chunk.1.len() as u64 };
        socket.write_all(&[encode_chunk_header(HeaderMode::Extended, header, request.offset), chunk.1].concat())
    };
    let (_directory, uri) = evil(act);
    let source = NbdSource::open(&uri, NbdOptions::default()).unwrap();
    for _ in 0..5 {
        assert_eq!(source.extents(0..4096).unwrap(), [SourceExtent { bytes: 4096, zero: true }]);
        assert_eq!(source.read_blocking(0..4096).unwrap().len(), 4096);
    }
    source.close();
}

/// One request is never answered, and all others are at once.
#[test]
fn a_request_that_is_never_answered_beside_others_is_given_up() {
    let act: Act = |socket| {
        agree(socket)?;
        loop {
            let request = next_request(socket)?;
            if request.offset > 0 {
                let (kind, payload) = Chunk::Data(request.offset, &vec![1; request.length as usize]).encode(true);
                let header = ChunkHeader { done: true, kind, cookie: request.cookie, length: payload.len() as u64 };
                socket.write_all(&[encode_chunk_header(HeaderMode::Extended, header, request.offset), payload].concat())?;
            }
        }
    };
    let (_directory, uri) = evil(act);
    let short = Duration::from_millis(300);
    let options = NbdOptions::default().with_request_timeout(short).with_give_up_after(short).with_tries(2);
    let source = NbdSource::open(&uri, options).unwrap();
    let (sender, receiver) = channel();
    let asked = Arc::clone(&source);
    std::thread::spawn(move || drop(sender.send(asked.read_blocking(0..4096).map(drop))));
    let begin = Instant::now();
    let error = loop {
        match receiver.try_recv() {
            Ok(outcome) => break outcome.unwrap_err(),
            // Traffic that never pauses; what was under way when a connection is given up is asked again, or fails too.
            Err(_) => drop(source.read_blocking(65536..131_072)),
        }
        assert!(begin.elapsed() < PATIENCE, "it is waited for without end");
    };
    assert!(error.message.contains("does not answer"), "{error:?}");
    source.close();
}

#[test]
fn what_a_server_says_cannot_move_a_cursor() {
    let refuses: Act = |socket| {
        greet(socket)?;
        for option in [OPT_EXTENDED_HEADERS, 8, OPT_SET_META_CONTEXT] {
            socket.write_all(&OptionReply::encode(option, REP_ACK, &[]))?;
        }
        socket.write_all(&OptionReply::encode(OPT_GO, 0x8000_0002, b"\x1b[2J\x07no"))?;
        // A client that cannot send its questions any more would not see the answers.
        io::copy(socket, &mut io::sink()).map(drop)
    };
    let fails: Act = |socket| {
        agree(socket)?;
        loop {
            let request = next_request(socket)?;
            let (kind, payload) = Chunk::Error(5, "\u{1b}[2J\nno".into()).encode(true);
            let header = ChunkHeader { done: true, kind, cookie: request.cookie, length: payload.len() as u64 };
            socket.write_all(&[encode_chunk_header(HeaderMode::Extended, header, 0), payload].concat())?;
        }
    };
    for act in [refuses, fails] {
        let error = outcome(act).unwrap_err();
        assert!(error.message.contains("no") && !error.message.contains(char::is_control), "{error:?}");
    }
}

/// A source each of whose parts comes several times, as those of a read that was tried again do; and what it tells beside.
struct Repeats(bytes::Bytes, About);

impl Source for Repeats {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, range: Range<u64>, _: ReadClass, mut arrival: OnArrival) {
        for _ in 0..3 {
            let bytes = self.0.slice(range.start as usize..range.end as usize);
            arrival.part(Part { offset: range.start, bytes, checksums: Checksums::default() });
        }
        arrival.end(Ok(()));
    }

    fn about(&self) -> About {
        self.1.clone()
    }

    fn describe(&self) -> String {
        "repeats".into()
    }
}

struct Opener(bytes::Bytes, About);

impl SourceOpener for Opener {
    fn open(&self, _: &str) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(Repeats(self.0.clone(), self.1.clone())))
    }
}

#[test]
fn repeated_parts_during_a_write_do_not_stop_a_hydration() {
    let data: bytes::Bytes = (0..8 * MIB).map(|number| (number >> 12) as u8 | 1).collect::<Vec<u8>>().into();
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions::default().with_sources(Arc::new(Opener(data.clone(), About::default())));
    let store = Store::create(directory.path().join("store"), options).unwrap();
    let fork = store.fork("repeats://x", "fork").unwrap();
    assert!(store.wait_hydrated("fork", PATIENCE).unwrap(), "it stands still");
    let mut bytes = vec![0; data.len()];
    fork.read_at(&mut bytes, 0).unwrap();
    assert!(bytes == data);
    store.close().unwrap();
}

#[test]
fn a_fork_gets_labels_only_from_a_volfork_source() {
    let of = |labels: &[(&str, &str)]| labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let good: BTreeMap<String, String> = of(&[("vm.cpus", "2"), ("image", "app:v1")]);
    let long = "v".repeat(2048);
    for (told, inherited) in [
        (good.clone(), good.clone()),
        // Notes of another store would mean something here.
        (
            of(&[("vm.cpus", "2"), ("image", "app:v1"), ("volfork.reservation", "x@a.b"), ("volfork.unfinished-import", "fork")]),
            good.clone(),
        ),
        (of(&[("vm.cpus", "2"), ("app", "\u{1b}[2J")]), BTreeMap::new()),
        (of(&[("vm.cpus", "2"), ("app", &long)]), BTreeMap::new()),
        (of(&[("", "2")]), BTreeMap::new()),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let about = About { labels: told.clone(), ..About::default() };
        let options = StoreOptions::default().with_sources(Arc::new(Opener(vec![1; MIB].into(), about)));
        let store = Store::create(directory.path().join("store"), options).unwrap();
        store.fork("told://x", "fork").unwrap();
        assert_eq!(store.show("fork").unwrap().labels, inherited, "{told:?}");
        // What the user tells goes before, and whoever is asked may refuse it: then nothing is there.
        let labels = [("vm.cpus".to_owned(), None), ("app".to_owned(), Some("shop".to_owned()))].into();
        let change = ForkOptions::default().with_labels(labels);
        let sources = ["told://x".to_owned()];
        let refuse = &mut |size_bytes, labels: &mut BTreeMap<String, String>| {
            assert!(size_bytes == MIB as u64 && labels["app"] == "shop" && !labels.contains_key("vm.cpus"));
            Err(Error::new(ErrorKind::NoSpace, "no"))
        };
        assert_eq!(store.fork_admitted(&sources, "other", &change, refuse).err().map(|error| error.kind()), Some(ErrorKind::NoSpace));
        assert_eq!(store.volume_names(), ["fork"]);
        let add = &mut |_, labels: &mut BTreeMap<String, String>| {
            labels.insert("kind".into(), "shared".into());
            Ok(())
        };
        store.fork_admitted(&sources, "other", &change, add).unwrap();
        assert_eq!(store.show("other").unwrap().labels["kind"], "shared");
        // The same of a fork from here, which may lose what it inherits.
        let replace = &mut |_, labels: &mut BTreeMap<String, String>| {
            *labels = of(&[("kind", "fast")]);
            Ok(())
        };
        store.fork_admitted(&["other".to_owned()], "third", &ForkOptions::default(), replace).unwrap();
        assert_eq!(store.show("third").unwrap().labels, of(&[("kind", "fast")]));
        store.close().unwrap();
    }
}
