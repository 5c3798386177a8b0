//! The gate of a host in a fleet: a volume has room that is held for it, from before it is made until the fleet is told of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volfork::fleet::{Birth, HostFacts, SharedFleet};
use volfork::placement::{HostInventory, MachineHints, RESERVATION_LABEL, Request as Need};
use volfork::{Error, ErrorKind, Result, Store};

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

/// Reservations that are being taken. That one was used is seen when the volume is there; until then nobody else takes it.
#[derive(Clone, Default)]
struct Taking(Arc<Mutex<BTreeSet<String>>>);

impl Taking {
    fn begin(&self, id: &str) -> Result<Taken> {
        match self.list().insert(id.to_owned()) {
            true => Ok(Taken { all: self.clone(), id: id.to_owned() }),
            false => Err(Error::new(ErrorKind::Busy, format!("reservation {id} is being used up by another volume: reserve again"))),
        }
    }

    fn list(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reservation that is being taken.
struct Taken {
    all: Taking,
    id: String,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.all.list().remove(&self.id);
    }
}

/// The gate of a host in a fleet.
pub struct FleetGate {
    fleet: SharedFleet,
    facts: HostFacts,
    unconfirmed: Unconfirmed,
    taking: Taking,
}

impl FleetGate {
    pub fn new(fleet: SharedFleet, facts: HostFacts, unconfirmed: Unconfirmed) -> Self {
        Self { fleet, facts, unconfirmed, taking: Taking::default() }
    }

    fn hold(&self, store: &Store, name: &str, size_bytes: u64, labels: &mut Labels) -> Result<Admission> {
        let hints = MachineHints::from_labels(labels)?;
        let reservation = labels.get(RESERVATION_LABEL).cloned();
        let taken = reservation.as_deref().map(|id| self.taking.begin(id)).transpose()?;
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
            drop(taken);
        }))
    }
}

impl Gate for FleetGate {
    fn admit(&self, store: &Store, name: &str, size_bytes: u64, labels: &mut Labels) -> Result<Admission> {
        // Whoever asks again for what was made must not take it for a lack of room, and go elsewhere.
        if store.volume(name).is_ok() {
            return Err(Error::new(ErrorKind::Exists, format!("volume '{name}' is on this host already: choose another name")));
        }
        self.hold(store, name, size_bytes, labels).map_err(forceable)
    }
}

#[cfg(test)]
mod tests {
    use volfork::StoreOptions;
    use volfork::fleet::Publisher;
    use volfork::placement::{FleetOptions, Policy, Resources};

    use super::*;

    #[test]
    fn a_reservation_is_taken_by_one_volume_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(&directory.path().join("store"), StoreOptions::default()).unwrap();
        let capacity = Resources { volume_bytes: 1 << 30, ..Resources::default() };
        let facts = HostFacts { host: "a".into(), region: "ams".into(), zone: "z".into(), capacity, ..HostFacts::default() };
        let fleet = SharedFleet::open("memory://").unwrap();
        Publisher::new(fleet.clone()).publish(facts.amounts(&store).unwrap(), now()).unwrap();
        let wanted = Need { volume: "v".into(), volume_bytes: 1 << 20, count: 1, ..Need::default() };
        let placed = fleet.place(&wanted, &Policy::default(), FleetOptions::default(), now()).unwrap().placed;
        let gate = FleetGate::new(fleet.clone(), facts, Unconfirmed::default());
        let labels = Labels::from([(RESERVATION_LABEL.to_owned(), placed[0].reservation.id.clone())]);
        let ask = |name: &str| gate.admit(&store, name, 1 << 20, &mut labels.clone());

        let first = ask("one").unwrap();
        let refused = ask("two").err().unwrap();
        assert!(refused.kind() == ErrorKind::Busy && refused.to_string().contains("used up by another volume"), "{refused}");
        first.conclude(Err::<(), _>(Error::new(ErrorKind::NoSpace, "no room"))).unwrap_err();
        let second = ask("two").unwrap();
        second.conclude(store.create_volume_labeled("two", 1 << 20, labels.clone())).unwrap();
        for (name, part) in [("one", "was used up"), ("two", "'two' is on this host already")] {
            let refused = ask(name).err().unwrap();
            assert!(refused.kind() == ErrorKind::Exists && refused.to_string().contains(part), "{refused}");
        }
    }
}
