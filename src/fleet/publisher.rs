//! A host tells what it has.

use super::bucket::Change;
use super::layout::{self, GENERATION_MAX, INVENTORY_BYTES_MAX};
use super::shared::SharedFleet;
use crate::error::{Error, ErrorKind, Result};
use crate::place::wide;
use crate::placement::{HostInventory, InventoryDelta};

/// How long a host that does not say how often it reports leaves out reports that say nothing new.
const SILENCE_SECONDS: u64 = 30;
/// Changes up to this size are worth an object of their own.
const DELTA_BYTES_MIN: usize = 4096;

/// What a report cost.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::fleet::{Published, Publisher, SharedFleet};
/// use volfork::placement::HostInventory;
///
/// let mut publisher = Publisher::new(SharedFleet::open("memory://")?);
/// let (host, region, zone) = ("a".to_owned(), "ams".to_owned(), "a".to_owned());
/// let inventory = HostInventory { host, region, zone, report_every_seconds: 10, ..HostInventory::default() };
/// assert_eq!(publisher.publish(inventory.clone(), 1_000)?, Published::Whole);
/// // Nothing is new, and no report is due.
/// assert_eq!(publisher.publish(inventory.clone(), 1_001)?, Published::Nothing);
/// assert_eq!(publisher.publish(inventory, 1_010)?, Published::Changes);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Published {
    /// Everything was written.
    Whole,
    /// The changes since everything was written last.
    Changes,
    /// There is nothing new, and the last report is young.
    Nothing,
}

/// What was written whole.
struct Whole {
    inventory: HostInventory,
    bytes: usize,
    /// By which the bucket tells this version of it from others, if it does.
    tag: Option<String>,
}

/// The reports of one host. Everything is written at first, and again when the changes have grown to a quarter of it, or what was
/// written whole is not there any more; in between only the changes since then. A host has one publisher at a time.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::fleet::{HostFacts, Publisher, SharedFleet};
///
/// let fleet = SharedFleet::open("memory://")?;
/// let facts = HostFacts::parse(r#"{"host": "host-1"}"#)?.complete(directory.path())?;
/// let mut publisher = Publisher::new(fleet.clone());
/// // Every few seconds, and at once after a change. `now` is in seconds since the Unix epoch.
/// for now in [1_000, 1_010] {
///     store.create_volume(&format!("v{now}"), 1 << 20)?;
///     publisher.publish(facts.inventory(&store)?, now)?;
/// }
/// let host = fleet.host("host-1")?;
/// assert_eq!((host.volumes.len(), host.reported_at), (2, 1_010));
/// # Ok(())
/// # }
/// ```
pub struct Publisher {
    fleet: SharedFleet,
    whole: Option<Whole>,
    /// What was told last.
    told: HostInventory,
    /// The assignments of it that were taken out of the reservations.
    confirmed: Vec<String>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Reports to a fleet.
    pub fn new(fleet: SharedFleet) -> Self {
        Self { fleet, whole: None, told: HostInventory::default(), confirmed: Vec::new() }
    }

    /// Reports what a host has at `now`, in seconds since the Unix epoch; the generation is found here.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for names that are no names; [`ErrorKind::Busy`] if another process reports for this host too (the
    /// next report of this one is then written whole); the fleet cannot be reached.
    pub fn publish(&mut self, mut inventory: HostInventory, now: u64) -> Result<Published> {
        layout::check_inventory(&inventory)?;
        inventory.reported_at = now;
        inventory.generation = self.told.generation;
        let every = if inventory.report_every_seconds == 0 { SILENCE_SECONDS } else { inventory.report_every_seconds };
        // A clock that was set back says nothing of when the next one is due.
        let is_due = now.checked_sub(self.told.reported_at).is_none_or(|age| age >= every);
        if self.whole.is_some()
            && !is_due
            && inventory.assignments == self.confirmed
            && (HostInventory { reported_at: self.told.reported_at, ..inventory.clone() }) == self.told
        {
            return Ok(Published::Nothing);
        }
        inventory.generation += 1;
        let published = self.publish_next(&mut inventory);
        if let Err(error) = published {
            // What is there now is not known.
            self.whole = None;
            return Err(error);
        }
        self.told = inventory;
        self.confirm()?;
        published
    }

