//! Imports point down: a module imports modules of lower floors only. The table in the docs of a crate's root says which module is
//! on which floor.

use std::collections::BTreeMap;

use crate::sources::{Source, all, is_word};

/// Modules and their floors, from the table in the docs of `root`: lines of a number, two spaces, names, two spaces, a description.
fn floors(root: &Source) -> BTreeMap<String, usize> {
    let mut floors = BTreeMap::new();
    for line in root.text.lines().filter_map(|line| line.strip_prefix("//! ")) {
        let Some((number, rest)) = line.split_once("  ") else { continue };
        let Ok(floor) = number.parse::<usize>() else { continue };
        let names = rest.trim_start().split("  ").next().unwrap_or_default();
        for name in names.split(' ') {
            assert_eq!(floors.insert(name.to_owned(), floor), None, "{}: {name} stands on two floors", root.path);
        }
    }
    floors
}

/// Names that follow `crate::` in a text.
fn imports(text: &str) -> Vec<&str> {
    text.split("crate::").skip(1).map(|rest| rest.split(|letter| !is_word(letter)).next().unwrap_or_default()).collect()
}

/// What breaks the rule among the modules of one crate, and how many imports were looked at. Modules of the lowest floor may import
/// one another.
fn problems<'a>(root: &Source, files: impl Iterator<Item = (&'a str, &'a Source)>, renamed: &[(&str, &str)]) -> (Vec<String>, usize) {
    let floors = floors(root);
    let (mut problems, mut seen) = (Vec::new(), 0);
    for (module, source) in files {
        let Some(own) = floors.get(module) else {
            problems.push(format!("{}: module {module} is on no floor of {}", source.path, root.path));
            continue;
        };
        for import in imports(&source.code()) {
            let import = renamed.iter().find(|(name, _)| *name == import).map_or(import, |(_, module)| module);
            match floors.get(import) {
                _ if import == module => {}
                None => problems.push(format!("{}: crate::{import} is on no floor of {}", source.path, root.path)),
                Some(other) if other < own || (*own, *other) == (0, 0) => seen += 1,
                Some(other) => problems.push(format!("{}: floor {own} imports {import} of floor {other}", source.path)),
            }
        }
    }
    (problems, seen)
}

#[test]
fn imports_of_the_library_point_down() {
    let sources = all();
    let root = sources.iter().find(|source| source.path == "src/lib.rs").expect("the library");
    // Names that `lib.rs` re-exports count as the modules that define them.
    let renamed = [("ErrorKind", "error"), ("Error", "error"), ("Result", "error"), ("Corruption", "error")];
    let files = sources.iter().filter_map(|source| Some((source.module()?, source)));
    let (problems, seen) = problems(root, files, &renamed);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(seen > 100, "only {seen} imports were seen");
}

#[test]
fn imports_of_the_binary_point_down() {
    const FOLDER: &str = "src/bin/volfork";
    let sources = all();
    let root = sources.iter().find(|source| source.path == format!("{FOLDER}/main.rs")).expect("the binary");
    let module = |source: &'_ Source| {
        let first = source.below(FOLDER)?.split('/').next()?.to_owned();
        Some(first.strip_suffix(".rs").unwrap_or(&first).to_owned()).filter(|module| module != "main")
    };
    let modules: Vec<(String, &Source)> = sources.iter().filter_map(|source| Some((module(source)?, source))).collect();
    let (problems, seen) = problems(root, modules.iter().map(|(module, source)| (module.as_str(), *source)), &[]);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(seen > 50, "only {seen} imports were seen");
}

#[test]
fn an_import_that_points_up_is_found() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let root = source("lib.rs", "//! ```text\n//! 0  words   numbers\n//! 1  bytes disk   the machine\n//! ```\n");
    let files = [
        source("words.rs", "use crate::bytes::Byte;"),
        source("bytes.rs", "use crate::words::Word;\n// use crate::disk"),
        source("disk.rs", "use crate::bytes::Byte;\nuse crate::attic::Box;"),
        source("attic.rs", ""),
    ];
    let files = files.iter().map(|file| (file.path.strip_suffix(".rs").unwrap(), file));
    let (problems, seen) = problems(&root, files, &[]);
    let expected = [
        "words.rs: floor 0 imports bytes of floor 1",
        "disk.rs: floor 1 imports bytes of floor 1",
        "disk.rs: crate::attic is on no floor of lib.rs",
        "attic.rs: module attic is on no floor of lib.rs",
    ];
    assert_eq!(problems, expected);
    assert_eq!(seen, 1);
}
