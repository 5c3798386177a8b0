//! A host tells what it has.

use super::bucket::Change;
use super::layout::{self, INVENTORY_BYTES_MAX};
use super::shared::SharedFleet;
use crate::error::{Error, ErrorKind, Result};
use crate::placement::{HostInventory, InventoryDelta};

/// A report that would say nothing new is left out for so long.
const SILENCE_SECONDS: u64 = 30;
/// Changes up to this size are worth an object of their own.
const DELTA_BYTES_MIN: usize = 4096;

/// What a report cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// Everything was written.
    Whole,
    /// The changes since everything was written last.
    Changes,
    /// There is nothing new, and the last report is young.
    Nothing,
}

/// The reports of one host. Everything is written at first, and again when the changes have grown to a quarter of it; in between
/// only the changes since then. A host has one publisher at a time.
pub struct Publisher {
    fleet: SharedFleet,
    /// What was written whole, and its bytes.
    whole: Option<(HostInventory, usize)>,
    /// What was told last.
    told: HostInventory,
    /// The assignments of it that were taken out of the reservations.
    confirmed: Vec<String>,
}

impl Publisher {
    /// Reports to a fleet.
    pub fn new(fleet: SharedFleet) -> Self {
        Self { fleet, whole: None, told: HostInventory::default(), confirmed: Vec::new() }
    }

    /// Reports what a host has at `now`, in seconds since the Unix epoch; the generation is found here.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for names that are no names; [`ErrorKind::Busy`] if somebody else reports for this host too (the
    /// next report of this one is then written whole); the fleet cannot be reached.
    pub fn publish(&mut self, mut inventory: HostInventory, now: u64) -> Result<Published> {
        check(&inventory)?;
        inventory.reported_at = now;
        inventory.generation = self.told.generation;
        let age = now.saturating_sub(self.told.reported_at);
        if self.whole.is_some()
            && age < SILENCE_SECONDS
            && (HostInventory { reported_at: self.told.reported_at, ..inventory.clone() }) == self.told
        {
            return Ok(Published::Nothing);
        }
        inventory.generation += 1;
        let published = match self.delta(&inventory)? {
            Some((delta, bytes)) => self.publish_delta(&delta, bytes).map(|()| Published::Changes),
            None => self.publish_whole(&mut inventory).map(|()| Published::Whole),
        };
        if let Err(error) = published {
            // What is there now is not known.
            self.whole = None;
            return Err(error);
        }
        self.told = inventory;
        self.confirm()?;
        published
    }

    /// Takes what the host reports now out of the reservations: if the volume is destroyed later, nothing is left of it. After the
    /// report, so that it counts at every moment.
    fn confirm(&mut self) -> Result<()> {
        let HostInventory { region, zone, assignments, .. } = &self.told;
        if assignments.iter().any(|id| !self.confirmed.contains(id)) {
            self.fleet.confirm(region, zone, assignments)?;
        }
        self.confirmed.clone_from(assignments);
        Ok(())
    }

    /// The changes since everything was written, if they are worth it.
    fn delta(&self, inventory: &HostInventory) -> Result<Option<(InventoryDelta, Vec<u8>)>> {
        let Some((whole, whole_bytes)) = &self.whole else { return Ok(None) };
        let delta = whole.delta_to(inventory);
        let bytes = layout::write(&layout::delta_path(&inventory.host), &delta)?;
        Ok((bytes.len() <= DELTA_BYTES_MIN.max(whole_bytes / 4)).then_some((delta, bytes)))
    }

    fn publish_delta(&self, delta: &InventoryDelta, bytes: Vec<u8>) -> Result<()> {
        let path = layout::delta_path(&delta.host);
        self.fleet.bucket().change(&path, INVENTORY_BYTES_MAX, |found| {
            // One that cannot be read is of no use to anyone.
            let found = found.and_then(|bytes| layout::parse::<InventoryDelta>(&path, bytes).ok());
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
        let expected = self.whole.as_ref().map(|(whole, _)| whole.generation);
        // The generations of changes go on from those of what was written whole, so the next whole one comes after both.
        let delta = self.fleet.bucket().read(&layout::delta_path(&inventory.host), INVENTORY_BYTES_MAX)?;
        let delta = delta.and_then(|bytes| layout::parse::<InventoryDelta>("delta", &bytes).ok()).map_or(0, |delta| delta.generation);
        let bytes = self.fleet.bucket().change(&path, INVENTORY_BYTES_MAX, |found| {
            let found = found.and_then(|bytes| layout::parse::<HostInventory>(&path, bytes).ok()).map(|found| found.generation);
            if expected.is_some() && expected != found {
                return Err(twice(&inventory.host));
            }
            inventory.generation = inventory.generation.max(found.unwrap_or(0).max(delta).saturating_add(1));
            let bytes = layout::write(&path, inventory)?;
            if bytes.len() as u64 > INVENTORY_BYTES_MAX {
                let message = format!("the inventory of host '{}' has {} bytes: too many to report", inventory.host, bytes.len());
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            let length = bytes.len();
            Ok(Change::Write(bytes, length))
        })?;
        self.whole = Some((inventory.clone(), bytes));
        Ok(())
    }
}

/// Refuses an inventory whose names are no names.
pub(super) fn check(inventory: &HostInventory) -> Result<()> {
    layout::valid_name("host", &inventory.host, true)?;
    layout::valid_name("region", &inventory.region, false)?;
    layout::valid_name("zone", &inventory.zone, false)
}

fn twice(host: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("somebody else reports for host '{host}' too: give each host a name of its own"))
}
