//! An image becomes a volume: its layers become a chain of layers of the store.
//!
//! A layer that the store holds already is neither fetched nor stored again, whichever image it came with. One whose damage was met is:
//! what stands on the damaged one is repaired from the new one then, block by block.
//!
//! # Crash ordering
//! The volume is made under a name of its own, and gets that which was asked for as the last step ([`crate::store::Unfinished`]).
//! Each layer is sealed, with the chain that it completes, in one frame of the journal. A failed import destroys its volume; the
//! layers that it completed stay, below another volume with a label that says so, until an import under the same name succeeds or
//! that volume is destroyed. What a crash left is found by the same label.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::{Condvar, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ext4::{FileSystem, MAX_BYTES, NEW_BYTES, fitting_bytes};
use super::manifest::Platform;
use super::name::ImageName;
use super::resolve::{ResolvedImage, ResolvedLayer, resolve};
use super::source::{Blob, ManifestSource};
use super::stream::error_of;
use super::unpack::unpack;
use crate::content::{Digest, Image};
use crate::error::{Error, ErrorKind, Result};
use crate::options::with_methods;
use crate::place::wide;
use crate::store::{ReservedName, Store, Unfinished};
use crate::sync::time::Instant;
use crate::volume::{IMAGE_LABEL, Volume};

/// Name of the snapshot that stands for a layer while it is sealed.
const LAYER: &str = "layer";

/// How often an import that waits for another one tells its watcher.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// How an image is imported.
///
/// ```
/// use volfork::image::{ImportOptions, Platform};
///
/// let options = ImportOptions::default().with_size_bytes(20 << 30).with_verify(true);
/// // 64 GiB of unpacked layers at most, for the machine that imports.
/// assert_eq!((options.unpacked_bytes_max, &options.platform), (64 << 30, &Platform::here()));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImportOptions {
    /// Size of the volume; that of the layers' file system if it is not said, which is 8 GiB or what they need. The file system
    /// uses whole multiples of 128 MiB of it.
    pub size_bytes: Option<u64>,
    /// Which image of several.
    pub platform: Platform,
    /// Bytes of all layers when unpacked, at most.
    pub unpacked_bytes_max: u64,
    /// Whether every block of the layers that are here is read before they are used; those that are damaged are fetched again.
    /// Without, those whose damage this store has met since it was opened are.
    pub verify: bool,
}

with_methods! { ImportOptions:
    with_size_bytes(size_bytes: Some<u64>);
    with_platform(platform: Platform);
    with_unpacked_bytes_max(unpacked_bytes_max: u64);
    with_verify(verify: bool);
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { size_bytes: None, platform: Platform::here(), unpacked_bytes_max: 64 << 30, verify: false }
    }
}

/// How far an import has come.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let put = |bytes: &[u8]| {
/// #     let digest = volfork::content::Digest::of(bytes);
/// #     std::fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
/// #     std::fs::write(directory.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
/// #     format!("\"digest\": \"{digest}\", \"size\": {}", bytes.len())
/// # };
/// # let archive = [0; 1024];
/// # let diff = volfork::content::Digest::of(&archive);
/// # let config = format!(r#"{{"os": "linux", "architecture": "amd64", "rootfs": {{"type": "layers", "diff_ids": ["{diff}"]}}}}"#);
/// # let config = format!(r#"{{"mediaType": "application/vnd.oci.image.config.v1+json", {}}}"#, put(config.as_bytes()));
/// # let layer = format!(r#"{{"mediaType": "application/vnd.oci.image.layer.v1.tar", {}}}"#, put(&archive));
/// # let manifest = put(format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": [{layer}]}}"#).as_bytes());
/// # let tag = r#""annotations": {"org.opencontainers.image.ref.name": "v1"}"#;
/// # let manifest = format!(r#"{{"mediaType": "application/vnd.oci.image.manifest.v1+json", {tag}, {manifest}}}"#);
/// # std::fs::write(directory.path().join("index.json"), format!(r#"{{"schemaVersion": 2, "manifests": [{manifest}]}}"#)).unwrap();
/// # std::fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
/// # let store = volfork::Store::create(directory.path().join("store"), Default::default())?;
/// # let options = volfork::image::ImportOptions::default().with_size_bytes(128 << 20).with_platform("linux/amd64".parse()?);
/// use volfork::image::{ImageName, LayoutSource, import_image};
///
/// let name: ImageName = format!("oci:{}:v1", directory.path().display()).parse()?;
/// let mut percent = 0;
/// import_image(&store, &LayoutSource::open(directory.path())?, &name, "app", &options, &mut |progress| {
///     percent = progress.bytes_done * 100 / progress.bytes_total.max(1);
///     // An error ends the import, and nothing is left of the volume.
///     Ok(())
/// })?;
/// assert!(percent <= 100);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportProgress {
    /// Bytes of blobs that were fetched.
    pub bytes_done: u64,
    /// Bytes of blobs that have to be.
    pub bytes_total: u64,
}

