//! A hostile NBD server as a source: each of its messages may be mutated, delayed, cut or repeated.
//!
//! One seed decides what a server does; `VOLFORK_HOSTILE_SEED` repeats one, `VOLFORK_HOSTILE_SEEDS` sets how many are tried.

#[path = "../src/random.rs"]
mod random;

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use volfork::source::{NbdOptions, UriSources};
use volfork::wire::constants::{
    CHECKSUM_KNOWN, CMD_BLOCK_STATUS, CMD_READ, CONTEXT_ALLOCATION, CONTEXT_CHECKSUMS, EXPORT_BLOCK_STATUS_PAYLOAD, EXPORT_CAN_MULTI_CONN,
    EXPORT_READ_ONLY, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INFO_BLOCK_SIZE, INFO_DESCRIPTION, MAGIC_NBD, MAGIC_OPTION,
    OPT_EXTENDED_HEADERS, OPT_GO, OPT_LEASE, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_UNSUP, REP_INFO, REP_LEASE,
    REP_META_CONTEXT,
};
use volfork::wire::{
    Chunk, ChunkHeader, ExportInfo, HeaderMode, LeaseGrant, OptionReply, OptionRequest, Request, StatusExtent, StatusQuery,
    encode_chunk_header, encode_simple_reply,
};
use volfork::{Store, StoreOptions, Volume};

use random::Random;

const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const SEEDS: u64 = 48;
/// Servers at once.
const THREADS: u64 = 4;
/// What every wait of the client is made of.
const SHORT: Duration = Duration::from_millis(250);
/// Far more than any read may take: it is tried at most twice, and a connection is awaited for as long as one request.
const PATIENCE: Duration = Duration::from_secs(30);
const ALLOCATION: u32 = 7;
const CHECKSUMS: u32 = 9;

/// A number that is not the right one.
fn absurd(random: &mut Random, right: u64) -> u64 {
    let others = [0, 1, right.wrapping_add(1), right.wrapping_sub(1), right << 1, u64::from(u32::MAX), 1 << 31, 1 << 63, u64::MAX];
    let other = random.index(others.len() + 1);
    others.get(other).copied().unwrap_or_else(|| random.number())
}

/// The bytes of the source; nowhere zero.
fn bytes_at(offset: u64, count: u64) -> Vec<u8> {
    (offset..offset.saturating_add(count)).map(|at| ((at / BLOCK).wrapping_mul(31).wrapping_add(at) % 255) as u8 + 1).collect()
}

/// What one server does.
struct Server {
    seed: u64,
    mode: HeaderMode,
    /// It tells checksums, truly, and damages bytes; otherwise its bytes are right, wherever it says that they are.
    has_checksums: bool,
    /// One of so many messages is not what it should be.
    rarity: u64,
    connections: AtomicU64,
    honest: AtomicBool,
}

/// One connection.
struct Talk<'a> {
    server: &'a Server,
    socket: UnixStream,
    random: Random,
}

