//! Records of sources, and of how their bytes are fetched.
//!
//! ```text
//! source    uris, size u64, settings
//! uris      n u32, n blobs
//! settings  paused u8, rate u64, deadline u64, priority u8
//! ```

use super::bytes::{FormatError, Reader, Writer};

/// Share of a hydration in what the hydrations of a store have together.
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
/// use volfork::volume::HydrationPriority;
///
/// store.fork(&address, "machine")?;
/// // Four times the share of a volume of normal priority.
/// let control = HydrationControl::default().with_priority(HydrationPriority::High);
/// assert_eq!(store.control_hydration("machine", &control)?.priority, HydrationPriority::High);
/// assert!(HydrationPriority::Low < HydrationPriority::default());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum HydrationPriority {
    /// A quarter of the normal share.
    Low,
    /// The normal share.
    #[default]
    Normal,
    /// Four times the normal share.
    High,
}

/// Pause and pace of a root layer's hydration, as an operator set them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HydrationSettings {
    /// Background replication is stopped.
    pub paused: bool,
    /// Cap in bytes a second; 0 is none.
    pub rate_bytes_per_second: u64,
    /// When it is to be complete, in seconds since the Unix epoch; 0 is never.
    pub deadline: u64,
    /// Its share.
    pub priority: HydrationPriority,
}

/// Most addresses of one source.
pub const SOURCE_URIS_MAX: usize = 64;

/// The source that a root layer stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRecord {
    /// Addresses that have the same bytes, the origin first.
    pub uris: Vec<String>,
    /// Size in bytes when it was forked.
    pub size_bytes: u64,
    /// Pause and pace.
    pub settings: HydrationSettings,
}

impl SourceRecord {
    pub(super) fn encode(&self, writer: &mut Writer) {
        write_uris(writer, &self.uris);
        writer.u64(self.size_bytes);
        write_settings(writer, self.settings);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self { uris: read_uris(reader)?, size_bytes: reader.u64()?, settings: read_settings(reader)? })
    }
}

pub(super) fn write_settings(writer: &mut Writer, settings: HydrationSettings) {
    writer.u8(u8::from(settings.paused));
    writer.u64(settings.rate_bytes_per_second);
    writer.u64(settings.deadline);
    writer.u8(match settings.priority {
        HydrationPriority::Low => 0,
        HydrationPriority::Normal => 1,
        HydrationPriority::High => 2,
    });
}

pub(super) fn write_uris(writer: &mut Writer, uris: &[String]) {
    writer.count(uris.len());
    for uri in uris {
        writer.blob(uri.as_bytes());
    }
}

pub(super) fn read_uris(reader: &mut Reader<'_>) -> Result<Vec<String>, FormatError> {
    match reader.count()? {
        count @ 1..=SOURCE_URIS_MAX => (0..count).map(|_| reader.text()).collect(),
        count => Err(FormatError::damaged(format!("a source has {count} addresses, 1 to {SOURCE_URIS_MAX} are taken"))),
    }
}

pub(super) fn read_settings(reader: &mut Reader<'_>) -> Result<HydrationSettings, FormatError> {
    let (paused, rate_bytes_per_second, deadline) = (reader.flag()?, reader.u64()?, reader.u64()?);
    let priority = match reader.u8()? {
        0 => HydrationPriority::Low,
        1 => HydrationPriority::Normal,
        2 => HydrationPriority::High,
        other => return Err(FormatError::damaged(format!("priority is {other}, not 0 to 2"))),
    };
    Ok(HydrationSettings { paused, rate_bytes_per_second, deadline, priority })
}