/// Time until the volume was ready.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let put = |bytes: &[u8]| {
/// #     let digest = volfork::content::Digest::of(bytes);
/// #     std::fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
/// #     std::fs::write(directory.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
/// #     format!("\"digest\": \"{digest}\", \"size\": {}", bytes.len())
/// # };
/// # let archive = [0; 1024];
/// # let diff = volfork::content::Digest::of(&archive);
/// # let config = format!(r#"{{"os": "linux", "architecture": "amd64", "rootfs": {{"type": "layers", "diff_ids": ["{diff}"]}}}}"#);
/// # let config = format!(r#"{{"mediaType": "application/vnd.oci.image.config.v1+json", {}}}"#, put(config.as_bytes()));
/// # let layer = format!(r#"{{"mediaType": "application/vnd.oci.image.layer.v1.tar", {}}}"#, put(&archive));
/// # let manifest = put(format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": [{layer}]}}"#).as_bytes());
/// # let tag = r#""annotations": {"org.opencontainers.image.ref.name": "v1"}"#;
/// # let manifest = format!(r#"{{"mediaType": "application/vnd.oci.image.manifest.v1+json", {tag}, {manifest}}}"#);
/// # std::fs::write(directory.path().join("index.json"), format!(r#"{{"schemaVersion": 2, "manifests": [{manifest}]}}"#)).unwrap();
/// # std::fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
/// # let store = volfork::Store::create(directory.path().join("store"), Default::default())?;
/// # let options = volfork::image::ImportOptions::default().with_size_bytes(128 << 20).with_platform("linux/amd64".parse()?);
/// use volfork::image::{ImageName, LayoutSource, Start, import_image};
///
/// let name: ImageName = format!("oci:{}:v1", directory.path().display()).parse()?;
/// let source = LayoutSource::open(directory.path())?;
/// let mut import = |volume| import_image(&store, &source, &name, volume, &options, &mut |_| Ok(()));
/// let (first, second): (Start, Start) = (import("a")?.start, import("b")?.start);
/// assert_eq!((first.layers, first.layers_reused, first.bytes_fetched), (1, 0, 1024));
/// // The second volume stands on the layers of the first one.
/// assert!(second.is_cached() && second.bytes_fetched == 0);
/// # Ok(())
/// # }
/// ```
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
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let put = |bytes: &[u8]| {
/// #     let digest = volfork::content::Digest::of(bytes);
/// #     std::fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
/// #     std::fs::write(directory.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
/// #     format!("\"digest\": \"{digest}\", \"size\": {}", bytes.len())
/// # };
/// # let archive = [0; 1024];
/// # let diff = volfork::content::Digest::of(&archive);
/// # let config = format!(r#"{{"os": "linux", "architecture": "amd64", "rootfs": {{"type": "layers", "diff_ids": ["{diff}"]}}}}"#);
/// # let config = format!(r#"{{"mediaType": "application/vnd.oci.image.config.v1+json", {}}}"#, put(config.as_bytes()));
/// # let layer = format!(r#"{{"mediaType": "application/vnd.oci.image.layer.v1.tar", {}}}"#, put(&archive));
/// # let manifest = put(format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": [{layer}]}}"#).as_bytes());
/// # let tag = r#""annotations": {"org.opencontainers.image.ref.name": "v1"}"#;
/// # let manifest = format!(r#"{{"mediaType": "application/vnd.oci.image.manifest.v1+json", {tag}, {manifest}}}"#);
/// # std::fs::write(directory.path().join("index.json"), format!(r#"{{"schemaVersion": 2, "manifests": [{manifest}]}}"#)).unwrap();
/// # std::fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
/// # let store = volfork::Store::create(directory.path().join("store"), Default::default())?;
/// # let options = volfork::image::ImportOptions::default().with_size_bytes(128 << 20).with_platform("linux/amd64".parse()?);
/// use volfork::image::{ImageName, LayoutSource, import_image};
/// use volfork::volume::IMAGE_LABEL;
///
/// let name: ImageName = format!("oci:{}:v1", directory.path().display()).parse()?;
/// let imported = import_image(&store, &LayoutSource::open(directory.path())?, &name, "app", &options, &mut |_| Ok(()))?;
/// // A volume with a file system; machines get forks of it.
/// assert_eq!((imported.volume.as_str(), imported.size_bytes), ("app", 128 << 20));
/// assert_eq!(store.show("app")?.labels[IMAGE_LABEL], name.to_string());
/// store.fork("app", "machine")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImportedImage {
    /// Name of the volume.
    pub volume: String,
    /// Its size.
    pub size_bytes: u64,
    /// The image.
    pub image: Image,
    /// Time and bytes until it was ready.
    pub start: Start,
}

