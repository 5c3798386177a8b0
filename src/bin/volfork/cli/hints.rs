//! Arguments about the machine that uses a volume.

use std::collections::BTreeMap;

use clap::Args;
use volfork::placement::{Compute, MachineHints, Processors, RESERVATION_LABEL};

use crate::request::size::size;

/// The machine that will use a volume.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Machine")]
pub struct HintArguments {
    /// Processors of the machine that will use the volume
    #[arg(long, value_name = "N")]
    pub vm_cpus: Option<u32>,
    /// Their kind, as the hosts name it
    #[arg(long, value_name = "KIND")]
    pub vm_cpu_kind: Option<String>,
    /// Its memory, for example 2G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub vm_memory: Option<u64>,
    /// Its accelerators
    #[arg(long, value_name = "N")]
    pub vm_gpus: Option<u32>,
    /// Their kind
    #[arg(long, value_name = "KIND", requires = "vm_gpus")]
    pub vm_gpu_kind: Option<String>,
    /// The image it starts from
    #[arg(long, value_name = "REF", visible_alias = "image")]
    pub compute_image: Option<String>,
    /// The application it belongs to
    #[arg(long, value_name = "NAME")]
    pub app: Option<String>,
    /// No other volume of the same app and name may be in its zone
    #[arg(long)]
    pub require_unique_zone: bool,
    /// No other volume of the same app may be in its zone
    #[arg(long)]
    pub unique_zone_app_wide: bool,
}

impl HintArguments {
    /// As placement hints.
    pub fn hints(self) -> MachineHints {
        let gpus = self.vm_gpus.map(|count| Processors { kind: self.vm_gpu_kind.unwrap_or_default(), count });
        MachineHints {
            compute: Compute {
                cpus: Processors { kind: self.vm_cpu_kind.unwrap_or_default(), count: self.vm_cpus.unwrap_or(0) },
                gpus,
                memory_bytes: self.vm_memory.unwrap_or(0),
            },
            image: self.compute_image,
            app: self.app.unwrap_or_default(),
            require_unique_zone: self.require_unique_zone,
            unique_zone_app_wide: self.unique_zone_app_wide,
        }
    }
}

/// What a new volume is for.
#[derive(Args, Clone, Debug, Default)]
pub struct PurposeArguments {
    /// The machine that will use it; kept as labels of the volume, for placement
    #[command(flatten)]
    hints: HintArguments,
    /// The reservation that the volume uses up, as 'place --reserve' printed it
    #[arg(long, value_name = "ID")]
    reservation: Option<String>,
    /// Make it even if it breaks the capacity of this host, a rule about its zone, or the reservation
    #[arg(long)]
    pub force: bool,
}

impl PurposeArguments {
    /// The labels of a new volume.
    pub fn labels(self) -> BTreeMap<String, String> {
        let mut labels = self.hints.hints().labels();
        labels.extend(self.reservation.map(|id| (RESERVATION_LABEL.to_owned(), id)));
        labels
    }

    /// Changes to the labels that a fork inherits. A reservation is for one volume, so it is never inherited.
    pub fn fork_labels(self) -> BTreeMap<String, Option<String>> {
        let mut change: BTreeMap<_, _> = self.hints.hints().labels().into_iter().map(|(key, value)| (key, Some(value))).collect();
        change.insert(RESERVATION_LABEL.to_owned(), self.reservation);
        change
    }
}
