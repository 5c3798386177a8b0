//! Dependencies: number of crates of the bare engine, their licences, and crates in two versions.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Crates of the engine with the NBD source and nothing else, itself included.
const ENGINE_CRATES_MAX: usize = 30;
/// Licences that a company may use in a product, each alone.
const LICENCES: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// Crates that others want in two versions, with the default features.
const TWICE: [&str; 6] = ["block-buffer", "cpufeatures", "crypto-common", "digest", "getrandom", "syn"];

/// Name and version of each normal dependency, and its licence.
fn crates(features: &[&str]) -> BTreeMap<(String, String), String> {
    let arguments = ["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}|{l}"];
    let output = Command::new(env!("CARGO")).args(arguments).args(features).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (package, licence) = line.split_once('|').expect("a package and its licence");
            let mut words = package.split(' ');
            let mut word = || words.next().expect("a name and a version").to_owned();
            ((word(), word()), licence.trim_end_matches(" (*)").to_owned())
        })
        .collect()
}

/// Whether one of the alternatives of a licence (SPDX, `/` for `OR`) is allowed; brackets are not nested.
fn is_allowed(licence: &str) -> bool {
    let any = |text: &str| text.split(" OR ").flat_map(|part| part.split('/')).any(|one| LICENCES.contains(&one.trim()));
    let all = |text: &str| text.split(" AND ").all(any);
    let (mut outside, mut inside) = (String::new(), Vec::new());
    for part in licence.split('(') {
        match part.split_once(')') {
            Some((bracket, after)) => {
                inside.push(bracket);
                // What the bracket says is looked at alone.
                outside.push_str("MIT");
                outside.push_str(after);
            }
            None => outside.push_str(part),
        }
    }
    all(&outside) && inside.into_iter().all(all)
}

#[test]
fn the_engine_brings_few_crates() {
    let crates = crates(&["--no-default-features"]);
    assert!(crates.len() <= ENGINE_CRATES_MAX, "{} crates: {:?}", crates.len(), crates.keys().collect::<Vec<_>>());
    let names: BTreeSet<_> = crates.keys().map(|(name, _)| name).collect();
    assert_eq!(names.len(), crates.len(), "none is there twice: {crates:?}");
}

#[test]
fn licences_are_free_and_versions_are_few() {
    let crates = crates(&[]);
    let refused: Vec<_> = crates.iter().filter(|(_, licence)| !is_allowed(licence)).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    crates.keys().for_each(|(name, _)| *versions.entry(name).or_default() += 1);
    let twice: Vec<_> = versions.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name).collect();
    assert_eq!(twice, TWICE, "versions that are there twice");
}

#[test]
fn licences_are_read_as_they_are_written() {
    for allowed in ["MIT", "GPL-3.0 OR MIT", "Apache-2.0/MIT", "(MIT OR GPL-3.0) AND Unicode-3.0", "ISC AND (GPL-2.0 OR ISC) AND MIT"] {
        assert!(is_allowed(allowed), "{allowed}");
    }
    for refused in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "MIT AND (GPL-3.0 OR AGPL-3.0)"] {
        assert!(!is_allowed(refused), "{refused}");
    }
}
