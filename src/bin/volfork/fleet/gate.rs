//! The gate of a host in a fleet: it reserves room for a volume before the volume is made or grows, until the host has reported it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volfork::fleet::{Birth, HostFacts, SharedFleet};
use volfork::placement::{HostInventory, MachineHints, RESERVATION_LABEL, Request as Need, Resources};
use volfork::{Error, ErrorKind, Result, Store};

use super::facts::now;
use crate::act::gate::{Admission, Gate, Labels, forceable};

/// A reservation that this host made for a volume of its own. Those that users took are labels.
#[derive(Clone)]
struct Own {
    id: String,
    volume: String,
    /// The size that the volume is getting.
    size_bytes: u64,
    is_made: bool,
}

impl Own {
    /// Whether what the host has contains what was reserved.
    fn is_in(&self, seen: &HostInventory) -> bool {
        self.is_made || seen.volumes.get(&self.volume).is_some_and(|volume| volume.size_bytes >= self.size_bytes)
    }
}

/// Reservations that this host made for its volumes and has not confirmed yet: the fleet does not know of the volumes.
#[derive(Clone, Default)]
pub struct Unconfirmed {
    all: Arc<Mutex<Vec<Own>>>,
    /// Whether this process has begun to make some, or has given back what one before it left.
    begun: Arc<Mutex<bool>>,
}

impl Unconfirmed {
    /// The inventory of the host, by `look`. A reservation whose volume exists is listed as an assignment, so that nothing counts twice.
    pub fn seen(&self, look: impl FnOnce() -> Result<HostInventory>) -> Result<HostInventory> {
        // Before the volumes, so that the volume of each is seen.
        let all = self.list().clone();
        let mut seen = look()?;
        let there: Vec<_> = all.into_iter().filter(|own| own.is_in(&seen)).map(|own| own.id).collect();
        seen.assignments.extend(there);
        Ok(seen)
    }

    /// The fleet knows of the volumes of these.
    pub fn confirm(&self, confirmed: &[String]) {
        self.list().retain(|own| !confirmed.contains(&own.id));
    }

    fn add(&self, id: &str, volume: &str, size_bytes: u64) {
        self.list().push(Own { id: id.to_owned(), volume: volume.to_owned(), size_bytes, is_made: false });
    }

    fn conclude(&self, id: &str, is_made: bool) {
        self.list().retain_mut(|own| {
            let is_it = own.id == id;
            own.is_made |= is_it && is_made;
            !is_it || is_made
        });
    }

    /// Does `first` before this process makes a reservation, or not at all.
    pub fn begin(&self, first: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if !*begun {
            first()?;
            *begun = true;
        }
        Ok(())
    }

    fn list(&self) -> MutexGuard<'_, Vec<Own>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reservations that are in use by a running command. Until the volume exists, this list keeps others from taking them.
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

    fn make(&self, store: &Store, name: &str, size_bytes: u64, labels: &mut Labels) -> Result<Admission> {
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
        let own = || self.own(store);
        let birth = Birth { wanted: &wanted, grows: false, reservation: reservation.as_deref(), own: &own };
        let (resources, admission) = self.hold(&birth, size_bytes, taken)?;
        // The machine uses what is held for it, also if it did not ask for a kind.
        labels.extend(hints.of_kinds(&resources).labels());
        Ok(admission)
    }

    fn own(&self, store: &Store) -> Result<HostInventory> {
        self.unconfirmed.seen(|| self.facts.amounts(store))
    }

    /// Holds what is wanted for a volume that is getting a size.
    fn hold(&self, birth: &Birth<'_>, size_bytes: u64, taken: Option<Taken>) -> Result<(Resources, Admission)> {
        self.fleet.check_clock(now)?;
        // Before the first report, reservations of an earlier process stay: they may be for volumes that are not reported yet.
        self.unconfirmed.begin(|| Ok(()))?;
        let admitted = self.fleet.admit(birth, now())?;
        if birth.reservation.is_none() {
            self.unconfirmed.add(&admitted.id, &birth.wanted.volume, size_bytes);
        }
        let (fleet, unconfirmed, resources) = (self.fleet.clone(), self.unconfirmed.clone(), admitted.resources.clone());
        let admission = Admission::telling(move |is_made| {
            unconfirmed.conclude(&admitted.id, is_made);
            if !is_made {
                // If the fleet cannot be reached, the reservation lapses.
                let _ = fleet.give_back(&admitted);
            }
            drop(taken);
        });
        Ok((resources, admission))
    }
}

