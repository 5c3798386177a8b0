//! Commands about many hosts.
//!
//! - `args`: what was typed. `place`: from there to a request and its answer. `image`: what an image consists of.
//! - `reporter`: a server tells its fleet what it has. `gate`: it asks the fleet before it makes a volume.
//! - `print`: tables and JSON.
mod args;
mod gate;
mod image;
mod place;
mod print;
mod reporter;

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::json;
use volfork::fleet::{HostFacts, Publisher, SharedFleet};

pub use args::{FleetCommand, HostArguments, PlaceArguments, ReportArguments};
pub use place::place;
pub use reporter::Reporter;

use crate::failure::{Failure, Result};
use crate::reach;
use crate::settings::Settings;

/// Carries out a command of `fleet`.
pub fn run(settings: &Settings, command: FleetCommand) -> Result<()> {
    match command {
        FleetCommand::List { fleet } => print::view(settings, &SharedFleet::open(&fleet.fleet)?.load()?, now()),
        FleetCommand::Publish { fleet, host } => publish(settings, &fleet.fleet, host),
        FleetCommand::Release { fleet, id } => {
            SharedFleet::open(&fleet.fleet)?.release(&id)?;
            match (settings.json, settings.quiet) {
                (true, _) => crate::print::json(&json!({ "released": id })),
                (false, true) => Ok(()),
                (false, false) => crate::print::text(&format!("released {id}")),
            }
        }
    }
}

fn publish(settings: &Settings, url: &str, host: HostArguments) -> Result<()> {
    let fleet = SharedFleet::open(url)?;
    let facts = facts(host, &settings.store)?;
    if crate::control::connect(&settings.store)?.is_some() {
        let message = format!("{} is served: let its server report, with 'volfork serve --fleet {url}'", settings.store.display());
        return Err(Failure::new(volfork::ErrorKind::Locked, message));
    }
    let store = reach::open(settings)?;
    let inventory = facts.inventory(&store);
    store.close()?;
    let inventory = inventory?;
    Publisher::new(fleet).publish(inventory.clone(), now())?;
    match (settings.json, settings.quiet) {
        (true, _) => crate::print::json(&inventory),
        (false, true) => Ok(()),
        (false, false) => crate::print::text(&print::published(&inventory)),
    }
}

/// What the operator says, and the machine where the operator says nothing.
fn facts(host: HostArguments, store: &Path) -> Result<HostFacts> {
    let mut facts = match &host.host_config {
        None => HostFacts::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| Failure::io(format!("read {}", path.display()), error))?;
            HostFacts::parse(&text).map_err(|error| error.context(path.display()))?
        }
    };
    for (told, own) in [(host.host, &mut facts.host), (host.region, &mut facts.region), (host.zone, &mut facts.zone)] {
        if let Some(told) = told {
            *own = told;
        }
    }
    if !store.exists() {
        return Err(reach::missing(store));
    }
    Ok(facts.complete(store)?)
}

/// Seconds since the Unix epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
