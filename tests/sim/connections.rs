//! Several connections to one export: the promises of multi-conn hold across a loss of power.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use volfork::serve::{Listener, NbdServer, NbdServerOptions};
use volfork::wire::constants::{CMD_FLUSH, CMD_WRITE, CMD_WRITE_ZEROES, EXPORT_CAN_MULTI_CONN, OPT_EXPORT_NAME};
use volfork::wire::{HeaderMode, OptionRequest, ReplyHeader, Request};

use crate::model::WINDOW_START;
use crate::random::Random;
use crate::world::World;
use crate::{Named, seeds};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

struct Client(UnixStream);

impl Client {
    fn connect(path: &Path, export: &str) -> Self {
        let mut socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.read_exact(&mut [0; 18]).unwrap();
        // Fixed newstyle, and no zeroes behind what the server tells.
        socket.write_all(&3u32.to_be_bytes()).unwrap();
        socket.write_all(&OptionRequest::encode(OPT_EXPORT_NAME, export.as_bytes())).unwrap();
        let mut told = [0; 10];
        socket.read_exact(&mut told).unwrap();
        let flags = u16::from_be_bytes([told[8], told[9]]);
        assert!(flags & EXPORT_CAN_MULTI_CONN != 0, "the server does not promise it");
        Self(socket)
    }

    /// Sends a request and waits for its end.
    fn perform(&mut self, command: u16, offset: u64, length: u64, payload: &[u8]) {
        let request = Request { flags: 0, command, cookie: 1, offset, length };
        self.0.write_all(&[&request.encode(false), payload].concat()).unwrap();
        let mut header = [0; 16];
        self.0.read_exact(&mut header).unwrap();
        let reply = ReplyHeader::decode(&header, HeaderMode::Simple).unwrap();
        assert_eq!(reply, ReplyHeader::Simple { error: 0, cookie: 1 });
    }
}

#[test]
fn a_flush_covers_writes_of_other_connections() {
    // Over whole blocks that are there, over a part of one, new ones; and zeroes.
    let requests = [(WINDOW_START, 8192, 7), (WINDOW_START + 1000, 700, 7), (1 << 20, 300 << 10, 7), (WINDOW_START, 4096, 0)];
    for seed in seeds(12) {
        for (offset, bytes, byte) in requests {
            let _named = Named("two connections", seed);
            let mut world = World::new(seed * 3 + 1);
            world.open().unwrap();
            world.create().unwrap();
            world.write_sectors("v1", 0..64).unwrap();
            world.flush("v1").unwrap();
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("sock");
            let listener = Listener::parse(&format!("unix:{}", path.display())).unwrap();
            let server = NbdServer::start(Arc::new(world.store().clone()), vec![listener], NbdServerOptions::default()).unwrap();
            let mut writing = Client::connect(&path, "v1");
            let mut flushing = Client::connect(&path, "v1");
            match byte {
                0 => writing.perform(CMD_WRITE_ZEROES, offset, bytes, &[]),
                _ => writing.perform(CMD_WRITE, offset, bytes, &vec![byte; bytes as usize]),
            }
            flushing.perform(CMD_FLUSH, 0, 0, &[]);
            // Before a connection ends, which may flush on its own.
            world.disk.power_off();
            drop((writing, flushing, server));
            world.random = Random::new(seed);
            world.restart_without_looking(true);
            let mut found = vec![0xee; bytes as usize];
            world.store().volume("v1").unwrap().read_at(&mut found, offset).unwrap();
            assert!(found.iter().all(|found| *found == byte), "{bytes} bytes at {offset} are lost");
        }
    }
}