impl Gate for FleetGate {
    fn admit(&self, store: &Store, name: &str, size_bytes: u64, labels: &mut Labels) -> Result<Admission> {
        // A client that repeats a command for an existing volume must not mistake the answer for a lack of room and go elsewhere.
        if store.volume(name).is_ok() {
            return Err(Error::new(ErrorKind::Exists, format!("volume '{name}' is on this host already: choose another name")));
        }
        self.make(store, name, size_bytes, labels).map_err(forceable)
    }

    fn grow(&self, store: &Store, name: &str, sizes: Range<u64>) -> Result<Admission> {
        // An image counts with what it holds, whatever its size.
        if sizes.is_empty() || store.room().image_volumes.contains(name) {
            return Ok(Admission::default());
        }
        let wanted = Need { volume: name.to_owned(), volume_bytes: sizes.end - sizes.start, ..Need::default() };
        let birth = Birth { wanted: &wanted, grows: true, reservation: None, own: &|| self.own(store) };
        self.hold(&birth, sizes.end, None).map(|(_, admission)| admission).map_err(forceable)
    }
}

#[cfg(test)]
mod tests {
    use volfork::StoreOptions;
    use volfork::fleet::Publisher;
    use volfork::placement::{FleetOptions, Placed, Policy, Resources};
    use volfork::store::UNFINISHED_LABEL;
    use volfork::volume::IMAGE_LABEL;
    use volfork::volume::VolumeOptions;

    use super::*;

    const SIZE: u64 = 1 << 20;

    /// A host with room for two volumes, of which one is reserved.
    struct Host {
        _directory: tempfile::TempDir,
        store: Store,
        fleet: SharedFleet,
        facts: HostFacts,
        labels: Labels,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let store = Store::create(directory.path().join("store"), StoreOptions::default()).unwrap();
            let capacity = Resources { volume_bytes: 2 * SIZE, ..Resources::default() };
            let facts = HostFacts { host: "a".into(), region: "ams".into(), zone: "z".into(), capacity, ..HostFacts::default() };
            let fleet = SharedFleet::open("memory://").unwrap();
            Publisher::new(fleet.clone()).publish(facts.amounts(&store).unwrap(), now()).unwrap();
            let mut host = Self { _directory: directory, store, fleet, facts, labels: Labels::new() };
            let placed = host.place().remove(0);
            host.labels.insert(RESERVATION_LABEL.to_owned(), placed.reservation.id);
            host
        }

        fn place(&self) -> Vec<Placed> {
            let wanted = Need { volume: "v".into(), volume_bytes: SIZE, ..Need::default() };
            self.fleet.place(&wanted, &Policy::default(), FleetOptions::default(), now()).unwrap().placed
        }

        /// The gate of a process that has just begun to serve.
        fn process(&self) -> FleetGate {
            FleetGate::new(self.fleet.clone(), self.facts.clone(), Unconfirmed::default())
        }

