//! The gate of a host in a fleet: a volume has room that is held for it, from before it is made until the fleet is told of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volfork::fleet::{Birth, HostFacts, SharedFleet};
use volfork::placement::{HostInventory, MachineHints, RESERVATION_LABEL, Request as Need};
use volfork::{Result, Store};

use super::now;
use crate::gate::{Admission, Gate, Labels, forceable};

/// A reservation that this host made for a volume of its own. Those that users took are labels.
#[derive(Clone)]
struct Own {
    id: String,
    volume: String,
    is_made: bool,
}

/// Reservations that this host made for its volumes and has not confirmed yet: the fleet does not know of the volumes.
#[derive(Clone, Default)]
pub struct Unconfirmed(Arc<Mutex<Vec<Own>>>);

impl Unconfirmed {
    /// What the host has, by `look`. Reservations whose volumes are there are assignments, so that nothing counts twice.
    pub fn seen(&self, look: impl FnOnce() -> Result<HostInventory>) -> Result<HostInventory> {
        // Before the volumes, so that the volume of each is seen.
        let all = self.list().clone();
        let mut seen = look()?;
        let there = all.into_iter().filter(|own| own.is_made || seen.volumes.contains_key(&own.volume)).map(|own| own.id);
        seen.assignments.extend(there);
        Ok(seen)
    }

    /// The fleet knows of the volumes of these.
    pub fn confirm(&self, confirmed: &[String]) {
        self.list().retain(|own| !confirmed.contains(&own.id));
    }

    fn add(&self, id: &str, volume: &str) {
        self.list().push(Own { id: id.to_owned(), volume: volume.to_owned(), is_made: false });
    }

    fn conclude(&self, id: &str, is_made: bool) {
        self.list().retain_mut(|own| {
            let is_it = own.id == id;
            own.is_made |= is_it && is_made;
            !is_it || is_made
        });
    }

    fn list(&self) -> MutexGuard<'_, Vec<Own>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The gate of a host in a fleet.
pub struct FleetGate {
    pub fleet: SharedFleet,
    pub facts: HostFacts,
    pub unconfirmed: Unconfirmed,
}

impl FleetGate {
    fn hold(&self, store: &Store, name: &str, size_bytes: u64, labels: &mut Labels) -> Result<Admission> {
        let hints = MachineHints::from_labels(labels)?;
        let reservation = labels.get(RESERVATION_LABEL).cloned();
        let wanted = Need {
            app: hints.app.clone(),
            volume: name.to_owned(),
            volume_bytes: size_bytes,
            compute: hints.compute.clone(),
            require_unique_zone: hints.require_unique_zone,
            unique_zone_app_wide: hints.unique_zone_app_wide,
            ..Need::default()
        };
        let birth =
            Birth { wanted: &wanted, reservation: reservation.as_deref(), own: &|| self.unconfirmed.seen(|| self.facts.amounts(store)) };
        let admitted = self.fleet.admit(&birth, now())?;
        // The machine uses what is held for it, also if it did not ask for a kind.
        labels.extend(hints.of_kinds(&admitted.resources).labels());
        if reservation.is_none() {
            self.unconfirmed.add(&admitted.id, name);
        }
        let (fleet, unconfirmed) = (self.fleet.clone(), self.unconfirmed.clone());
        Ok(Admission::telling(move |is_made| {
            unconfirmed.conclude(&admitted.id, is_made);
            if !is_made {
                // If the fleet cannot be told, what is held lapses.
                let _ = fleet.give_back(&admitted);
            }
        }))
    }
}

impl Gate for FleetGate {
    fn admit(&self, store: &Store, name: &str, size_bytes: u64, labels: &mut Labels) -> Result<Admission> {
        self.hold(store, name, size_bytes, labels).map_err(forceable)
    }
}
