//! The hosts of a fleet and their reservations, as they are in the bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::book::Book;
use super::bucket::{self, Bucket, Change};
use super::layout::{self, BOOK_BYTES_MAX, CLOCKS_SECONDS, INVENTORY_BYTES_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::place::BlockSize;
use crate::placement::{Fleet, FleetOptions, HostInventory, InventoryDelta, Nothing, Placed, Placement, Policy, Request, Reservation};

/// How often a host that reports at the same moment is read again.
const READS_MAX: u32 = 16;
/// How far a clock may be from that of the bucket. Any two that are not refused then agree to within what a host allows for.
const CLOCK_SECONDS: u64 = CLOCKS_SECONDS / 2;
/// How often another host is looked for because others were faster.
const TRIES_MAX: u32 = 64;

/// The shared state of many hosts. Cheap to clone.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # use volfork::fleet::Publisher;
/// # use volfork::placement::{HostInventory, Resources};
/// use volfork::fleet::SharedFleet;
/// use volfork::placement::{FleetOptions, Policy, Request};
///
/// // All hosts reach it: `s3://BUCKET/PREFIX`, or a directory.
/// let fleet = SharedFleet::open("memory://")?;
/// # let capacity = Resources { volume_bytes: 1 << 40, ..Resources::default() };
/// # let (host, region, zone) = ("host-1".to_owned(), "ams".to_owned(), "rack-7".to_owned());
/// # Publisher::new(fleet.clone()).publish(HostInventory { host, region, zone, capacity, ..HostInventory::default() }, 1_000)?;
/// let request = Request { id: "deploy-42".into(), volume: "db".into(), volume_bytes: 10 << 30, ..Request::default() };
/// let placement = fleet.place(&request, &Policy::default(), FleetOptions::default(), 1_000)?;
/// // The host makes the volume with this id in the label `volfork.reservation`.
/// let reservation = &placement.placed[0].reservation;
/// assert_eq!((reservation.host.as_str(), reservation.expires_at), ("host-1", 1_120));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SharedFleet(Arc<Bucket>);

impl std::fmt::Debug for SharedFleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedFleet").finish_non_exhaustive()
    }
}

/// An object that is left out of the fleet.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::fleet::SharedFleet;
///
/// std::fs::create_dir(directory.path().join("hosts")).unwrap();
/// std::fs::write(directory.path().join("hosts/a.json"), "no JSON").unwrap();
/// let fleet = SharedFleet::open(directory.path().to_str().unwrap())?;
/// // A broken object takes its own host out of the fleet, and harms no other.
/// let view = fleet.load()?;
/// assert!(view.hosts.is_empty());
/// assert_eq!(view.unreadable[0].object, "hosts/a.json");
/// assert!(!view.unreadable[0].reason.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Its path.
    pub object: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// A fleet at one moment.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # use volfork::fleet::Publisher;
/// # use volfork::placement::HostInventory;
/// use volfork::fleet::{FleetView, SharedFleet};
/// use volfork::placement::{FleetOptions, Policy, Request};
///
/// let fleet = SharedFleet::open("memory://")?;
/// # let (host, region, zone) = ("host-1".to_owned(), "ams".to_owned(), "rack-7".to_owned());
/// # Publisher::new(fleet.clone()).publish(HostInventory { host, region, zone, ..HostInventory::default() }, 1_000)?;
/// // Read once, ranked as often as needed: nothing is reserved.
/// let view: FleetView = fleet.load()?;
/// assert_eq!((view.hosts.len(), view.reservations.len(), view.unreadable.len()), (1, 0, 0));
/// let ranking = view.fleet(FleetOptions::default(), 1_000).rank(&Request::default(), &Policy::default(), 1_000);
/// assert_eq!(ranking.hosts[0].host, "host-1");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FleetView {
    /// The hosts, by name.
    pub hosts: Vec<HostInventory>,
    /// Assignments that no host has reported yet, some of them perhaps lapsed.
    pub reservations: Vec<Reservation>,
    /// What could not be read; its hosts are left out.
    pub unreadable: Vec<Unreadable>,
}

