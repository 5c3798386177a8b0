//! Layers are stored once; imports that fail or are interrupted.

use std::os::unix::fs::FileExt;

use volfork::image::{ImportOptions, ImportProgress, Platform, import_image};
use volfork::{ErrorKind, Store, StoreOptions};

use crate::fixture::{Archive, Host, Layer, Layout, content};
use crate::programs::check;
use crate::random::Random;

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    Random::new(seed).bytes(bytes)
}

fn base(layout: &Layout) -> [Layer; 2] {
    let first = Archive::new().file("bin/tool", &noise(1, 4 << 20)).file("etc/conf", b"a").link("bin/alias", "bin/tool");
    let second = Archive::new().file("lib/code", &noise(2, 2 << 20)).file("etc/.wh.conf", b"").pax(&[("SCHILY.xattr.user.a", b"1")]);
    [layout.layer(first), layout.layer(second.file("etc/other", b"b"))]
}

/// What a fleet is told: bytes that are there, each once, and not the sizes of file systems that are nearly empty.
#[test]
#[cfg(feature = "fleet")]
fn images_take_the_room_of_what_they_hold() {
    let (host, layout) = (Host::new(), Layout::new());
    let [first, second] = base(&layout);
    let one = layout.layer(Archive::new().file("app/one", &noise(3, 1 << 20)));
    layout.image("base", &[&first, &second]);
    layout.image("one", &[&first, &second, &one]);
    let used = || volfork::fleet::HostFacts::default().amounts(&host.store).unwrap();
    layout.import(&host.store, "base", "base").unwrap();
    let of_base = used().used.volume_bytes;
    assert!((6 << 20..8 << 20).contains(&of_base), "{of_base}");
    let imported = layout.import(&host.store, "one", "one").unwrap();
    let of_both = used().used.volume_bytes;
    assert!((1 << 20..2 << 20).contains(&(of_both - of_base)), "{of_base} {of_both}");
    let bytes = |layers: &[&Layer]| layers.iter().map(|layer| layer.descriptor["size"].as_u64().unwrap()).sum::<u64>();
    let images: Vec<u64> = used().images.into_values().collect();
    assert_eq!(images, [bytes(&[&first, &second]), bytes(&[&first, &second, &one])]);
    // A machine's disk may grow to its size.
    host.store.fork("one", "disk").unwrap();
    assert_eq!(used().used.volume_bytes, of_both + imported.size_bytes);
}

#[test]
fn a_base_is_stored_once_and_is_the_same_everywhere() {
    let (host, layout) = (Host::new(), Layout::new());
    let [first, second] = base(&layout);
    let one = layout.layer(Archive::new().file("app/one", &noise(3, 1 << 20)));
    let two = layout.layer(Archive::new().file("app/two", &noise(4, 1 << 20)));
    layout.image("base", &[&first, &second]);
    layout.image("one", &[&first, &second, &one]);
    layout.image("two", &[&first, &second, &two]);
    let imported = layout.import(&host.store, "one", "one").unwrap();
    assert_eq!((imported.start.layers, imported.start.layers_reused), (3, 0));
    let imported = layout.import(&host.store, "two", "two").unwrap();
    assert_eq!((imported.start.layers, imported.start.layers_reused), (3, 2));
    assert_eq!(imported.start.bytes_fetched, two.descriptor["size"].as_u64().unwrap());
    let cached = layout.import(&host.store, "two", "again").unwrap();
    assert!(cached.start.is_cached() && cached.start.bytes_fetched == 0);
    // Six MiB of the base are shared; each image has its own MiB and some metadata.
    let info = host.store.show("two").unwrap();
    assert!(info.blocks.present >= 7 << 8, "{info:?}");
    let own = |name: &str| {
        let runs = host.store.volume(name).unwrap().runs(0..8 << 30, 1 << 20).unwrap();
        let data = runs.iter().filter(|run| matches!(run.kind, volfork::volume::RunKind::Data { depth } if depth <= 2));
        data.map(|run| run.bytes).sum::<u64>()
    };
    assert!((1 << 20..(1 << 20) + (128 << 10)).contains(&own("two")), "{}", own("two"));
    assert_eq!(host.store.held_layers().len(), 4);
    // Another store that imports the base by itself has the same bytes as one that met it in an image.
    let other = Host::new();
    layout.import(&other.store, "two", "two").unwrap();
    layout.import(&other.store, "base", "base").unwrap();
    layout.import(&host.store, "base", "base").unwrap();
    for name in ["two", "base"] {
        check(&host.export(name));
        assert!(content(&host.store, name) == content(&other.store, name), "{name}");
    }
}

