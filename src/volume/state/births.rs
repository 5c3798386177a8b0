//! Names of volumes that are not there yet: their source is being asked, or they are being filled.
//!
//! Such a name is taken and is shown with its state; nothing else can be done with it. It is in memory only: after a crash the volume
//! was never there, or is there whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::sync::{Mutex, Rank};

/// A volume that is being made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coming {
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Address of the source of a remote fork.
    pub uri: Option<String>,
    /// The size, once it is known: the source has answered and is being forked.
    pub size_bytes: Option<u64>,
}

/// Names that are taken for volumes that are being made. Locked after the catalogue.
pub struct Births(Mutex<BTreeMap<String, Coming>>);

impl Default for Births {
    fn default() -> Self {
        Self(Mutex::ranked(Rank::Births, BTreeMap::new()))
    }
}

/// Keeps a name for its volume until it is dropped.
pub struct Announced {
    births: Arc<Births>,
    name: String,
}

impl Births {
    /// Takes a name. The caller has locked the catalogue and knows that the name is free.
    pub fn add(self: &Arc<Self>, name: &str, coming: Coming) -> Announced {
        self.0.lock().insert(name.to_owned(), coming);
        Announced { births: Arc::clone(self), name: name.to_owned() }
    }

    /// Whether a volume of this name is being made.
    pub fn contains(&self, name: &str) -> bool {
        self.0.lock().contains_key(name)
    }

    /// The volume of this name that is being made.
    pub fn get(&self, name: &str) -> Option<Coming> {
        self.0.lock().get(name).cloned()
    }

    /// All volumes that are being made, by name.
    pub fn all(&self) -> BTreeMap<String, Coming> {
        self.0.lock().clone()
    }
}

impl Announced {
    /// The source has answered: the volume's size is known.
    pub fn opened(&self, size_bytes: u64) {
        if let Some(coming) = self.births.0.lock().get_mut(&self.name) {
            coming.size_bytes = Some(size_bytes);
        }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.births.0.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_until_its_guard_is_dropped() {
        let births = Arc::<Births>::default();
        let announced = births.add("v", Coming { created_at: 1, uri: None, size_bytes: None });
        announced.opened(4096);
        assert_eq!(births.get("v").unwrap().size_bytes, Some(4096));
        assert!(births.contains("v") && !births.contains("w"));
        drop(announced);
        assert!(births.all().is_empty());
    }
}