    fn publish_next(&mut self, inventory: &mut HostInventory) -> Result<Published> {
        match self.delta(inventory)? {
            Some((delta, bytes)) if self.is_there(&delta.host)? => self.publish_delta(&delta, bytes).map(|()| Published::Changes),
            _ => self.publish_whole(inventory).map(|()| Published::Whole),
        }
    }

    /// Whether what was written whole is there as it was written: changes mean nothing without it.
    fn is_there(&self, host: &str) -> Result<bool> {
        let found = self.fleet.bucket().tag(&layout::host_path(host))?;
        let written = self.whole.as_ref().and_then(|whole| whole.tag.as_ref());
        Ok(found.is_some_and(|found| found.as_ref().zip(written).is_none_or(|(found, written)| found == written)))
    }

    /// Removes the reservations of volumes that the host reports now, so that a volume that is destroyed later leaves none behind. It
    /// follows the report, so that the room of the volume is counted at every moment.
    fn confirm(&mut self) -> Result<()> {
        let HostInventory { host, assignments, .. } = &self.told;
        let new: Vec<String> = assignments.iter().filter(|id| !self.confirmed.contains(id)).cloned().collect();
        self.fleet.confirm(host, &new)?;
        self.confirmed.clone_from(assignments);
        Ok(())
    }

    /// The changes since everything was written, if they are worth it.
    fn delta(&self, inventory: &HostInventory) -> Result<Option<(InventoryDelta, Vec<u8>)>> {
        let Some(Whole { inventory: whole, bytes: whole_bytes, .. }) = &self.whole else { return Ok(None) };
        let delta = whole.delta_to(inventory);
        let bytes = layout::write(&layout::delta_path(&inventory.host), &delta)?;
        Ok((bytes.len() <= DELTA_BYTES_MIN.max(whole_bytes / 4)).then_some((delta, bytes)))
    }

    fn publish_delta(&self, delta: &InventoryDelta, bytes: Vec<u8>) -> Result<()> {
        let path = layout::delta_path(&delta.host);
        self.fleet.bucket().change(&path, INVENTORY_BYTES_MAX, |found| {
            // One that cannot be read is of no use to anyone.
            let found = found.and_then(|bytes| layout::parse::<InventoryDelta>(&path, bytes).ok()).filter(layout::is_sane);
            match found {
                // The answer to an earlier try was lost.
                Some(found) if found == *delta => Ok(Change::Keep(())),
                Some(found) if (found.base, found.generation) >= (delta.base, delta.generation) => Err(twice(&delta.host)),
                _ => Ok(Change::Write(bytes.clone(), ())),
            }
        })
    }

    fn publish_whole(&mut self, inventory: &mut HostInventory) -> Result<()> {
        let path = layout::host_path(&inventory.host);
        let expected = self.whole.as_ref().map(|whole| whole.inventory.generation);
        // The generations of changes go on from those of what was written whole, so the next whole one comes after both.
        let delta = self.fleet.bucket().read(&layout::delta_path(&inventory.host), INVENTORY_BYTES_MAX)?;
        let delta = delta
            .and_then(|bytes| layout::parse::<InventoryDelta>("delta", &bytes).ok())
            .filter(layout::is_sane)
            .map_or(0, |delta| delta.generation);
        let (bytes, tag) = self.fleet.bucket().change_tagged(&path, INVENTORY_BYTES_MAX, |found| {
            let found = found.and_then(|bytes| layout::parse::<HostInventory>(&path, bytes).ok()).map(|found| found.generation);
            let found = found.filter(|found| *found <= GENERATION_MAX);
            // One that is gone or older was wiped or restored; a newer one is that of another process.
            if expected.is_some() && found > expected {
                return Err(twice(&inventory.host));
            }
            inventory.generation = inventory.generation.max(found.unwrap_or(0).max(delta) + 1);
            let bytes = layout::write(&path, inventory)?;
            if wide(bytes.len()) > INVENTORY_BYTES_MAX {
                let message = format!("the inventory of host '{}' has {} bytes: too many to report", inventory.host, bytes.len());
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            let length = bytes.len();
            Ok(Change::Write(bytes, length))
        })?;
        self.whole = Some(Whole { inventory: inventory.clone(), bytes, tag });
        Ok(())
    }
}

fn twice(host: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("somebody else reports for host '{host}' too: give each host a name of its own"))
}
