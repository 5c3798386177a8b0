//! Reports of scrub and check, and the settings of hydration control.

use std::collections::BTreeMap;

use crate::options::with_methods;
use crate::volume::HydrationPriority;

/// Progress of a scrub.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use std::ops::ControlFlow;
///
/// store.create_volume("v", 1 << 20)?.write_at(&[1; 64 << 10], 0)?;
/// let mut percent = 0;
/// store.scrub_with(None, &mut |progress| {
///     percent = progress.blocks_verified * 100 / progress.blocks_total.max(1);
///     assert_eq!(progress.damage, None);
///     // `Break` ends the scrub.
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(percent, 100);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ScrubProgress {
    /// Blocks verified so far.
    pub blocks_verified: u64,
    /// Blocks to verify in all.
    pub blocks_total: u64,
    /// A text that names volumes and snapshots with unrepaired damage; `None` if there is none so far.
    pub damage: Option<String>,
}

/// Damaged blocks that a volume or snapshot shows.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// store.create_volume("v", 1 << 20)?.write_at(&[1; 4096], 0)?;
/// let report = store.scrub(None)?;
/// for (shown_by, blocks) in &report.affected {
///     if blocks.blocks_damaged > 0 {
///         println!("restore {shown_by}: {} blocks are damaged", blocks.blocks_damaged);
///     }
/// }
/// assert!(report.affected.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AffectedBlocks {
    /// They could not be repaired.
    pub blocks_damaged: u64,
    /// They were fetched again from a source.
    pub blocks_repaired: u64,
}

/// What a scrub found.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// store.create_volume("v", 1 << 20)?.write_at(&[1; 64 << 10], 0)?;
/// // All volumes and snapshots; `Some("v")` is one volume and what it stands on.
/// let report = store.scrub(None)?;
/// assert_eq!(report.blocks_verified, 16);
/// assert_eq!((report.blocks_damaged, report.blocks_repaired), (0, 0));
/// assert!(report.errors.is_empty(), "{}", report.errors.join("\n"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ScrubReport {
    /// Blocks read and verified.
    pub blocks_verified: u64,
    /// Damaged blocks that were fetched again from a source.
    pub blocks_repaired: u64,
    /// Damaged blocks that could not be repaired.
    #[cfg_attr(feature = "serde", serde(default))]
    pub blocks_damaged: u64,
    /// One sentence for each damaged block that could not be repaired, up to 1000 of them.
    pub errors: Vec<String>,
    /// Damaged blocks by the volume or snapshot that shows them: `volume 'NAME'` or `snapshot 'NAME@SNAP'`. A block that several of them
    /// share counts for each.
    #[cfg_attr(feature = "serde", serde(default))]
    pub affected: BTreeMap<String, AffectedBlocks>,
}

/// What [`crate::Store::check`] found in a closed store.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::{Store, StoreOptions};
///
/// store.create_volume("v", 1 << 20)?.create_snapshot("s")?;
/// store.close()?;
/// let report = Store::check(directory.path(), StoreOptions::default())?;
/// // The sealed layer of the snapshot, and the open one of the volume.
/// assert_eq!((report.volumes, report.snapshots, report.layers), (1, 1, 2));
/// assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CheckReport {
    /// Volumes in the store.
    pub volumes: u64,
    /// Snapshots in the store.
    pub snapshots: u64,
    /// Layers in the store.
    pub layers: u64,
    /// One sentence for each violation.
    pub violations: Vec<String>,
}

/// What [`crate::Store::control_hydration`] changes; `None` leaves a setting as it is.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let image = directory.path().join("image");
/// # std::fs::write(&image, vec![7; 1 << 20]).unwrap();
/// # let options = volfork::StoreOptions::default().with_sources(std::sync::Arc::new(volfork::source::UriSources::default()));
/// # let store = volfork::Store::create(directory.path().join("store"), options)?;
/// # let address = format!("file://{}", image.display());
/// use volfork::store::HydrationControl;
///
/// store.fork(&address, "machine")?;
/// // 100 MB a second at most. What is not named stays as it is.
/// let control = HydrationControl::default().with_rate_bytes_per_second(100_000_000);
/// let hydration = store.control_hydration("machine", &control)?;
/// assert_eq!(hydration.rate_limit_bytes_per_second, Some(100_000_000));
/// // 0 takes the cap away.
/// let hydration = store.control_hydration("machine", &control.with_rate_bytes_per_second(0))?;
/// assert_eq!(hydration.rate_limit_bytes_per_second, None);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct HydrationControl {
    /// Pause (`true`) or resume (`false`) background replication.
    pub paused: Option<bool>,
    /// Cap in bytes a second; `Some(0)` removes it.
    pub rate_bytes_per_second: Option<u64>,
    /// Deadline for completion, in seconds from now; `Some(0)` removes it.
    pub deadline_seconds: Option<u64>,
    /// Share of the bandwidth relative to the other hydrations of the store.
    pub priority: Option<HydrationPriority>,
    /// Further addresses that have the same bytes.
    pub add_sources: Vec<String>,
    /// Addresses to stop using.
    pub remove_sources: Vec<String>,
}

with_methods! { HydrationControl:
    with_paused(paused: Some<bool>);
    with_rate_bytes_per_second(rate_bytes_per_second: Some<u64>);
    with_deadline_seconds(deadline_seconds: Some<u64>);
    with_priority(priority: Some<HydrationPriority>);
    with_add_sources(add_sources: Vec<String>);
    with_remove_sources(remove_sources: Vec<String>);
}
