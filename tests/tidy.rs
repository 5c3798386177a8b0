//! Rules of the house, kept by reading the sources: floors, sizes of files and functions, reasons for `unsafe`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Modules by floor; imports point down only.
const FLOORS: [&[&str]; 8] = [
    &["clock", "content", "error", "ids", "limits", "place", "sync", "units"],
    &["io", "format", "wire", "owners"],
    &["journal", "source", "catalog"],
    &["layer"],
    &["hydrate"],
    &["volume"],
    &["store", "placement"],
    &["serve", "fleet", "image"],
];
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(below: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(below).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn all_files() -> Vec<(PathBuf, String)> {
    let files = ["src", "tests", "benches", "fuzz"].map(|part| root().join(part)).into_iter().filter(|path| path.exists());
    let generated = |path: &PathBuf| !path.components().any(|part| part.as_os_str() == "target");
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a source");
        (path, text)
    };
    files.flat_map(|path| rust_files(&path)).filter(generated).map(read).collect()
}

/// The module of the crate that a file below `src` belongs to.
fn module_of(path: &Path) -> Option<String> {
    let inside = path.strip_prefix(root().join("src")).ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (name != "lib" && name != "bin").then(|| name.to_owned())
}

/// Names that follow `crate::` in a text, except in comments.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
        for part in line.split("crate::").skip(1) {
            found.push(part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

#[test]
fn imports_point_down() {
    let mut floors = BTreeMap::new();
    for (floor, modules) in FLOORS.iter().enumerate() {
        floors.extend(modules.iter().map(|module| ((*module).to_owned(), floor)));
    }
    // Names that `lib.rs` gives again count as what they are.
    let renamed = BTreeMap::from([("ErrorKind", "error"), ("Error", "error"), ("Result", "error"), ("Corruption", "error")]);
    let mut seen = 0;
    for (path, text) in all_files() {
        let Some(module) = module_of(&path) else { continue };
        let own = *floors.get(&module).unwrap_or_else(|| panic!("{}: module {module} is on no floor", path.display()));
        for import in imports(&text) {
            let import = renamed.get(import.as_str()).map_or(import.clone(), |name| (*name).to_owned());
            if import == module {
                continue;
            }
            let other = *floors.get(&import).unwrap_or_else(|| panic!("{}: crate::{import} is on no floor", path.display()));
            assert!(other < own || own == 0 && other == 0, "{}: floor {own} imports {import} of floor {other}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 100, "only {seen} imports were seen: this test does not look where it should");
}

#[test]
fn files_and_functions_stay_small() {
    let mut problems = Vec::new();
    let mut functions = 0;
    for (path, text) in all_files() {
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > FILE_LINES_MAX {
            problems.push(format!("{}: {} lines", path.display(), lines.len()));
        }
        for (number, line) in lines.iter().enumerate() {
            let trimmed = line.trim_start();
            let begins =
                ["fn ", "pub fn ", "pub(super) fn ", "pub(crate) fn ", "unsafe fn "].iter().any(|begin| trimmed.starts_with(begin));
            if !begins || trimmed.ends_with(';') {
                continue;
            }
            functions += 1;
            // `cargo fmt` puts the closing brace below the first letter of the function.
            let end = format!("{}}}", &line[..line.len() - trimmed.len()]);
            let length = lines[number..].iter().position(|line| *line == end).unwrap_or(0) + 1;
            if length > FUNCTION_LINES_MAX {
                problems.push(format!("{}:{}: a function of {length} lines", path.display(), number + 1));
            }
        }
    }
    assert!(functions > 300, "only {functions} functions were seen: this test does not look where it should");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    let mut blocks = 0;
    for (path, text) in all_files().into_iter().filter(|(path, _)| path.starts_with(root().join("src"))) {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains("unsafe {") && !code.contains("unsafe impl") {
                continue;
            }
            blocks += 1;
            let before = &lines[number.saturating_sub(4)..number];
            assert!(before.iter().any(|line| line.contains("// SAFETY:")), "{}:{}: unsafe without a reason", path.display(), number + 1);
        }
    }
    assert!(blocks > 10, "only {blocks} unsafe blocks were seen: this test does not look where it should");
}

/// Modules of the engine, which take locks, threads and time from `sync` alone.
const ENGINE: [&str; 22] = [
    "catalog", "clock", "content", "error", "format", "hydrate", "ids", "io", "journal", "layer", "limits", "owners", "place", "serve",
    "source", "store", "units", "volume", "wire", "lib", "fuzzing", "sync",
];

#[test]
fn the_engine_takes_locks_threads_and_time_from_one_module() {
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
    for (path, text) in all_files() {
        let Some(module) = module_of(&path).filter(|module| ENGINE.contains(&module.as_str()) && module != "sync") else { continue };
        files += 1;
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//") && !line.contains("crate::sync::")) {
            let found = foreign.iter().find(|word| line.contains(**word));
            assert!(found.is_none(), "{}: module {module} uses {} without `crate::sync`", path.display(), found.unwrap_or(&""));
        }
    }
    assert!(files > 100, "only {files} files were seen: this test does not look where it should");
}

#[test]
fn nothing_is_left_for_later() {
    for (path, text) in all_files() {
        for word in ["TO\u{44}O", "FIX\u{4d}E", "unimplemented\u{21}"] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}
