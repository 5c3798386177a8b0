//! Zones whose hosts come and go while something is placed in them.

use super::*;

fn alone() -> Request {
    Request { require_unique_zone: true, ..machine("db") }
}

fn with_volume(name: &str, zone: &str) -> HostInventory {
    let volume = PlacedVolume { app: "app".into(), name: "db".into(), size_bytes: 1 };
    HostInventory { volumes: [("db".to_owned(), volume)].into(), ..host(name, zone, 8) }
}

#[test]
fn a_host_that_comes_to_a_zone_after_the_fleet_was_read_is_seen() {
    for newcomer in ["new", "moved"] {
        let fleet = memory();
        publish(&fleet, host("a", "z", 8));
        publish(&fleet, host("moved", "y", 8));
        let options = FleetOptions::default();
        let view = fleet.load().unwrap();
        publish(&fleet, with_volume(newcomer, "z"));
        let request = Request { count: 2, ..alone() };
        let placed = fleet.place_in(&view, &request, &Policy::default(), options, NOW).unwrap().placed;
        let zones: Vec<_> = placed.into_iter().map(|placed| placed.ranked.zone).collect();
        assert_eq!(zones, if newcomer == "new" { vec!["y"] } else { vec![] }, "{newcomer}");
    }
}

#[test]
fn a_host_that_joins_a_zone_during_a_create_is_seen() {
    let fleet = memory();
    let own = host("a", "z", 8);
    publish(&fleet, own.clone());
    let asked = Cell::new(0);
    let look = || {
        asked.set(asked.get() + 1);
        // Asked the second time when the book was read.
        if asked.get() == 2 {
            publish(&fleet, with_volume("b", "z"));
        }
        Ok(own.clone())
    };
    let refused = fleet.admit(&Birth { wanted: &alone(), grows: false, reservation: None, own: &look }, NOW).unwrap_err();
    assert!(refused.kind() == ErrorKind::NoSpace && asked.get() == 2, "{refused}");
}

/// More than are read at once, of which some were never there. Files come in any order.
#[test]
fn the_hosts_of_a_large_zone_are_read_in_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let fleet = SharedFleet::open(directory.path().to_str().unwrap()).unwrap();
    std::fs::create_dir(directory.path().join("hosts")).unwrap();
    for number in 0..100 {
        let host = host(&format!("h{number}"), if number % 3 == 0 { "y" } else { "z" }, number);
        std::fs::write(directory.path().join(format!("hosts/h{number}.json")), serde_json::to_vec(&host).unwrap()).unwrap();
    }
    let names = |numbers: &mut dyn Iterator<Item = u32>| numbers.map(|number| format!("h{number}")).collect::<Vec<_>>();
    let known = names(&mut (0..120).rev());
    let zone = fleet.zone("ams.z", &known, &machine("v")).unwrap();
    assert_eq!(zone.into_iter().map(|host| host.host).collect::<Vec<_>>(), names(&mut (0..100).rev().filter(|number| number % 3 != 0)));
}
