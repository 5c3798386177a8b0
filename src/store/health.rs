//! Health of a store: what it refuses, what failed in the background, damage, and space.

use crate::error::{Corruption, Error, Result};
use crate::io::DiskSpace;
use crate::sync::{Mutex, Rank};
use crate::volume::{Core, EventKind};

/// Space is low below this many free bytes, if they are also less than a twentieth of the file system.
const LOW_BYTES: u64 = 4 << 30;
/// Free bytes below which writes of new blocks are about to fail.
const EXHAUSTED_BYTES: u64 = 16 << 20;

/// Whether the file system of a store has space for new blocks.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::store::SpaceState;
///
/// /// Whether a server goes on to make volumes.
/// fn has_room(space: SpaceState) -> bool {
///     match space {
///         SpaceState::Low | SpaceState::Exhausted => false,
///         // A disk that does not tell is no reason to refuse.
///         SpaceState::Enough | SpaceState::Unknown => true,
///         _ => false,
///     }
/// }
/// assert!(has_room(SpaceState::default()));
/// println!("new volumes: {}", has_room(store.health().space));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpaceState {
    /// The disk does not tell.
    #[default]
    Unknown,
    /// There is space.
    Enough,
    /// Less than 4 GiB and less than a twentieth of the file system is free.
    Low,
    /// Less than 16 MiB is free: writes of new blocks fail with [`crate::ErrorKind::NoSpace`]; reads, flushes, discards and deletions work.
    Exhausted,
}

/// Health of a store, from [`crate::Store::health`].
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// let health = store.health();
/// assert!(health.writes_refused.is_none() && health.background.is_none() && health.damage.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Health {
    /// Why writes are refused: an earlier write-back or sync failed, or the store was opened read-only.
    pub writes_refused: Option<Error>,
    /// Error of the latest background work. It is retried; `None` once it has succeeded.
    pub background: Option<Error>,
    /// The most recent damaged block that a read met since the store was opened.
    pub damage: Option<Corruption>,
    /// Space for new blocks.
    pub space: SpaceState,
}

impl SpaceState {
    pub(super) fn of(space: DiskSpace) -> Self {
        match space.free_bytes {
            free if free < EXHAUSTED_BYTES => Self::Exhausted,
            free if free < LOW_BYTES && free < space.total_bytes / 20 => Self::Low,
            _ => Self::Enough,
        }
    }
}

/// Errors of background work, and which changes of health were reported as events.
pub struct Watch {
    failed: Mutex<(Option<Error>, u64)>,
    told: Mutex<Told>,
}

impl Default for Watch {
    fn default() -> Self {
        Self { failed: Mutex::ranked(Rank::BackgroundFailed, (None, 0)), told: Mutex::ranked(Rank::HealthTold, Told::default()) }
    }
}

#[derive(Default)]
struct Told {
    refused: bool,
    background: bool,
    damage: u64,
    space: SpaceState,
}

impl Watch {
    /// Notes the result of the last step of background work before it went idle.
    pub fn note(&self, step: &Result<bool>) {
        let mut failed = self.failed.lock();
        failed.0 = step.as_ref().err().cloned();
        failed.1 += u64::from(step.is_err());
    }

    /// How the store is now.
    pub fn health(&self, core: &Core, space: SpaceState) -> Health {
        let layers = &core.layers;
        Health {
            writes_refused: layers.healthy().err(),
            background: self.failed.lock().0.clone(),
            damage: layers.blocks.damage().last(),
            space,
        }
    }

    /// Steps of background work that failed.
    pub fn failures(&self) -> u64 {
        self.failed.lock().1
    }

    /// Sends an event for each change of health since the last call.
    pub fn tell(&self, core: &Core, space: Option<DiskSpace>) {
        let mut told = self.told.lock();
        let space = space.map_or(told.space, SpaceState::of);
        let health = self.health(core, space);
        let text = |error: &Option<Error>| error.as_ref().map(Error::to_string);
        if health.writes_refused.is_some() && !told.refused {
            core.tell_health(EventKind::WritesRefused, text(&health.writes_refused));
        }
        if health.background.is_some() && !told.background {
            core.tell_health(EventKind::BackgroundFailed, text(&health.background));
        }
        let met = core.layers.blocks.damage().met();
        if met > told.damage {
            core.tell_health(EventKind::Damaged, health.damage.as_ref().map(Corruption::to_string));
        }
        if space != told.space && matches!(space, SpaceState::Low | SpaceState::Exhausted) {
            core.tell_health(EventKind::SpaceLow, None);
        }
        *told = Told { refused: health.writes_refused.is_some(), background: health.background.is_some(), damage: met, space };
    }
}
