//! An image becomes a volume: its layers become a chain of layers of the store.
//!
//! A layer that the store holds already is neither fetched nor stored again, whichever image it came with.
//!
//! # Crash ordering
//! The volume is made under the name `NAME.importing`, and gets its own name as the last step. Each layer is sealed, with the
//! chain that it completes, in one frame of the journal. A failed import destroys what is under that name; the layers that it
//! completed stay, below a volume `NAME.layers`, until an import of NAME succeeds or that volume is destroyed. What a crash left
//! is found by the next import of NAME.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::ext4::{FileSystem, NEW_BYTES, fitting_bytes};
use super::manifest::Platform;
use super::name::ImageName;
use super::resolve::{ResolvedImage, ResolvedLayer, resolve};
use super::source::{Blob, ManifestSource};
use super::stream::error_of;
use super::unpack::unpack;
use crate::content::{Digest, Image};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;
use crate::volume::Volume;

/// Name of the snapshot that stands for a layer while it is sealed.
const LAYER: &str = "layer";

/// How an image is imported.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Size of the volume; that of the layers' file system if it is not said, which is 8 GiB or what they need. The file system
    /// uses whole multiples of 128 MiB of it.
    pub size_bytes: Option<u64>,
    /// Which image of several.
    pub platform: Platform,
    /// Bytes of all layers when unpacked, at most.
    pub unpacked_bytes_max: u64,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { size_bytes: None, platform: Platform::here(), unpacked_bytes_max: 64 << 30 }
    }
}

/// How far an import has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportProgress {
    /// Bytes of blobs that were fetched.
    pub bytes_done: u64,
    /// Bytes of blobs that have to be.
    pub bytes_total: u64,
}

/// What it took until the volume was ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Seconds that the source was waited for.
    pub fetch_seconds: f64,
    /// All other seconds.
    pub prepare_seconds: f64,
    /// Bytes of blobs that were fetched.
    pub bytes_fetched: u64,
    /// Layers of the image.
    pub layers: u64,
    /// Those that were here.
    pub layers_reused: u64,
}

impl Start {
    /// Whether nothing had to be fetched but the manifest.
    pub fn is_cached(&self) -> bool {
        self.layers == self.layers_reused
    }

    /// All seconds.
    pub fn seconds(&self) -> f64 {
        self.fetch_seconds + self.prepare_seconds
    }
}

/// A volume that was made from an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImportedImage {
    /// Name of the volume.
    pub volume: String,
    /// Its size.
    pub size_bytes: u64,
    /// The image.
    pub image: Image,
    /// What it took.
    pub start: Start,
}

/// Stores and names of imports under way in this process.
static RUNNING: LazyLock<Mutex<HashSet<(usize, String)>>> = LazyLock::new(Mutex::default);

/// Makes the volume `volume` from the image that `name` stands for in `source`. `tell` hears of progress, and ends the import with
/// an error.
///
/// # Errors
/// [`ErrorKind::Exists`]; [`ErrorKind::Busy`] while the same name is being imported; as [`resolve`]; [`ErrorKind::NoSpace`];
/// errors of the source and of the store. Nothing is left of the volume then.
pub fn import_image(
    store: &Store,
    source: &dyn ManifestSource,
    name: &ImageName,
    volume: &str,
    options: &ImportOptions,
    tell: &mut dyn FnMut(ImportProgress) -> Result<()>,
) -> Result<ImportedImage> {
    let begun = Instant::now();
    if options.size_bytes.is_some_and(|size| fitting_bytes(size) == 0) {
        return Err(Error::new(ErrorKind::InvalidInput, "a volume for an image needs at least 128 MiB: choose a larger size"));
    }
    if store.volume_names().iter().any(|other| other == volume) {
        let message = format!("volume '{volume}' exists already: choose another name, or destroy it first");
        return Err(Error::new(ErrorKind::Exists, message));
    }
    let _running = Running::begin(store, volume)?;
    let image = resolve(source, name, &options.platform)?;
    let fetch = begun.elapsed();
    let mut import = Import { store, source, image: &image, options, tell, fetch, bytes_done: 0, bytes_total: 0 };
    let mut work = Work::new(store, volume);
    let (reused, made) = import.chain(&mut work).and_then(|(reused, made)| import.fit(&made).map(|()| (reused, made)))?;
    let labels = BTreeMap::from([("image".into(), name.to_string()), ("image-digest".into(), image.image.digest.to_string())]);
    store.set_labels(&work.name, labels)?;
    work.keep()?;
    let start = Start {
        fetch_seconds: import.fetch.as_secs_f64(),
        prepare_seconds: begun.elapsed().saturating_sub(import.fetch).as_secs_f64(),
        bytes_fetched: import.bytes_done,
        layers: image.layers.len() as u64,
        layers_reused: reused as u64,
    };
    Ok(ImportedImage { volume: volume.into(), size_bytes: made.size_bytes(), image: image.image, start })
}

/// An import of a name is under way while it lives.
struct Running((usize, String));

