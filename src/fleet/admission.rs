//! A host that makes a volume itself: by a reservation that was made for it, or by one that it makes first.
//!
//! Both are decided in the book of the host's zone, from what the host has at that moment and not from what it reported. So a
//! scheduler that reserves at the same time sees it, or is seen. Until the host has reported the volume the reservation stays; its
//! end is put off, so that it outlives the last report in which the volume is not.

use std::collections::BTreeMap;

use super::book::Book;
use super::bucket::{Change, random};
use super::facts::HostFacts;
use super::layout::{self, BOOK_BYTES_MAX, CLOCKS_SECONDS};
use super::shared::{SharedFleet, fleet_of};
use crate::error::{Error, ErrorKind, Result};
use crate::placement::{FleetOptions, HostInventory, HostStatus, Policy, Processors, Request, Reservation, Resources};

/// How long a host that does not say how often it reports is believed.
const UNTOLD_SECONDS: u64 = 300;
/// What the reservations begin with that a host makes itself.
const OWN: &str = "own-";

/// What a host is going to make.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::ErrorKind;
/// use volfork::fleet::{Birth, HostFacts, Publisher, SharedFleet};
/// use volfork::placement::Request;
///
/// let fleet = SharedFleet::open("memory://")?;
/// let facts = HostFacts::parse(r#"{"host": "a", "capacity": {"volume_bytes": 1073741824}}"#)?.complete(directory.path())?;
/// Publisher::new(fleet.clone()).publish(facts.inventory(&store)?, 1_000)?;
///
/// // 1 GiB may be used for volumes: of two that want 600 MiB each, one is admitted.
/// let wanted = Request { volume: "v".into(), volume_bytes: 600 << 20, ..Request::default() };
/// let birth = Birth { wanted: &wanted, grows: false, reservation: None, own: &|| facts.amounts(&store) };
/// fleet.admit(&birth, 1_000)?;
/// assert_eq!(fleet.admit(&birth, 1_000).unwrap_err().kind(), ErrorKind::NoSpace);
/// # Ok(())
/// # }
/// ```
pub struct Birth<'a> {
    /// The volume and its machine; regions, image, snapshot and count do not matter.
    pub wanted: &'a Request,
    /// Whether the volume is there already, and `wanted` is what it grows by.
    pub grows: bool,
    /// The reservation that it uses up; without one, one is made. Only one at a time may name it: that it was used is seen when the
    /// volume is there.
    pub reservation: Option<&'a str>,
    /// What the host has. Asked when the book has been read.
    pub own: &'a dyn Fn() -> Result<HostInventory>,
}

impl std::fmt::Debug for Birth<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Birth")
            .field("wanted", &self.wanted)
            .field("grows", &self.grows)
            .field("reservation", &self.reservation)
            .finish_non_exhaustive()
    }
}

/// What holds room on a host for a volume that is being made.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::fleet::{Birth, HostFacts, Publisher, SharedFleet};
/// use volfork::placement::Request;
///
/// let fleet = SharedFleet::open("memory://")?;
/// let facts = HostFacts::parse(r#"{"host": "a"}"#)?.complete(directory.path())?;
/// Publisher::new(fleet.clone()).publish(facts.inventory(&store)?, 1_000)?;
/// let wanted = Request { volume: "v".into(), volume_bytes: 4096, ..Request::default() };
/// let birth = Birth { wanted: &wanted, grows: false, reservation: None, own: &|| facts.amounts(&store) };
///
/// let admitted = fleet.admit(&birth, 1_000)?;
/// assert_eq!(admitted.resources.volume_bytes, 4096);
/// // The volume was not made after all: the room is free again.
/// fleet.give_back(&admitted)?;
/// assert!(fleet.load()?.reservations.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    /// The reservation.
    pub id: String,
    /// What it holds; the kinds of processors are decided.
    pub resources: Resources,
    /// When it lapsed before it was taken; `None` if it was made for this volume.
    before: Option<u64>,
}