#[test]
fn a_failed_import_leaves_its_whole_layers_and_no_volume() {
    let (host, layout) = (Host::new(), Layout::new());
    let [first, second] = base(&layout);
    layout.image("v", &[&first, &second]);
    let path = layout.blob_path(&second.descriptor["digest"]);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    let truncated = good[..good.len() / 2].to_vec();
    let longer = [&good[..], b"more"].concat();
    for (what, bytes) in [("changed", bad), ("truncated", truncated), ("longer", longer)] {
        std::fs::write(&path, bytes).unwrap();
        let error = layout.import(&host.store, "v", "v").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::InvalidInput), "{what}: {error}");
        let [kept] = &host.store.volume_names()[..] else { panic!("{what}: {:?}", host.store.volume_names()) };
        assert!(kept.starts_with("v.importing-"), "{kept}");
        // Another process that opens the store keeps it, too.
        host.store.sweep_unfinished().unwrap();
        assert_eq!(host.store.held_layers().len(), 1);
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(layout.import(&host.store, "v", "v").unwrap_err().kind(), ErrorKind::NotFound);
    std::fs::write(&path, &good).unwrap();
    let imported = layout.import(&host.store, "v", "v").unwrap();
    assert_eq!((imported.start.layers, imported.start.layers_reused), (2, 1));
    assert_eq!(host.store.volume_names(), ["v"]);
    check(&host.export("v"));
    assert_eq!(layout.import(&host.store, "v", "v").unwrap_err().kind(), ErrorKind::Exists);
}

/// Changes a byte of each layer of a store that has anything there.
fn damage(host: &Host, offset: u64) {
    for entry in std::fs::read_dir(host.directory.path().join("store/layers")).unwrap() {
        let path = entry.unwrap().path();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        let is_data = path.extension().is_some_and(|extension| extension == "data");
        if is_data && file.read_at(&mut byte, offset).unwrap() == 1 && byte[0] != 0 {
            file.write_all_at(&[!byte[0]], offset).unwrap();
        }
    }
}

/// Where a volume has these bytes.
fn place_of(host: &Host, volume: &str, bytes: &[u8]) -> u64 {
    let digest = volfork::content::Digest::of(&bytes[..4096]);
    content(&host.store, volume).into_iter().find(|(_, found)| *found == digest).unwrap().0
}

#[test]
fn a_damaged_layer_is_refetched_and_its_forks_repaired() {
    let (host, layout) = (Host::new(), Layout::new());
    let [first, second] = base(&layout);
    layout.image("v", &[&first, &second]);
    layout.import(&host.store, "v", "a").unwrap();
    let whole = content(&host.store, "a");
    let tool = place_of(&host, "a", &noise(1, 4096));
    damage(&host, tool);
    // Until somebody reads there, nobody knows.
    assert!(layout.import(&host.store, "v", "b").unwrap().start.is_cached());
    let error = host.store.volume("b").unwrap().read_at(&mut [0; 512], tool).unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("import it again"), "{error}");
    assert!(host.store.held_layers().is_empty());
    let again = layout.import(&host.store, "v", "c").unwrap();
    assert_eq!((again.start.layers, again.start.layers_reused), (2, 0));
    for name in ["a", "b", "c"] {
        assert!(content(&host.store, name) == whole, "{name}");
    }
    assert!(layout.import(&host.store, "v", "d").unwrap().start.is_cached());
    // What is known is forgotten when a store is closed; the layers that came last are used then.
    host.store.close().unwrap();
    damage_oldest(&host, tool);
    let path = host.directory.path().join("store");
    let host = Host { store: Store::open(&path, StoreOptions::default()).unwrap(), directory: host.directory };
    assert!(layout.import(&host.store, "v", "e").unwrap().start.is_cached());
    host.store.volume("e").unwrap().read_at(&mut [0; 512], tool).unwrap();
    let scrubbed = host.store.scrub(None).unwrap();
    assert_eq!((scrubbed.blocks_repaired, scrubbed.blocks_damaged), (1, 0), "{scrubbed:?}");
    check(&host.export("a"));
}

fn damage_oldest(host: &Host, offset: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(host.directory.path().join("store/layers/0.data")).unwrap();
    file.write_all_at(b"damaged", offset).unwrap();
}