impl FleetView {
    /// For ranking at `now`, in seconds since the Unix epoch.
    pub fn fleet(&self, options: FleetOptions, now: u64) -> Fleet {
        fleet_of(&self.hosts, &self.reservations, options, now)
    }
}

pub(super) fn fleet_of(hosts: &[HostInventory], reservations: &[Reservation], options: FleetOptions, now: u64) -> Fleet {
    let mut fleet = Fleet::with_options(options);
    for host in hosts {
        fleet.report(host.clone());
    }
    for reservation in reservations {
        // What is held on a host that is not there any more, or twice, holds nothing.
        let _ = fleet.hold(reservation.clone());
    }
    fleet.expire(now);
    fleet
}

/// What became of a try to reserve in a zone.
enum Claim {
    Made(Box<Placed>),
    /// Nothing fits any more: what the zone is like now.
    Refused(Vec<HostInventory>, Vec<Reservation>),
}

/// By which rules a request is placed, and when.
#[derive(Clone, Copy)]
struct Rules<'a> {
    policy: &'a Policy,
    options: FleetOptions,
    now: u64,
}

impl SharedFleet {
    /// The fleet in a directory (a path or `file:///DIRECTORY`), or a bucket (`s3://BUCKET/PREFIX`; credentials, region and
    /// endpoint come from the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL` and
    /// so on). `memory://` is an empty one for tests. A bucket is not asked anything yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an address that is not understood, [`ErrorKind::NotFound`] for a directory that is missing.
    pub fn open(url: &str) -> Result<Self> {
        Ok(Self(Arc::new(Bucket::open(url)?)))
    }

    pub(super) fn bucket(&self) -> &Bucket {
        &self.0
    }

    /// Reads everything.
    ///
    /// # Errors
    /// The bucket fails. What is broken in it is told in the answer.
    pub fn load(&self) -> Result<FleetView> {
        let mut view = FleetView::default();
        let hosts = self.names_in(layout::HOSTS, &mut view)?;
        // Before the hosts, so that an assignment that is reported meanwhile is seen at least once.
        let closed = self.load_books(&mut view)?;
        for (host, inventory) in hosts.iter().zip(self.hosts(&hosts)) {
            match inventory {
                Ok(inventory) if closed.contains(&layout::book_of(&inventory.region, &inventory.zone)) => {}
                Ok(inventory) => view.hosts.push(inventory),
                // It was removed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => view.unreadable.push(Unreadable { object: layout::host_path(host), reason: error.to_string() }),
            }
        }
        Ok(view)
    }

