//! Ids of volumes: accepted wherever a name is, and unique.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::host::{Host, names};

fn id_of(info: &Value) -> String {
    info["id"].as_str().unwrap().to_owned()
}

fn has_the_form_of_an_id(id: &str) -> bool {
    let letters = id.strip_prefix("vol_").unwrap_or_default();
    letters.len() == 16 && letters.chars().all(|letter| matches!(letter, 'a'..='z' | '2'..='7'))
}

/// Every command that takes the name of a volume that is there.
fn walk(host: &Host) {
    let bytes = host.import("base", 3);
    let id = id_of(&host.json(&["show", "base"]));
    assert!(has_the_form_of_an_id(&id), "{id}");
    let at = |snapshot: &str| format!("{id}@{snapshot}");
    assert_eq!(host.json(&["show", &id])["name"], "base");
    assert_eq!(host.json(&["snapshot", &id, "s"])["volume"], "base");
    assert_eq!(names(&host.json(&["snapshots", &id])), ["s"]);
    assert!(host.bytes(&id) == bytes && host.bytes(&at("s")) == bytes);
    assert_eq!(host.json(&["fork", &at("s"), "of-a-snapshot"])["parent"], "base@s");
    assert_eq!(host.json(&["fork", &id, "of-a-volume"])["parent"], "base");
    host.ok(&["scrub", &id]);
    host.ok(&["hydrate", &id]);
    host.ok(&["trace", "show", &at("s")]);
    host.ok(&["disconnect", &id]);
    assert_eq!(host.json(&["extend", &id, "--size", "+1M"])["name"], "base");
    // A rename keeps it.
    host.ok(&["rename", &id, "renamed"]);
    assert_eq!(id_of(&host.json(&["show", "renamed"])), id);
    // It is no name for anything else, whether the volume is there or not.
    let other = format!("vol_{}", "a".repeat(16));
    for taken in [&id, &other] {
        assert_eq!(host.kind(&["create", taken, "--size", "1M"]), "invalid_input");
        assert_eq!(host.kind(&["rename", "renamed", taken]), "invalid_input");
    }
    host.ok(&["destroy", &at("s")]);
    host.ok(&["destroy", &id]);
    for gone in [&["show", &id][..], &["export", &id, "-"], &["destroy", &id]] {
        assert_eq!(host.kind(gone), "not_found", "{gone:?}");
    }
    host.import("base", 3);
    assert_ne!(id_of(&host.json(&["show", "base"])), id, "an id is used twice");
}

#[test]
fn an_id_is_taken_wherever_a_name_is() {
    walk(&Host::new());
    let served = Host::new();
    let server = served.serve(&[]);
    walk(&served);
    let id = id_of(&served.json(&["show", "base"]));
    let other = Host::new();
    assert_eq!(other.json(&["fork", &server.uri(&id), "f"])["name"], "f");
    assert!(other.bytes("f") == served.bytes("base"));
    server.stop();
}

#[test]
fn ids_of_many_hosts_differ() {
    let mut ids = BTreeSet::new();
    for _ in 0..3 {
        let host = Host::new();
        for name in ["a", "b"] {
            ids.insert(id_of(&host.json(&["create", name, "--size", "1M"])));
        }
    }
    assert_eq!(ids.len(), 6, "{ids:?}");
}
