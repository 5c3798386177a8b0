//! Policies of placement on simulated fleets: how soon machines start, what moves over links, how evenly hosts are filled.
//!
//! ```text
//! cargo bench --bench fleet -- [--hosts 100,1000] [--seed N] [--out DIR]
//! cargo bench --bench fleet -- --policies start-time --weights 'apart={"spread_seconds":50}'    other weights beside it
//! ```
//!
//! A table goes to the standard output; table, figures as JSON and plots go to a directory (default: below `target`). What is
//! drawn comes from the seed alone, each policy sees the same fleet and the same arrivals, and only the times that decisions took,
//! which are told on the standard error, differ from run to run.
//!
//! The fleet ([`workload`], [`catalogue`]):
//! - Hosts have 16, 24 or 32 processors, caches of 12 to 40 GiB, links of 1, 2.5 or 10 Gbit/s ([`network`]).
//! - Images (200 and one for each host) are asked for by Zipf's law with exponent 0.9. Each is on one of 30 bases, which are shared
//!   by Zipf's law with exponent 1; one in 20 brings several GiB of its own.
//! - One image in five starts on a fork: 32 to 512 MiB of a snapshot are needed before the machine is ready. The snapshot is whole
//!   on one host and in part on up to five; hosts that ran a fork have these blocks afterwards.
//! - One machine arrives per host and minute and lives for five, so that half of the processors are in use. The fleet begins in
//!   this state, with caches that are nearly full; the first fifth of the arrivals is not measured.
//! - Four times, 70 machines of one image that no host holds arrive at once.
//! - Every host is drained once in two hours: it takes no machines, a minute later it is gone, its machines start elsewhere, and a
//!   host with an empty cache takes its place.
//! - The scheduler knows only what a host reported, every ten seconds, and what it has assigned itself.
//!
//! A start ends when all layers and all blocks needed first are on the host, and half a second later. What several machines of a
//! host need is fetched once. A cache lets the least recently used go, except what running machines use. Fetches of one host all
//! run at once; unpacking takes no time, and what a fork fetches after its start is not simulated. The registry is as fast as each
//! host can take it: an overloaded registry would reward policies that move fewer bytes more than these figures do.
mod arguments;
mod cache;
mod catalogue;
mod chooser;
mod host;
mod machine;
mod network;
mod outcome;
mod plots;
mod random;
mod report;
mod simulation;
mod workload;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use arguments::Arguments;
use report::Row;
use simulation::Simulation;
use workload::{Options, Workload};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match simulate(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fleets cannot be simulated: {error}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let choices = arguments.choices()?;
    let out = arguments.out();
    std::fs::create_dir_all(&out)?;
    println!("seed {}", arguments.seed);
    let mut rows = Vec::new();
    for options in arguments.options() {
        let workload = Workload::new(options);
        let mut outcomes = Vec::new();
        for choice in &choices {
            let begun = Instant::now();
            let outcome = Simulation::new(&workload, choice).run();
            eprintln!("{} hosts, {}", options.hosts, report::pace(choice, &outcome, begun.elapsed()));
            rows.push(Row::new(&workload, choice, &outcome));
            outcomes.push(outcome);
        }
        let named: Vec<plots::Named> = choices.iter().map(|choice| choice.name.as_str()).zip(&outcomes).collect();
        curves(&options, &named, &out)?;
    }
    let table = report::table(&rows);
    println!("{table}");
    std::fs::write(out.join("table.md"), format!("seed {}\n\n{table}", arguments.seed))?;
    std::fs::write(out.join("figures.json"), serde_json::to_vec_pretty(&rows)?)?;
    plots::fleets(&rows, &out)?;
    println!("table.md, figures.json and plots are in {}", out.display());
    Ok(())
}

fn curves(options: &Options, named: &[plots::Named], out: &Path) -> Result<(), Box<dyn Error>> {
    let hosts = options.hosts;
    plots::distribution(hosts, named, &out.join(format!("start-{hosts}.svg")))?;
    plots::burst(hosts, options.bursts, options.burst_starts, named, &out.join(format!("burst-{hosts}.svg")))
}
