//! Images made for the tests: archives, manifests, layouts.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use volfork::content::Digest;
use volfork::image::{ImageName, ImportOptions, ImportedImage, LayoutSource, Place, Platform, Version, import_image, resolve};
use volfork::{Result, Store, StoreOptions};

pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// An archive that is being written.
pub struct Archive(Builder<Vec<u8>>);

impl Archive {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Names go in as they are, even those that no tool would write.
    pub fn entry(mut self, kind: EntryType, name: &str, mode: u32, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(100_000);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(259).unwrap();
            header.set_device_minor(300).unwrap();
        }
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, 0o640, "", content)
    }

    pub fn directory(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, 0o755, "", b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, 0o777, target, b"")
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, 0o640, target, b"")
    }

    /// Attributes of the entry that follows.
    pub fn pax(mut self, extensions: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(extensions.iter().copied()).unwrap();
        self
    }

    /// A header that says whatever it wants, and what follows it.
    pub fn raw(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer in a layout.
#[derive(Clone)]
pub struct Layer {
    pub descriptor: Value,
    pub diff: Digest,
}

/// A layout directory that is being filled.
pub struct Layout {
    pub directory: tempfile::TempDir,
    index: std::cell::RefCell<Vec<Value>>,
}

impl Layout {
    pub fn new() -> Self {
        let layout = Self { directory: tempfile::tempdir().unwrap(), index: Vec::new().into() };
        std::fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
        std::fs::write(layout.path().join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
        layout.write_index();
        layout
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn blob_path(&self, digest: &Value) -> std::path::PathBuf {
        self.path().join("blobs/sha256").join(digest.as_str().unwrap().strip_prefix("sha256:").unwrap())
    }

    fn write_index(&self) {
        let index = json!({ "schemaVersion": 2, "manifests": *self.index.borrow() });
        std::fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    /// Stores bytes; answers their descriptor.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes).to_string();
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        std::fs::write(self.blob_path(&descriptor["digest"]), bytes).unwrap();
        descriptor
    }

    pub fn document(&self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    pub fn layer(&self, archive: Archive) -> Layer {
        self.layer_of(&archive.bytes())
    }

    pub fn layer_of(&self, bytes: &[u8]) -> Layer {
        Layer { descriptor: self.blob(GZIP, &gzip(bytes)), diff: Digest::of(bytes) }
    }

    /// Stores the manifest of an image; answers its descriptor.
    pub fn manifest(&self, layers: &[&Layer], architecture: &str) -> Value {
        let diffs: Vec<String> = layers.iter().map(|layer| layer.diff.to_string()).collect();
        let config = json!({ "os": "linux", "architecture": architecture, "rootfs": { "type": "layers", "diff_ids": diffs } });
        let config = self.document(CONFIG, &config);
        let layers: Vec<_> = layers.iter().map(|layer| layer.descriptor.clone()).collect();
        self.document(MANIFEST, &json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers }))
    }

    /// Lists a descriptor in the index of the layout.
    pub fn tag(&self, tag: &str, mut descriptor: Value) {
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.index.borrow_mut().push(descriptor);
        self.write_index();
    }

    pub fn image(&self, tag: &str, layers: &[&Layer]) {
        self.tag(tag, self.manifest(layers, &Platform::here().architecture));
    }

    pub fn name(&self, tag: &str) -> ImageName {
        ImageName { place: Place::Layout(self.path().into()), version: Version::Tag(tag.into()) }
    }

    pub fn source(&self) -> LayoutSource {
        LayoutSource::open(self.path()).unwrap()
    }

    pub fn resolve(&self, tag: &str) -> Result<volfork::image::ResolvedImage> {
        resolve(&self.source(), &self.name(tag), &Platform::here())
    }

    pub fn import(&self, store: &Store, tag: &str, volume: &str) -> Result<ImportedImage> {
        self.import_with(store, tag, volume, &ImportOptions::default())
    }

    pub fn import_with(&self, store: &Store, tag: &str, volume: &str, options: &ImportOptions) -> Result<ImportedImage> {
        import_image(store, &self.source(), &self.name(tag), volume, options, &mut |_| Ok(()))
    }
}

/// What a volume has, block by block, but zeros.
pub fn content(store: &Store, volume: &str) -> Vec<(u64, Digest)> {
    let mut found = Vec::new();
    each_data(store, volume, &mut |at, bytes| {
        for (number, block) in bytes.chunks(4096).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                found.push((at + number as u64 * 4096, Digest::of(block)));
            }
        }
    });
    found
}

fn each_data(store: &Store, volume: &str, take: &mut dyn FnMut(u64, &[u8])) {
    let volume = store.volume(volume).unwrap();
    let mut at = 0;
    while at < volume.size_bytes() {
        let end = volume.size_bytes().min(at + (64 << 20));
        for run in volume.runs(at..end, 1 << 20).unwrap() {
            if matches!(run.kind, volfork::volume::RunKind::Data { .. }) {
                let mut bytes = vec![0; run.bytes as usize];
                volume.read_at(&mut bytes, at).unwrap();
                take(at, &bytes);
            }
            at += run.bytes;
        }
    }
}

/// A store, and where to put things beside it.
pub struct Host {
    pub directory: tempfile::TempDir,
    pub store: Store,
}

impl Host {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path().join("store"), StoreOptions::default()).unwrap();
        Self { directory, store }
    }

    /// The bytes of a volume as a sparse file.
    pub fn export(&self, volume: &str) -> std::path::PathBuf {
        use std::os::unix::fs::FileExt;
        let path = self.directory.path().join(format!("{volume}.img"));
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(self.store.show(volume).unwrap().size_bytes).unwrap();
        each_data(&self.store, volume, &mut |at, bytes| file.write_all_at(bytes, at).unwrap());
        path
    }
}
