//! From a store and what its operator says about the host to what the fleet is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::placement::{Bandwidth, HeldSnapshot, HostInventory, HostStatus, MachineHints, PlacedVolume, RESERVATION_LABEL, Resources};
use crate::store::{Store, UNFINISHED_LABEL};
use crate::volume::Holding;

/// The kind of processors of hosts that do not say.
const CPU_KIND: &str = "shared";

/// What the operator says about a host; a file of these in JSON may leave out anything.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::fleet::HostFacts;
///
/// let facts = HostFacts::parse(r#"{"host": "host-1", "region": "ams", "capacity": {"cpus": {"performance": 32}}}"#)?;
/// // What the operator does not say comes from the machine and from the file system of the store.
/// let facts = facts.complete(directory.path())?;
/// assert_eq!((facts.zone.as_str(), facts.capacity.cpus["performance"]), ("host-1", 32));
/// assert!(facts.capacity.memory_bytes > 0);
///
/// store.create_volume("v", 1 << 20)?;
/// let inventory = facts.inventory(&store)?;
/// assert_eq!((inventory.store, inventory.volumes["v"].size_bytes), (store.id(), 1 << 20));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostFacts {
    /// Name, unique in the fleet. If empty: the machine's.
    pub host: String,
    /// Region. If empty: `local`.
    pub region: String,
    /// Zone: what fails together. If empty: the name of the host, without dots.
    pub zone: String,
    /// Whether it takes machines.
    pub status: HostStatus,
    /// What machines and volumes may use. If it has no processors: the machine's, of kind `shared`; if it has no memory or volume
    /// bytes: that of the machine, and what is free on the store's file system beside what its volumes hold there.
    pub capacity: Resources,
    /// What is in use beside the volumes of the store and their machines.
    pub reserved: Resources,
    /// Links. Default 1 Gbit/s each way.
    pub bandwidth: Bandwidth,
    /// Names of whole images that it holds beside those of the store, and their bytes; only for policies that know nothing of layers.
    pub images: BTreeMap<String, u64>,
    /// Seconds between two reports; 0 if that is not known.
    #[serde(skip)]
    pub report_every_seconds: u64,
    /// Where the room for volumes is looked for, unless the operator says how much there is.
    #[serde(skip)]
    pub room_in: Option<PathBuf>,
}