impl SharedFleet {
    /// Holds room on a host for a volume that it makes next, until it has reported it.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] if the volume breaks the capacity of the host or may not be in its zone. For a reservation:
    /// [`ErrorKind::NotFound`] if it is not held, [`ErrorKind::Exists`] if it was used, [`ErrorKind::InvalidInput`] if it is none, is
    /// another host's or too small. The bucket fails.
    pub fn admit(&self, birth: &Birth<'_>, now: u64) -> Result<Admitted> {
        let about = (birth.own)()?;
        layout::check_inventory(&about)?;
        let book = match birth.reservation {
            Some(id) => layout::book_in(id)?.to_owned(),
            None => layout::book_of(&about.region, &about.zone),
        };
        let new = format!("{OWN}{:016x}@{book}", random()?);
        let path = layout::book_path(&book);
        let mut lapses = None;
        let admitted = self.bucket().change(&path, BOOK_BYTES_MAX, |bytes| {
            let mut found = Book::read(&path, bytes)?;
            // After the book, so that no assignment slips between both.
            let own = HostInventory { status: HostStatus::Ok, reported_at: now, ..(birth.own)()? };
            let mut wanted = Request { count: 1, id: birth.reservation.unwrap_or(&new).to_owned(), ..birth.wanted.clone() };
            wanted.regions.clear();
            let taken = birth.reservation.map(|id| take(&mut found, id, &own, &mut wanted, now)).transpose()?;
            // What this host has and has not reported yet stays: schedulers know it from nowhere else. What others have, too: by a
            // clock that is fast, it would be sold again.
            found.reservations.retain(|held| held.host != own.host || held.expires_at > now);
            if let Some(made) = found.reservations.iter().find(|made| made.id == wanted.id) {
                // The answer to an earlier try was lost.
                return Ok(Change::Keep(Ok(Admitted { id: wanted.id, resources: made.resources.clone(), before: None })));
            }
            let others = self.zone(&book, &[], birth.wanted)?.into_iter().filter(|host| host.host != own.host).collect::<Vec<_>>();
            let hold_seconds = own.max_age_seconds(UNTOLD_SECONDS) + CLOCKS_SECONDS;
            let made = match fits(&own, &others, &found, &wanted, hold_seconds, now) {
                Ok(made) => made,
                // As for a scheduler: something may have been counted twice.
                Err(why) => return Ok(Change::KeepIfSame(Err(refused(birth, &why)))),
            };
            // If the answer to an earlier try was lost, its end was put off already.
            lapses = lapses.or(taken.as_ref().map(|taken| taken.expires_at));
            // A reservation that is taken goes on to hold what it held.
            let resources = made.resources.clone();
            let held = Reservation { expires_at: made.expires_at.max(lapses.unwrap_or(0)), ..taken.unwrap_or(made) };
            found.reservations.push(held);
            Ok(Change::Write(found.next(&path)?, Ok(Admitted { id: wanted.id, resources, before: lapses })))
        });
        admitted?
    }

    /// Gives back what this host made itself: a process that died left it. To be called after a report of what there is, and before
    /// anything else is admitted.
    ///
    /// # Errors
    /// The bucket fails. What was made lapses then.
    pub fn give_back_own(&self, own: &HostFacts) -> Result<()> {
        let path = layout::book_path(&layout::book_of(&own.region, &own.zone));
        self.take_out(&path, |held| held.host == own.host && held.id.starts_with(OWN)).map(drop)
    }

    /// The volume was not made: a reservation that was taken is as it was before, one that was made for it is gone.
    ///
    /// # Errors
    /// The bucket fails. The reservation lapses then.
    pub fn give_back(&self, admitted: &Admitted) -> Result<()> {
        let path = layout::book_path(layout::book_in(&admitted.id)?);
        self.bucket().change(&path, BOOK_BYTES_MAX, |bytes| {
            let mut found = Book::read(&path, bytes)?;
            let Some(at) = found.reservations.iter().position(|held| held.id == admitted.id) else { return Ok(Change::Keep(())) };
            match admitted.before {
                Some(expires_at) => found.reservations[at].expires_at = expires_at,
                None => drop(found.reservations.remove(at)),
            }
            Ok(Change::Write(found.next(&path)?, ()))
        })
    }
}

