//! Words that do not stand where they must not: reasons for `unsafe`, the doors of the engine, block arithmetic, work left over.

use std::collections::BTreeMap;

use crate::sources::{all, is_word};

/// Modules that may take locks, threads and time from the standard library: they are no part of the engine.
const OUTSIDE: [&str; 5] = ["placement", "fleet", "image", "guide", "sync"];

/// Folders that still name `EXTENT_BLOCKS`, and how often at most. The numbers may only shrink.
const EXTENT_ARITHMETIC: &[(&str, usize)] =
    &[("bits", 5), ("format", 5), ("ids", 2), ("layer", 62), ("owners", 3), ("store", 5), ("volume", 35)];

#[test]
fn unsafe_code_says_why_it_is_sound() {
    let mut blocks = 0;
    for source in all().iter().filter(|source| source.below("src").is_some()) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains("unsafe {") && !code.contains("unsafe impl") {
                continue;
            }
            blocks += 1;
            let before = &lines[number.saturating_sub(4)..number];
            let is_said = before.iter().any(|line| line.contains("// SAFETY:"));
            assert!(is_said, "{}:{}: unsafe without a reason", source.path, number + 1);
        }
    }
    assert!(blocks > 10, "only {blocks} unsafe blocks were seen");
}

#[test]
fn the_engine_takes_locks_threads_and_time_from_sync() {
    let foreign = [
        "parking_lot::",
        "std::sync::atomic",
        "std::sync::mpsc",
        "std::sync::Mutex",
        "std::thread",
        "time::Instant",
        "Instant}",
        "OnceLock}",
    ];
    let mut files = 0;
    for source in all() {
        let Some(module) = source.module().filter(|module| !OUTSIDE.contains(module)) else { continue };
        files += 1;
        for line in source.text.lines().map(str::trim).filter(|line| !line.starts_with("//") && !line.contains("crate::sync::")) {
            let found = foreign.iter().find(|word| line.contains(**word));
            assert!(found.is_none(), "{}: module {module} uses {} without `crate::sync`", source.path, found.unwrap_or(&""));
        }
    }
    assert!(files > 100, "only {files} files were seen");
}

#[test]
fn arithmetic_of_extents_stands_in_place() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let sources = all();
    for source in &sources {
        let Some(module) = source.module().filter(|module| !["place", "limits", "image"].contains(module)) else { continue };
        let words = source.code().split(|letter| !is_word(letter)).filter(|word| *word == "EXTENT_BLOCKS").count();
        *counts.entry(module).or_default() += words;
    }
    for (module, count) in counts {
        let allowed = EXTENT_ARITHMETIC.iter().find(|(name, _)| *name == module).map_or(0, |(_, allowed)| *allowed);
        assert!(count <= allowed, "{module} names EXTENT_BLOCKS {count} times, {allowed} are allowed: use the types of `place`");
    }
}

#[test]
fn nothing_is_left_for_later() {
    for source in all() {
        for word in ["TO\u{44}O", "FIX\u{4d}E", "unimplemented\u{21}"] {
            assert!(!source.text.contains(word), "{}: {word}", source.path);
        }
    }
}
