//! All hosts, indexed so that a request costs little and a change costs as much as what changed.
//!
//! # Invariants
//!
//! - The index is what adding all inventories and reservations to an empty one would give; only its numbers of hosts may differ, and
//!   no answer depends on them.
//! - A reservation is held for a known host which does not list it among its assignments.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::index::{Fetching, Index};
use super::inventory::{HostInventory, InventoryDelta, Resources};
use super::request::Request;
use super::reservation::Reservation;
use super::scores::normal_name;
use crate::error::{Error, ErrorKind, Result};
use crate::options::with_methods;
use crate::place::index;

/// Rules of a fleet.
///
/// ```
/// # use volfork::placement;
/// # fn host(name: &str, cpus: u32) -> placement::HostInventory {
/// #     let cpus = [("shared".to_owned(), cpus)].into();
/// #     let capacity = placement::Resources { cpus, memory_bytes: 64 << 30, volume_bytes: 1 << 40, ..Default::default() };
/// #     let (host, region, zone) = (name.to_owned(), "ams".to_owned(), name.to_owned());
/// #     placement::HostInventory { host, region, zone, capacity, reported_at: 1_000, ..Default::default() }
/// # }
/// # fn machine(id: &str, cpus: u32) -> placement::Request {
/// #     let compute = placement::Compute { cpus: placement::Processors { kind: String::new(), count: cpus }, ..Default::default() };
/// #     placement::Request { id: id.into(), volume: id.into(), volume_bytes: 1 << 30, compute, ..Default::default() }
/// # }
/// use volfork::placement::{Fleet, FleetOptions, Policy};
///
/// let mut fleet = Fleet::with_options(FleetOptions::default().with_max_age_seconds(60));
/// fleet.report(host("a", 8)); // At second 1,000.
/// assert_eq!(fleet.rank(&machine("m", 4), &Policy::default(), 1_060).fitting, 1);
/// assert_eq!(fleet.rank(&machine("m", 4), &Policy::default(), 1_061).fitting, 0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FleetOptions {
    /// Age in seconds after which the report of a host is stale, if the host does not say how often it reports. A host that says so is
    /// stale after three missed reports ([`HostInventory::is_stale`]). A stale host gets no machines. Default 300.
    pub max_age_seconds: u64,
    /// How long [`Fleet::place`] holds capacity for an assignment that its host does not report. Default 120 seconds.
    pub reservation_seconds: u64,
}

with_methods! { FleetOptions:
    with_max_age_seconds(max_age_seconds: u64);
    with_reservation_seconds(reservation_seconds: u64);
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self { max_age_seconds: 300, reservation_seconds: 120 }
    }
}

#[derive(Debug, Default)]
struct Slot {
    inventory: HostInventory,
    fetching: Fetching,
    /// Names of what is reserved here.
    reserved: BTreeSet<String>,
}

/// All hosts and the assignments that they have not reported yet.
///
/// ```
/// use volfork::placement::{Compute, Fleet, HostInventory, Policy, Processors, Request, Resources};
///
/// let mut fleet = Fleet::new();
/// for (name, cpus) in [("small", 2), ("large", 16)] {
///     let cpus = [("shared".to_owned(), cpus)].into();
///     let capacity = Resources { cpus, memory_bytes: 64 << 30, volume_bytes: 1 << 40, ..Resources::default() };
///     fleet.report(HostInventory { host: name.into(), capacity, reported_at: 1_000, ..HostInventory::default() });
/// }
/// let cpus = Processors { kind: "shared".into(), count: 4 };
/// let compute = Compute { cpus, memory_bytes: 8 << 30, ..Compute::default() };
/// let request = Request { id: "m1".into(), volume: "m1".into(), volume_bytes: 10 << 30, compute, ..Request::default() };
///
/// // `now` is in seconds since the Unix epoch.
/// let placement = fleet.place(&request, &Policy::default(), 1_000);
/// assert_eq!(placement.placed[0].reservation.host, "large");
/// // The room is held until the host reports the machine.
/// assert_eq!(fleet.reservations().count(), 1);
/// ```
#[derive(Debug, Default)]
pub struct Fleet {
    options: FleetOptions,
    pub(super) index: Index,
    numbers: BTreeMap<String, u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    pub(super) reservations: BTreeMap<String, Reservation>,
    expiries: BTreeSet<(u64, String)>,
}