impl HostFacts {
    /// From the text of a file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`].
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, format!("the facts of the host are not understood: {error}")))
    }

    /// What was left out is found out from the machine and the file system of `store`.
    ///
    /// # Errors
    /// The machine does not tell.
    pub fn complete(mut self, store: &Path) -> Result<Self> {
        if self.host.is_empty() {
            self.host = read("/proc/sys/kernel/hostname")?.trim().to_owned();
        }
        if self.region.is_empty() {
            self.region = "local".into();
        }
        if self.zone.is_empty() {
            self.zone = self.host.replace('.', "-");
        }
        let capacity = &mut self.capacity;
        if capacity.cpus.is_empty() {
            let count = std::thread::available_parallelism().map_err(|error| Error::io("cannot count processors", error))?;
            capacity.cpus.insert(CPU_KIND.into(), u32::try_from(count.get()).unwrap_or(u32::MAX));
        }
        if capacity.memory_bytes == 0 {
            capacity.memory_bytes = memory_bytes(&read("/proc/meminfo")?)?;
        }
        if capacity.volume_bytes == 0 {
            free_bytes(store)?;
            self.room_in = Some(store.to_path_buf());
        }
        Ok(self)
    }

    /// What the fleet is told of `store` on this host: as [`HostFacts::amounts`], and the layers of images and the blocks of
    /// snapshots that are really there.
    ///
    /// # Errors
    /// The store or its file system fails.
    pub fn inventory(&self, store: &Store) -> Result<HostInventory> {
        let mut inventory = self.amounts(store)?;
        inventory.layers = store.held_layers().into_iter().map(|held| (held.layer.digest, held.layer.bytes)).collect();
        let block_bytes = store.block_size().bytes_32();
        let held = |(identity, holding): (String, Holding)| {
            let mut present = holding.present;
            if let Some(present) = &mut present {
                present.optimize();
            }
            (identity, HeldSnapshot { block_bytes, size_bytes: holding.size_bytes, present })
        };
        inventory.snapshots = store.holdings().into_iter().map(held).collect();
        Ok(inventory)
    }

    /// What this host has and uses, without what of which content is there.
    ///
    /// Every volume counts with its size, and with the machine its labels name ([`MachineHints`]); one that was imported as an image
    /// counts with what it holds. One with the label [`RESERVATION_LABEL`] confirms that reservation when it is whole.
    ///
    /// # Errors
    /// The file system of the store fails.
    pub fn amounts(&self, store: &Store) -> Result<HostInventory> {
        let room = store.room();
        let mut inventory = HostInventory {
            host: self.host.clone(),
            store: store.id(),
            region: self.region.clone(),
            zone: self.zone.clone(),
            status: self.status,
            capacity: self.capacity.clone(),
            used: self.reserved.clone(),
            bandwidth: self.bandwidth,
            images: room.images.into_iter().chain(self.images.clone()).collect(),
            report_every_seconds: self.report_every_seconds,
            ..HostInventory::default()
        };
        let mut volume_bytes = room.image_bytes;
        for (name, size_bytes, labels) in store.labels() {
            let own_bytes = if room.image_volumes.contains(&name) { 0 } else { size_bytes };
            volume_bytes = volume_bytes.saturating_add(own_bytes);
            self.count(&mut inventory, name, size_bytes, &labels);
        }
        inventory.used.volume_bytes = inventory.used.volume_bytes.saturating_add(volume_bytes);
        if let Some(path) = &self.room_in {
            // What volumes hold is not free any more, and counts as used. So what is left is what is free, without what volumes
            // may still grow by.
            inventory.capacity.volume_bytes = free_bytes(path)?.saturating_add(room.held_bytes.min(volume_bytes));
        }
        Ok(inventory)
    }

    fn count(&self, inventory: &mut HostInventory, name: String, size_bytes: u64, labels: &BTreeMap<String, String>) {
        // Labels are the users' own; those that say nothing of a machine count as none.
        let hints = MachineHints::from_labels(labels).unwrap_or_default();
        let used = &mut inventory.used;
        used.memory_bytes = used.memory_bytes.saturating_add(hints.compute.memory_bytes);
        let cpus = hints.compute.cpus;
        if cpus.count > 0 {
            add(&mut used.cpus, kind_of(cpus.kind, &self.capacity.cpus, CPU_KIND), cpus.count);
        }
        if let Some(gpus) = hints.compute.gpus {
            add(&mut used.gpus, kind_of(gpus.kind, &self.capacity.gpus, ""), gpus.count);
        }
        // One that is not whole may still grow to what is held for it, and is gone after a crash.
        if let Some(id) = labels.get(RESERVATION_LABEL).filter(|_| !labels.contains_key(UNFINISHED_LABEL)) {
            inventory.assignments.push(id.clone());
        }
        inventory.volumes.insert(name.clone(), PlacedVolume { app: hints.app, name, size_bytes });
    }
}

/// The kind that a machine uses which did not ask for one: that of which there are most, or `otherwise` if there are none.
fn kind_of(asked: String, capacity: &BTreeMap<String, u32>, otherwise: &str) -> String {
    if !asked.is_empty() {
        return asked;
    }
    let most = capacity.iter().max_by_key(|(kind, count)| (**count, std::cmp::Reverse(*kind)));
    most.map_or_else(|| otherwise.to_owned(), |(kind, _)| kind.clone())
}

fn add(map: &mut BTreeMap<String, u32>, kind: String, count: u32) {
    let used = map.entry(kind).or_default();
    *used = used.saturating_add(count);
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| Error::io(format!("cannot read {path}"), error))
}

fn free_bytes(path: &Path) -> Result<u64> {
    let wrong = |error: rustix::io::Errno| Error::io(format!("cannot ask the file system of {}", path.display()), error.into());
    let system = rustix::fs::statvfs(path).map_err(wrong)?;
    Ok(system.f_bavail.saturating_mul(system.f_frsize))
}

fn memory_bytes(meminfo: &str) -> Result<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let total = total.ok_or_else(|| Error::new(ErrorKind::Unsupported, "/proc/meminfo does not tell how much memory there is: give it"))?;
    Ok(total.saturating_mul(1024))
}