#[test]
fn damage_that_another_layer_cannot_repair_is_told_once() {
    let (host, layout) = (Host::new(), Layout::new());
    let [first, second] = base(&layout);
    layout.image("v", &[&first, &second]);
    layout.import(&host.store, "v", "a").unwrap();
    host.store.close().unwrap();
    let path = host.directory.path().join("store");
    let checksums = std::fs::OpenOptions::new().write(true).open(path.join("layers/0.crc")).unwrap();
    checksums.set_len(0).unwrap();
    let host = Host { store: Store::open(&path, StoreOptions::default()).unwrap(), directory: host.directory };
    let damaged = host.store.scrub(None).unwrap().blocks_damaged;
    layout.import(&host.store, "v", "b").unwrap();
    let scrubbed = host.store.scrub(None).unwrap();
    assert!(damaged > 0 && scrubbed.blocks_damaged == damaged, "{scrubbed:?}");
    for error in &scrubbed.errors {
        assert!(error.contains("could be repaired from") && error.matches("restore it").count() == 1, "{error}");
    }
    check(&host.export("b"));
}

#[test]
fn an_import_finds_damage_it_reads_or_all_with_verify() {
    let layout = Layout::new();
    let [first, second] = base(&layout);
    let one = layout.layer(Archive::new().file("app/one", &noise(3, 10_000)));
    layout.image("base", &[&first, &second]);
    layout.image("one", &[&first, &second, &one]);
    let verify = ImportOptions::default().with_verify(true);
    // The superblock of the file system, which an import that adds a layer reads; a block of a file, which it does not; nothing.
    for (what, options, reused) in [("superblock", ImportOptions::default(), 0), ("file", verify.clone(), 0), ("nothing", verify, 2)] {
        let host = Host::new();
        layout.import(&host.store, "base", "base").unwrap();
        match what {
            "superblock" => damage(&host, 1024 + 56),
            "file" => damage(&host, place_of(&host, "base", &noise(1, 4096))),
            _ => {}
        }
        let imported = layout.import_with(&host.store, "one", "v", &options).unwrap();
        assert_eq!(imported.start.layers_reused, reused, "{what}");
        check(&host.export("v"));
        assert!(layout.import(&host.store, "base", "again").unwrap().start.is_cached());
        check(&host.export("base"));
        let mut names = host.store.volume_names();
        names.sort();
        assert_eq!(names, ["again", "base", "v"]);
    }
}

#[test]
fn an_import_takes_no_names_but_its_own() {
    let (host, layout) = (Host::new(), Layout::new());
    let [first, second] = base(&layout);
    layout.image("v", &[&first, &second]);
    let (store, bytes) = (&host.store, noise(7, 10_000));
    let mine = ["app.importing", "app.layers", "app.stale"];
    for name in mine {
        store.create_volume(name, 1 << 20).unwrap().write_at(&bytes, 0).unwrap();
        store.create_snapshot(name, "s").unwrap();
    }
    // Whatever is made, forked and renamed meanwhile, and whether the import fails or not.
    for (attempt, fails) in [true, false].into_iter().enumerate() {
        let mut told = 0;
        let mut tell = |_| {
            told += 1;
            if told == 1 {
                let helper = store.labels().into_iter().find(|(name, _, labels)| labels.values().any(|value| value == name)).unwrap().0;
                assert!(helper.starts_with("app.importing-"), "{helper}");
                store.rename(&helper, &format!("renamed{attempt}")).unwrap();
                store.fork("app.importing", &helper).unwrap();
                store.fork(&format!("renamed{attempt}"), &format!("forked{attempt}")).unwrap();
                for taken in [store.create_volume("app", 1), store.fork("app.importing", "app")] {
                    assert_eq!(taken.err().unwrap().kind(), ErrorKind::Exists);
                }
                assert_eq!(store.reserve_name("app").err().unwrap().kind(), ErrorKind::Exists);
            }
            if fails { Err(volfork::Error::new(ErrorKind::Busy, "enough")) } else { Ok(()) }
        };
        let imported = import_image(store, &layout.source(), &layout.name("v"), "app", &ImportOptions::default(), &mut tell);
        assert_eq!(imported.is_err(), fails, "{imported:?}");
        let names = store.volume_names();
        assert!(!names.contains(&format!("renamed{attempt}")) && names.contains(&format!("forked{attempt}")), "{names:?}");
    }
    store.sweep_unfinished().unwrap();
    let names = store.volume_names();
    assert_eq!(names.len(), mine.len() + 2 + 2 + 1, "{names:?}");
    for name in names.iter().filter(|name| name.starts_with("app.")) {
        let mut read = vec![0; bytes.len()];
        store.volume(name).unwrap().read_at(&mut read, 0).unwrap();
        assert!(read == bytes && (name.contains('-') || store.snapshot_names(name).unwrap() == ["s"]), "{name}");
    }
    assert!(store.labels().iter().all(|(name, _, labels)| labels.is_empty() || name == "app"));
    check(&host.export("app"));
}