/// Makes the volume `volume` from the image that `name` stands for in `source`. `tell` hears of progress, and ends the import with
/// an error.
///
/// # Errors
/// [`ErrorKind::Exists`], also while the same name is being imported; as [`resolve`]; [`ErrorKind::NoSpace`]; errors of the source
/// and of the store. Nothing is left of the volume then.
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
    if let Some(size) = options.size_bytes.filter(|size| fitting_bytes(*size) > MAX_BYTES) {
        let message = format!("the file system of an image has at most {MAX_BYTES} bytes, not {size}: choose a smaller size");
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    let reserved = store.reserve_name(volume)?.for_layers();
    let image = resolve(source, name, &options.platform)?;
    let fetch = begun.elapsed();
    let mut import = Import { store, source, image: &image, options, tell, fetch, layers_made: 0, bytes_done: 0, bytes_total: 0 };
    let mut chain = import.chain(&reserved)?;
    import.fit(chain.work.volume())?;
    let size_bytes = chain.work.volume().size_bytes();
    let labels = BTreeMap::from([(IMAGE_LABEL.into(), name.to_string()), ("image-digest".into(), image.image.digest.to_string())]);
    chain.work.finish(labels)?;
    chain.whole.last = None;
    let start = Start {
        fetch_seconds: import.fetch.as_secs_f64(),
        prepare_seconds: begun.elapsed().saturating_sub(import.fetch).as_secs_f64(),
        bytes_fetched: import.bytes_done,
        layers: wide(image.layers.len()),
        layers_reused: wide(image.layers.len().saturating_sub(import.layers_made)),
    };
    Ok(ImportedImage { volume: volume.into(), size_bytes, image: image.image, start })
}

/// The layers of the image below a volume.
struct Chain<'a> {
    /// Dropped first: it stands on the layers of the volume.
    whole: Whole<'a>,
    work: Unfinished<'a>,
    /// How many there are.
    layers: usize,
}

/// Keeps the layers that are whole when an import fails.
struct Whole<'a> {
    reserved: &'a ReservedName,
    /// The last one, if this import made it or an earlier one left it.
    last: Option<Digest>,
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        // The failure that ended the import is reported; without them the next import fetches them again.
        if let Some(Ok(kept)) = self.last.map(|chain| self.reserved.fork_held(&chain)) {
            kept.leave();
        }
    }
}

/// The chains that imports of this process are making, each with its store: a layer is fetched once, however many imports need it.
static MAKING: LazyLock<Claimed> = LazyLock::new(Default::default);

type Claimed = (Mutex<HashSet<(usize, Digest)>>, Condvar);

/// A chain is made by the import that has this.
struct Making((usize, Digest));

impl Making {
    fn claim(store: &Store, chain: Digest) -> Option<Self> {
        let key = (store.identity(), chain);
        MAKING.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key).then(|| Self(key))
    }

    /// Waits until no import makes a chain, or for a moment; `true` in the first case.
    fn wait(store: &Store, chain: Digest) -> bool {
        let made = MAKING.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = MAKING.1.wait_timeout_while(made, TELL_EVERY, |made| made.contains(&(store.identity(), chain)));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        MAKING.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        MAKING.1.notify_all();
    }
}

struct Import<'a> {
    store: &'a Store,
    source: &'a dyn ManifestSource,
    image: &'a ResolvedImage,
    options: &'a ImportOptions,
    tell: &'a mut dyn FnMut(ImportProgress) -> Result<()>,
    fetch: Duration,
    layers_made: usize,
    bytes_done: u64,
    bytes_total: u64,
}

