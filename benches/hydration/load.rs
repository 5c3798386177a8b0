//! What hydration does to reads of another volume of the same store.
//!
//! Reads are issued at a constant rate. The latency of a read counts from the moment it was due, so that a slow read also delays
//! those behind it. Server, link, engine and reader share the processors of one machine; the runs beside `nbdcopy`, which moves the
//! same bytes without the engine, show what that alone costs.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use volfork::volume::Request;
use volfork::{Store, Volume};

use crate::arguments::Arguments;
use crate::compare::median;
use crate::link::{Shape, wake_sharply};
use crate::peers::{Peers, URI, dies_with_us, settle, write_image};
use crate::random::Random;

const BLOCK: u32 = 4096;
const DEPTH: usize = 4;

/// p50, p99, p99.9 and most in microseconds, and MiB a second over the link.
type Row = [f64; 5];

/// What runs beside the reads.
#[derive(Clone, Copy, Debug)]
enum Beside {
    Nothing,
    Hydration,
    Nbdcopy,
}

pub fn measure(arguments: &Arguments, peers: &Peers) -> io::Result<()> {
    let shape = Shape {
        rate_bits: arguments.rate,
        rtt: arguments.rtts()[0],
        loss: arguments.loss[0] / 100.0,
        mtu: arguments.mtu,
        seed: arguments.seed,
    };
    let link = peers.link(shape)?;
    println!("{} random reads of 4 KiB a second, at most {DEPTH} at once, {} s each", arguments.reads, arguments.seconds);
    println!("| beside | p50 us | p99 us | p99.9 us | most us | link MiB/s |");
    println!("|---|---|---|---|---|---|");
    peers.client.enter(|| {
        let store = peers.client_store();
        let local = store.create_volume("local", peers.size_bytes).expect("a volume");
        write_image(&local);
        let mut rows: [Vec<Row>; 3] = Default::default();
        for _ in 0..arguments.runs.max(1) {
            for (rows, beside) in rows.iter_mut().zip([Beside::Nothing, Beside::Hydration, Beside::Nbdcopy]) {
                settle();
                let before = link.sent_by_server();
                let begin = Instant::now();
                let mut latencies = read_beside(arguments, peers, &store, &local, beside);
                let sent = (link.sent_by_server() - before).bytes as f64 / (1 << 20) as f64 / begin.elapsed().as_secs_f64();
                latencies.sort_unstable();
                let row = [0.5, 0.99, 0.999, 1.0].map(|share| at(&latencies, share));
                let row = [row[0], row[1], row[2], row[3], sent];
                print_row(&format!("{beside:?}"), row);
                rows.push(row);
            }
        }
        summarize(&rows);
        drop(local);
        store.close().expect("the store closes");
    });
    Ok(())
}

fn read_beside(arguments: &Arguments, peers: &Peers, store: &Store, local: &Volume, beside: Beside) -> Vec<Duration> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| match beside {
            Beside::Nothing => {}
            Beside::Hydration => hydrate_until(store, &stop),
            Beside::Nbdcopy => copy_until(peers, &stop),
        });
        // Begins when the other is at full speed.
        std::thread::sleep(Duration::from_millis(500));
        let latencies = paced_reads(local, arguments.reads, Duration::from_secs_f64(arguments.seconds));
        stop.store(true, Ordering::Release);
        latencies
    })
}

/// Forks, waits until the fork is complete, and begins again.
fn hydrate_until(store: &Store, stop: &AtomicBool) {
    for number in 0.. {
        let name = format!("fork{number}");
        store.fork(URI, &name).expect("a fork");
        while !stop.load(Ordering::Acquire) && !store.wait_hydrated(&name, Duration::from_millis(20)).expect("a volume") {}
        store.destroy_volume(&name, false).expect("a fork that nobody uses");
        if stop.load(Ordering::Acquire) {
            return;
        }
    }
}

/// Copies into a file repeatedly, until `stop`.
fn copy_until(peers: &Peers, stop: &AtomicBool) {
    let path = peers.directory.join("copy");
    while !stop.load(Ordering::Acquire) {
        let mut command = Command::new("nbdcopy");
        command.arg(URI).arg(&path);
        dies_with_us(&mut command);
        let mut child = command.spawn().expect("nbdcopy can be started");
        while child.try_wait().expect("nbdcopy").is_none() {
            if stop.load(Ordering::Acquire) {
                child.kill().and_then(|()| child.wait()).expect("nbdcopy can be ended");
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::remove_file(&path).expect("the copy can be removed");
    }
}

/// Reads random blocks at a constant rate; answers how long each took.
fn paced_reads(volume: &Volume, a_second: u32, time: Duration) -> Vec<Duration> {
    wake_sharply();
    let mut queue = volume.queue(DEPTH as u32).expect("a queue");
    let (mut random, mut completions) = (Random::new(3), Vec::new());
    let (mut due, mut latencies) = (HashMap::new(), Vec::new());
    let count = (f64::from(a_second) * time.as_secs_f64()) as u64;
    let begin = Instant::now();
    let due_at = |number: u64| begin + Duration::from_secs_f64(number as f64 / f64::from(a_second));
    let mut next = 0;
    while (latencies.len() as u64) < count {
        while next < count && queue.in_flight() < DEPTH && due_at(next) <= Instant::now() {
            let offset = random.below(volume.size_bytes() / u64::from(BLOCK)) * u64::from(BLOCK);
            queue.submit(next, Request::Read { offset, bytes: BLOCK }).expect("a request");
            due.insert(next, due_at(next));
            next += 1;
        }
        if queue.in_flight() == 0 {
            std::thread::sleep(due_at(next).saturating_duration_since(Instant::now()));
            continue;
        }
        let until = (next < count && queue.in_flight() < DEPTH).then(|| due_at(next).saturating_duration_since(Instant::now()));
        queue.wait(&mut completions, until).expect("the queue");
        let now = Instant::now();
        for completion in completions.drain(..) {
            completion.result.expect("a read");
            latencies.push(now - due.remove(&completion.token).expect("a read that was begun"));
        }
    }
    latencies
}

/// The time in microseconds that this share of the reads kept.
fn at(sorted: &[Duration], share: f64) -> f64 {
    sorted[((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)].as_secs_f64() * 1e6
}

fn print_row(name: &str, [p50, p99, p999, most, sent]: Row) {
    println!("| {name} | {p50:.0} | {p99:.0} | {p999:.0} | {most:.0} | {sent:.1} |");
}

/// Medians of the runs, and how often the time without anything beside the reads.
fn summarize(rows: &[Vec<Row>; 3]) {
    let medians = rows.each_ref().map(|rows| -> Row { std::array::from_fn(|column| median(rows.iter().map(|row| row[column]))) });
    for (name, row) in ["median, nothing", "median, hydration", "median, nbdcopy"].into_iter().zip(medians) {
        print_row(name, row);
        println!("  p50 x {:.2}, p99 x {:.2}", row[0] / medians[0][0], row[1] / medians[0][1]);
    }
}
