//! Many hosts: their inventories, and where a machine would start soonest.
//!
//! - `facts`: facts about this host. `layers`: the layers of an image. `place`: from arguments to a request and its answer.
//! - `reporter`: a server reports its inventory. `gate`: reserves room before a volume is made.
mod facts;
mod gate;
mod layers;
pub mod place;
pub mod reporter;

use serde_json::json;
use volfork::fleet::{Publisher, SharedFleet};

use facts::{facts, now};

use crate::ask::reach;
use crate::cli::fleet::{FleetCommand, HostArguments};
use crate::control;
use crate::failure::{Failure, Result};
use crate::settings::Settings;
use crate::show::{fleet, stream};

/// Carries out a command of `fleet`.
pub fn run(settings: &Settings, command: FleetCommand) -> Result<()> {
    match command {
        FleetCommand::List { fleet: at } => fleet::view(settings, &SharedFleet::open(&at.fleet)?.load()?, now()),
        FleetCommand::Publish { fleet, host } => publish(settings, &fleet.fleet, host),
        FleetCommand::Release { fleet, id } => {
            SharedFleet::open(&fleet.fleet)?.release(&id)?;
            match (settings.json, settings.quiet) {
                (true, _) => stream::json(&json!({ "released": id })),
                (false, true) => Ok(()),
                (false, false) => stream::text(&format!("released {id}")),
            }
        }
    }
}

fn publish(settings: &Settings, url: &str, host: HostArguments) -> Result<()> {
    let shared = SharedFleet::open(url)?;
    let facts = facts(host, &settings.store)?;
    if control::connect(&settings.store)?.is_some() {
        let message = format!("{} is served: let its server report, with 'volfork serve --fleet {url}'", settings.store.display());
        return Err(Failure::new(volfork::ErrorKind::Locked, message));
    }
    let store = reach::open(settings)?;
    let inventory = facts.inventory(&store);
    store.close()?;
    let inventory = inventory?;
    Publisher::new(shared).publish(inventory.clone(), now())?;
    match (settings.json, settings.quiet) {
        (true, _) => stream::json(&inventory),
        (false, true) => Ok(()),
        (false, false) => stream::text(&fleet::published(&inventory)),
    }
}
