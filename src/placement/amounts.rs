//! Arithmetic of resources.

use std::collections::BTreeMap;

use super::inventory::Resources;
use crate::units::format_bytes;

fn add(sum: &mut BTreeMap<String, u32>, more: &BTreeMap<String, u32>) {
    for (kind, count) in more {
        let sum = sum.entry(kind.clone()).or_insert(0);
        *sum = sum.saturating_add(*count);
    }
}

fn without(all: &BTreeMap<String, u32>, taken: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    all.iter().map(|(kind, count)| (kind.clone(), count.saturating_sub(taken.get(kind).copied().unwrap_or(0)))).collect()
}

impl Resources {
    /// Adds `more` to each amount.
    pub fn add(&mut self, more: &Self) {
        add(&mut self.cpus, &more.cpus);
        add(&mut self.gpus, &more.gpus);
        self.memory_bytes = self.memory_bytes.saturating_add(more.memory_bytes);
        self.volume_bytes = self.volume_bytes.saturating_add(more.volume_bytes);
    }

    /// These amounts without `taken`, none of them below zero.
    pub fn without(&self, taken: &Self) -> Self {
        Self {
            cpus: without(&self.cpus, &taken.cpus),
            gpus: without(&self.gpus, &taken.gpus),
            memory_bytes: self.memory_bytes.saturating_sub(taken.memory_bytes),
            volume_bytes: self.volume_bytes.saturating_sub(taken.volume_bytes),
        }
    }

    /// Of which resource less is left than `wanted`, in words; `None` if there is enough of all.
    pub fn lacking(&self, wanted: &Self) -> Option<String> {
        for (left, wanted, what) in [(&self.cpus, &wanted.cpus, "processors"), (&self.gpus, &wanted.gpus, "accelerators")] {
            for (kind, need) in wanted {
                let have = left.get(kind).copied().unwrap_or(0);
                if have < *need {
                    return Some(format!("{have} {what} of kind '{kind}' are free, {need} are needed"));
                }
            }
        }
        let bytes = [(self.memory_bytes, wanted.memory_bytes, "of memory"), (self.volume_bytes, wanted.volume_bytes, "for volumes")];
        let short = bytes.into_iter().find(|(have, need, _)| have < need);
        short.map(|(have, need, what)| format!("{} {what} are free, {} are needed", format_bytes(have), format_bytes(need)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_add_up_and_say_what_is_lacking() {
        let cpus = |count| [("shared".to_owned(), count)].into();
        let mut taken = Resources { cpus: cpus(2), memory_bytes: 1 << 30, ..Resources::default() };
        taken.add(&Resources { cpus: cpus(3), volume_bytes: 7, ..Resources::default() });
        let left = Resources { cpus: cpus(6), memory_bytes: 3 << 30, volume_bytes: 5, ..Resources::default() }.without(&taken);
        assert_eq!(left, Resources { cpus: cpus(1), memory_bytes: 2 << 30, volume_bytes: 0, ..Resources::default() });
        assert_eq!(left.lacking(&Resources { cpus: cpus(1), memory_bytes: 2 << 30, ..Resources::default() }), None);
        let lack = |wanted| left.lacking(&wanted).unwrap();
        assert!(lack(Resources { cpus: cpus(2), ..Resources::default() }).contains("1 processors of kind 'shared'"));
        assert!(lack(Resources { memory_bytes: 3 << 30, ..Resources::default() }).contains("2.0 GiB of memory are free"));
    }
}
