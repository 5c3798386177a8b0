//! Volumes that are being filled, as by an import, or made in more than one step. A volume that has its name is whole.
//!
//! Until then it has a name of its own, that of a user's volume never: `NAME.importing-` and a random number. A label says so; its
//! value is the name that the volume was made with, so that forks, which inherit labels, are told from it, and so is a volume that a
//! user has renamed. Nothing else is ever swept.
//!
//! # Crash ordering
//! Name and label come in one frame; the frame that gives the volume its name takes the label away. What a crash leaves is
//! destroyed by [`Store::sweep_unfinished`]. Of an image, the layers that were whole are kept below it until its next import.

use std::collections::BTreeMap;

use super::Store;
#[cfg(feature = "images")]
use crate::content::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::random_bytes;
use crate::limits::NAME_BYTES_MAX;
use crate::volume::{Admit, Announced, ForkOptions, ForkSource, LAYERS_OF_LABEL, Volume, VolumeOptions};

/// Key of the label of a volume that is not whole; its value is the name that the volume was made with.
pub const UNFINISHED_LABEL: &str = "volfork.unfinished-import";
/// What stands behind the beginning of the name of such a volume.
const SUFFIX: &str = ".importing-";
/// Random names that are tried; one is enough but for a bad source of randomness.
const TRIES: usize = 16;

type Labels = BTreeMap<String, String>;

/// A name that is taken for a volume which is not there yet. Given back when dropped.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::ErrorKind;
///
/// let reserved = store.reserve_name("restored")?;
/// // Nobody else gets the name while the backup is looked for.
/// assert_eq!(store.create_volume("restored", 4096).unwrap_err().kind(), ErrorKind::Exists);
/// let mut unfinished = reserved.create(1 << 20)?;
/// unfinished.volume().write_at(b"from the backup", 0)?;
/// unfinished.volume().flush()?;
/// unfinished.finish([("from".to_owned(), "backup".to_owned())].into())?;
/// assert_eq!(store.volume_names(), ["restored"]);
/// # Ok(())
/// # }
/// ```
pub struct ReservedName {
    store: Store,
    name: String,
    /// What the volume has until it is whole, beside the mark that it is not.
    labels: Labels,
    _announced: Announced,
}

impl std::fmt::Debug for ReservedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReservedName").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A volume that is being filled; destroyed when dropped, unless it was finished.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use std::io::Read;
///
/// fn restore(store: &volfork::Store, mut backup: impl Read) -> Result<(), Box<dyn std::error::Error>> {
///     let reserved = store.reserve_name("v")?;
///     let mut unfinished = reserved.create(1 << 20)?;
///     let mut bytes = vec![0; 1 << 20];
///     backup.read_exact(&mut bytes)?; // If this fails, the volume is destroyed.
///     unfinished.volume().write_at(&bytes, 0)?;
///     unfinished.volume().flush()?;
///     Ok(unfinished.finish(Default::default())?)
/// }
/// assert!(restore(&store, std::io::empty()).is_err());
/// assert!(store.volume_names().is_empty());
/// restore(&store, std::io::repeat(1)).unwrap();
/// assert_eq!(store.volume_names(), ["v"]);
/// # Ok(())
/// # }
/// ```
pub struct Unfinished<'a> {
    reserved: &'a ReservedName,
    volume: Volume,
    kept: bool,
}

impl std::fmt::Debug for Unfinished<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unfinished").field("name", &self.reserved.name).finish_non_exhaustive()
    }
}

impl Store {
    /// Takes a name for a volume that is going to be filled: nothing else in this store gets it meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if a volume has it, or one on its way; [`ErrorKind::InvalidInput`] if it is not a name.
    pub fn reserve_name(&self, name: &str) -> Result<ReservedName> {
        let created_at = self.0.core.volumes.clock.unix().as_secs();
        let _pass = self.0.core.enter()?;
        let announced = self.0.core.shape.announce(name, None, created_at)?;
        Ok(ReservedName { store: self.clone(), name: name.to_owned(), labels: Labels::new(), _announced: announced })
    }

    /// Destroys what a crash has left of volumes that were being filled. To be called when nothing is being filled, as after
    /// opening. What imports of images have left stays: it keeps their layers.
    ///
    /// # Errors
    /// As [`Store::destroy_volume`].
    pub fn sweep_unfinished(&self) -> Result<()> {
        for (name, _, mut labels) in self.labels() {
            let Some(made_as) = labels.remove(UNFINISHED_LABEL) else { continue };
            let keeps_layers = labels.remove(LAYERS_OF_LABEL).is_some();
            match (made_as == name, keeps_layers) {
                (true, false) => self.volume(&name)?.destroy(true)?,
                (true, true) => {}
                // A fork, or one that a user has given a name.
                (false, _) => self.set_labels(&name, labels)?,
            }
        }
        Ok(())
    }
}

