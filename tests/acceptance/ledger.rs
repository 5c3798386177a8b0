//! The oracle of a fleet: which reservations were given, and what each host reports.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use crate::world::{World, wait};

/// What became of a reservation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// Nobody has taken it yet.
    Held,
    /// A volume uses it.
    Used,
    Released,
    Lapsed,
    /// It was in a fleet that was wiped.
    Wiped,
}

/// Every reservation that was ever made.
#[derive(Default)]
pub struct Ledger {
    fates: BTreeMap<String, Fate>,
    /// Bytes that the images of hosts may hold; of others, none.
    images: BTreeMap<String, Range<u64>>,
}

/// Processors and bytes of volumes.
type Amounts = (u64, u64);

fn amounts(resources: &Value) -> Amounts {
    (resources["cpus"]["shared"].as_u64().unwrap_or(0), resources["volume_bytes"].as_u64().unwrap())
}

impl Ledger {
    /// Notes the reservations of a placement; their ids and hosts.
    pub fn made(&mut self, placement: &Value) -> Vec<(String, String)> {
        let made = placement["placed"].as_array().unwrap().iter().map(|placed| {
            let text = |name: &str| placed["reservation"][name].as_str().unwrap().to_owned();
            (text("id"), text("host"))
        });
        let made: Vec<_> = made.collect();
        for (id, _) in &made {
            assert_eq!(self.fates.insert(id.clone(), Fate::Held), None, "{id} was made twice");
        }
        made
    }

    pub fn became(&mut self, id: &str, fate: Fate) {
        let before = self.fates.insert(id.to_owned(), fate);
        assert_eq!(before, Some(Fate::Held), "{id} became {fate:?}");
    }

    /// The volume that used it is destroyed.
    pub fn forget(&mut self, id: &str) {
        assert_eq!(self.fates.remove(id), Some(Fate::Used), "{id}");
    }

    /// Marks all held reservations as lost with a fleet that was wiped.
    pub fn wiped(&mut self) {
        self.fates.values_mut().filter(|fate| **fate == Fate::Held).for_each(|fate| *fate = Fate::Wiped);
    }

    /// The images of a host hold so much from now on.
    pub fn images(&mut self, host: &str, bytes: Range<u64>) {
        self.images.insert(host.to_owned(), bytes);
    }

    /// Whether a host reports what it uses, and so much for its images.
    fn is_used(&self, host: &str, own: Amounts, reported: Amounts) -> bool {
        let image_bytes = reported.1.checked_sub(own.1);
        own.0 == reported.0 && image_bytes.is_some_and(|bytes| self.images.get(host).map_or(bytes == 0, |images| images.contains(&bytes)))
    }

    /// Waits until the ledger agrees with the reports of the hosts, and checks it.
    pub fn balance(&self, world: &World, hosts: &[&str]) {
        wait("the books", || {
            let (reports, reservations) = world.list();
            // A host that is oversold stays so; for a moment a volume may count twice.
            reports.iter().try_for_each(|report| self.is_not_oversold(report, &reservations))?;
            for host in hosts {
                let report = reports.iter().find(|report| report["host"] == *host).ok_or_else(|| format!("{host} is missing"))?;
                let own = own_amounts(world, host);
                if !self.is_used(host, own, amounts(&report["used"])) {
                    return Err(format!("{host} uses {own:?}, and reports {}", report["used"]));
                }
            }
            let mut held: Vec<_> = reservations.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
            held.sort();
            let fated = |wanted: Fate| self.fates.iter().filter(move |(_, fate)| **fate == wanted).map(|(id, _)| id.clone());
            // What has lapsed may lie there until somebody reserves in the zone.
            held.retain(|id| self.fates.get(id) != Some(&Fate::Lapsed));
            let expected: Vec<_> = fated(Fate::Held).collect();
            if held != expected { Err(format!("{held:?} are held, not {expected:?}")) } else { Ok(()) }
        });
        let users: Vec<String> = hosts
            .iter()
            .flat_map(|host| labels(world, host))
            .filter_map(|labels| labels["volfork.reservation"].as_str().map(str::to_owned))
            .collect();
        for (id, fate) in &self.fates {
            let count = users.iter().filter(|user| *user == id).count();
            assert_eq!(count, usize::from(*fate == Fate::Used), "{id} is {fate:?}");
        }
    }

    fn is_not_oversold(&self, report: &Value, reservations: &[Value]) -> Result<(), String> {
        let confirmed = report["assignments"].as_array().unwrap();
        let of_host = |one: &&Value| one["host"] == report["host"] && !confirmed.contains(&one["id"]);
        let lapsed = |one: &&Value| self.fates.get(one["id"].as_str().unwrap()) == Some(&Fate::Lapsed);
        let held = reservations.iter().filter(of_host).filter(|one| !lapsed(one)).map(|one| amounts(&one["resources"]));
        let sum = held.fold(amounts(&report["used"]), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let capacity = amounts(&report["capacity"]);
        match sum.0 <= capacity.0 && sum.1 <= capacity.1 {
            true => Ok(()),
            false => Err(format!("{}: {sum:?} of {capacity:?} are taken, {reservations:?}", report["host"])),
        }
    }
}

fn labels(world: &World, host: &str) -> Vec<Value> {
    world.ok(host, &["list"]).as_array().unwrap().iter().map(|volume| volume["labels"].clone()).collect()
}

/// What the volumes of a host use, by its own word; images hold what their layers hold.
fn own_amounts(world: &World, host: &str) -> Amounts {
    let volumes = world.ok(host, &["list"]);
    let cpus = |volume: &Value| volume["labels"]["vm.cpus"].as_str().map_or(0, |count| count.parse().unwrap());
    let own = volumes.as_array().unwrap().iter().filter(|volume| !is_image(volume));
    own.fold((0, 0), |sum, volume| (sum.0 + cpus(volume), sum.1 + volume["size_bytes"].as_u64().unwrap()))
}

/// Whether a volume was made from an image, and not from another volume.
fn is_image(volume: &Value) -> bool {
    let is_labeled = ["image", "volfork.layers-of"].iter().any(|label| volume["labels"][label].is_string());
    is_labeled && volume["parent"].as_str().is_none_or(|parent| parent.starts_with("sha256:"))
}
