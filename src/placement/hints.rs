//! Hints about the machine of a volume before it exists, as labels of the volume.
//!
//! ```text
//! vm.cpus  vm.cpu-kind  vm.gpus  vm.gpu-kind  vm.memory    numbers, kinds, bytes
//! vm.image                                                 what it starts from
//! vm.app                                                   the application it belongs to
//! zone.unique  zone.unique-app-wide                        "true"
//! volfork.reservation                                      the reservation that the volume uses up
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::inventory::{Processors, Resources};
use super::request::Compute;
use crate::error::{Error, ErrorKind, Remedy, Result};

const CPUS: &str = "vm.cpus";
const CPU_KIND: &str = "vm.cpu-kind";
const GPUS: &str = "vm.gpus";
const GPU_KIND: &str = "vm.gpu-kind";
const MEMORY: &str = "vm.memory";
const IMAGE: &str = "vm.image";
const APP: &str = "vm.app";
const UNIQUE_ZONE: &str = "zone.unique";
const UNIQUE_ZONE_APP_WIDE: &str = "zone.unique-app-wide";

/// Label of a volume that uses up a reservation: its id.
pub const RESERVATION_LABEL: &str = "volfork.reservation";

/// Hints about a volume's machine, and where it may be.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::placement::{Compute, MachineHints, Processors};
/// use volfork::volume::VolumeOptions;
///
/// let cpus = Processors { kind: "shared".into(), count: 2 };
/// let compute = Compute { cpus, memory_bytes: 4 << 30, ..Compute::default() };
/// let hints = MachineHints { compute, app: "shop".into(), ..MachineHints::default() };
/// // Kept as labels, so that the host's report counts the machine, and a fork inherits them.
/// store.create_volume_with("m1", 1 << 30, &VolumeOptions::default().with_labels(hints.labels()))?;
/// let labels = store.show("m1")?.labels;
/// assert_eq!((labels["vm.cpus"].as_str(), labels["vm.app"].as_str()), ("2", "shop"));
/// assert_eq!(MachineHints::from_labels(&labels)?, hints);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineHints {
    /// Processors and memory that the machine needs.
    pub compute: Compute,
    /// Image that it starts from.
    pub image: Option<String>,
    /// The application it belongs to, or empty.
    pub app: String,
    /// No other volume of the same app and name may be in the zone.
    pub require_unique_zone: bool,
    /// No other volume of the same app may be in the zone.
    pub unique_zone_app_wide: bool,
}

impl MachineHints {
    /// As labels; what is not known has none.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let number = |number: u64| if number == 0 { String::new() } else { number.to_string() };
        let flag = |set: bool| if set { "true".to_owned() } else { String::new() };
        let gpus = self.compute.gpus.clone().unwrap_or_default();
        let all = [
            (CPUS, number(self.compute.cpus.count.into())),
            (CPU_KIND, self.compute.cpus.kind.clone()),
            (GPUS, number(gpus.count.into())),
            (GPU_KIND, gpus.kind),
            (MEMORY, number(self.compute.memory_bytes)),
            (IMAGE, self.image.clone().unwrap_or_default()),
            (APP, self.app.clone()),
            (UNIQUE_ZONE, flag(self.require_unique_zone)),
            (UNIQUE_ZONE_APP_WIDE, flag(self.unique_zone_app_wide)),
        ];
        all.into_iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// From the labels of a volume.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a value that is no number.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Result<Self> {
        let text = |key: &str| labels.get(key).cloned().unwrap_or_default();
        let gpus = Processors { kind: text(GPU_KIND), count: number(labels, GPUS)? };
        Ok(Self {
            compute: Compute {
                cpus: Processors { kind: text(CPU_KIND), count: number(labels, CPUS)? },
                gpus: (gpus.count > 0).then_some(gpus),
                memory_bytes: number(labels, MEMORY)?,
            },
            image: labels.get(IMAGE).cloned(),
            app: text(APP),
            require_unique_zone: text(UNIQUE_ZONE) == "true",
            unique_zone_app_wide: text(UNIQUE_ZONE_APP_WIDE) == "true",
        })
    }

    /// With the kinds of processors that were decided on, where none was asked for.
    pub fn of_kinds(mut self, decided: &Resources) -> Self {
        let kind = |asked: &mut Processors, decided: &BTreeMap<String, u32>| {
            if asked.count > 0 && asked.kind.is_empty() {
                asked.kind = decided.keys().next().cloned().unwrap_or_default();
            }
        };
        kind(&mut self.compute.cpus, &decided.cpus);
        if let Some(gpus) = &mut self.compute.gpus {
            kind(gpus, &decided.gpus);
        }
        self
    }

    /// These hints, completed by the labels of a source. Labels of what is known here are not looked at.
    ///
    /// # Errors
    /// As [`MachineHints::from_labels`].
    pub fn or_labels(&self, labels: &BTreeMap<String, String>) -> Result<Self> {
        let mut all = labels.clone();
        all.extend(self.labels());
        Self::from_labels(&all)
    }
}

fn number<N: std::str::FromStr + Default>(labels: &BTreeMap<String, String>, key: &str) -> Result<N> {
    let Some(value) = labels.get(key) else { return Ok(N::default()) };
    value.parse().map_err(|_| {
        let message = format!("the label {key} is '{value}', which is not a number: correct the label");
        Error::remediable(ErrorKind::InvalidInput, message, Remedy::CorrectLabel(key.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> MachineHints {
        MachineHints {
            compute: Compute {
                cpus: Processors { kind: "performance".into(), count: 4 },
                gpus: Some(Processors { kind: "a100".into(), count: 1 }),
                memory_bytes: 8 << 30,
            },
            image: Some("registry.example/app:v1".into()),
            app: "shop".into(),
            require_unique_zone: true,
            unique_zone_app_wide: true,
        }
    }

    #[test]
    fn labels_keep_everything() {
        let labels = full().labels();
        assert_eq!(labels.len(), 9);
        assert_eq!(MachineHints::from_labels(&labels).unwrap(), full());
        assert_eq!(MachineHints::default().labels(), BTreeMap::new());
        assert_eq!(MachineHints::from_labels(&BTreeMap::new()).unwrap(), MachineHints::default());
        let wrong = [("vm.cpus".to_owned(), "many".to_owned())].into();
        assert!(MachineHints::from_labels(&wrong).unwrap_err().to_string().contains("vm.cpus"));
    }

    #[test]
    fn what_is_told_goes_before_what_is_inherited() {
        let told = MachineHints { app: "blog".into(), ..MachineHints::default() };
        assert_eq!(told.or_labels(&full().labels()).unwrap(), MachineHints { app: "blog".into(), ..full() });
        assert_eq!(full().or_labels(&told.labels()).unwrap(), full());
        // A number of accelerators is told, and their kind inherited.
        let mut told = MachineHints {
            compute: Compute { gpus: Some(Processors { count: 2, ..Processors::default() }), ..Compute::default() },
            ..MachineHints::default()
        };
        let inherited = told.or_labels(&full().labels()).unwrap().compute.gpus;
        assert_eq!(inherited, Some(Processors { kind: "a100".into(), count: 2 }));
        // A label that is no number harms only a caller that needs it.
        let mut labels = full().labels();
        labels.insert(CPUS.into(), "many".into());
        assert!(told.or_labels(&labels).unwrap_err().to_string().contains("correct the label"));
        told.compute.cpus.count = 1;
        let found = told.or_labels(&labels).unwrap().compute;
        assert_eq!((found.cpus.count, found.memory_bytes), (1, full().compute.memory_bytes));
    }
}
