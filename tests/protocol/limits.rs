//! Limits of a volume's clients, under a clock that stands still until a test moves it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use volfork::serve::NbdServerOptions;
use volfork::volume::{RunKind, VolumeLimits, VolumeOptions};
use volfork::wire::HeaderMode;
use volfork::wire::constants::{CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES};
use volfork::{Clock, StoreOptions, Volume};

use crate::client::{Client, Host, MIB};

const BLOCK: u64 = 4096;
/// The cookie of a flush.
const FLUSHED: u64 = 1;

/// Milliseconds.
struct Hand(AtomicU64);

impl Clock for Hand {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn unix(&self) -> Duration {
        self.monotonic()
    }
}

struct Stage {
    host: Host,
    hand: Arc<Hand>,
    volume: Volume,
}

impl Stage {
    fn new(options: NbdServerOptions, limits: VolumeLimits) -> Self {
        let hand = Arc::new(Hand(AtomicU64::new(1000)));
        let host = Host::with(StoreOptions::default().with_clock(Arc::clone(&hand) as _), options);
        let volume = host.store.create_volume_with("v", 64 << 20, &VolumeOptions::default().with_limits(limits)).unwrap();
        Self { host, hand, volume }
    }

    fn pass(&self, millis: u64) {
        self.hand.0.fetch_add(millis, Ordering::SeqCst);
    }

    fn is_unwritten(&self, block: u64) -> bool {
        self.volume.allocation(block * BLOCK..(block + 1) * BLOCK, 1).unwrap()[0].kind == RunKind::Zero
    }

    fn client(&self) -> Client {
        self.host.client(HeaderMode::Simple, "v")
    }
}

/// Ten operations a second, and two at once.
fn ten() -> VolumeLimits {
    VolumeLimits::default().with_iops(10)
}

/// Sends a write of a block. Its cookie is one more than its offset.
fn send_write(client: &mut Client, block: u64) {
    let write = [client.header(CMD_WRITE, 0, block * BLOCK, BLOCK), vec![7; BLOCK as usize]].concat();
    client.socket.write_all(&write).unwrap();
}

fn cookie(block: u64) -> u64 {
    block * BLOCK + 1
}

/// The next reply is to this request, which succeeded.
fn expect(client: &mut Client, cookie: u64, data_bytes: usize) {
    let reply = client.reply(data_bytes);
    assert_eq!((reply.cookie, reply.error), (cookie, 0));
}

/// Flushes; the reply comes before any other.
fn flush(client: &mut Client) {
    client.send(CMD_FLUSH, 0, 0, 0);
    expect(client, FLUSHED, 0);
}

/// Uses up what a client may do at once.
fn exhaust(client: &mut Client) {
    for block in 1..=2 {
        send_write(client, block);
        expect(client, cookie(block), 0);
    }
}

#[test]
fn a_flush_is_answered_while_a_write_waits() {
    let stage = Stage::new(NbdServerOptions::default(), ten());
    let mut client = stage.client();
    exhaust(&mut client);
    send_write(&mut client, 3);
    flush(&mut client);
    send_write(&mut client, 4);
    flush(&mut client);
    assert!(stage.is_unwritten(3) && stage.is_unwritten(4), "a write began that waits");
    stage.pass(100);
    expect(&mut client, cookie(3), 0);
    flush(&mut client);
    stage.pass(100);
    expect(&mut client, cookie(4), 0);
    let mut bytes = [0; BLOCK as usize];
    stage.volume.read_at(&mut bytes, 4 * BLOCK).unwrap();
    assert!(bytes == [7; BLOCK as usize]);
}

#[test]
fn limits_that_are_taken_away_release_what_waits() {
    let stage = Stage::new(NbdServerOptions::default(), ten());
    let mut client = stage.client();
    exhaust(&mut client);
    for block in 3..60 {
        send_write(&mut client, block);
    }
    flush(&mut client);
    stage.volume.set_limits(VolumeLimits::default()).unwrap();
    (3..60).for_each(|block| expect(&mut client, cookie(block), 0));
    // They come back, with one burst.
    stage.volume.set_limits(ten()).unwrap();
    exhaust(&mut client);
    send_write(&mut client, 3);
    flush(&mut client);
}

#[test]
fn connections_share_the_limits_of_their_volume_in_turns() {
    let stage = Stage::new(NbdServerOptions::default(), ten());
    let (mut one, mut other) = (stage.client(), stage.client());
    exhaust(&mut one);
    (3..30).for_each(|block| send_write(&mut one, block));
    flush(&mut one);
    other.send(CMD_READ, 0, BLOCK, BLOCK);
    flush(&mut other);
    stage.pass(100);
    expect(&mut one, cookie(3), 0);
    flush(&mut other);
    stage.pass(100);
    expect(&mut other, cookie(1), BLOCK as usize);
    flush(&mut one);
    stage.pass(100);
    expect(&mut one, cookie(4), 0);
    // A client that connects again finds what was left.
    drop(one);
    stage.host.await_connections(1);
    let mut again = stage.client();
    send_write(&mut again, 50);
    flush(&mut again);
    stage.pass(100);
    expect(&mut again, cookie(50), 0);
}