#[test]
fn whoever_watches_can_end_an_import() {
    let (host, layout) = (Host::new(), Layout::new());
    layout.image("v", &base(&layout).each_ref());
    let mut heard = Vec::new();
    let mut tell = |progress: ImportProgress| {
        heard.push(progress);
        match progress.bytes_done < 1 << 20 {
            true => Ok(()),
            false => Err(volfork::Error::new(ErrorKind::Busy, "enough")),
        }
    };
    let error = import_image(&host.store, &layout.source(), &layout.name("v"), "v", &ImportOptions::default(), &mut tell).unwrap_err();
    assert_eq!(error.to_string(), "enough");
    assert!(heard.is_sorted_by_key(|progress| progress.bytes_done) && heard[0].bytes_total > 6 << 20);
    assert!(host.store.volume_names().is_empty());
}

#[test]
fn bombs_do_not_go_off() {
    let (host, layout) = (Host::new(), Layout::new());
    let zeros = layout.layer(Archive::new().file("zeros", &vec![0; 64 << 20]));
    layout.image("v", &[&zeros]);
    let options = ImportOptions::default().with_unpacked_bytes_max(16 << 20);
    let error = layout.import_with(&host.store, "v", "v", &options).unwrap_err();
    assert!(error.to_string().contains("larger"), "{error}");
    // Behind the end of the archive, where only the digests look.
    let archive = [Archive::new().file("f", b"x").bytes(), vec![0; 64 << 20]].concat();
    let diff = volfork::content::Digest::of(&archive);
    let trailing = Layer { descriptor: layout.blob(crate::fixture::GZIP, &crate::fixture::gzip(&archive)), diff };
    layout.image("trailing", &[&trailing]);
    let error = layout.import_with(&host.store, "trailing", "v", &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(host.store.volume_names().is_empty());
    // Zeros cost nothing.
    layout.import(&host.store, "v", "v").unwrap();
    assert!(host.store.show("v").unwrap().blocks.present < 1000);
}

#[test]
fn an_archive_must_be_what_the_configuration_says() {
    let (host, layout) = (Host::new(), Layout::new());
    let layer = layout.layer(Archive::new().file("f", b"x"));
    let other = Layer { diff: volfork::content::Digest::of(b"other"), ..layer.clone() };
    layout.image("v", &[&other]);
    let error = layout.import(&host.store, "v", "v").unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("unpacks to"), "{error}");
    let nonsense = layout.blob(crate::fixture::GZIP, b"not gzip at all");
    layout.image("nonsense", &[&Layer { descriptor: nonsense, diff: other.diff }]);
    assert_eq!(layout.import(&host.store, "nonsense", "v").unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(host.store.volume_names().is_empty());
}

#[test]
fn all_packings_give_the_same_layer() {
    let layout = Layout::new();
    let bytes = Archive::new().file("f", &noise(9, 100_000)).bytes();
    let diff = volfork::content::Digest::of(&bytes);
    let oci = "application/vnd.oci.image.layer.v1.tar";
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let packings = [
        (oci.to_owned(), bytes.clone()),
        (format!("{oci}+gzip"), crate::fixture::gzip(&bytes)),
        (format!("{oci}+zstd"), zstd::encode_all(&bytes[..], 3).unwrap()),
        (docker.to_owned(), crate::fixture::gzip(&bytes)),
    ];
    let host = Host::new();
    for (number, (media_type, blob)) in packings.iter().enumerate() {
        let tag = format!("v{number}");
        layout.image(&tag, &[&Layer { descriptor: layout.blob(media_type, blob), diff }]);
        let chain = layout.resolve(&tag).unwrap().layers[0].held.chain;
        assert_eq!(chain, diff);
        let fresh = Host::new();
        assert!(!layout.import(&fresh.store, &tag, "v").unwrap().start.is_cached());
        check(&fresh.export("v"));
        // What the store holds is the content, however it travelled.
        assert_eq!(layout.import(&host.store, &tag, &tag).unwrap().start.is_cached(), number > 0);
    }
    assert_eq!(Platform::here().os, "linux");
}
