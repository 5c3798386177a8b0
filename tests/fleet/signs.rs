//! Reports as signs of life: stale hosts, and fleets whose reports are gone.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::{Place, hosts};

#[test]
fn a_host_that_dies_becomes_stale_and_takes_nothing() {
    let place = Place::with_directory();
    let config = "{\"region\": \"ams\"}";
    let one = place.host("one", config, &["--report-every", "1s"]);
    let _two = place.host("two", config, &["--report-every", "1h"]);
    let host = place.wait_for("one", |_| true);
    assert_eq!(host["report_every_seconds"], 1);
    // Nothing is new on it, and it lives.
    place.wait_for("one", |later| later["reported_at"].as_u64() > host["reported_at"].as_u64());
    drop(one);
    place.wait_for("one", |host| host["status"] == "stale");
    assert!(place.ok("none", &["fleet", "list"]).contains("stale"));
    let ranking = place.json("none", &["place", "--size", "1M"]);
    assert_eq!(hosts(&ranking), ["two"]);
    assert_eq!((&ranking["excluded"][0]["constraint"], &ranking["excluded"][0]["need"]), (&"stale".into(), &3.into()));
    // One that comes back lives again.
    let _one = place.host("one", config, &["--report-every", "1s"]);
    assert_eq!(hosts(&place.json("none", &["place", "--size", "1M"])).len(), 2);
}

#[test]
fn a_fleet_that_was_wiped_heals_by_itself() {
    let place = Place::with_directory();
    let config = "{\"region\": \"ams\", \"capacity\": {\"cpus\": {\"shared\": 2}}}";
    let _one = place.host("one", config, &["--report-every", "1s"]);
    place.ok("one", &["create", "disk", "--size", "1M", "--vm-cpus", "1"]);
    place.wait_for("one", |host| host["used"]["cpus"]["shared"] == 1);
    for part in ["hosts", "deltas", "reservations"] {
        // The whole of it, and each part alone.
        let parts: &[&str] = if part == "reservations" { &["hosts", "deltas", "reservations"] } else { &[part] };
        for part in parts {
            let path = place.objects.join(part);
            // A report may come in while its directory goes.
            while fs::remove_dir_all(&path).is_err_and(|error| error.kind() != ErrorKind::NotFound) {}
        }
        let _ = fs::remove_file(place.objects.join("lock"));
        let host = place.wait_for("one", |host| host["used"]["cpus"]["shared"] == 1 && host["status"] == "ok");
        assert_eq!(host["volumes"]["disk"]["size_bytes"], 1 << 20);
        assert_eq!(hosts(&place.json("none", &["place", "--size", "1M", "--vm-cpus", "1"])), ["one"]);
    }
}

#[test]
fn a_clock_that_is_far_from_that_of_the_bucket_reserves_nothing() {
    let place = Place::with_bucket_behind(Duration::from_secs(3600));
    let _one = place.host("one", "{\"region\": \"ams\"}", &[]);
    let reserve = ["place", "--size", "1M", "--reserve"];
    for (store, arguments) in [("none", &reserve[..]), ("one", &["create", "disk", "--size", "1M"])] {
        let (kind, message) = place.error(store, arguments);
        assert!(kind == "invalid_input" && message.contains(" s ahead of that of s3://"), "{kind}: {message}");
    }
    assert_eq!(place.reservations(), 0);
    // What reserves nothing needs no clock.
    place.ok("none", &reserve[..3]);
    place.ok("one", &["create", "disk", "--size", "1M", "--force"]);
}

#[test]
fn a_bucket_without_a_time_does_not_fail_the_clock_check() {
    let place = Place::with_bucket_behind(Duration::MAX);
    place.publish("one", 1);
    let (kind, message) = place.error("none", &["place", "--size", "1M", "--reserve"]);
    assert!(kind == "unsupported" && message.contains("does not tell when clock was written (Last-Modified)"), "{kind}: {message}");
}

/// A sign of life is small: what was written whole is looked at, and neither read nor written again.
#[test]
fn signs_of_life_are_changes_in_a_bucket_too() {
    let place = Place::with_bucket();
    let _one = place.host("one", "{\"region\": \"ams\"}", &["--report-every", "1s"]);
    let whole = place.objects.join("hosts/one.json");
    let told = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap()["reported_at"].as_u64().unwrap();
    let first = told(&whole);
    place.wait_for("one", |host| host["reported_at"].as_u64().unwrap() >= first + 2);
    assert_eq!(told(&whole), first);
    fs::remove_file(&whole).unwrap();
    place.wait_for("one", |host| host["status"] == "ok");
    assert!(told(&whole) > first);
}

#[test]
fn reports_that_lie_harm_nobody_else() {
    let place = Place::with_directory();
    place.publish("one", 4);
    let path = place.objects.join("hosts/one.json");
    let honest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let lie = |name: &str, change: &[(&str, Value)]| {
        let mut report = honest.clone();
        report["host"] = name.into();
        change.iter().for_each(|(key, value)| report[*key] = value.clone());
        fs::write(path.with_file_name(format!("{name}.json")), report.to_string()).unwrap();
    };
    lie("old", &[("reported_at", 1.into())]);
    lie("future", &[("reported_at", u64::MAX.into()), ("report_every_seconds", u64::MAX.into())]);
    lie("huge", &[("used", serde_json::json!({"cpus": {"shared": u32::MAX}, "memory_bytes": u64::MAX, "volume_bytes": u64::MAX}))]);
    let ranking = place.json("none", &["place", "--size", "1M", "--vm-cpus", "1", "--all"]);
    assert_eq!(hosts(&ranking), ["one"]);
    let constraints: Vec<_> = ranking["excluded"].as_array().unwrap().iter().map(|host| host["constraint"].as_str().unwrap()).collect();
    assert_eq!(constraints, ["stale", "clock", "cpus"]);
}