        fn make(&self, name: &str) -> Result<()> {
            self.store.create_volume_with(name, SIZE, &VolumeOptions::default().with_labels(self.labels.clone())).map(drop)
        }
    }

    #[test]
    fn a_reservation_is_taken_by_one_volume_at_a_time() {
        let host = Host::new();
        let gate = host.process();
        let ask = |name: &str| gate.admit(&host.store, name, SIZE, &mut host.labels.clone());

        let first = ask("one").unwrap();
        let refused = ask("two").err().unwrap();
        assert!(refused.kind() == ErrorKind::Busy && refused.to_string().contains("used up by another volume"), "{refused}");
        first.conclude(Err::<(), _>(Error::new(ErrorKind::NoSpace, "no room"))).unwrap_err();
        let second = ask("two").unwrap();
        second.conclude(host.make("two")).unwrap();
        for (name, part) in [("one", "was used up"), ("two", "'two' is on this host already")] {
            let refused = ask(name).err().unwrap();
            assert!(refused.kind() == ErrorKind::Exists && refused.to_string().contains(part), "{refused}");
        }
    }

    /// A process that ends between any two steps leaves a reservation that one volume uses, or none yet.
    #[test]
    fn a_reservation_is_taken_once_however_often_the_server_dies() {
        let host = Host::new();
        let ask = |name: &str| host.process().admit(&host.store, name, SIZE, &mut host.labels.clone());
        // It was taken, and the volume was not made. Until it lapses, it is held for the one that asks again.
        drop(ask("one").unwrap());
        drop(ask("two").unwrap());
        assert_eq!(host.place().len(), 1, "one more has room");
        assert_eq!(host.place().len(), 0, "what was taken is still held");
        // The volume was made, but the fleet did not hear of it.
        drop(ask("three").unwrap());
        host.make("three").unwrap();
        assert_eq!(ask("four").err().unwrap().kind(), ErrorKind::Exists);
        // It was destroyed again before the fleet knew of it.
        host.store.destroy_volume("three", false).unwrap();
        drop(ask("four").unwrap());
        host.make("four").unwrap();
        // The fleet heard of the volume, which was then destroyed.
        let reported = Publisher::new(host.fleet.clone()).publish(host.facts.amounts(&host.store).unwrap(), now());
        reported.unwrap();
        host.store.destroy_volume("four", false).unwrap();
        assert_eq!(ask("five").err().unwrap().kind(), ErrorKind::NotFound);
    }

    /// What a process that died left holds no room when the next one has reported what there is.
    #[test]
    fn what_a_server_held_when_it_died_is_given_back_by_the_next() {
        let host = Host::new();
        drop(host.process().admit(&host.store, "lost", SIZE, &mut Labels::new()).unwrap());
        assert_eq!(host.place().len(), 0);
        let report = |unconfirmed: &Unconfirmed| {
            let seen = unconfirmed.seen(|| host.facts.amounts(&host.store)).unwrap();
            Publisher::new(host.fleet.clone()).publish(seen, now()).unwrap();
            unconfirmed.begin(|| host.fleet.give_back_own(&host.facts)).unwrap();
        };
        report(&Unconfirmed::default());
        let held = host.fleet.load().unwrap().reservations;
        assert_eq!(held.len(), 1, "what was reserved for users is held");
        // One that makes something before its first report does not give it back.
        let next = host.process();
        drop(next.admit(&host.store, "made", SIZE, &mut Labels::new()).unwrap());
        report(&next.unconfirmed);
        assert_eq!(host.place().len(), 0);
    }

    /// The volume is there before it has grown, so it is its size that tells.
    #[test]
    fn what_a_volume_grows_by_is_held_until_it_has_grown() {
        let host = Host::new();
        host.store.create_volume("disk", SIZE / 2).unwrap();
        let gate = host.process();
        let grow = || gate.grow(&host.store, "disk", SIZE / 2..SIZE);
        let is_full = || gate.admit(&host.store, "other", SIZE / 2, &mut Labels::new()).err().map(|error| error.kind());
        let first = grow().unwrap();
        assert_eq!(is_full(), Some(ErrorKind::NoSpace));
        first.conclude(Err::<(), _>(Error::new(ErrorKind::NoSpace, "no room"))).unwrap_err();
        grow().unwrap().conclude(host.store.resize("disk", SIZE, false)).unwrap();
        assert_eq!(is_full(), Some(ErrorKind::NoSpace));
        // An image has what its layers hold, whatever its size.
        let labels = Labels::from([(IMAGE_LABEL.to_owned(), "app:v1".to_owned())]);
        host.store.create_volume_with("app", SIZE, &VolumeOptions::default().with_labels(labels)).unwrap();
        gate.grow(&host.store, "app", SIZE..SIZE * 100).unwrap();
        assert_eq!(gate.grow(&host.store, "disk", SIZE..SIZE + 1).err().unwrap().kind(), ErrorKind::NoSpace);
    }

    /// A fork of a size of its own has its labels before it has its size.
    #[test]
    fn a_volume_that_is_not_whole_confirms_no_reservation() {
        let host = Host::new();
        let admission = host.process().admit(&host.store, "disk", SIZE, &mut host.labels.clone()).unwrap();
        let unfinished = Labels::from([(UNFINISHED_LABEL.to_owned(), "disk.importing-1".to_owned())]);
        let labels = host.labels.clone().into_iter().chain(unfinished).collect();
        let volume = host.store.create_volume_with("disk.importing-1", SIZE / 4, &VolumeOptions::default().with_labels(labels)).unwrap();
        Publisher::new(host.fleet.clone()).publish(host.facts.amounts(&host.store).unwrap(), now()).unwrap();
        assert_eq!(host.place().len(), 0, "the room that the volume grows to is held");
        volume.resize(SIZE, false).unwrap();
        host.store.set_labels("disk.importing-1", host.labels.clone()).unwrap();
        host.store.rename("disk.importing-1", "disk").unwrap();
        admission.conclude(Ok(())).unwrap();
        Publisher::new(host.fleet.clone()).publish(host.facts.amounts(&host.store).unwrap(), now()).unwrap();
        assert_eq!(host.place().len(), 1);
        assert_eq!(host.place().len(), 0);
    }
}