#[test]
fn each_request_counts_once_and_some_do_not_count() {
    let stage = Stage::new(NbdServerOptions::default(), ten().with_bytes_per_second(MIB as u64));
    stage.volume.create_snapshot("s").unwrap();
    stage.host.store.create_volume("w", 64 << 20).unwrap();
    let mut client = stage.host.client(HeaderMode::Structured, "v");
    for (number, command) in [CMD_WRITE_ZEROES, CMD_TRIM, CMD_CACHE].into_iter().enumerate() {
        // Nothing is transferred, so no bytes are counted.
        client.send(command, 0, cookie(number as u64) - 1, 32 << 20);
        if number == 2 {
            flush(&mut client);
            stage.pass(100);
        }
        expect(&mut client, cookie(number as u64), 0);
    }
    // As many as their data say: a mebibyte takes a second, whatever it was.
    client.send(CMD_READ, 0, BLOCK, MIB as u64);
    flush(&mut client);
    stage.pass(100);
    expect(&mut client, cookie(1), 0);
    client.send(CMD_READ, 0, BLOCK, BLOCK);
    client.send(CMD_BLOCK_STATUS, 0, 2 * BLOCK, BLOCK);
    expect(&mut client, cookie(2), 0);
    stage.pass(750);
    flush(&mut client);
    stage.pass(50);
    expect(&mut client, cookie(1), 0);
    // Snapshots and other volumes have no part in it.
    for export in ["v@s", "w"] {
        let mut free = stage.host.client(HeaderMode::Simple, export);
        for _ in 0..100 {
            free.send(CMD_READ, 0, 0, BLOCK);
            expect(&mut free, 1, BLOCK as usize);
        }
    }
}

#[test]
fn a_large_write_that_waits_takes_no_memory_from_others() {
    const LARGE: usize = 8 * MIB;
    let options = NbdServerOptions::default().with_memory_bytes_max(LARGE + MIB);
    let stage = Stage::new(options, VolumeLimits::default().with_bytes_per_second(MIB as u64));
    stage.host.store.create_volume("w", 64 << 20).unwrap();
    let mut clients: Vec<_> = (0..3).map(|_| stage.client()).collect();
    clients[0].send(CMD_READ, 0, 0, LARGE as u64);
    expect(&mut clients[0], 1, LARGE);
    let write = [clients[0].header(CMD_WRITE, 0, 0, LARGE as u64), vec![9; LARGE]].concat();
    let counts: Vec<usize> = clients.iter_mut().map(|client| client.taken(&write)).collect();
    assert!(counts.iter().all(|count| *count < 2 * MIB), "{counts:?} bytes were taken");
    // Others have all the memory that there is.
    let mut other = stage.host.client(HeaderMode::Simple, "w");
    other.send(CMD_READ, 0, 0, LARGE as u64);
    expect(&mut other, 1, LARGE);
    stage.pass(100_000);
    std::thread::scope(|scope| {
        for (client, count) in clients.iter_mut().zip(counts) {
            let rest = &write[count..];
            scope.spawn(move || {
                client.socket.write_all(rest).unwrap();
                expect(client, 1, 0);
            });
        }
    });
}

#[test]
fn a_client_that_leaves_is_not_waited_for() {
    let stage = Stage::new(NbdServerOptions::default(), ten());
    let mut client = stage.client();
    exhaust(&mut client);
    send_write(&mut client, 3);
    flush(&mut client);
    drop(client);
    stage.host.await_connections(0);
    // One that says goodbye gets the replies to what it sent before.
    let mut client = stage.client();
    send_write(&mut client, 4);
    flush(&mut client);
    client.send(CMD_DISC, 0, 0, 0);
    stage.pass(10_000);
    expect(&mut client, cookie(4), 0);
    client.await_end();
    assert!(stage.is_unwritten(3) && !stage.is_unwritten(4));
}

#[test]
fn a_server_that_shuts_down_does_not_begin_what_waits() {
    let stage = Stage::new(NbdServerOptions::default().with_shutdown_timeout(Duration::from_secs(3600)), ten());
    let mut client = stage.client();
    exhaust(&mut client);
    send_write(&mut client, 3);
    flush(&mut client);
    let volume = stage.volume.clone();
    let Host { directory: _directory, server, .. } = stage.host;
    server.shutdown();
    client.await_end();
    assert!(volume.allocation(3 * BLOCK..4 * BLOCK, 1).unwrap()[0].kind == RunKind::Zero);
}
