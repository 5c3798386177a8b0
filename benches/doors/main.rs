//! The NBD server against those of others, with the same clients on the same bytes in the same run.
//!
//! ```text
//! cargo bench --bench doors -- [--size 1G] [--seconds 3] [--runs 3] [--only 256k] [--tcp]
//! ```
//!
//! The servers ([`servers`]) are `nbdkit file`, `nbdkit memory`, `qemu-nbd` and `volfork serve`; the clients ([`clients`]) are `fio` with
//! its engine `nbd`, and `nbdcopy`. In each run every server is measured once in every case, one after the other, so that what else
//! the machine does meets all of them. The table has the median of each, and the ratio of volfork to the best of the others.
//!
//! What to know of the numbers:
//! - Clients and servers share one machine. fio is one thread for each connection: with two processors, a server has the other one.
//! - All bytes are in the page cache, or in memory: what is compared is the way from the socket to the cache, not the disk. Writes are
//!   not flushed, and volfork computes and stores the checksum of each block, which nobody else does.
//! - `qemu-nbd` serves a raw file with `--cache=writeback`, nbdkit a file as it does by default.
//!
//! It needs fio, nbdkit, qemu-nbd and nbdcopy; else it says which is missing, and measures nothing. `VOLFORK_BENCH_DIR` says where the
//! files are (default: below `target`).
mod clients;
mod servers;

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use clap::Parser;
use comfy_table::{Table, presets};
use volfork::parse_bytes;

use clients::Case;
use servers::Server;

/// The NBD server against those of others.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// Bytes of each export [default: 1G]
    #[arg(long, value_parser = |text: &str| parse_bytes(text).map_err(|error| error.to_string()))]
    size: Option<u64>,
    /// Seconds of each run of fio
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Runs of each case with each server, in turns
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only the cases that have this in their name
    #[arg(long, default_value = "")]
    only: String,
    /// Over TCP on the loopback device instead of a socket at a path
    #[arg(long)]
    tcp: bool,
    /// Show that it works, and measure nothing
    #[arg(long)]
    test: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let missing: Vec<&str> = ["fio", "nbdkit", "qemu-nbd", "nbdcopy"].into_iter().filter(|program| !is_there(program)).collect();
    if !missing.is_empty() {
        println!("the doors are not measured: there is no {}", missing.join(", no "));
        return ExitCode::SUCCESS;
    }
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the doors cannot be measured: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn measure(arguments: &Arguments) -> io::Result<()> {
    let base = std::env::var_os("VOLFORK_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let directory = tempfile::tempdir_in(base)?;
    let size = arguments.size.unwrap_or(if arguments.test { 8 << 20 } else { 1 << 30 });
    let image = directory.path().join("image");
    servers::make_image(&image, size)?;
    let servers = Server::start_all(directory.path(), &image, size, arguments.tcp)?;
    let (runs, seconds) = if arguments.test { (1, 0.2) } else { (arguments.runs, arguments.seconds) };
    let cases: Vec<Case> = clients::cases().into_iter().filter(|case| case.name().contains(&arguments.only)).collect();
    let mut figures = vec![vec![Vec::new(); servers.len()]; cases.len()];
    for _ in 0..runs {
        for (case, figures) in cases.iter().zip(&mut figures) {
            for (server, figures) in servers.iter().zip(figures) {
                figures.push(case.run(server.uri(), &image, seconds)?);
            }
        }
    }
    if arguments.test {
        return Ok(());
    }
    println!("{} MiB, {} s, {runs} runs, {}", size >> 20, seconds, if arguments.tcp { "TCP" } else { "socket at a path" });
    println!("{}", table(&servers, &cases, &figures));
    Ok(())
}

fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// One line for each case: the medians, and the ratio of the last server (volfork) to the best of the others.
fn table(servers: &[Server], cases: &[Case], figures: &[Vec<Vec<f64>>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let names = servers.iter().map(|server| server.name().to_owned());
    table.set_header(["case".to_owned(), "unit".into()].into_iter().chain(names).chain(["ratio to best".into()]));
    for (case, figures) in cases.iter().zip(figures) {
        let medians: Vec<f64> = figures.iter().map(|figures| median(figures)).collect();
        let (own, others) = medians.split_last().expect("there are servers");
        let best = others.iter().copied().fold(f64::MIN, f64::max);
        let cells = medians.iter().map(|median| format!("{median:.0}"));
        table.add_row([case.name().to_owned(), case.unit().into()].into_iter().chain(cells).chain([format!("{:.2}", own / best)]));
    }
    table
}
