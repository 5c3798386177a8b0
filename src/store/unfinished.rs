//! Unfinished volumes: volumes that are being filled, as by an import, or made in more than one step. A volume gets its final name only
//! when it is whole.
//!
//! Until then it has a temporary name, `NAME.importing-` and a random number, and a label that marks it as unfinished. The value of the
//! label is the temporary name: a fork inherits the label but has another name, and so has a volume that a user has renamed. Only a
//! volume whose name equals the value of its label is swept.
//!
//! # Crash ordering
//! The temporary name and the label are recorded in one frame. One frame also sets the final name and removes the label. A volume that a
//! crash left unfinished is destroyed by [`Store::sweep_unfinished`]. An unfinished image keeps the layers that were complete until its
//! next import.

use std::collections::BTreeMap;

use super::Store;
#[cfg(feature = "images")]
use crate::content::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::random_bytes;
use crate::limits::NAME_BYTES_MAX;
use crate::volume::{Admit, Announced, ForkOptions, ForkSource, LAYERS_OF_LABEL, Volume, VolumeOptions};

/// Key of the label of an unfinished volume. Its value is the temporary name of the volume.
pub const UNFINISHED_LABEL: &str = "volfork.unfinished-import";
/// Part of the temporary name between the start of the final name and the random number.
const SUFFIX: &str = ".importing-";
/// Most random names that are tried; further ones are needed only if randomness is bad.
const TRIES: usize = 16;

type Labels = BTreeMap<String, String>;

/// A name reserved for a volume that does not exist yet. The reservation ends when it is dropped.
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
    /// Labels of the unfinished volume, besides the one that marks it.
    labels: Labels,
    _announced: Announced,
}

impl std::fmt::Debug for ReservedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReservedName").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An unfinished volume. Dropping it destroys the volume, unless [`Unfinished::finish`] has succeeded.
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
    /// Reserves a name for a volume that is going to be filled. Until it is dropped, no other volume of this store gets the name.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if a volume or a reservation has the name; [`ErrorKind::InvalidInput`] if it is not valid.
    pub fn reserve_name(&self, name: &str) -> Result<ReservedName> {
        let created_at = self.0.core.volumes.clock.unix().as_secs();
        let _pass = self.0.core.enter()?;
        let announced = self.0.core.shape.announce(name, None, created_at)?;
        Ok(ReservedName { store: self.clone(), name: name.to_owned(), labels: Labels::new(), _announced: announced })
    }

    /// Destroys unfinished volumes that a crash has left. Call it only while no volume is being filled, for example after opening.
    /// Unfinished images stay, because they keep layers for their next import.
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
                // A fork that has inherited the label, or a volume that a user has renamed.
                (false, _) => self.set_labels(&name, labels)?,
            }
        }
        Ok(())
    }
}

impl Store {
    /// As [`Store::fork_admitted`], with a size of its own: the fork gets its name after it was resized.
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
    /// Creates the unfinished volume, which reads as zeros. It gets the reserved name when it is finished.
    ///
    /// # Errors
    /// As [`Store::create_volume`].
    pub fn create(&self, size_bytes: u64) -> Result<Unfinished<'_>> {
        self.make(|name, labels| self.store.create_volume_with(name, size_bytes, &VolumeOptions::default().with_labels(labels)))
    }

    fn make(&self, mut make: impl FnMut(&str, Labels) -> Result<Volume>) -> Result<Unfinished<'_>> {
        let mut tries = 0;
        loop {
            let name = random_name(&self.name)?;
            let mut labels = self.labels.clone();
            labels.insert(UNFINISHED_LABEL.to_owned(), name.clone());
            tries += 1;
            match make(&name, labels) {
                // Another random name helps only if a volume has this one; a used reservation fails as well.
                Err(error) if error.kind() == ErrorKind::Exists && tries < TRIES && self.store.volume(&name).is_ok() => {}
                made => return Ok(Unfinished { reserved: self, volume: made?, kept: false }),
            }
        }
    }
}

/// Reservations for images: the layers that are complete stay if the import is interrupted.
#[cfg(feature = "images")]
impl ReservedName {
    /// Marks the reservation as one for an image.
    pub(crate) fn for_layers(mut self) -> Self {
        self.labels.insert(LAYERS_OF_LABEL.to_owned(), self.name.clone());
        self
    }

    /// Forks the layer of the store that holds this chain of image layers.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none.
    pub(crate) fn fork_held(&self, chain: &Digest) -> Result<Unfinished<'_>> {
        self.make(|name, labels| {
            let labels = labels.into_iter().map(|(key, value)| (key, Some(value))).collect();
            self.store.fork_with(chain, name, &ForkOptions { labels, ..ForkOptions::default() })
        })
    }

    /// Unfinished volumes that earlier imports under this name have left.
    pub(crate) fn left_layers(&self) -> Vec<String> {
        let is_left =
            |name: &String, labels: &Labels| labels.get(UNFINISHED_LABEL) == Some(name) && labels.get(LAYERS_OF_LABEL) == Some(&self.name);
        self.store.labels().into_iter().filter(|(name, _, labels)| is_left(name, labels)).map(|(name, _, _)| name).collect()
    }
}

impl Unfinished<'_> {
    /// The volume, which the caller fills.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Gives the volume its final name and exactly these labels. The caller has filled and flushed it.
    ///
    /// # Errors
    /// [`ErrorKind::NotDurable`] if it has its name, but a crash could still undo that; [`ErrorKind::NotFound`] if it was destroyed
    /// meanwhile.
    pub fn finish(&mut self, labels: Labels) -> Result<()> {
        let named = self.volume.set_name(&self.reserved.name, labels);
        self.kept = named.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::NotDurable);
        named
    }

    /// Keeps the unfinished volume for its layers instead of destroying it.
    #[cfg(feature = "images")]
    pub(crate) fn leave(mut self) {
        self.kept = true;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // The caller reports the failure that ended the work. If destroying fails too, the volume is swept after the next opening.
            let _ = self.volume.destroy(true);
        }
    }
}
