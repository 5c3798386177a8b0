//! Tests of texts about volumes.

use volfork::volume::{BlockCounts, HydrationInfo, HydrationState, LeaseInfo, SourceInfo, VolumeInfo, VolumeLimits, VolumeState};

use super::date::format_time;
use super::hydration::{deadline_text, unix_now};
use super::response::done_text;
use super::volume::{volume_table, volumes_table};
use crate::request::response::Done;

fn info(name: &str, missing: u64) -> VolumeInfo {
    VolumeInfo {
        id: "vol_aaaaaaaaaaaaaaab".into(),
        name: name.into(),
        state: if missing == 0 { VolumeState::Created } else { VolumeState::Hydrating },
        size_bytes: 10 << 30,
        block_size: 4096,
        created_at: 0,
        parent: None,
        source: None,
        live_source: false,
        leases: Vec::new(),
        depth: 1,
        snapshots: vec!["one".into()],
        labels: [].into(),
        limits: VolumeLimits::default(),
        blocks: BlockCounts { present: 512, ..BlockCounts::default() },
        hydration: HydrationInfo { bytes_missing: missing, ..HydrationInfo::default() },
    }
}

#[test]
fn tables_are_plain_and_complete() {
    let printed = volumes_table(&[info("first", 0), info("second", 5 << 30)]);
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].starts_with("NAME") && lines[0].ends_with("CREATED"), "{printed}");
    assert!(lines[1].contains("first") && lines[1].contains("10.0 GiB") && lines[1].contains("2.0 MiB"), "{printed}");
    assert!(lines[2].contains("hydrating 50%"), "{printed}");
    assert!(volume_table(&info("first", 0), &[]).contains("vol_aaaaaaaaaaaaaaab"));
}

#[test]
fn leases_and_live_sources_are_told() {
    let (snapshot, fork, host, address) = ("s".into(), "f".into(), "far".into(), "10.0.0.9:4711".into());
    let lease = LeaseInfo { snapshot, fork, host, address, renewed_at: 0, lapses_at: 0 };
    let leased = VolumeInfo { live_source: true, leases: vec![lease], ..info("v", 0) };
    let printed = volume_table(&leased, &[]);
    assert!(printed.contains("'v@s' for 'f' of host far (10.0.0.9:4711), until "), "{printed}");
    assert!(printed.contains("live source: blocks are of different instants"), "{printed}");
    let printed = volumes_table(&[leased]);
    let columns: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((columns[0][5], columns[1][7]), ("LEASES", "1"), "{printed}");
}

#[test]
fn limits_are_told() {
    let limits = VolumeLimits::default().with_iops(5000).with_bytes_per_second(100 << 20).with_burst_millis(2500);
    let limited = VolumeInfo { limits, ..info("v", 0) };
    assert_eq!(done_text(Done::Limited, &limited), "volume 'v': 5000 iops, 100.0 MiB/s, burst 2s 500ms");
    assert!(volume_table(&limited, &[]).contains("5000 iops, 100.0 MiB/s, burst 2s 500ms"));
    assert_eq!(done_text(Done::Limited, &info("v", 0)), "volume 'v' has no limits");
    assert!(!volume_table(&info("v", 0), &[]).contains("limits"));
}

#[test]
fn a_fork_that_hydrates_says_what_to_do() {
    assert!(done_text(Done::Forked, &info("new", 1 << 30)).contains("volfork hydrate new --wait"));
    assert_eq!(done_text(Done::Forked, &info("new", 0)), "forked 'new' of 10.0 GiB");
    let mut paused = info("new", 1 << 30);
    paused.hydration.state = HydrationState::Paused;
    assert!(done_text(Done::Forked, &paused).contains("volfork hydrate new --resume"));
}

#[test]
fn a_deadline_that_will_not_be_met_says_so() {
    let mut hydration = HydrationInfo { bytes_missing: 1, eta_seconds: Some(50), ..HydrationInfo::default() };
    assert_eq!(deadline_text(1050, 1000, &hydration), format_time(1050));
    assert!(deadline_text(1049, 1000, &hydration).ends_with("not in time at this rate"));
    assert!(deadline_text(999, 1000, &hydration).ends_with("missed"));
    (hydration.bytes_missing, hydration.eta_seconds) = (0, None);
    assert_eq!(deadline_text(999, 1000, &hydration), format_time(999));
}

#[test]
fn a_list_says_what_keeps_a_hydration_from_going_on() {
    for (state, text) in [
        (HydrationState::Paused, "paused 50%"),
        (HydrationState::Stopped, "stopped 50%"),
        (HydrationState::NoSpace, "no space 50%"),
        (HydrationState::Running, "hydrating 50%"),
    ] {
        let mut info = info("v", 5 << 30);
        info.hydration.state = state;
        let printed = volumes_table(&[info]);
        assert!(printed.contains(text), "{printed}");
    }
}

#[test]
fn a_deadline_below_the_rate_limit_is_warned_about() {
    let mut info = info("v", 100 << 20);
    info.hydration.state = HydrationState::Running;
    info.hydration.rate_limit_bytes_per_second = Some(1 << 20);
    info.hydration.deadline = Some(unix_now() + 30);
    let text = done_text(Done::Hydrated, &info);
    assert!(text.contains("rate limit of 1.0 MiB/s") && text.contains("take at least 1m 40s") && text.contains("--deadline"), "{text}");
    assert!(volume_table(&info, &[]).contains("keeps it from its deadline"));
    info.hydration.deadline = Some(unix_now() + 3600);
    assert!(!done_text(Done::Hydrated, &info).contains("deadline"));
    info.hydration.rate_limit_bytes_per_second = None;
    info.hydration.deadline = Some(unix_now() + 30);
    assert!(!done_text(Done::Hydrated, &info).contains("deadline"));
}

#[test]
fn a_hydration_that_is_over_says_what_came_from_where() {
    let source = |uri: &str, bytes_fetched, errors| SourceInfo {
        uri: uri.into(),
        failing: false,
        bytes_fetched,
        errors,
        round_trip_micros: Some(1500),
        last_error: None,
        refused: false,
    };
    let sources = vec![source("nbd://a/v", 3 << 20, 0), source("nbd://b/v", 0, 7)];
    let mut info = info("v", 0);
    info.hydration = HydrationInfo { bytes_fetched: 3 << 20, sources, ..HydrationInfo::default() };
    let table = volume_table(&info, &[]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(lines.contains(&vec!["nbd://a/v", "done", "3.0", "MiB", "0", "1.5", "ms"]), "{table}");
    assert!(lines.contains(&vec!["nbd://b/v", "done", "0", "B", "7", "1.5", "ms"]), "{table}");
    assert!(done_text(Done::Hydrated, &info).ends_with("needs no source; fetched 3.0 MiB from nbd://a/v"));
}