    /// Names of the objects of a folder; others that lie there are told.
    fn names_in(&self, folder: &str, view: &mut FleetView) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for path in self.0.list(folder)? {
            match layout::name_in(folder, &path)
                .filter(|name| layout::valid_name("object", name, true).is_ok() || folder == layout::RESERVATIONS)
            {
                Some(name) => names.push(name.to_owned()),
                None => view.unreadable.push(Unreadable { reason: "it does not belong here: remove it".into(), object: path }),
            }
        }
        Ok(names)
    }

    /// Reads the books into `view`; answers those that cannot be read, in whose zones nothing may be placed.
    fn load_books(&self, view: &mut FleetView) -> Result<BTreeSet<String>> {
        let books = self.names_in(layout::RESERVATIONS, view)?;
        let paths: Vec<_> = books.iter().map(|book| [layout::book_path(book)]).collect();
        let mut closed = BTreeSet::new();
        let read = self.0.read_all(&paths, BOOK_BYTES_MAX, |number, [bytes]| Book::read(&paths[number][0], bytes.as_deref()));
        for ((name, [path]), book) in books.into_iter().zip(&paths).zip(read) {
            match book {
                Ok(book) => view.reservations.extend(book.reservations),
                Err(error) => {
                    view.unreadable.push(Unreadable { object: path.clone(), reason: error.to_string() });
                    closed.insert(name);
                }
            }
        }
        Ok(closed)
    }

    /// What one host has.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Corrupt`] for an object that is not what it should be; the bucket fails.
    pub fn host(&self, host: &str) -> Result<HostInventory> {
        layout::valid_name("host", host, true)?;
        self.hosts(&[host.to_owned()]).remove(0)
    }

    /// What these hosts have, in their order; each may fail alone, as [`SharedFleet::host`] does. Many are read at the same time.
    fn hosts(&self, names: &[String]) -> Vec<Result<HostInventory>> {
        let mut found: Vec<_> = names.iter().map(|_| Ok(None)).collect();
        for _ in 0..READS_MAX {
            // At first all of them; then those that reported at that moment.
            let left: Vec<usize> = (0..names.len()).filter(|at| matches!(found[*at], Ok(None))).collect();
            let paths: Vec<_> = left.iter().map(|at| paths_of(&names[*at])).collect();
            let combine = |number: usize, [whole, delta]: [Option<Vec<u8>>; 2]| self.combine(&names[left[number]], whole, delta);
            for (at, read) in left.iter().zip(self.0.read_all(&paths, INVENTORY_BYTES_MAX, combine)) {
                found[*at] = read;
            }
        }
        let newer =
            |[path, delta_path]: [String; 2]| Error::new(ErrorKind::Corrupt, format!("{delta_path} belongs to a newer {path}: remove it"));
        found.into_iter().zip(names).map(|(found, host)| found?.ok_or_else(|| newer(paths_of(host)))).collect()
    }

    /// The hosts of a zone: those of `known` that are still there. If the request wants a zone without certain volumes, all hosts are
    /// read, since one that has come to the zone after `known` was read may have brought such a volume.
    ///
    /// # Errors
    /// The bucket fails.
    pub(super) fn zone(&self, book: &str, known: &[String], request: &Request) -> Result<Vec<HostInventory>> {
        let is_whole = request.require_unique_zone || request.unique_zone_app_wide;
        let all = is_whole.then(|| self.names_in(layout::HOSTS, &mut FleetView::default())).transpose()?;
        let is_there = |host: &Result<HostInventory>| match host {
            Ok(host) => layout::book_of(&host.region, &host.zone) == book,
            found => !is_out(found),
        };
        self.hosts(all.as_deref().unwrap_or(known)).into_iter().filter(is_there).collect()
    }

    /// A host from the two objects that tell of it; `None` if they do not belong together, since a report is under way.
    fn combine(&self, host: &str, whole: Option<Vec<u8>>, delta: Option<Vec<u8>>) -> Result<Option<HostInventory>> {
        match whole {
            Some(whole) => combine(host, &whole, delta.as_deref()),
            None => Err(Error::new(ErrorKind::NotFound, format!("host '{host}' has not reported to {}", self.0.name()))),
        }
    }

    /// Refuses a clock that is far from that of the bucket: by one that is fast, reservations of others lapse before their time, and
    /// by one that is slow, its own. To be asked before [`SharedFleet::place`] and [`SharedFleet::admit`]. `now` tells seconds since
    /// the Unix epoch.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`]; the bucket fails.
    pub fn check_clock(&self, now: impl Fn() -> u64) -> Result<()> {
        let before = now();
        let there = self.0.time()?;
        let (ahead, behind) = (before.saturating_sub(there), there.saturating_sub(now()));
        let (seconds, how) = if ahead > 0 { (ahead, "ahead of") } else { (behind, "behind") };
        if seconds <= CLOCK_SECONDS {
            return Ok(());
        }
        let message = format!(
            "the clock of this machine is {seconds} s {how} that of {}, so reservations would lapse before their time: set it; at most \
             {CLOCK_SECONDS} s are taken",
            self.0.name()
        );
        Err(Error::new(ErrorKind::InvalidInput, message))
    }

    /// Ranks the hosts for a request, and reserves the best one, as often as the request says. What others reserve at the same time
    /// is seen; nobody oversells a host, and a reservation is on one host only.
    ///
    /// Reservations lapse `options.reservation_seconds` after `now` unless their hosts report them, that is, a volume with the label
    /// [`RESERVATION_LABEL`](crate::placement::RESERVATION_LABEL) is there.
    ///
    /// # Errors
    /// The bucket fails (then what was reserved already lapses); [`ErrorKind::Busy`] if others were faster too often.
    pub fn place(&self, request: &Request, policy: &Policy, options: FleetOptions, now: u64) -> Result<Placement> {
        self.place_in(&self.load()?, request, policy, options, now)
    }

    /// As [`SharedFleet::place`], for those who have just read the fleet: `view` says where to look first.
    ///
    /// # Errors
    /// As there.
    pub fn place_in(&self, view: &FleetView, request: &Request, policy: &Policy, options: FleetOptions, now: u64) -> Result<Placement> {
        let rules = Rules { policy, options, now };
        let mut fleet = view.fleet(options, now);
        let mut placement = Placement::begin(request, policy);
        while placement.left > 0 && placement.refused.is_none() {
            match self.place_one(&mut fleet, request, rules)? {
                Ok(placed) => placement.placed.push(placed),
                Err(nothing) => {
                    placement.nothing = Some(nothing);
                    break;
                }
            }
            placement.left -= 1;
        }
        Ok(placement)
    }

    /// Reserves once; `fleet` may be older than the bucket.
    fn place_one(&self, fleet: &mut Fleet, request: &Request, rules: Rules<'_>) -> Result<std::result::Result<Placed, Nothing>> {
        let mut one = Request { count: 1, id: format!("{:016x}", bucket::random()?), ..request.clone() };
        let random = one.id.clone();
        for _ in 0..TRIES_MAX {
            one.id.clone_from(&random);
            let ranking = fleet.rank(&one, rules.policy, rules.now);
            let (best, nothing) = (ranking.hosts.first(), ranking.nothing);
            let Some(best) = best else {
                let none = Nothing { constraint: crate::placement::Constraint::Known, excluded: Vec::new(), nearest: None };
                return Ok(Err(nothing.unwrap_or(none)));
            };
            let in_zone = |host: &&HostInventory| host.region == best.region && host.zone == best.zone;
            let zone: Vec<String> = fleet.hosts().filter(in_zone).map(|host| host.host.clone()).collect();
            let book = layout::book_of(&best.region, &best.zone);
            one.id = format!("{random}@{book}");
            match self.claim(&book, &zone, &one, rules)? {
                Claim::Made(placed) => {
                    // The other instances see it. If the host has gone from the view, there is nothing to hold it on.
                    let _ = fleet.hold(placed.reservation.clone());
                    return Ok(Ok(*placed));
                }
                Claim::Refused(hosts, reservations) => {
                    for host in &zone {
                        fleet.remove(host);
                    }
                    for host in hosts {
                        fleet.report(host);
                    }
                    for reservation in reservations {
                        // A reservation on a host that has gone holds nothing.
                        let _ = fleet.hold(reservation);
                    }
                }
            }
        }
        Err(Error::new(ErrorKind::Busy, format!("{}: others were faster {TRIES_MAX} times in a row: try again", self.0.name())))
    }

    /// Reserves on the best host of a zone, by what is true when the reservation is written.
    fn claim(&self, book: &str, zone: &[String], request: &Request, rules: Rules<'_>) -> Result<Claim> {
        let path = layout::book_path(book);
        self.0.change(&path, BOOK_BYTES_MAX, |bytes| {
            let mut found = Book::read(&path, bytes)?;
            // After the book: see the module's head.
            let hosts = self.zone(book, zone, request)?;
            found.clean(&hosts, rules.now);
            if let Some(placed) = found.reservations.iter().find(|made| made.id == request.id) {
                // The answer to an earlier try was lost.
                let ranked = fleet_of(&hosts, &[], rules.options, rules.now).rank(request, rules.policy, rules.now).hosts;
                let ranked = ranked.into_iter().find(|ranked| ranked.host == placed.host).unwrap_or_default();
                return Ok(Change::Keep(Claim::Made(Box::new(Placed { reservation: placed.clone(), ranked }))));
            }
            let mut fleet = fleet_of(&hosts, &found.reservations, rules.options, rules.now);
            match fleet.place(request, rules.policy, rules.now).placed.pop() {
                Some(placed) => {
                    found.reservations.push(placed.reservation.clone());
                    Ok(Change::Write(found.next(&path)?, Claim::Made(Box::new(placed))))
                }
                // An assignment that was reported and taken out of the book after that was read was counted twice.
                None => Ok(Change::KeepIfSame(Claim::Refused(hosts, found.reservations))),
            }
        })
    }

    /// Takes assignments that `host` reports out of their books. Those of other hosts stay.
    pub(super) fn confirm(&self, host: &str, assignments: &[String]) -> Result<()> {
        let mut books: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
        for id in assignments {
            // Labels are the users' own: what is no reservation is in no book.
            books.entry(layout::book_in(id).unwrap_or_default()).or_default().push(id);
        }
        books.remove("");
        for (book, ids) in books {
            let path = layout::book_path(book);
            let confirmed = self.take_out(&path, |held| held.host == host && ids.contains(&&held.id)).map(drop);
            // One that cannot be read holds nothing, and may be of any zone that a label names.
            confirmed.or_else(|error| if error.kind() == ErrorKind::Corrupt { Ok(()) } else { Err(error) })?;
        }
        Ok(())
    }

    /// Takes out of a book what `is_over` says; whether there was something.
    pub(super) fn take_out(&self, path: &str, is_over: impl Fn(&Reservation) -> bool) -> Result<bool> {
        self.0.change(path, BOOK_BYTES_MAX, |bytes| {
            let mut found = Book::read(path, bytes)?;
            let before = found.reservations.len();
            found.reservations.retain(|held| !is_over(held));
            match found.reservations.len() < before {
                true => Ok(Change::Write(found.next(path)?, true)),
                false => Ok(Change::Keep(false)),
            }
        })
    }

    /// Gives back a reservation.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an id that was never given out; [`ErrorKind::NotFound`] if it is not held (any more).
    pub fn release(&self, id: &str) -> Result<()> {
        match self.take_out(&layout::book_path(layout::book_in(id)?), |held| held.id == id)? {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::NotFound,
                format!("reservation {id} is not held: it was released, has lapsed, or its host reports the volume already"),
            )),
        }
    }
}