impl Talk<'_> {
    fn is_wrong(&mut self) -> bool {
        !self.server.honest.load(Ordering::SeqCst) && self.random.one_in(self.server.rarity)
    }

    /// The number, or another one.
    fn number(&mut self, right: u64) -> u64 {
        if self.is_wrong() { absurd(&mut self.random, right) } else { right }
    }

    fn pause(&mut self) {
        let time = Duration::from_millis(self.random.below(60));
        std::thread::park_timeout(time);
    }

    /// Sends a message, or does something else.
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        if !self.is_wrong() {
            return self.socket.write_all(message);
        }
        match self.random.below(7) {
            0 => {
                let cut = self.random.below(message.len() as u64 + 1) as usize;
                self.socket.write_all(&message[..cut])?;
                Err(io::ErrorKind::BrokenPipe.into())
            }
            1 => self.socket.write_all(&message.repeat(2)),
            // Never, while others are answered.
            2 => Ok(()),
            3 => {
                let count = self.random.index(100);
                let garbage = self.random.bytes(count);
                self.socket.write_all(&[&garbage, message].concat())
            }
            4 => {
                let (first, second) = message.split_at(message.len() / 2);
                self.socket.write_all(first)?;
                self.pause();
                self.socket.write_all(second)
            }
            _ => {
                self.pause();
                self.socket.write_all(message)
            }
        }
    }

    fn option_reply(&mut self, option: u32, reply: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = OptionReply::encode(option, reply, data);
        if self.is_wrong() {
            // Magic, option, reply or length, in any of their bytes.
            let at = self.random.below(OptionReply::BYTES as u64) as usize;
            bytes[at] ^= 1 << self.random.below(8);
        }
        self.send(&bytes)
    }

    fn greet(&mut self) -> io::Result<()> {
        let flags = self.number(u64::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)) as u16;
        let magic = self.number(MAGIC_NBD);
        self.send(&[&magic.to_be_bytes()[..], &MAGIC_OPTION.to_be_bytes(), &flags.to_be_bytes()].concat())?;
        self.socket.read_exact(&mut [0; 4])
    }

    fn agree(&mut self) -> io::Result<()> {
        self.greet()?;
        loop {
            let mut header = [0; OptionRequest::BYTES];
            self.socket.read_exact(&mut header)?;
            let request = OptionRequest::decode(&header).map_err(|_| io::ErrorKind::InvalidData)?;
            self.socket.read_exact(&mut vec![0; request.length as usize])?;
            let option = request.option;
            let mut answer = REP_ACK;
            match option {
                OPT_EXTENDED_HEADERS if self.server.mode != HeaderMode::Extended => answer = REP_ERR_UNSUP,
                OPT_STRUCTURED_REPLY if self.server.mode == HeaderMode::Simple => answer = REP_ERR_UNSUP,
                OPT_SET_META_CONTEXT if self.server.mode == HeaderMode::Simple => answer = REP_ERR_UNSUP,
                OPT_SET_META_CONTEXT => {
                    let mut contexts = vec![(ALLOCATION, CONTEXT_ALLOCATION)];
                    contexts.extend(self.server.has_checksums.then_some((CHECKSUMS, CONTEXT_CHECKSUMS)));
                    for (number, name) in contexts {
                        self.option_reply(option, REP_META_CONTEXT, &[&number.to_be_bytes()[..], name.as_bytes()].concat())?;
                    }
                }
                OPT_LEASE if self.server.seed.is_multiple_of(2) => answer = REP_ERR_UNSUP,
                OPT_LEASE => {
                    let lapse = Duration::from_secs(self.number(3600));
                    self.option_reply(option, REP_LEASE, &LeaseGrant { lapse, export: "v".into() }.encode())?;
                }
                OPT_GO => self.describe()?,
                _ => {}
            }
            self.option_reply(option, answer, &[])?;
            if option == OPT_GO {
                return Ok(());
            }
        }
    }

    fn describe(&mut self) -> io::Result<()> {
        let right = 1 | EXPORT_READ_ONLY | EXPORT_CAN_MULTI_CONN | EXPORT_BLOCK_STATUS_PAYLOAD;
        let flags = self.number(u64::from(right)) as u16;
        // Without its checksums the server would have lied, not erred.
        let flags = if self.server.has_checksums { right } else { flags };
        let info = ExportInfo { size_bytes: self.number(SIZE), flags, block_sizes: None };
        self.option_reply(OPT_GO, REP_INFO, &info.encode_export())?;
        let sizes = [1, BLOCK, 32 << 20].map(|right| if self.server.has_checksums { right } else { self.number(right) } as u32);
        let sizes = sizes.iter().flat_map(|size| size.to_be_bytes());
        self.option_reply(OPT_GO, REP_INFO, &INFO_BLOCK_SIZE.to_be_bytes().into_iter().chain(sizes).collect::<Vec<_>>())?;
        let name =
            if self.is_wrong() { format!("volfork snapshot {}", "x".repeat(self.random.below(5000) as usize)) } else { "plain".into() };
        self.option_reply(OPT_GO, REP_INFO, &[&INFO_DESCRIPTION.to_be_bytes()[..], name.as_bytes()].concat())
    }

    fn chunk(&mut self, request: &Request, chunk: &Chunk<'_>, done: bool) -> io::Result<()> {
        let (kind, payload) = chunk.encode(self.server.mode == HeaderMode::Extended);
        let length = self.number(payload.len() as u64);
        let is_long = length > payload.len() as u64;
        // The number of the checksums of a read is the next one: without them the bytes count as they are.
        let cookie = match (self.server.has_checksums, self.is_wrong()) {
            (_, false) => request.cookie,
            (true, true) => request.cookie | 1 << 62,
            (false, true) => absurd(&mut self.random, request.cookie),
        };
        let header = ChunkHeader {
            done: done != self.is_wrong(),
            // A hole, or a status, in its place would be a lie about the bytes.
            kind: if self.is_wrong() { absurd(&mut self.random, 0x8001) as u16 | 0x8000 } else { kind },
            cookie,
            length,
        };
        let bytes = encode_chunk_header(self.server.mode, header, request.offset);
        self.send(&[bytes, payload].concat())?;
        // What follows would be taken for bytes of the source.
        if is_long { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    fn read(&mut self, request: &Request) -> io::Result<()> {
        if self.server.mode == HeaderMode::Simple {
            let wrong = self.is_wrong();
            // A number of another request would be a lie about the bytes of that one.
            let cookie = if wrong { request.cookie | 1 << 62 } else { request.cookie };
            let message = [encode_simple_reply(0, cookie), bytes_at(request.offset, request.length)].concat();
            return self.send(&message);
        }
        let end = request.offset + request.length;
        let step = 1 + self.random.below(request.length.max(1));
        let mut at = request.offset;
        while at < end {
            let next = (at + step).min(end);
            let offset = if self.server.has_checksums { at } else { self.number(at) };
            let mut data = bytes_at(offset, next - at);
            if self.server.has_checksums && self.is_wrong() {
                let place = self.random.below(data.len() as u64) as usize;
                data[place] ^= 1 << self.random.below(8);
            }
            if self.is_wrong() {
                self.chunk(request, &Chunk::Error(5, "\u{1b}[2J no".into()), false)?;
            }
            self.chunk(request, &Chunk::Data(offset, &data), next == end)?;
            at = next;
        }
        Ok(())
    }

    fn status(&mut self, request: &Request, context: u32, length: u64) -> io::Result<()> {
        let extents = match context {
            CHECKSUMS => {
                let block = |at| bytes_at(at, BLOCK);
                let blocks = (request.offset..(request.offset + length).min(SIZE)).step_by(BLOCK as usize);
                let value = |at| CHECKSUM_KNOWN | u64::from(crc32fast::hash(&block(at)));
                // One message, or none: the answer to this is true.
                let extents = blocks.map(|at| StatusExtent { length: BLOCK, flags: value(at) }).collect();
                let (kind, payload) = Chunk::Status(CHECKSUMS, extents).encode(true);
                let header = ChunkHeader { done: true, kind, cookie: request.cookie, length: payload.len() as u64 };
                return match self.is_wrong() {
                    true => Err(io::ErrorKind::BrokenPipe.into()),
                    false => self.socket.write_all(&[encode_chunk_header(self.server.mode, header, request.offset), payload].concat()),
                };
            }
            _ => (0..1 + self.random.below(4)).map(|_| StatusExtent { length: self.number(length).max(1), flags: 0 }).collect(),
        };
        let chunk = Chunk::Status(self.number(u64::from(context)) as u32, extents);
        self.chunk(request, &chunk, true)
    }

    fn serve(&mut self) -> io::Result<()> {
        self.agree()?;
        let extended = self.server.mode == HeaderMode::Extended;
        loop {
            let mut header = vec![0; Request::header_bytes(extended)];
            self.socket.read_exact(&mut header)?;
            let request = Request::decode(&header, extended).map_err(|_| io::ErrorKind::InvalidData)?;
            match request.command {
                CMD_READ => self.read(&request)?,
                CMD_BLOCK_STATUS if extended => {
                    let mut payload = vec![0; request.length as usize];
                    self.socket.read_exact(&mut payload)?;
                    let query = StatusQuery::decode(&payload).map_err(|_| io::ErrorKind::InvalidData)?;
                    self.status(&request, query.contexts.first().copied().unwrap_or(ALLOCATION), query.length)?;
                }
                CMD_BLOCK_STATUS => self.status(&request, ALLOCATION, request.length)?,
                _ => return Ok(()),
            }
        }
    }
}

/// A server with a seed; it goes when the test does.
fn start(seed: u64, directory: &Path) -> (Arc<Server>, String) {
    let mut random = Random::new(seed);
    let mode = [HeaderMode::Extended, HeaderMode::Extended, HeaderMode::Structured, HeaderMode::Simple][random.below(4) as usize];
    let has_checksums = mode == HeaderMode::Extended && random.one_in(2);
    let rarity = [5, 20, 60, 200][random.below(4) as usize];
    let (connections, honest) = (AtomicU64::new(0), AtomicBool::new(false));
    let server = Arc::new(Server { seed, mode, has_checksums, rarity, connections, honest });
    let path = directory.join(format!("{seed}.sock"));
    let listener = UnixListener::bind(&path).unwrap();
    let serving = Arc::clone(&server);
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let server = Arc::clone(&serving);
            std::thread::spawn(move || {
                let number = server.connections.fetch_add(1, Ordering::SeqCst);
                let random = Random::new(server.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                // The client leaves, or the server has had enough.
                let _ = Talk { server: &server, socket, random }.serve();
            });
        }
    });
    (server, format!("nbd+unix:///v?socket={}", path.display()))
}

