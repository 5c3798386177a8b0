//! Compares a store that was opened after a loss of power with what the oracle allows, and makes the result the new truth.

use std::collections::BTreeMap;
use std::sync::Arc;

use volfork::{Result as Outcome, Store};

use crate::bytes::tags_of;
use crate::image::SECTOR;
use crate::oracle::{Birth, Content, Oracle, SnapshotKey, VolumeKey};
use crate::plan::Plan;
use crate::sector::Tag;

type Found = Result<(), String>;

/// The tags of the window of something with this size.
pub fn read_tags(plan: &Plan, sectors: u64, read: impl Fn(&mut [u8], u64) -> Outcome<()>) -> Result<Vec<Tag>, String> {
    let mut bytes = vec![0xee; sectors as usize * SECTOR];
    read(&mut bytes, plan.start()).map_err(|error| format!("cannot be read: {error}"))?;
    tags_of(&bytes, 0)
}

/// The size of something is found; `asked` is the size that a resize under way asked for.
fn settle(plan: &Plan, content: &mut Content, size_bytes: u64, asked: Option<u64>) -> Found {
    let sectors = plan.sectors(size_bytes);
    if plan.size_bytes(sectors) != size_bytes || !content.size.survivors().contains(&sectors) {
        return Err(format!("has {sectors} sectors of the window ({size_bytes} bytes); sizes: {}", content.size.describe()));
    }
    *content = content.survivors();
    match asked {
        Some(size) if size != sectors => {
            content.size = crate::sector::Sector::of([sectors]);
            // Writes behind this end were acknowledged before the resize was, and may be lost with it.
            for sector in content.sectors.iter_mut().skip(sectors as usize) {
                *sector = crate::sector::Sector::of(sector.survivors().into_iter().chain([0]));
            }
        }
        _ => content.settle_size(sectors),
    }
    Ok(())
}

struct Survey<'a> {
    plan: &'a Plan,
    before: &'a Oracle,
    after: Oracle,
}

/// Takes the shape of an opened store for that of the oracle, if it is one that is allowed.
pub fn accept(plan: &Plan, store: &Store, before: &Oracle) -> Result<Oracle, String> {
    let mut after = before.clone();
    after.births.clear();
    after.forget_calls();
    let (volumes, snapshots) = (std::mem::take(&mut after.volumes), std::mem::take(&mut after.snapshots));
    let mut survey = Survey { plan, before, after };
    let list = store.list().map_err(|error| format!("list: {error}"))?;
    let mut found: BTreeMap<String, _> = list.into_iter().map(|info| (info.name.clone(), info)).collect();
    for (key, model) in volumes {
        let names = [Some(model.name.clone()), model.renaming.clone()];
        let mut here: Vec<_> = names.into_iter().flatten().filter_map(|name| found.remove(&name)).collect();
        match (here.pop(), here.pop()) {
            (None, _) if model.dying => {}
            (None, _) => return Err(format!("volume {} is gone", model.name)),
            (Some(_), Some(_)) => return Err(format!("volume {} is there with both names", model.name)),
            (Some(info), None) => {
                let mut model = Arc::unwrap_or_clone(model);
                let asked = model.resizing.take();
                settle(plan, &mut model.content, info.size_bytes, asked).map_err(|error| format!("volume {}: {error}", info.name))?;
                (model.name, model.renaming, model.dying, model.claims) = (info.name.clone(), None, false, 0);
                survey.after.volumes.insert(key, Arc::new(model));
                survey.snapshots(store, key, &info.name, info.snapshots, &snapshots)?;
            }
        }
    }
    for (name, info) in found {
        let birth = before.births.values().find(|birth| birth.name == name && birth.snapshot_of.is_none());
        let birth = birth.ok_or_else(|| format!("there is a volume {name}, which nobody asked for"))?;
        let key = survey.born(birth, info.size_bytes).map_err(|error| format!("fork {name}: {error}"))?;
        survey.snapshots(store, key, &name, info.snapshots, &snapshots)?;
    }
    let mut after = survey.after;
    compare(plan, store, &mut after)?;
    Ok(after)
}

impl Survey<'_> {
    /// Something that was asked for and not acknowledged is there.
    fn born(&mut self, birth: &Birth, size_bytes: u64) -> Result<u64, String> {
        let content = self.before.content_of(&birth.origin, birth.asked);
        let mut content = content.ok_or_else(|| "what it was made of had gone before".to_owned())?;
        settle(self.plan, &mut content, size_bytes, None)?;
        Ok(self.after.add(birth.clone(), content))
    }

    fn snapshots(
        &mut self,
        store: &Store,
        volume: VolumeKey,
        name: &str,
        mut found: Vec<String>,
        models: &BTreeMap<SnapshotKey, Arc<crate::oracle::SnapshotModel>>,
    ) -> Found {
        let size = |snapshot: &str| {
            let open = store.snapshot(name, snapshot).map_err(|error| format!("snapshot {name}@{snapshot}: {error}"))?;
            Ok::<u64, String>(open.size_bytes())
        };
        for (key, model) in models.iter().filter(|(_, model)| model.volume == volume && !model.gone) {
            let at = found.iter().position(|found| *found == model.name);
            match at {
                None if model.dying => {}
                None => return Err(format!("snapshot {name}@{} is gone", model.name)),
                Some(at) => {
                    let mut model = Arc::unwrap_or_clone(Arc::clone(model));
                    settle(self.plan, &mut model.content, size(&found.swap_remove(at))?, None)
                        .map_err(|error| format!("snapshot {name}@{}: {error}", model.name))?;
                    model.dying = false;
                    self.after.snapshots.insert(*key, Arc::new(model));
                }
            }
        }
        for snapshot in found {
            let birth = self.before.births.values().find(|birth| birth.name == snapshot && birth.snapshot_of == Some(volume));
            let birth = birth.ok_or_else(|| format!("there is a snapshot {name}@{snapshot}, which nobody asked for"))?;
            self.born(birth, size(&snapshot)?).map_err(|error| format!("snapshot {name}@{snapshot}: {error}"))?;
        }
        Ok(())
    }
}

/// Reads everything in a store that nobody else uses.
pub fn compare(plan: &Plan, store: &Store, oracle: &mut Oracle) -> Found {
    let asked = oracle.begin();
    oracle.end(asked);
    let asked = oracle.time;
    for model in oracle.volumes.values_mut() {
        let model = Arc::make_mut(model);
        let name = &model.name;
        let read = || {
            let open = store.volume(name).map_err(|error| error.to_string())?;
            read_tags(plan, plan.sectors(open.size_bytes()), |buffer, offset| open.read_at(buffer, offset))
        };
        let seen = read().and_then(|tags| model.content.see(0, &tags, asked));
        seen.map_err(|error| format!("volume {name}: {error}"))?;
    }
    let names: BTreeMap<VolumeKey, String> = oracle.volumes.iter().map(|(key, model)| (*key, model.name.clone())).collect();
    for model in oracle.snapshots.values_mut().filter(|model| !model.gone) {
        let model = Arc::make_mut(model);
        let (name, Some(volume)) = (&model.name, names.get(&model.volume)) else { continue };
        let read = || {
            let open = store.snapshot(volume, name).map_err(|error| error.to_string())?;
            read_tags(plan, plan.sectors(open.size_bytes()), |buffer, offset| open.read_at(buffer, offset))
        };
        let seen = read().and_then(|tags| model.content.see(0, &tags, asked));
        seen.map_err(|error| format!("snapshot {volume}@{name}: {error}"))?;
    }
    Ok(())
}
