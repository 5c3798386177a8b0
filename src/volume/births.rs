//! Volumes that are on their way: their source is being asked, they are not durable yet, or they are being filled.
//!
//! A name on its way is taken, and is shown with its state; nothing else can be done with it. They are in memory only: after a
//! crash such a volume was never there, or is there whole.

use std::sync::Arc;

use super::core::Core;
use super::info::{BlockCounts, HydrationInfo, VolumeInfo, VolumeState};
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::format::valid_name;
use crate::ids::VolumeId;

/// A volume on its way.
#[derive(Clone)]
pub struct Coming {
    state: VolumeState,
    created_at: u64,
    /// The source, of a fork from elsewhere.
    uri: Option<String>,
    size_bytes: u64,
}

/// Keeps a name while its volume is on its way.
pub struct Announced {
    core: Arc<Core>,
    name: String,
}

impl Announced {
    /// Its size is known now: the source has answered, and is being forked.
    pub fn opened(&self, size_bytes: u64) {
        if let Some(coming) = self.core.births.lock().get_mut(&self.name) {
            (coming.state, coming.size_bytes) = (VolumeState::Creating, size_bytes);
        }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.core.births.lock().remove(&self.name);
    }
}

impl Core {
    /// Takes a name for a volume that will stand on the source at `uri`, or that is going to be filled.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`], [`ErrorKind::InvalidInput`].
    pub fn announce(self: &Arc<Self>, name: &str, uri: Option<&str>) -> Result<Announced> {
        valid_name(name)?;
        let created_at = self.unix_seconds();
        let catalog = self.catalog();
        self.name_is_free(&catalog, name)?;
        let state = if uri.is_some() { VolumeState::EnablingRemoteExport } else { VolumeState::Creating };
        let coming = Coming { state, created_at, uri: uri.map(ToOwned::to_owned), size_bytes: 0 };
        self.births.lock().insert(name.to_owned(), coming);
        Ok(Announced { core: Arc::clone(self), name: name.to_owned() })
    }

    /// # Errors
    /// [`ErrorKind::Exists`] if a volume has the name, or one that is on its way.
    pub(super) fn name_is_free(&self, catalog: &Catalog, name: &str) -> Result<()> {
        catalog.name_is_free(name)?;
        match self.births.lock().contains_key(name) {
            true => Err(Error::new(ErrorKind::Exists, format!("a volume '{name}' is on its way already: choose another name"))),
            false => Ok(()),
        }
    }

    /// As [`Catalog::volume_id`]. The error for a volume on its way, which `list` shows, says that it is.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn volume_id(&self, catalog: &Catalog, name: &str) -> Result<VolumeId> {
        catalog.volume_id(name).map_err(|error| match self.births.lock().contains_key(name) {
            true => Error::new(
                ErrorKind::NotFound,
                format!("volume '{name}' is still being made: wait until 'volfork show {name}' says created"),
            ),
            false => error,
        })
    }

    /// What is known of a volume on its way.
    pub(super) fn coming_info(&self, name: &str) -> Option<VolumeInfo> {
        let coming = self.births.lock().get(name).cloned();
        coming.map(|coming| self.describe_coming(name, &coming))
    }

    /// All volumes on their way, by name.
    pub(super) fn all_coming(&self) -> Vec<VolumeInfo> {
        let births = self.births.lock().clone();
        births.iter().map(|(name, coming)| self.describe_coming(name, coming)).collect()
    }

    fn describe_coming(&self, name: &str, coming: &Coming) -> VolumeInfo {
        VolumeInfo {
            id: String::new(),
            name: name.to_owned(),
            state: coming.state,
            size_bytes: coming.size_bytes,
            block_size: self.block_size.bytes() as u32,
            created_at: coming.created_at,
            parent: coming.uri.clone(),
            source: coming.uri.clone(),
            live_source: false,
            leases: Vec::new(),
            depth: 0,
            snapshots: Vec::new(),
            labels: Default::default(),
            blocks: BlockCounts::default(),
            hydration: HydrationInfo {
                bytes_missing: if coming.uri.is_some() { coming.size_bytes } else { 0 },
                ..HydrationInfo::default()
            },
        }
    }
}