impl Import<'_> {
    /// Makes the volume on top of all layers.
    fn chain<'r>(&mut self, reserved: &'r ReservedName) -> Result<Chain<'r>> {
        let layers = &self.image.layers;
        let mut chain = self.begin(reserved)?;
        let (mut left, mut damaged) = (self.options.unpacked_bytes_max, 0);
        while let Some(layer) = layers.get(chain.layers) {
            let making = Making::claim(self.store, layer.held.chain);
            if making.is_none() || self.store.held_layers().iter().any(|held| held.chain == layer.held.chain) {
                // Another import makes it, or has made it just now: what that has is taken from the beginning.
                drop(making);
                while !Making::wait(self.store, layer.held.chain) {
                    (self.tell)(ImportProgress { bytes_done: self.bytes_done, bytes_total: self.bytes_total })?;
                }
                self.begin_again(reserved, &mut chain)?;
                continue;
            }
            let volume = chain.work.volume();
            match self.put(volume, chain.layers == 0, layer, &mut left) {
                // The layers below were damaged, which is known by now: what is whole of them is begun with.
                Err(error) if error.corruption().is_some() && damaged < layers.len() => {
                    (damaged, left) = (damaged + 1, self.options.unpacked_bytes_max);
                    drop(making);
                    self.begin_again(reserved, &mut chain)?;
                    continue;
                }
                put => put?,
            }
            volume.snapshot_image(LAYER, layer.held)?;
            chain.whole.last = Some(layer.held.chain);
            self.store.destroy_snapshot(&volume.name(), LAYER)?;
            (chain.layers, self.layers_made) = (chain.layers + 1, self.layers_made + 1);
        }
        if layers.is_empty() {
            FileSystem::create(chain.work.volume())?.commit()?;
        }
        Ok(chain)
    }

    /// Takes a volume on top of the layers that are here by now in place of that of `chain`.
    fn begin_again<'r>(&mut self, reserved: &'r ReservedName, chain: &mut Chain<'r>) -> Result<()> {
        let again = self.begin(reserved)?;
        std::mem::replace(chain, again).whole.last = None;
        Ok(())
    }

    /// The layers of the image that are here, and an unfinished volume on top of them.
    fn fork_here<'r>(&mut self, reserved: &'r ReservedName) -> Result<(Unfinished<'r>, usize)> {
        let layers = &self.image.layers;
        for _ in 0..=layers.len() {
            let held: HashSet<_> = self.store.held_layers().into_iter().map(|held| held.chain).collect();
            let Some(last) = layers.iter().rposition(|layer| held.contains(&layer.held.chain)) else { break };
            match reserved.fork_held(&layers[last].held.chain) {
                Ok(work) if self.is_sound(work.volume())? => return Ok((work, last + 1)),
                // Its damage is known by now, so it is not held any more.
                Ok(_) => {}
                // They went away a moment ago.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok((reserved.create(NEW_BYTES)?, 0))
    }

    /// Whether every block below a volume is what was stored, if that has to be known.
    fn is_sound(&mut self, volume: &Volume) -> Result<bool> {
        if !self.options.verify {
            return Ok(true);
        }
        let progress = ImportProgress { bytes_done: self.bytes_done, bytes_total: self.bytes_total };
        let mut told = Ok(());
        let report = self.store.scrub_with(Some(&volume.name()), &mut |_| {
            told = (self.tell)(progress);
            if told.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        told.map(|()| report.blocks_damaged == 0)
    }

    /// A volume on top of the layers that are here.
    fn begin<'r>(&mut self, reserved: &'r ReservedName) -> Result<Chain<'r>> {
        let layers = &self.image.layers;
        let left = reserved.left_layers();
        let (work, here) = self.fork_here(reserved)?;
        let last = layers[..here].last().filter(|_| !left.is_empty() || self.layers_made > 0).map(|layer| layer.held.chain);
        for name in &left {
            // The layers that it keeps are below the volume now, as far as they are needed. One that is being read stays.
            let _ = self.store.destroy_volume(name, true);
        }
        let missing = layers[here..].iter().map(|layer| layer.held.layer.bytes).fold(0, u64::saturating_add);
        self.bytes_total = self.bytes_done.saturating_add(missing);
        Ok(Chain { whole: Whole { reserved, last }, work, layers: here })
    }

    /// Fetches a layer and puts it on top of those below.
    fn put(&mut self, volume: &Volume, is_first: bool, layer: &ResolvedLayer, left: &mut u64) -> Result<()> {
        let mut files = if is_first { FileSystem::create(volume)? } else { FileSystem::open(volume)? };
        let begun = Instant::now();
        let blob = Blob::open(self.source, layer.held.layer)?;
        self.fetch += begun.elapsed();
        let limit = self.options.unpacked_bytes_max;
        let mut fetched = Fetched { blob, import: self };
        unpack(&mut files, &mut fetched, layer, left, limit)?;
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
        self.import.bytes_done += wide(read);
        let progress = ImportProgress { bytes_done: self.import.bytes_done, bytes_total: self.import.bytes_total };
        (self.import.tell)(progress).map_err(io::Error::other)?;
        Ok(read)
    }
}