/// Whether a host is out of the fleet: it has gone, or what tells of it cannot be read.
pub(super) fn is_out(host: &Result<HostInventory>) -> bool {
    let kind = host.as_ref().err().map(Error::kind);
    kind.is_some_and(|kind| matches!(kind, ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::InvalidInput))
}

/// Where a host is told of, whole and what changed since.
fn paths_of(host: &str) -> [String; 2] {
    [layout::host_path(host), layout::delta_path(host)]
}

/// A host from the two objects that tell of it; `None` if they do not belong together, since a report is under way.
fn combine(host: &str, whole: &[u8], delta: Option<&[u8]>) -> Result<Option<HostInventory>> {
    let [path, delta_path] = paths_of(host);
    let mut inventory: HostInventory = layout::parse(&path, whole)?;
    if let Some(delta) = delta {
        let delta: InventoryDelta = layout::parse(&delta_path, delta)?;
        if delta.host != host {
            return Err(Error::new(ErrorKind::Corrupt, format!("{delta_path} tells of host '{}': remove it", delta.host)));
        }
        if delta.base > inventory.generation && layout::is_sane(&delta) {
            return Ok(None);
        }
        if delta.base == inventory.generation {
            inventory.apply(&delta)?;
        }
    }
    let wrong = |reason: &dyn std::fmt::Display| Error::new(ErrorKind::Corrupt, format!("{path}: {reason}; remove it"));
    layout::check_inventory(&inventory).map_err(|error| wrong(&error))?;
    if inventory.host != host {
        return Err(wrong(&format_args!("it tells of host '{}'", inventory.host)));
    }
    if let Some((identity, held)) = inventory.snapshots.iter().find(|(_, held)| BlockSize::new(held.block_bytes).is_err()) {
        // Others count what they need in blocks of this size.
        return Err(wrong(&format_args!("blocks of {} bytes of snapshot {identity} are none of a store", held.block_bytes)));
    }
    Ok(Some(inventory))
}
