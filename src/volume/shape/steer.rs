//! Steering the hydration of a volume: pause, pace and addresses.

use std::sync::Arc;
use std::time::Duration;

use super::addresses::{bytes_of, check_uris};
use super::remote::Remote;
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{HydrationSettings, ShapeRecord};
use crate::hydrate::Hydrator;
use crate::source::{SourceError, SourceErrorKind};
use crate::volume::hydration::no_sources;

impl Remote {
    /// The hydrator of the root below a volume, while it needs one.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Unsupported`] if it needs one and the store was opened without sources.
    fn hydrator_of(&self, catalog: &Catalog, name: &str) -> Result<Option<Arc<Hydrator>>> {
        let id = self.volumes.shape.volume_id(catalog, name)?;
        let head = catalog.volume(id).map(|entry| entry.head);
        let Some(root) = head.and_then(|head| catalog.needed_root(head)) else { return Ok(None) };
        // A root that is needed has a hydrator from before the fork until after the record that detaches it.
        self.roots.hydrations.get(root).map(Some).ok_or_else(no_sources)
    }

    /// The hydrator below a volume, if it still needs one.
    ///
    /// # Errors
    /// As there.
    pub fn volume_hydrator(&self, name: &str) -> Result<Option<Arc<Hydrator>>> {
        self.hydrator_of(&self.volumes.shape.catalog(), name)
    }

    /// Waits until a volume does not need its source any more; `Ok(false)` at the timeout.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`]; [`crate::ErrorKind::Unsupported`] if it needs a source that the store cannot reach.
    pub fn wait_hydrated(&self, name: &str, timeout: Duration) -> Result<bool> {
        let hydrator = {
            let _pass = self.volumes.pool.fence.enter()?;
            self.volume_hydrator(name)?
        };
        // Without a pass, so that closing the store does not wait for this call.
        let finished = hydrator.is_none_or(|hydrator| hydrator.wait_finished(timeout));
        if !finished {
            self.volumes.pool.fence.check()?;
        }
        Ok(finished)
    }

    /// Changes pause and pace of the hydration of the root below a volume, durably. Nothing happens if it has no source (any more).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Unsupported`] if the store was opened without sources.
    pub fn set_hydration(&self, name: &str, change: impl Fn(&mut HydrationSettings)) -> Result<()> {
        self.volumes.layers.barriers.prepare_shape()?;
        let ticket = {
            let mut catalog = self.volumes.shape.catalog();
            // It may have become complete a moment ago: then there is nothing to change.
            let Some(hydrator) = self.hydrator_of(&catalog, name)? else { return Ok(()) };
            let mut settings = hydrator.settings();
            change(&mut settings);
            hydrator.set_settings(settings);
            hydrator.retry_now();
            self.volumes.shape.change(&mut catalog, None, vec![ShapeRecord::Hydration(hydrator.layer().id, settings)])?
        };
        self.volumes.layers.barriers.wait_shape(ticket)
    }

    /// Changes at which addresses the missing blocks of a volume can be had, durably. An address that answers and has other
    /// bytes, as far as it tells, is refused.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::InvalidInput`].
    pub fn set_sources(&self, name: &str, add: &[String], remove: &[String]) -> Result<()> {
        let Some(hydrator) = self.volumes.pool.fence.enter().and_then(|_pass| self.volume_hydrator(name))? else { return Ok(()) };
        let sources = self.sources.as_ref().ok_or_else(no_sources)?;
        let since = sources.now();
        for uri in add {
            let checked = sources.open(uri, since).and_then(|source| {
                let checked = hydrator.check_source(uri, &*source);
                source.close();
                checked
            });
            match checked {
                // It may be there later.
                Ok(()) | Err(SourceError { kind: SourceErrorKind::Lost, .. }) => {}
                Err(error) => return Err(Error::new(ErrorKind::InvalidInput, error.message)),
            }
        }
        let _pass = self.volumes.pool.fence.enter()?;
        self.volumes.layers.barriers.prepare_shape()?;
        let (ticket, _room) = loop {
            let most = bytes_of(&hydrator.uris()) + bytes_of(add);
            let room = self.volumes.layers.reserve_shape_with(most)?;
            let mut catalog = self.volumes.shape.catalog();
            let mut uris = hydrator.uris();
            if let Some(unknown) = remove.iter().find(|uri| !uris.contains(uri)) {
                let known = uris.join(", ");
                return Err(Error::new(ErrorKind::NotFound, format!("volume '{name}' has no source {unknown}: it has {known}")));
            }
            uris.retain(|uri| !remove.contains(uri));
            for uri in add {
                if !uris.contains(uri) {
                    uris.push(uri.clone());
                }
            }
            check_uris(&uris)?;
            if bytes_of(&uris) > most {
                // A fork has added addresses meanwhile, for which the reserved journal space is too small.
                continue;
            }
            hydrator.set_uris(&uris);
            break (self.volumes.shape.change(&mut catalog, None, vec![ShapeRecord::Sources(hydrator.layer().id, uris)])?, room);
        };
        self.volumes.layers.barriers.wait_shape(ticket)
    }
}
