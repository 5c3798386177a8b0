//! One copy at a time: nbdcopy and volfork in turns, for each link.

use std::io;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::link::{Link, Shape, Traffic};
use crate::peers::{Hydration, Peers, settle};

/// One run, what the server sent for it, and how that spread over connections.
type Run<T> = (T, Traffic, Vec<u32>);

/// What the link takes by itself.
#[derive(Clone, Copy)]
struct Measured {
    /// A handshake of TCP.
    round_trip: Duration,
    plain_read: Duration,
}

fn counted<T>(link: &Link, run: impl FnOnce() -> T) -> Run<T> {
    settle();
    link.take_shares();
    let before = link.sent_by_server();
    let result = run();
    (result, link.sent_by_server() - before, link.take_shares())
}

/// The middle value, or the upper one of the two in the middle.
pub fn median<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
    values[values.len() / 2]
}

pub fn compare(arguments: &Arguments, peers: &Peers) -> io::Result<()> {
    println!(
        "| RTT ms (measured) | loss % | nbdcopy MiB/s | volfork MiB/s | ratio | since fork | fork RTT | first read RTT \
         | first read/plain read | sent/size nbdcopy | volfork | overflowed, lost |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for loss in &arguments.loss {
        for rtt in arguments.rtts() {
            let shape = Shape { rate_bits: arguments.rate, rtt, loss: loss / 100.0, mtu: arguments.mtu, seed: arguments.seed };
            let link = peers.link(shape)?;
            let measured = Measured { round_trip: peers.round_trip(), plain_read: peers.plain_read() };
            let (mut copies, mut hydrations) = (Vec::new(), Vec::new());
            for _ in 0..arguments.runs.max(1) {
                copies.push(counted(&link, || peers.nbdcopy()));
                hydrations.push(counted(&link, || peers.volfork()));
            }
            report(peers.size_bytes, shape, measured, &copies, &hydrations);
        }
    }
    Ok(())
}

fn report(size_bytes: u64, shape: Shape, measured: Measured, copies: &[Run<Duration>], hydrations: &[Run<Hydration>]) {
    let speed = |time: Duration| size_bytes as f64 / time.as_secs_f64() / (1 << 20) as f64;
    let sent = |traffic: &Traffic| traffic.bytes as f64 / size_bytes as f64;
    let rtts = |time: Duration| time.as_secs_f64() / shape.rtt.as_secs_f64();
    let nbdcopy = median(copies.iter().map(|(time, ..)| speed(*time)));
    let volfork = median(hydrations.iter().map(|(hydration, ..)| speed(hydration.total)));
    let since_fork = median(hydrations.iter().map(|(hydration, ..)| speed(hydration.total - hydration.fork)));
    println!(
        "| {} ({:.2}) | {} | {nbdcopy:.1} | {volfork:.1} | {:.2} | {since_fork:.1} | {:.1} | {:.1} | {:.2} | {:.3} | {:.3} | {} |",
        shape.rtt.as_secs_f64() * 1000.0,
        measured.round_trip.as_secs_f64() * 1000.0,
        shape.loss * 100.0,
        volfork / nbdcopy,
        median(hydrations.iter().map(|(hydration, ..)| rtts(hydration.fork))),
        median(hydrations.iter().map(|(hydration, ..)| rtts(hydration.read))),
        median(hydrations.iter().map(|(hydration, ..)| hydration.read.as_secs_f64() / measured.plain_read.as_secs_f64())),
        median(copies.iter().map(|(_, traffic, _)| sent(traffic))),
        median(hydrations.iter().map(|(_, traffic, _)| sent(traffic))),
        dropped(copies.iter().map(|(_, traffic, _)| traffic), hydrations.iter().map(|(_, traffic, _)| traffic)),
    );
    println!("  one plain NBD read: {:.3?}", measured.plain_read);
    for (number, ((copy, _, copied), (hydration, _, hydrated))) in copies.iter().zip(hydrations).enumerate() {
        let Hydration { fork, read, total } = hydration;
        println!("  run {number}: nbdcopy {copy:.3?}, volfork {total:.3?} (fork {fork:.2?}, first read {read:.2?})");
        println!("    % of the bytes by connection: nbdcopy {copied:?}, volfork {hydrated:?}");
    }
}

/// Packets that were dropped by the queue and by chance, with each competitor, as the median of its runs.
fn dropped<'a>(copies: impl Iterator<Item = &'a Traffic> + Clone, hydrations: impl Iterator<Item = &'a Traffic> + Clone) -> String {
    let overflowed =
        [median(copies.clone().map(|traffic| traffic.overflowed)), median(hydrations.clone().map(|traffic| traffic.overflowed))];
    let lost = [median(copies.map(|traffic| traffic.lost)), median(hydrations.map(|traffic| traffic.lost))];
    format!("{}+{} / {}+{}", overflowed[0], lost[0], overflowed[1], lost[1])
}
