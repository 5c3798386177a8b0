//! Start time of a machine with and without a recorded order of first reads. The machine reads its blocks in a random order, one
//! after the other with some work in between, from a fork of a remote snapshot. Recorded and unrecorded snapshots take turns.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use volfork::source::{SourceExt, SourceOpener, UriSources};

use crate::arguments::Arguments;
use crate::compare::median;
use crate::link::Shape;
use crate::peers::{Peers, UNRECORDED_URI, URI, settle};
use crate::random::Random;

const READ_BYTES: usize = 16 << 10;
const READS: u64 = 400;
/// Time that the machine computes between two reads.
const WORK: Duration = Duration::from_millis(2);

pub fn measure(arguments: &Arguments, peers: &Peers) -> io::Result<()> {
    println!("{READS} reads of {} KiB in a random order, {WORK:?} of work between them", READ_BYTES >> 10);
    println!("| RTT ms | without trace s | with trace s | ratio | waited for source, without | with |");
    println!("|---|---|---|---|---|---|");
    let mut random = Random::new(arguments.seed);
    let places = peers.size_bytes / READ_BYTES as u64;
    let offsets: Vec<u64> = (0..READS).map(|_| random.below(places) * READ_BYTES as u64).collect();
    let mut recorded = false;
    for rtt in arguments.rtts() {
        let link = peers.link(Shape { rate_bits: arguments.rate, rtt, loss: 0.0, mtu: arguments.mtu, seed: arguments.seed })?;
        if !std::mem::replace(&mut recorded, true) {
            record(peers, &offsets);
        }
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..arguments.runs.max(1) {
            without.push(start(peers, UNRECORDED_URI, &offsets));
            with.push(start(peers, URI, &offsets));
        }
        let middle = |starts: &[Start], of: fn(&Start) -> f64| median(starts.iter().map(of));
        let (slow, quick) = (middle(&without, |start| start.seconds), middle(&with, |start| start.seconds));
        println!(
            "| {} | {slow:.2} | {quick:.2} | {:.2} | {:.1} MiB | {:.1} MiB |",
            rtt.as_secs_f64() * 1000.0,
            quick / slow,
            middle(&without, |start| start.waited_mib),
            middle(&with, |start| start.waited_mib),
        );
        drop(link);
    }
    Ok(())
}

struct Start {
    seconds: f64,
    waited_mib: f64,
}

/// Forks the snapshot on the server and reads there what a machine reads; waits until the server has noted it.
fn record(peers: &Peers, offsets: &[u64]) {
    let store = peers.directory.join("server");
    let status =
        Command::new(env!("CARGO_BIN_EXE_volfork")).arg("--store").arg(store).args(["--quiet", "fork", "disk@s", "recorded"]).status();
    assert!(status.expect("volfork can be started").success());
    peers.client.enter(|| {
        let open = |uri: &str| UriSources::default().open(uri).expect("the server answers");
        let fork = open(&URI.replace("disk@s", "recorded"));
        for offset in offsets {
            fork.read_blocking(*offset..offset + READ_BYTES as u64).expect("a read");
        }
        // The server writes it down every few seconds.
        while open(URI).trace().expect("the server answers").is_empty() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}

/// From the fork on until the last read.
fn start(peers: &Peers, uri: &str, offsets: &[u64]) -> Start {
    settle();
    let started = peers.client.enter(|| {
        let store = peers.client_store();
        let begin = Instant::now();
        let fork = store.fork(uri, "f").expect("a fork");
        let mut buffer = vec![0; READ_BYTES];
        for offset in offsets {
            fork.read_at(&mut buffer, *offset).expect("a read");
            std::thread::sleep(WORK);
        }
        let seconds = begin.elapsed().as_secs_f64();
        let waited = store.show("f").expect("the fork").hydration.fetched.demand;
        drop(fork);
        store.close().expect("the store closes");
        Start { seconds, waited_mib: waited as f64 / f64::from(1 << 20) }
    });
    peers.remove_client_store();
    started
}
