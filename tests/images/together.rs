//! Concurrent imports.

use std::io::Read;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use volfork::content::Digest;
use volfork::image::{
    ImageName, ImportOptions, ImportProgress, ImportedImage, LayoutSource, ManifestSource, RawManifest, Version, import_image,
};
use volfork::{Error, ErrorKind, Result};

use crate::fixture::{Archive, Host, Layout, content};
use crate::programs::check;

/// A layout that notes which blobs are opened.
struct Noted(LayoutSource, Mutex<Vec<Digest>>);

impl ManifestSource for Noted {
    fn manifest(&self, version: &Version) -> Result<RawManifest> {
        self.0.manifest(version)
    }

    fn open_blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>> {
        self.1.lock().unwrap().push(*digest);
        self.0.open_blob(digest)
    }
}

fn noise(seed: u64) -> Vec<u8> {
    (0..500_000_u64).map(|at| ((at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
}

/// Imports `one` as `a`; at its first sign of life `other` as `b`, and goes on, or fails, when that waits for it.
fn at_once(host: &Host, layout: &Layout, source: &Noted, other: &str, first_fails: bool) -> (Result<ImportedImage>, ImportedImage) {
    let store = &host.store;
    let [first_name, second_name] = ["one", other].map(|tag| layout.name(tag));
    let import = |name: &ImageName, volume: &str, tell: &mut dyn FnMut(ImportProgress) -> Result<()>| {
        import_image(store, source, name, volume, &ImportOptions::default(), tell)
    };
    let (begin, begun) = channel();
    let (wait, waits) = channel();
    std::thread::scope(|scope| {
        let second = scope.spawn(move || {
            begun.recv().unwrap();
            import(&second_name, "b", &mut |_| {
                let _ = wait.send(());
                Ok(())
            })
        });
        let mut told = false;
        let first = import(&first_name, "a", &mut |_| {
            if std::mem::replace(&mut told, true) {
                return Ok(());
            }
            begin.send(()).unwrap();
            waits.recv().unwrap();
            if first_fails { Err(Error::new(ErrorKind::Busy, "enough")) } else { Ok(()) }
        });
        (first, second.join().unwrap().unwrap())
    })
}

#[test]
fn a_layer_is_fetched_once_however_many_imports_need_it() {
    for (other, first_fails) in [("one", false), ("two", false), ("one", true)] {
        let (host, layout) = (Host::new(), Layout::new());
        let base = layout.layer(Archive::new().file("base", &noise(1)).file("gone", b"x"));
        let one = layout.layer(Archive::new().file("app", &noise(2)).file(".wh.gone", b""));
        let two = layout.layer(Archive::new().file("other", &noise(3)));
        layout.image("one", &[&base, &one]);
        layout.image("two", &[&base, &two]);
        let source = Noted(layout.source(), Mutex::default());
        let (first, second) = at_once(&host, &layout, &source, other, first_fails);
        let mut opened: Vec<_> = source.1.into_inner().unwrap().into_iter().map(|digest| digest.to_string()).collect();
        opened.sort();
        // The configuration of an image is a blob, too: each import reads that.
        let layers = [&base, &one, &two].map(|layer| layer.descriptor["digest"].as_str().unwrap().to_owned());
        let count = |layer: usize| opened.iter().filter(|digest| **digest == layers[layer]).count();
        // What failed was begun.
        assert_eq!(count(0), 1 + usize::from(first_fails), "{other}");
        assert_eq!((count(1), count(2)), (1, usize::from(other == "two")), "{other}");
        assert_eq!(first.is_err(), first_fails);
        // Each layer was made by one of the two imports.
        let made = first.iter().chain([&second]).map(|imported| imported.start.layers - imported.start.layers_reused).sum::<u64>();
        assert_eq!(made as usize, count(0) + count(1) + count(2) - usize::from(first_fails));
        // Nothing is left but what was asked for, and it is what an import alone gives.
        let names = if first_fails { vec!["b"] } else { vec!["a", "b"] };
        assert_eq!(host.store.volume_names(), names);
        let alone = Host::new();
        layout.import(&alone.store, other, "b").unwrap();
        assert!(content(&host.store, "b") == content(&alone.store, "b"));
        check(&host.export("b"));
    }
}