/// Takes a reservation out of the book, if it is good for what is wanted on this host.
fn take(book: &mut Book, id: &str, own: &HostInventory, wanted: &mut Request, now: u64) -> Result<Reservation> {
    let refused = |kind, why: String| Err(Error::new(kind, format!("reservation {id} {why}")));
    if own.assignments.iter().any(|used| used == id) {
        return refused(ErrorKind::Exists, "was used up by another volume of this host: reserve again".into());
    }
    let Some(at) = book.reservations.iter().position(|held| held.id == id) else {
        return refused(ErrorKind::NotFound, "is not held: it was never made, was used, was released, or has lapsed".into());
    };
    let held = book.reservations.remove(at);
    if held.host != own.host {
        return refused(ErrorKind::InvalidInput, format!("is for host '{}', and this is '{}'", held.host, own.host));
    }
    if layout::book_in(id)? != layout::book_of(&own.region, &own.zone) {
        // What is reserved in the zone where it is now is in another book, and would not be counted.
        return refused(ErrorKind::InvalidInput, format!("was made before this host came to zone '{}': reserve again", own.zone));
    }
    if held.expires_at <= now {
        return refused(ErrorKind::NotFound, format!("lapsed {} s ago: reserve again", now - held.expires_at));
    }
    // "Any kind" was decided when it was reserved.
    let decided = |asked: &mut Processors, reserved: &BTreeMap<String, u32>| {
        if asked.kind.is_empty() && asked.count > 0 {
            asked.kind = reserved.keys().next().cloned().unwrap_or_default();
        }
        (asked.count > 0).then(|| (asked.kind.clone(), asked.count))
    };
    let compute = &mut wanted.compute;
    let needed = Resources {
        cpus: decided(&mut compute.cpus, &held.resources.cpus).into_iter().collect(),
        gpus: compute.gpus.iter_mut().filter_map(|gpus| decided(gpus, &held.resources.gpus)).collect(),
        memory_bytes: compute.memory_bytes,
        volume_bytes: wanted.volume_bytes,
    };
    match held.resources.lacking(&needed) {
        Some(lack) => refused(ErrorKind::InvalidInput, format!("is too small: of what it holds, {lack}; reserve as much as is needed")),
        None => Ok(held),
    }
}

/// What would hold room for `wanted` on the host `own`, beside all that the book holds; or why nothing does.
fn fits(
    own: &HostInventory,
    others: &[HostInventory],
    book: &Book,
    wanted: &Request,
    hold_seconds: u64,
    now: u64,
) -> std::result::Result<Reservation, String> {
    // What the others have matters, and they are no choice.
    let others = others.iter().map(|host| HostInventory { status: HostStatus::Draining, ..host.clone() });
    let hosts: Vec<_> = others.chain([own.clone()]).collect();
    let options = FleetOptions { reservation_seconds: hold_seconds, ..FleetOptions::default() };
    let mut placement = fleet_of(&hosts, &book.reservations, options, now).place(wanted, &Policy::CapacityOnly, now);
    if let Some(placed) = placement.placed.pop() {
        return Ok(placed.reservation);
    }
    let nearest = placement.nothing.as_ref().and_then(|nothing| nothing.nearest.as_ref()).map(ToString::to_string);
    Err(nearest.or(placement.refused).unwrap_or_else(|| format!("{} takes no machines", own.host)))
}

fn refused(birth: &Birth<'_>, why: &str) -> Error {
    let message = match birth.grows {
        true => format!("the volume may not grow on this host: {why}; free room there first, or let it grow by less"),
        false => format!("volume '{}' may not be made on this host: {why}; place it on another one", birth.wanted.volume),
    };
    Error::new(ErrorKind::NoSpace, message)
}
