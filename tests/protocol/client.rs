//! A client that sends exactly the bytes of a test, and a server with a store.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use volfork::serve::{Exports, Listener, NbdServer, NbdServerOptions};
use volfork::wire::constants::{OPT_EXTENDED_HEADERS, OPT_GO, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_UNSUP};
use volfork::wire::{Chunk, ContextQuery, GoRequest, HeaderMode, OptionReply, OptionRequest, ReplyHeader, Request, StatusExtent};
use volfork::{Store, StoreOptions};

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const MIB: usize = 1 << 20;

/// A store and its server.
pub struct Host {
    pub directory: tempfile::TempDir,
    pub store: Store,
    pub server: NbdServer,
}

impl Host {
    pub fn new(options: NbdServerOptions) -> Self {
        Self::with(StoreOptions::default(), options)
    }

    pub fn with(store: StoreOptions, options: NbdServerOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path().join("store"), store).unwrap();
        let exports: Arc<dyn Exports> = Arc::new(store.clone());
        let listener = Listener::parse(&format!("unix:{}", directory.path().join("sock").display())).unwrap();
        let server = NbdServer::start(exports, vec![listener], options).unwrap();
        Self { directory, store, server }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    pub fn connect(&self) -> Client {
        let socket = UnixStream::connect(self.socket()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client { socket, mode: HeaderMode::Simple };
        client.socket.read_exact(&mut [0; 18]).unwrap();
        client.socket.write_all(&3u32.to_be_bytes()).unwrap();
        client
    }

    /// A client that agreed on an export, and with chunks on the allocation of its blocks.
    pub fn client(&self, mode: HeaderMode, export: &str) -> Client {
        let mut client = self.connect();
        client.go(mode, export);
        client
    }

    /// Waits until so many clients are connected.
    pub fn await_connections(&self, count: usize) {
        let until = Instant::now() + PATIENCE;
        while self.server.connections() != count {
            assert!(Instant::now() < until, "{} connections", self.server.connections());
            std::thread::yield_now();
        }
    }
}

/// One reply of a server: error, bytes of data, extents, whether it was a simple one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub error: u32,
    pub data: Vec<u8>,
    pub extents: Vec<StatusExtent>,
    pub is_simple: bool,
    pub cookie: u64,
}

pub struct Client {
    pub socket: UnixStream,
    pub mode: HeaderMode,
}

impl Client {
    /// Sends an option; answers its replies, the last of which says how it ended.
    pub fn option(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<(u32, Vec<u8>)>> {
        self.socket.write_all(&OptionRequest::encode(option, data))?;
        let mut replies = Vec::new();
        loop {
            let mut header = [0; OptionReply::BYTES];
            self.socket.read_exact(&mut header)?;
            let reply = OptionReply::decode(&header).unwrap();
            assert_eq!(reply.option, option);
            let mut data = vec![0; reply.length as usize];
            self.socket.read_exact(&mut data)?;
            replies.push((reply.reply, data));
            if reply.reply == REP_ACK || reply.reply >= REP_ERR_UNSUP {
                return Ok(replies);
            }
        }
    }

    pub fn go(&mut self, mode: HeaderMode, export: &str) {
        let end = |replies: Vec<(u32, Vec<u8>)>| replies.last().unwrap().0;
        let agree = match mode {
            HeaderMode::Simple => None,
            HeaderMode::Structured => Some(OPT_STRUCTURED_REPLY),
            HeaderMode::Extended => Some(OPT_EXTENDED_HEADERS),
        };
        if let Some(option) = agree {
            assert_eq!(end(self.option(option, &[]).unwrap()), REP_ACK);
            let query = ContextQuery { name: export.into(), queries: vec!["base:allocation".into()] };
            assert_eq!(end(self.option(OPT_SET_META_CONTEXT, &query.encode()).unwrap()), REP_ACK);
        }
        let go = GoRequest { name: export.into(), infos: Vec::new() };
        assert_eq!(end(self.option(OPT_GO, &go.encode()).unwrap()), REP_ACK);
        self.mode = mode;
    }

    /// The bytes of a request without its payload.
    pub fn header(&self, command: u16, flags: u16, offset: u64, length: u64) -> Vec<u8> {
        Request { flags, command, cookie: offset + 1, offset, length }.encode(self.mode == HeaderMode::Extended)
    }

    pub fn send(&mut self, command: u16, flags: u16, offset: u64, length: u64) {
        self.socket.write_all(&self.header(command, flags, offset, length)).unwrap();
    }

    /// The next reply; `data_bytes` of a simple one that succeeds.
    pub fn try_reply(&mut self, data_bytes: usize) -> io::Result<Reply> {
        let mut whole = Reply::default();
        loop {
            let mut header = vec![0; ReplyHeader::MAGIC_BYTES];
            self.socket.read_exact(&mut header)?;
            let bytes = ReplyHeader::header_bytes(header[..].try_into().unwrap(), self.mode).unwrap();
            header.resize(bytes, 0);
            self.socket.read_exact(&mut header[ReplyHeader::MAGIC_BYTES..])?;
            match ReplyHeader::decode(&header, self.mode).unwrap() {
                ReplyHeader::Simple { error, cookie } => {
                    let mut data = vec![0; if error == 0 { data_bytes } else { 0 }];
                    self.socket.read_exact(&mut data)?;
                    return Ok(Reply { error, data, is_simple: true, cookie, ..whole });
                }
                ReplyHeader::Chunk(chunk) => {
                    let mut payload = vec![0; chunk.length as usize];
                    self.socket.read_exact(&mut payload)?;
                    whole.cookie = chunk.cookie;
                    match Chunk::decode(chunk.kind, &payload).unwrap() {
                        Chunk::Error(error, _) => whole.error = error,
                        Chunk::Data(_, data) => whole.data.extend_from_slice(data),
                        Chunk::Hole(_, bytes) => whole.data.resize(whole.data.len() + bytes as usize, 0),
                        Chunk::Status(_, extents) => whole.extents.extend(extents),
                        Chunk::None => {}
                    }
                    if chunk.done {
                        return Ok(whole);
                    }
                }
            }
        }
    }

    /// As many bytes as the server takes at once.
    pub fn taken(&mut self, bytes: &[u8]) -> usize {
        self.socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut taken = 0;
        while taken < bytes.len() {
            match self.socket.write(&bytes[taken..]) {
                Ok(count) => taken += count,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.socket.set_write_timeout(Some(PATIENCE)).unwrap();
        taken
    }

    pub fn reply(&mut self, data_bytes: usize) -> Reply {
        self.try_reply(data_bytes).unwrap()
    }

    /// Waits for the end of the connection.
    pub fn await_end(&mut self) {
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        loop {
            match self.socket.read(&mut [0; 64 << 10]) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => return,
                Err(error) => panic!("the connection goes on: {error}"),
            }
        }
    }
}
