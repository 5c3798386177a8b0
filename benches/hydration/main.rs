//! Hydration over an emulated link, against `nbdcopy` over the same link in the same run.
//!
//! ```text
//! cargo bench --bench hydration -- [--size 256M] [--rtt 0.2,20,100] [--loss 0,0.1] [--rate 1000M] [--runs 3]
//! cargo bench --bench hydration -- --forks 50        many forks of one snapshot, or of one volume, at once
//! cargo bench --bench hydration -- --load            what hydration does to reads of another volume
//! cargo bench --bench hydration -- --trace           what a recorded order of touches does to a machine that starts
//! ```
//!
//! Two hosts on this machine ([`place`]) are joined by an emulated link ([`link`]); `volfork serve` on one of them has a snapshot
//! of incompressible bytes ([`peers`]), which the other copies: `nbdcopy` into a new sparse file, volfork (as a library) into a
//! volume of a new store. The two take turns. Every byte of every copy is compared.
//!
//! What to know of the numbers:
//! - volfork's time begins with the connection and ends when the volume is complete and durable; that of nbdcopy begins with the
//!   start of the program, and its copy is durable only with `--flush`.
//! - nbdcopy gives each connection 128 MiB at a time, so an image smaller than that times its connections does not use them all.
//! - The link is always our own emulator, also where the kernel has `netem`, so that numbers of different machines compare.
//! - The largest packet has 9,000 bytes by default. With 1,500 the link still carries 0.97 Gbit/s, but its threads take a whole
//!   processor of two, so the hosts wait for it and runs differ by a third; with 9,000 they take 0.6. A share of lost packets harms
//!   a connection of small packets more than one of large packets (throughput of loss-based control is proportional to the size).
//! - Both hosts have the same TCP, by default `cubic` with the kernel's buffers (`--buffers` changes them for both competitors
//!   alike), and forget what they learnt about the link.
//! - Server, link and client share one machine: where all processors are busy, a number says more about it than about the link.
//!
//! It needs root and `/dev/net/tun`; else it says so, and measures nothing. `VOLFORK_BENCH_DIR` says where the files are
//! (default: below `target`).
mod arguments;
mod compare;
mod forks;
mod link;
mod load;
mod peers;
mod place;
mod random;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use arguments::Arguments;
use link::Shape;
use peers::Peers;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(obstacle) = place::obstacle() {
        println!("hydration over links is not measured: {obstacle}");
        return ExitCode::SUCCESS;
    }
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hydration over links cannot be measured: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> std::io::Result<()> {
    let base = std::env::var_os("VOLFORK_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let directory = tempfile::tempdir_in(base)?;
    remove_at_signal(directory.path().to_owned())?;
    let peers = Peers::start(arguments, directory.path())?;
    if arguments.test {
        return test(arguments, &peers);
    }
    println!(
        "{} MiB, {} Mbit/s, MTU {}, {}, buffers {:?}, {} runs",
        peers.size_bytes >> 20,
        arguments.rate / 1_000_000,
        arguments.mtu,
        arguments.congestion,
        arguments.buffers,
        arguments.runs
    );
    match arguments.forks {
        Some(count) => forks::measure(arguments, &peers, count),
        None if arguments.trace => trace::measure(arguments, &peers),
        None if arguments.load => load::measure(arguments, &peers),
        None => compare::compare(arguments, &peers),
    }
}

/// One small copy of each kind; every byte is compared, and travels once.
fn test(arguments: &Arguments, peers: &Peers) -> std::io::Result<()> {
    let shape = Shape { rate_bits: arguments.rate, rtt: arguments.rtts()[0], loss: 0.0, mtu: arguments.mtu, seed: arguments.seed };
    let link = peers.link(shape)?;
    let round_trip = peers.round_trip();
    assert!(round_trip >= shape.rtt, "a round trip of {round_trip:?} on a link of {:?}", shape.rtt);
    let hydration = peers.volfork();
    let sent = link.sent_by_server();
    assert!(hydration.read >= shape.rtt, "a missing block cannot be here after {:?}", hydration.read);
    assert!(sent.bytes > peers.size_bytes && sent.bytes < peers.size_bytes * 5 / 4, "{sent:?} for {} bytes", peers.size_bytes);
    if std::process::Command::new("nbdcopy").arg("--version").output().is_ok() {
        peers.nbdcopy();
    }
    drop(link);
    let link = peers.link(Shape { loss: 0.02, ..shape })?;
    peers.volfork();
    let sent = link.sent_by_server();
    assert!(sent.lost > 0, "no packet was lost: {sent:?}");
    println!("hydration over a link of {:?} works", shape.rtt);
    Ok(())
}

/// Namespaces, devices and servers end with this process; the files do not.
fn remove_at_signal(directory: PathBuf) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGINT, libc::SIGTERM, libc::SIGHUP])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Somebody may still be writing into it: what appears meanwhile needs another try.
            let _ = (0..10).find(|_| std::fs::remove_dir_all(&directory).is_ok());
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
