//! Many forks at once in one store: forks of a snapshot share what they fetch; forks of a volume, which has no identity, each fetch
//! all of it, which shows how fairly they share the link.

use std::io;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::arguments::Arguments;
use crate::link::Shape;
use crate::peers::{Peers, URI, VOLUME_URI, settle, wait};

/// When a fork existed and when it was complete, since all began.
type Times = (Duration, Duration);

pub fn measure(arguments: &Arguments, peers: &Peers, count: usize) -> io::Result<()> {
    println!("| RTT ms | loss % | forks | of a | all forked s | all complete s | MiB/s | sent/size | slowest/fastest |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for loss in &arguments.loss {
        for rtt in arguments.rtts() {
            let shape = Shape { rate_bits: arguments.rate, rtt, loss: loss / 100.0, mtu: arguments.mtu, seed: arguments.seed };
            let link = peers.link(shape)?;
            for _ in 0..arguments.runs.max(1) {
                for (what, uri) in [("snapshot", URI), ("volume", VOLUME_URI)] {
                    settle();
                    let before = link.sent_by_server();
                    let times = fork_many(peers, count.max(1), uri);
                    let sent = (link.sent_by_server() - before).bytes as f64 / peers.size_bytes as f64;
                    report(peers.size_bytes, shape, what, &times, sent);
                }
            }
        }
    }
    Ok(())
}

fn fork_many(peers: &Peers, count: usize, uri: &str) -> Vec<Times> {
    let (store, times) = peers.client.enter(|| {
        let store = peers.client_store();
        let start = Barrier::new(count);
        let one = |number: usize| {
            let name = format!("f{number}");
            start.wait();
            let begin = Instant::now();
            store.fork(uri, &name).expect("a fork");
            let forked = begin.elapsed();
            wait(&store, &name);
            (forked, begin.elapsed())
        };
        let times = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || one(number))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a fork")).collect::<Vec<Times>>()
        });
        (store, times)
    });
    peers.verify_volume(&store.volume(&format!("f{}", count - 1)).expect("a fork"));
    store.close().expect("the store closes");
    peers.remove_client_store();
    times
}

fn report(size_bytes: u64, shape: Shape, what: &str, times: &[Times], sent: f64) {
    let seconds = |times: &mut dyn Iterator<Item = Duration>| {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for time in times {
            (least, most) = (least.min(time.as_secs_f64()), most.max(time.as_secs_f64()));
        }
        (least, most)
    };
    let (_, forked) = seconds(&mut times.iter().map(|(forked, _)| *forked));
    let (fastest, slowest) = seconds(&mut times.iter().map(|(_, complete)| *complete));
    println!(
        "| {} | {} | {} | {what} | {forked:.2} | {slowest:.2} | {:.1} | {sent:.3} | {:.2} |",
        shape.rtt.as_secs_f64() * 1000.0,
        shape.loss * 100.0,
        times.len(),
        (size_bytes * times.len() as u64) as f64 / (1 << 20) as f64 / slowest,
        slowest / fastest,
    );
}
