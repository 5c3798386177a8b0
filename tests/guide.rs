//! The guide and the README name files, examples and pages that are there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of the files of a directory that end with `ending`.
fn names(directory: &str, ending: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(root().join(directory)).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name in UTF-8"));
    names.filter(|name| name.ends_with(ending)).collect()
}

/// The README and the pages of the guide.
fn texts() -> Vec<(PathBuf, String)> {
    let pages = names("src/guide", ".md").into_iter().map(|name| Path::new("src/guide").join(name));
    [PathBuf::from("README.md")].into_iter().chain(pages).map(|path| (path.clone(), read(&root().join(path)))).collect()
}

/// What a text names between backticks that begins with a directory of the repository.
fn named_files(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    let is_path = |word: &&str| ["src/", "tests/", "benches/", "fuzz/"].iter().any(|start| word.starts_with(start)) && !word.contains(' ');
    quoted.filter(is_path).collect()
}

/// Targets of the links of a text that are neither addresses nor places in the same page.
fn linked_files(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let is_file = |target: &&str| !target.contains("://") && !target.starts_with('#') && !target.contains("::") && !target.contains('@');
    targets.filter(is_file).collect()
}

#[test]
fn files_that_the_texts_name_are_there() {
    let mut seen = 0;
    for (path, text) in texts() {
        for name in named_files(&text) {
            assert!(root().join(name).exists(), "{} names {name}, which is not there", path.display());
            seen += 1;
        }
        for target in linked_files(&text) {
            let place = target.split('#').next().expect("a first part");
            let linked = root().join(&path).parent().expect("a directory").join(place);
            assert!(linked.exists(), "{} links to {target}, which is not there", path.display());
            seen += 1;
        }
    }
    assert!(seen > 5, "only {seen} files were found: this test does not look where it should");
}

#[test]
fn every_page_is_part_of_the_guide() {
    let guide = read(&root().join("src/guide/mod.rs"));
    for page in names("src/guide", ".md") {
        assert!(guide.contains(&format!("include_str!(\"{page}\")")), "src/guide/mod.rs does not include {page}");
    }
}

#[test]
fn every_example_is_built_and_listed() {
    let manifest = read(&root().join("Cargo.toml"));
    let guide = read(&root().join("src/guide/mod.rs"));
    for example in names("src/guide/examples", ".rs") {
        assert!(manifest.contains(&format!("path = \"src/guide/examples/{example}\"")), "Cargo.toml does not name {example}");
        let name = example.trim_end_matches(".rs");
        assert!(guide.contains(&format!("//! | `{name}` |")), "src/guide/mod.rs does not list {name}");
    }
}

#[test]
fn names_and_links_are_found_in_a_text() {
    let text = "See `src/lib.rs`, `cargo run`, `src/x y`, [a](b.md#c), [d](https://e), [f](#g) and [h](crate::i).";
    assert_eq!(named_files(text), ["src/lib.rs"]);
    assert_eq!(linked_files(text), ["b.md#c"]);
}