/// What became of the reads of a fork.
#[derive(Default)]
struct Outcomes {
    right: u64,
    failed: u64,
    refused: u64,
    completed: u64,
}

/// Runs `work` on a thread and fails if it does not end.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    std::thread::spawn(move || drop(sender.send(work())));
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{what}: {error}"))
}

fn check_reads(seed: u64, fork: &Volume, outcomes: &mut Outcomes) {
    let size = fork.size_bytes();
    let mut random = Random::new(seed.wrapping_add(1));
    for _ in 0..6 {
        let offset = random.below(size.min(SIZE));
        let count = (1 + random.below(100_000)).min(size.min(SIZE) - offset);
        let reading = fork.clone();
        let read = in_time(&format!("seed {seed}: a read of {count} bytes at {offset}"), move || {
            let mut buffer = vec![0; count as usize];
            reading.read_at(&mut buffer, offset).map(|()| buffer)
        });
        match read {
            Ok(bytes) => {
                assert!(bytes == bytes_at(offset, count), "seed {seed}: wrong bytes in {count} at {offset}");
                outcomes.right += 1;
            }
            Err(error) => {
                assert!(!error.to_string().contains(char::is_control), "seed {seed}: {error:?}");
                outcomes.failed += 1;
            }
        }
    }
}

fn try_seed(seed: u64, store: &Store, directory: &Path, outcomes: &mut Outcomes) {
    let (server, uri) = start(seed, directory);
    let (name, forking) = (format!("f{seed}"), store.clone());
    let forked = in_time(&format!("seed {seed}: a fork"), {
        let name = name.clone();
        move || forking.fork(&uri, &name)
    });
    let Ok(fork) = forked else {
        outcomes.refused += 1;
        return;
    };
    check_reads(seed, &fork, outcomes);
    // It is put right: nothing wrong was kept, and nothing hangs for ever.
    server.honest.store(true, Ordering::SeqCst);
    if fork.size_bytes() == SIZE {
        let again = volfork::store::HydrationControl::default().with_paused(false);
        let begun = Instant::now();
        let errors = store.show(&name).unwrap().hydration.sources.first().map_or(0, |source| source.errors);
        loop {
            if store.wait_hydrated(&name, SHORT).unwrap() {
                let mut all = vec![0; SIZE as usize];
                fork.read_at(&mut all, 0).unwrap();
                assert!(all == bytes_at(0, SIZE), "seed {seed}: wrong bytes were kept");
                outcomes.completed += 1;
                break;
            }
            let info = store.control_hydration(&name, &again).unwrap();
            // What it said of itself at the fork was wrong, and is not what it says now.
            if info.sources.first().is_some_and(|source| source.refused && source.errors > errors + 3) {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "seed {seed}: {info:?}");
        }
    }
    drop(fork);
    let destroying = store.clone();
    in_time(&format!("seed {seed}: destroy"), move || destroying.destroy_volume(&name, false)).unwrap();
}