impl Fleet {
    /// A fleet of no hosts with the default rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fleet of no hosts.
    pub fn with_options(options: FleetOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// The rules.
    pub fn options(&self) -> FleetOptions {
        self.options
    }

    /// Takes a full report of a host, new or known; whether it was taken. One that is older than what is known is ignored.
    pub fn report(&mut self, inventory: HostInventory) -> bool {
        let number = match self.numbers.get(&inventory.host) {
            Some(&number) => {
                if self.inventory(number).generation > inventory.generation {
                    return false;
                }
                number
            }
            None => self.add(&inventory),
        };
        let delta = self.inventory(number).delta_to(&inventory);
        self.follow(number, &delta);
        self.slots[index(number)].inventory = inventory;
        self.confirm(number);
        true
    }

    /// Takes a change since the last report.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown host, [`ErrorKind::InvalidInput`] if the change is not one to the generation that is
    /// known: the host must send a full report.
    pub fn apply(&mut self, delta: &InventoryDelta) -> Result<()> {
        let number = self.number(&delta.host)?;
        self.inventory(number).check(delta)?;
        self.follow(number, delta);
        self.slots[index(number)].inventory.apply(delta)?;
        self.confirm(number);
        Ok(())
    }

    /// Forgets a host and what is reserved on it; whether it was known.
    pub fn remove(&mut self, host: &str) -> bool {
        let Some(&number) = self.numbers.get(host) else { return false };
        for id in std::mem::take(&mut self.slots[index(number)].reserved) {
            self.forget(&id);
        }
        let empty = HostInventory { host: host.to_owned(), ..HostInventory::default() };
        let everything_goes = self.inventory(number).delta_to(&empty);
        self.index.follow(number, &self.slots[index(number)].inventory, &everything_goes);
        let Slot { fetching, .. } = &mut self.slots[index(number)];
        self.index.refresh(number, &empty, fetching, std::iter::empty());
        self.index.remove(number);
        self.slots[index(number)] = Slot::default();
        self.numbers.remove(host);
        self.free.push(number);
        true
    }

    /// The inventory of a host, as far as it is known.
    pub fn host(&self, name: &str) -> Option<&HostInventory> {
        self.numbers.get(name).map(|number| self.inventory(*number))
    }

    /// All hosts, by name.
    pub fn hosts(&self) -> impl Iterator<Item = &HostInventory> {
        self.numbers.values().map(|number| self.inventory(*number))
    }

    /// How many hosts are known.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Reservations that are held, by name.
    pub fn reservations(&self) -> impl Iterator<Item = &Reservation> {
        self.reservations.values()
    }

    /// Holds capacity for an assignment until its host reports it (its inventory lists the id under `assignments`), it is released
    /// or expires. One that the host has reported already holds nothing.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown host, [`ErrorKind::Exists`] if another assignment has that id,
    /// [`ErrorKind::NoSpace`] if it does not fit.
    pub fn reserve(&mut self, reservation: Reservation) -> Result<()> {
        let number = self.number(&reservation.host)?;
        let new = self.is_new(number, &reservation) && !self.reservations.contains_key(&reservation.id);
        if let Some(lack) = self.left(number).lacking(&reservation.resources).filter(|_| new) {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("assignment '{}' does not fit on host '{}': {lack}; rank the hosts again", reservation.id, reservation.host),
            ));
        }
        self.hold(reservation)
    }

    /// Holds capacity for an assignment that was decided elsewhere, whether it fits or not.
    ///
    /// # Errors
    /// As [`Fleet::reserve`], but never [`ErrorKind::NoSpace`].
    pub fn hold(&mut self, reservation: Reservation) -> Result<()> {
        let number = self.number(&reservation.host)?;
        if let Some(other) = self.reservations.get(&reservation.id) {
            if *other == reservation {
                return Ok(());
            }
            return Err(Error::new(
                ErrorKind::Exists,
                format!("assignment '{}' is held on host '{}' already: release it first, or choose another id", other.id, other.host),
            ));
        }
        if !self.is_new(number, &reservation) {
            return Ok(());
        }
        let zone = self.index.rows[index(number)].zone;
        self.index.apps.add(&reservation.app, zone, &reservation.volume);
        self.slots[index(number)].reserved.insert(reservation.id.clone());
        self.expiries.insert((reservation.expires_at, reservation.id.clone()));
        self.reservations.insert(reservation.id.clone(), reservation);
        self.refresh(number);
        Ok(())
    }

    /// Gives back what a reservation holds; whether there was one.
    pub fn release(&mut self, id: &str) -> bool {
        let Some(number) = self.forget(id) else { return false };
        self.slots[index(number)].reserved.remove(id);
        self.refresh(number);
        true
    }

    /// Releases what has lapsed by `now`.
    pub fn expire(&mut self, now: u64) {
        while let Some((_, id)) = self.expiries.first().filter(|(at, _)| *at <= now).cloned() {
            self.release(&id);
        }
    }

    /// Bytes on the heap of the index: what ranking needs beside the inventories.
    pub fn index_bytes(&self) -> usize {
        self.index.memory_bytes()
    }

    pub(super) fn inventory(&self, number: u32) -> &HostInventory {
        &self.slots[index(number)].inventory
    }

    pub(super) fn name(&self, number: u32) -> &str {
        &self.inventory(number).host
    }

    /// The hosts that have a store.
    pub(super) fn numbers_of(&self, store: &str) -> impl Iterator<Item = u32> {
        self.numbers.values().copied().filter(move |number| !store.is_empty() && self.inventory(*number).store == store)
    }

    /// Bytes of an image by its name with a tag; the largest if a host tells several.
    pub(super) fn image_bytes(&self, number: u32, name: &str) -> u64 {
        let images = &self.inventory(number).images;
        let short = name.strip_suffix(":latest").filter(|short| normal_name(short) == name);
        [Some(name), short].into_iter().flatten().filter_map(|name| images.get(name)).copied().max().unwrap_or(0)
    }

    /// The resources that the request uses up on a host. "Any kind" becomes the kind of which most are free, the first by name among
    /// equals.
    pub(super) fn resources_for(&self, number: u32, request: &Request) -> Resources {
        let left = self.left(number);
        let chosen = |wanted: &super::inventory::Processors, left: &BTreeMap<String, u32>| {
            let most = || left.iter().max_by_key(|(kind, free)| (**free, std::cmp::Reverse(*kind))).map(|(kind, _)| kind.clone());
            let kind = if wanted.kind.is_empty() { most().unwrap_or_default() } else { wanted.kind.clone() };
            (wanted.count > 0).then_some((kind, wanted.count))
        };
        let compute = &request.compute;
        Resources {
            cpus: chosen(&compute.cpus, &left.cpus).into_iter().collect(),
            gpus: compute.gpus.iter().filter_map(|gpus| chosen(gpus, &left.gpus)).collect(),
            memory_bytes: compute.memory_bytes,
            volume_bytes: request.volume_bytes,
        }
    }

    /// The resources of a host that are neither in use nor reserved.
    fn left(&self, number: u32) -> Resources {
        let Slot { inventory, reserved, .. } = &self.slots[index(number)];
        let mut taken = inventory.used.clone();
        for id in reserved {
            taken.add(&self.reservations[id].resources);
        }
        inventory.capacity.without(&taken)
    }

    fn number(&self, host: &str) -> Result<u32> {
        self.numbers.get(host).copied().ok_or_else(|| {
            let shown: String = host.chars().take(100).collect();
            Error::new(ErrorKind::NotFound, format!("host '{shown}' is not known: let it send a full report first"))
        })
    }

    pub(super) fn is_new(&self, number: u32, reservation: &Reservation) -> bool {
        !self.inventory(number).assignments.contains(&reservation.id)
    }

    fn add(&mut self, inventory: &HostInventory) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 hosts")
        });
        self.index.add(number, inventory);
        let HostInventory { host, region, zone, .. } = inventory;
        let bare = HostInventory { host: host.clone(), region: region.clone(), zone: zone.clone(), ..HostInventory::default() };
        self.slots[index(number)].inventory = bare;
        self.numbers.insert(host.clone(), number);
        number
    }

    /// Lets the index follow a change that is about to be made.
    fn follow(&mut self, number: u32, delta: &InventoryDelta) {
        let slot = &self.slots[index(number)];
        if delta.region.is_some() || delta.zone.is_some() {
            self.move_host(number, delta);
            return;
        }
        self.index.follow(number, &slot.inventory, delta);
    }

    /// A host that changes its zone takes its volumes and what is reserved along.
    fn move_host(&mut self, number: u32, delta: &InventoryDelta) {
        let Slot { inventory, reserved, .. } = &mut self.slots[index(number)];
        let before = self.index.rows[index(number)];
        let volumes: Vec<_> = inventory.volumes.values().map(|volume| (volume.app.clone(), volume.name.clone())).collect();
        let held = reserved.iter().map(|id| &self.reservations[id]).map(|one| (one.app.clone(), one.volume.clone()));
        let along: Vec<_> = volumes.into_iter().chain(held).collect();
        for (app, volume) in &along {
            self.index.apps.take(app, before.zone, volume);
        }
        inventory.region = delta.region.clone().unwrap_or_else(|| inventory.region.clone());
        inventory.zone = delta.zone.clone().unwrap_or_else(|| inventory.zone.clone());
        self.index.add(number, inventory);
        self.index.regions.give_back(before.region);
        self.index.zones.give_back(before.zone);
        let zone = self.index.rows[index(number)].zone;
        for (app, volume) in &along {
            self.index.apps.add(app, zone, volume);
        }
        self.index.follow(number, inventory, delta);
    }

    /// Drops reservations that a host has reported, and computes its numbers anew.
    fn confirm(&mut self, number: u32) {
        let Slot { inventory, reserved, .. } = &mut self.slots[index(number)];
        if !reserved.is_empty() {
            let reported: HashSet<&String> = inventory.assignments.iter().collect();
            let confirmed: Vec<String> = reserved.iter().filter(|id| reported.contains(id)).cloned().collect();
            reserved.retain(|id| !reported.contains(id));
            for id in confirmed {
                self.forget(&id);
            }
        }
        self.refresh(number);
    }

    /// Forgets a reservation but for its host's numbers; the number of the host.
    fn forget(&mut self, id: &str) -> Option<u32> {
        let reservation = self.reservations.remove(id)?;
        let number = self.numbers[&reservation.host];
        let zone = self.index.rows[index(number)].zone;
        self.index.apps.take(&reservation.app, zone, &reservation.volume);
        self.expiries.remove(&(reservation.expires_at, reservation.id));
        Some(number)
    }

    fn refresh(&mut self, number: u32) {
        let Slot { inventory, fetching, reserved } = &mut self.slots[index(number)];
        self.index.refresh(number, inventory, fetching, reserved.iter().map(|id| &self.reservations[id]));
    }
}
