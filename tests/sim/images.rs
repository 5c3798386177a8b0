//! Crashes around image layers, labels and limits.

use volfork::content::{Digest, HeldLayer, ImageLayer};
use volfork::volume::VolumeLimits;

use crate::model::{SnapshotModel, VolumeModel};
use crate::world::{Outcome, World};

impl World {
    /// A snapshot that is a layer of an image.
    pub fn snapshot_image(&mut self, name: &str) -> Outcome {
        let snapshot = self.new_name();
        let chain = Digest::of(snapshot.as_bytes());
        let mut after = self.sealed(name);
        let volume = after.get_mut(name).expect("named by the model");
        let content = SnapshotModel { sectors: volume.live.clone(), size_bytes: volume.size_bytes, chain: Some(chain) };
        volume.snapshots.insert(snapshot.clone(), content.clone());
        // Even if the power goes off in the middle: then the layer is there, or is not.
        self.images.insert(chain, content);
        let held = HeldLayer { layer: ImageLayer { digest: chain, bytes: 1 }, chain };
        self.change(format!("snapshot image {name} {snapshot}"), after, |store| store.snapshot_image(name, &snapshot, held))
    }

    /// A fork of a layer of an image, whoever still refers to it.
    pub fn fork_image(&mut self) -> Outcome {
        let held = self.store().held_layers();
        if held.is_empty() {
            return Ok(());
        }
        let chain = held[self.random.below(held.len() as u64) as usize].chain;
        let fork = self.new_name();
        let mut after = self.model.clone();
        let content = self.images[&chain].clone();
        after.insert(fork.clone(), VolumeModel::new(content.sectors, content.size_bytes));
        self.change(format!("fork image {chain} {fork}"), after, |store| store.fork(&chain, &fork).map(drop))
    }

    /// Other labels.
    pub fn relabel(&mut self, name: &str) -> Outcome {
        let value = self.new_name();
        let mut after = self.model.clone();
        let labels = &mut after.get_mut(name).expect("named by the model").labels;
        labels.insert(format!("k{}", value.len()), value.clone());
        let labels = labels.clone();
        self.change(format!("label {name} {value}"), after, |store| store.set_labels(name, labels))
    }

    /// Other limits of the clients, or none.
    pub fn limit(&mut self, name: &str) -> Outcome {
        let iops = self.random.below(4);
        let limits = if iops == 0 { VolumeLimits::default() } else { VolumeLimits::default().with_iops(iops) };
        let mut after = self.model.clone();
        after.get_mut(name).expect("named by the model").limits = limits;
        self.change(format!("limit {name} {iops}"), after, |store| store.set_limits(name, limits))
    }

    /// Every layer of an image that a snapshot shows is listed.
    pub fn compare_images(&self) {
        let held: Vec<_> = self.store().held_layers().into_iter().map(|held| held.chain).collect();
        for (name, volume) in &self.model {
            for chain in volume.snapshots.values().filter_map(|snapshot| snapshot.chain) {
                assert!(held.contains(&chain), "{name}: chain {chain} is not held\n{}", self.story());
            }
        }
    }
}