/// Megabytes of memory that this process had at most.
fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|text| text.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() >> 10
}

#[test]
fn a_hostile_source_gives_right_bytes_or_an_error_in_time() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds: Vec<u64> = match number("VOLFORK_HOSTILE_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("VOLFORK_HOSTILE_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    println!("seeds {seeds:?}");
    let directory = tempfile::tempdir().unwrap();
    let nbd = NbdOptions::default()
        .with_connections(2)
        .with_connect_timeout(SHORT)
        .with_request_timeout(SHORT)
        .with_give_up_after(SHORT)
        .with_tries(2);
    let options = StoreOptions::default().with_sources(Arc::new(UriSources { nbd }));
    let store = Store::create(directory.path().join("store"), options).unwrap();
    let local = store.create_volume("local", 1 << 20).unwrap();
    let before = memory_mib();
    let mut total = Outcomes::default();
    std::thread::scope(|scope| {
        let run = |first: u64| {
            let (seeds, store, directory) = (&seeds, &store, directory.path());
            scope.spawn(move || {
                let mut outcomes = Outcomes::default();
                for seed in seeds.iter().skip(first as usize).step_by(THREADS as usize) {
                    try_seed(*seed, store, directory, &mut outcomes);
                }
                outcomes
            })
        };
        let threads: Vec<_> = (0..THREADS).map(run).collect();
        let mut turn = 0u8;
        while threads.iter().any(|thread| !thread.is_finished()) {
            turn = turn.wrapping_add(1);
            let volume = local.clone();
            let read = in_time("another volume", move || {
                volume.write_at(&[turn; 5000], 7000)?;
                volume.flush()?;
                let mut buffer = [0; 5000];
                volume.read_at(&mut buffer, 7000).map(|()| buffer)
            });
            assert_eq!(read.unwrap(), [turn; 5000]);
        }
        for thread in threads {
            let Outcomes { right, failed, refused, completed } = thread.join().expect("a seed failed: it is named above");
            total.right += right;
            total.failed += failed;
            total.refused += refused;
            total.completed += completed;
        }
    });
    let Outcomes { right, failed, refused, completed } = total;
    println!("{right} reads right, {failed} failed, {refused} forks refused, {completed} became complete");
    // Otherwise the seeds have tested too little.
    assert!(seeds.len() == 1 || (right > 20 && failed > 5 && refused > 2 && completed > 5));
    let grown = memory_mib() - before;
    assert!(grown < 500, "{grown} MiB more than before");
    in_time("closing", move || store.close()).unwrap();
}