impl Store {
    /// As [`Store::fork_admitted`], a fork of a size of its own: it is whole when it has its name.
    pub(super) fn fork_grown(
        &self,
        (source, name): (ForkSource<'_>, &str),
        options: &ForkOptions,
        size_bytes: u64,
        admit: Admit<'_>,
    ) -> Result<Volume> {
        let reserved = self.reserve_name(name)?;
        let mut forked = reserved.make(|private, marks| {
            let mut options = ForkOptions { size_bytes: None, ..options.clone() };
            options.labels.extend(marks.into_iter().map(|(key, value)| (key, Some(value))));
            self.fork_admitted(source, private, &options, &mut |source_bytes, labels| {
                if size_bytes < source_bytes {
                    let message = format!("{size_bytes} bytes are less than the {source_bytes} of the source: a fork is not smaller");
                    return Err(Error::new(ErrorKind::InvalidInput, message));
                }
                let mark = labels.remove(UNFINISHED_LABEL);
                admit(size_bytes, labels)?;
                labels.extend(mark.map(|mark| (UNFINISHED_LABEL.to_owned(), mark)));
                Ok(())
            })
        })?;
        let volume = forked.volume().clone();
        volume.resize(size_bytes, false)?;
        let mut labels = self.show(&volume.name())?.labels;
        labels.remove(UNFINISHED_LABEL);
        forked.finish(labels)?;
        Ok(volume)
    }
}

fn random_name(name: &str) -> Result<String> {
    let bytes = random_bytes::<8>()?;
    let begin = name.floor_char_boundary(NAME_BYTES_MAX - SUFFIX.len() - 2 * bytes.len());
    Ok(format!("{}{SUFFIX}{:016x}", &name[..begin], u64::from_le_bytes(bytes)))
}

impl ReservedName {
    /// Makes a volume that reads as zero, and gets the name when it is finished.
    ///
    /// # Errors
    /// As [`Store::create_volume`].
    pub fn create(&self, size_bytes: u64) -> Result<Unfinished<'_>> {
        self.make(|name, labels| self.store.create_volume_with(name, size_bytes, &VolumeOptions { labels }))
    }

    fn make(&self, mut make: impl FnMut(&str, Labels) -> Result<Volume>) -> Result<Unfinished<'_>> {
        let mut tries = 0;
        loop {
            let name = random_name(&self.name)?;
            let mut labels = self.labels.clone();
            labels.insert(UNFINISHED_LABEL.to_owned(), name.clone());
            tries += 1;
            match make(&name, labels) {
                // Something else that exists, as a reservation that was used, is no reason for another name.
                Err(error) if error.kind() == ErrorKind::Exists && tries < TRIES && self.store.volume(&name).is_ok() => {}
                made => return Ok(Unfinished { reserved: self, volume: made?, kept: false }),
            }
        }
    }
}

/// An image: its layers stay when its import does not come to its end.
#[cfg(feature = "images")]
impl ReservedName {
    /// For the layers of an image.
    pub(crate) fn for_layers(mut self) -> Self {
        self.labels.insert(LAYERS_OF_LABEL.to_owned(), self.name.clone());
        self
    }

    /// Forks the layer that holds a chain of layers of an image.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none.
    pub(crate) fn fork_held(&self, chain: &Digest) -> Result<Unfinished<'_>> {
        self.make(|name, labels| {
            let labels = labels.into_iter().map(|(key, value)| (key, Some(value))).collect();
            self.store.fork_with(chain, name, &ForkOptions { labels, ..ForkOptions::default() })
        })
    }

    /// What earlier imports of an image under this name have left.
    pub(crate) fn left_layers(&self) -> Vec<String> {
        let is_left =
            |name: &String, labels: &Labels| labels.get(UNFINISHED_LABEL) == Some(name) && labels.get(LAYERS_OF_LABEL) == Some(&self.name);
        self.store.labels().into_iter().filter(|(name, _, labels)| is_left(name, labels)).map(|(name, _, _)| name).collect()
    }
}

impl Unfinished<'_> {
    /// The volume, to be filled.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Gives the volume its name, and these labels alone: it is whole. The caller has flushed it.
    ///
    /// # Errors
    /// [`ErrorKind::NotDurable`]: it has its name; [`ErrorKind::NotFound`] if it was destroyed meanwhile.
    pub fn finish(&mut self, labels: Labels) -> Result<()> {
        let named = self.volume.set_name(&self.reserved.name, labels);
        self.kept = named.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::NotDurable);
        named
    }

    /// Leaves the volume as it is, for what it keeps.
    #[cfg(feature = "images")]
    pub(crate) fn leave(mut self) {
        self.kept = true;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // The failure that ended the work is reported; what stays is swept when the store is opened again.
            let _ = self.volume.destroy(true);
        }
    }
}