impl Running {
    fn begin(store: &Store, volume: &str) -> Result<Self> {
        let key = (store.identity(), volume.to_owned());
        match RUNNING.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            true => Ok(Self(key)),
            false => Err(Error::new(ErrorKind::Busy, format!("volume '{volume}' is being imported already: wait for that"))),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// The volume until it is whole; destroyed when dropped.
struct Work<'a> {
    store: &'a Store,
    volume: String,
    name: String,
    /// The last layer that is whole below it, if that is one that this import made or had kept.
    complete: Option<Digest>,
    kept: bool,
}

fn destroy(store: &Store, name: &str) -> Result<()> {
    match store.destroy_volume(name, true) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl<'a> Work<'a> {
    fn new(store: &'a Store, volume: &str) -> Self {
        Self { store, volume: volume.into(), name: format!("{volume}.importing"), complete: None, kept: false }
    }

    fn layers_name(&self) -> String {
        format!("{}.layers", self.volume)
    }

    /// Moves what a crash or a failure left out of the way; it may be all that keeps layers which are needed now.
    fn set_aside(&mut self) -> Result<Vec<String>> {
        let there: HashSet<String> = self.store.volume_names().into_iter().collect();
        let mut left = vec![format!("{}.stale", self.volume), self.layers_name()];
        if there.contains(&self.name) {
            destroy(self.store, &left[0])?;
            self.store.rename(&self.name, &left[0])?;
        } else {
            left.retain(|name| there.contains(name));
        }
        Ok(left)
    }

    fn keep(mut self) -> Result<()> {
        self.store.rename(&self.name, &self.volume)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // The failure that ended the import is reported; what is left then is found by the next import of the name.
        if let Some(chain) = &self.complete {
            let _ = self.store.fork_held(chain, &self.layers_name());
        }
        let _ = self.store.destroy_volume(&self.name, true);
    }
}

struct Import<'a> {
    store: &'a Store,
    source: &'a dyn ManifestSource,
    image: &'a ResolvedImage,
    options: &'a ImportOptions,
    tell: &'a mut dyn FnMut(ImportProgress) -> Result<()>,
    fetch: Duration,
    bytes_done: u64,
    bytes_total: u64,
}

impl Import<'_> {
    /// Makes the volume on top of all layers; answers how many of them were here.
    fn chain(&mut self, work: &mut Work<'_>) -> Result<(usize, Volume)> {
        let layers = &self.image.layers;
        let left = work.set_aside()?;
        let held: HashSet<_> = self.store.held_layers().into_iter().map(|held| held.chain).collect();
        let mut reused = (0..layers.len()).rev().find(|number| held.contains(&layers[*number].held.chain)).map_or(0, |number| number + 1);
        let below = match reused.checked_sub(1) {
            Some(last) => self.store.fork_held(&layers[last].held.chain, &work.name)?,
            None => None,
        };
        let volume = match below {
            Some(volume) => volume,
            // It went away a moment ago.
            None => {
                reused = 0;
                self.store.create_volume(&work.name, NEW_BYTES)?
            }
        };
        if !left.is_empty() && reused > 0 {
            work.complete = Some(layers[reused - 1].held.chain);
        }
        for name in &left {
            destroy(self.store, name)?;
        }
        if reused == layers.len() && reused > 0 {
            return Ok((reused, volume));
        }
        let mut files = if reused == 0 { FileSystem::create(&volume)? } else { FileSystem::open(&volume)? };
        self.bytes_total = layers[reused..].iter().map(|layer| layer.held.layer.bytes).fold(0, u64::saturating_add);
        let mut left = self.options.unpacked_bytes_max;
        for layer in &layers[reused..] {
            self.put(&mut files, layer, &mut left)?;
            files.next_layer();
            self.store.snapshot_image(&work.name, LAYER, layer.held)?;
            work.complete = Some(layer.held.chain);
            self.store.destroy_snapshot(&work.name, LAYER)?;
        }
        if layers.is_empty() {
            files.commit()?;
        }
        Ok((reused, volume))
    }

    /// Fetches a layer and puts it on top of those below.
    fn put(&mut self, files: &mut FileSystem<'_>, layer: &ResolvedLayer, left: &mut u64) -> Result<()> {
        let begun = Instant::now();
        let blob = Blob::open(self.source, layer.held.layer)?;
        self.fetch += begun.elapsed();
        let limit = self.options.unpacked_bytes_max;
        let mut fetched = Fetched { blob, import: self };
        unpack(files, &mut fetched, layer, left, limit)?;
        // The archive may end before the blob does.
        io::copy(&mut fetched, &mut io::sink()).map_err(|error| error_of("a layer of the image", error))?;
        files.commit()
    }

    /// Gives the volume and its file system the size that was asked for.
    fn fit(&self, volume: &Volume) -> Result<()> {
        let Some(wanted) = self.options.size_bytes.filter(|wanted| *wanted != volume.size_bytes()) else { return Ok(()) };
        if wanted > volume.size_bytes() {
            volume.resize(wanted, false)?;
        }
        let mut files = FileSystem::open(volume)?;
        if files.size_bytes() != fitting_bytes(wanted) {
            files.resize(wanted)?;
            files.commit()?;
        }
        if wanted < volume.size_bytes() {
            volume.resize(wanted, true)?;
        }
        volume.flush()
    }
}

/// A blob that is being fetched: time and bytes are counted, and the watcher is told.
struct Fetched<'a, 'b> {
    blob: Blob<'a>,
    import: &'a mut Import<'b>,
}

impl Read for Fetched<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let begun = Instant::now();
        let read = self.blob.read(buffer);
        self.import.fetch += begun.elapsed();
        let read = read?;
        self.import.bytes_done += read as u64;
        let progress = ImportProgress { bytes_done: self.import.bytes_done, bytes_total: self.import.bytes_total };
        (self.import.tell)(progress).map_err(io::Error::other)?;
        Ok(read)
    }
}
