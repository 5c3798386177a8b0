//! Names, tags and platforms; hostile manifests.

use serde_json::json;
use volfork::image::{Platform, Version, resolve};
use volfork::{Error, ErrorKind};

use crate::fixture::{Archive, CONFIG, INDEX, Layout, MANIFEST};

fn kind(result: Result<volfork::image::ResolvedImage, Error>) -> (ErrorKind, String) {
    let error = result.unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn a_tag_stands_for_a_digest_and_a_layer_counts_once() {
    let layout = Layout::new();
    let layer = layout.layer(Archive::new().file("f", b"x"));
    let again = layout.layer(Archive::new().file("g", b"y"));
    layout.image("v", &[&layer, &again, &layer]);
    let found = layout.resolve("v").unwrap();
    assert_eq!((found.layers.len(), found.image.layers.len()), (3, 2));
    let sizes = [&layer, &again].map(|layer| layer.descriptor["size"].as_u64().unwrap());
    assert_eq!(found.image.bytes(), sizes.iter().sum::<u64>());
    let mut name = layout.name("v");
    name.version = Version::Digest(found.image.digest);
    assert_eq!(resolve(&layout.source(), &name, &Platform::here()).unwrap().image.layers, found.image.layers);
    // The chain of layers, as the specification defines it.
    let second = volfork::content::Digest::of(format!("{} {}", layer.diff, again.diff).as_bytes());
    assert_eq!([found.layers[0].held.chain, found.layers[1].held.chain], [layer.diff, second]);
    name.version = Version::Default;
    assert!(resolve(&layout.source(), &name, &Platform::here()).is_ok());
    layout.image("w", &[&again]);
    assert!(kind(resolve(&layout.source(), &name, &Platform::here())).1.contains("v, w"));
    assert!(kind(layout.resolve("x")).1.contains("it has the tags v, w"));
}

#[test]
fn the_platform_chooses_and_others_are_listed() {
    let layout = Layout::new();
    let layer = layout.layer(Archive::new().file("f", b"x"));
    let entry = |architecture: &str| {
        let mut entry = layout.manifest(&[&layer], architecture);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let mut attestation = layout.document(MANIFEST, &json!({ "schemaVersion": 2 }));
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    let inner = layout.document(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry("riscv64")] }));
    let list = json!([entry("arm64"), attestation, entry("s390x"), inner]);
    layout.tag("v", layout.document(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": list })));
    let find = |platform: &str| resolve(&layout.source(), &layout.name("v"), &platform.parse().unwrap());
    for platform in ["linux/arm64", "linux/s390x", "linux/riscv64"] {
        assert_eq!(find(platform).unwrap().platform.to_string(), platform);
    }
    let (kind, text) = kind(find("windows/amd64"));
    assert!(kind == ErrorKind::NotFound && text.contains("linux/arm64, linux/s390x") && !text.contains("unknown"), "{text}");
}

#[test]
fn hostile_documents_are_refused_clearly() {
    let layout = Layout::new();
    let layer = layout.layer(Archive::new().file("f", b"x"));
    let good = layout.manifest(&[&layer], &Platform::here().architecture);
    let diff = layer.diff.to_string();
    let mut deep = good.clone();
    for _ in 0..6 {
        deep = layout.document(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [deep] }));
    }
    let empty = layout.document(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }));
    let twice = layout.document(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [empty, empty] }));
    let with = |key: &str, value: serde_json::Value| {
        let mut descriptor = good.clone();
        descriptor[key] = value;
        descriptor
    };
    let image = |config: serde_json::Value, layers: serde_json::Value| {
        let config = layout.document(CONFIG, &config);
        layout.document(MANIFEST, &json!({ "schemaVersion": 2, "config": config, "layers": layers }))
    };
    let architecture = Platform::here().architecture;
    let root = |diffs: serde_json::Value| {
        let layers = json!({ "type": "layers", "diff_ids": diffs });
        json!({ "os": "linux", "architecture": architecture, "rootfs": layers })
    };
    let huge_layer = json!({ "mediaType": "text/html", "digest": diff, "size": 1 });
    for (tag, descriptor, wanted, text) in [
        ("deep", deep, ErrorKind::InvalidInput, "too deep"),
        ("twice", twice, ErrorKind::InvalidInput, "in circles"),
        ("size", with("size", json!(7)), ErrorKind::Corrupt, "more than the 7 bytes"),
        ("short", with("size", json!(100_000)), ErrorKind::Corrupt, "ends after"),
        ("huge", with("size", json!(5 << 20)), ErrorKind::InvalidInput, "are the most"),
        ("absent", with("digest", json!(volfork::content::Digest::of(b"absent"))), ErrorKind::NotFound, "does not exist"),
        ("path", with("digest", json!("sha256:../../../../etc/passwd")), ErrorKind::InvalidInput, "not a digest"),
        ("algorithm", with("digest", json!("sha512:00")), ErrorKind::InvalidInput, "not a digest"),
        ("type", with("mediaType", json!("text/html")), ErrorKind::InvalidInput, "text/html"),
        ("media", image(root(json!([diff])), json!([huge_layer])), ErrorKind::Unsupported, "'text/html'"),
        ("count", image(root(json!([diff, diff])), json!([layer.descriptor])), ErrorKind::InvalidInput, "1 layers"),
        ("root", image(json!({ "os": "linux", "architecture": "x" }), json!([])), ErrorKind::InvalidInput, "configuration"),
    ] {
        let fresh = Layout::new();
        for entry in std::fs::read_dir(layout.path().join("blobs/sha256")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), fresh.path().join("blobs/sha256").join(entry.file_name())).unwrap();
        }
        fresh.tag(tag, descriptor);
        let (found, message) = kind(fresh.resolve(tag));
        assert!(found == wanted && message.contains(text), "{tag}: {found:?}: {message}");
    }
    // A document whose bytes do not match its digest.
    layout.tag("v", good.clone());
    let path = layout.blob_path(&good["digest"]);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 10;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(kind(layout.resolve("v")).0, ErrorKind::Corrupt);
    std::fs::write(layout.path().join("index.json"), vec![b' '; 5 << 20]).unwrap();
    assert!(kind(layout.resolve("v")).1.contains("are the most"));
    std::fs::write(layout.path().join("oci-layout"), "{\"imageLayoutVersion\":\"2.0.0\"}").unwrap();
    assert!(volfork::image::LayoutSource::open(layout.path()).is_err_and(|error| error.kind() == ErrorKind::Unsupported));
}
