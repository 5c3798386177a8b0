//! Words that do not stand where they must not: reasons for `unsafe`, the doors of the engine, block arithmetic, work left over.

use std::collections::BTreeMap;

use crate::sources::{Source, all, is_word};

/// Modules that may take locks, threads and time from the standard library: they are no part of the engine.
const OUTSIDE: [&str; 5] = ["placement", "fleet", "image", "guide", "sync"];

/// Casts to a numeric type in 1,000 lines of all that is not a test. The number may only shrink.
const CASTS_MAX: usize = 2;
/// The same of one module.
const CASTS_OF_MODULE_MAX: usize = 6;
/// Modules that have more, and how many. The numbers may only shrink. `units` is short, and has those that others do without.
const CASTS: &[(&str, usize)] = &[("bin", 8), ("units", 34)];

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
    let sources = all();
    let named = |source: &Source| source.code().split(|letter| !is_word(letter)).any(|word| word == "EXTENT_BLOCKS");
    let (inside, outside): (Vec<_>, Vec<_>) =
        sources.iter().filter(|source| source.module().is_some() && named(source)).partition(|source| source.module() == Some("place"));
    assert!(!inside.is_empty(), "EXTENT_BLOCKS has another name");
    let outside: Vec<_> = outside.iter().map(|source| &source.path).collect();
    assert!(outside.is_empty(), "use the types of `place` instead of EXTENT_BLOCKS: {outside:?}");
}

/// Whether a sentence of a comment begins with a word that makes it a riddle.
fn is_riddle(line: &str) -> bool {
    let Some((_, comment)) = line.split_once("//") else { return false };
    let sentences = comment.trim_start_matches(['/', '!', ' ']).split(". ");
    sentences.map(|sentence| sentence.split(' ').next().unwrap_or_default()).any(|first| ["Who", "Whoever", "Whose"].contains(&first))
}

#[test]
fn sentences_say_who_does_something() {
    let sources = all();
    // This file has one in a string.
    let elsewhere = sources.iter().filter(|source| source.below("tests/tidy").is_none());
    let found: Vec<String> = elsewhere
        .flat_map(|source| {
            let riddles = source.text.lines().enumerate().filter(|(_, line)| is_riddle(line));
            riddles.map(|(number, _)| format!("{}:{}", source.path, number + 1))
        })
        .collect();
    assert!(found.is_empty(), "no sentence begins with Who, Whoever or Whose: {found:?}");
    assert!(
        is_riddle("    // One. Whoever waits leads.") && !is_riddle("/// Those who wait. They say who leads.") && !is_riddle("Whoever")
    );
}

/// Casts to a numeric type in a code.
fn casts(code: &str) -> usize {
    const NUMERIC: [&str; 14] = ["u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize", "f32", "f64"];
    let words: Vec<&str> = code.split_whitespace().collect();
    let first = |text: &'_ str| text.split(|letter| !is_word(letter)).next().unwrap_or_default().to_owned();
    let is_cast = |pair: &&[&str]| pair[0] == "as" && NUMERIC.contains(&first(pair[1]).as_str());
    words.windows(2).filter(is_cast).count()
}

#[test]
fn casts_of_numbers_are_rare() {
    let (mut found, mut lines): (BTreeMap<&str, (usize, usize)>, usize) = (BTreeMap::new(), 0);
    let sources = all();
    for source in sources.iter().filter(|source| source.below("src").is_some() && !source.is_test()) {
        let code = source.code();
        let (casts, count) = found.entry(source.module().unwrap_or("bin")).or_default();
        *casts += self::casts(&code);
        *count += code.lines().count();
        lines += code.lines().count();
    }
    assert!(lines > 20_000, "only {lines} lines were seen");
    let all: usize = found.values().map(|(casts, _)| casts).sum();
    assert!(all * 1000 <= CASTS_MAX * lines, "{all} casts in {lines} lines: {CASTS_MAX} in 1,000 lines are allowed");
    for (module, (casts, lines)) in found {
        let allowed = CASTS.iter().find(|(name, _)| *name == module).map_or(CASTS_OF_MODULE_MAX, |(_, allowed)| *allowed);
        assert!(casts * 1000 <= allowed * lines, "{module} has {casts} casts in {lines} lines, {allowed} in 1,000 are allowed");
    }
}

#[test]
fn a_cast_is_told_from_a_name() {
    let code = "use a::B as u64x; let x = y as usize; (z as f64) as _; &q as u8]; has u64; Box::new(y) as Box<u8>";
    assert_eq!(casts(code), 3);
}

#[test]
fn nothing_is_left_for_later() {
    for source in all() {
        for word in ["TO\u{44}O", "FIX\u{4d}E", "unimplemented\u{21}"] {
            assert!(!source.text.contains(word), "{}: {word}", source.path);
        }
    }
}
