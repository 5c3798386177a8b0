//! Facts about this host for its fleet.

use std::path::Path;
use std::time::{Duration, SystemTime};

use volfork::fleet::HostFacts;

use crate::ask::reach;
use crate::cli::fleet::HostArguments;
use crate::failure::{Failure, Result};

/// The facts that the operator gives, completed with those of the machine.
pub(super) fn facts(host: HostArguments, store: &Path) -> Result<HostFacts> {
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
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
