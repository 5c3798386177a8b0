//! The guide and the README name files, examples, pages and commands that are there, and state the defaults that the program has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Rows of the table of a section of a page, without the backticks around a cell and without the head.
fn rows(page: &str, section: &str) -> Vec<Vec<String>> {
    let cut = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>();
    let text = read(&root().join("src/guide").join(page));
    let (_, section) = text.split_once(&format!("# {section}\n")).unwrap_or_else(|| panic!("{page} has no section '{section}'"));
    let section = section.split("\n# ").next().expect("a first part");
    section.lines().filter(|line| line.starts_with("| ")).skip(1).map(cut).collect()
}

/// The number that a cell says: bytes, seconds or a count.
fn stated(cell: &str) -> u128 {
    let (digits, unit) = cell.split_once(' ').unwrap_or((cell, ""));
    let shift = match unit {
        "" | "s" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        other => panic!("{cell}: the unit {other} is not known"),
    };
    digits.parse::<u128>().unwrap_or_else(|error| panic!("{cell}: {error}")) << shift
}

/// Settings that the library shows.
fn settings() -> BTreeMap<&'static str, u128> {
    let (store, serve) = (volfork::StoreOptions::default(), volfork::serve::NbdServerOptions::default());
    let source = volfork::source::NbdOptions::default();
    let count = |number: usize| number as u128;
    BTreeMap::from([
        ("BlockSize::DEFAULT", u128::from(volfork::BlockSize::DEFAULT.bytes())),
        ("StoreOptions::checksum_cache_bytes", u128::from(store.checksum_cache_bytes)),
        ("StoreOptions::checkpoint_bytes", u128::from(store.checkpoint_bytes)),
        ("StoreOptions::lease", u128::from(store.lease.as_secs())),
        ("serve::NbdServerOptions::connections_max", count(serve.connections_max)),
        ("serve::NbdServerOptions::depth", u128::from(serve.depth)),
        ("serve::NbdServerOptions::handshake_timeout", u128::from(serve.handshake_timeout.as_secs())),
        ("serve::NbdServerOptions::shutdown_timeout", u128::from(serve.shutdown_timeout.as_secs())),
        ("serve::NbdServerOptions::stall_timeout", u128::from(serve.stall_timeout.as_secs())),
        ("serve::NbdServerOptions::memory_bytes_max", count(serve.memory_bytes_max)),
        ("source::NbdOptions::connections", count(source.connections)),
        ("source::NbdOptions::connect_timeout", u128::from(source.connect_timeout.as_secs())),
        ("source::NbdOptions::request_timeout", u128::from(source.request_timeout.as_secs())),
        ("source::NbdOptions::give_up_after", u128::from(source.give_up_after.as_secs())),
        ("source::NbdOptions::tries", u128::from(source.tries)),
    ])
}

/// All sources of the library, one after the other.
fn sources(below: &Path, text: &mut String) {
    for entry in std::fs::read_dir(below).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            text.push_str(&read(&path));
        }
    }
}

/// The value of an expression of a constant: a number, another constant, a product, a shift, or a time in seconds.
fn value(text: &str, expression: &str) -> Option<u128> {
    let expression = expression.trim();
    if let Some(seconds) = expression.strip_prefix("Duration::from_secs(") {
        return value(text, seconds.strip_suffix(')')?);
    }
    if let Some((left, right)) = expression.split_once("<<") {
        return Some(value(text, left)? << value(text, right)?);
    }
    if let Some((left, right)) = expression.split_once('*') {
        return Some(value(text, left)? * value(text, right)?);
    }
    match expression.bytes().all(|letter| letter.is_ascii_uppercase() || letter == b'_') {
        true => constants(text, expression).first().copied(),
        false => expression.replace('_', "").parse().ok(),
    }
}

/// The values of all constants and fields of this name.
fn constants(text: &str, name: &str) -> Vec<u128> {
    let mut values = Vec::new();
    for line in text.lines().map(str::trim) {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        let line = line.strip_prefix("pub(super) ").or(line.strip_prefix("pub(crate) ")).unwrap_or(line);
        let of_constant = line.strip_prefix("const ").and_then(|rest| rest.strip_prefix(name)?.strip_prefix(": ")?.split_once(" = "));
        let of_field = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")?.strip_suffix(','));
        let expression = of_constant.and_then(|(_, expression)| expression.strip_suffix(';')).or(of_field);
        values.extend(expression.and_then(|expression| value(text, expression)));
    }
    values
}

#[test]
fn limits_and_defaults_are_those_of_the_program() {
    let (settings, mut text) = (settings(), String::new());
    sources(&root().join("src"), &mut text);
    let table = rows("operations.md", "Limits and defaults");
    for row in &table {
        let (cell, name) = (stated(&row[1]), row[2].as_str());
        let values = settings.get(name).map_or_else(|| constants(&text, name), |value| vec![*value]);
        assert!(values.contains(&cell), "'{}' is {} in the guide; {name} is {values:?} in the program", row[0], row[1]);
    }
    assert!(table.len() > 25, "only {} rows were seen: this test does not look where it should", table.len());
    assert!(settings.keys().all(|name| table.iter().any(|row| row[2] == *name)), "every setting has a row");
}

/// Names that threads are given in a source: literals after `.name(`, up to what is filled in.
fn thread_names(text: &str) -> BTreeSet<&str> {
    let given = text.split(".name(").skip(1).filter_map(|rest| rest.strip_prefix("format!(").unwrap_or(rest).strip_prefix('"'));
    given.filter_map(|rest| rest.split(['"', '{']).next()).filter(|name| !name.is_empty()).collect()
}

#[test]
fn threads_of_the_table_are_those_of_the_program() {
    let mut text = String::new();
    sources(&root().join("src"), &mut text);
    let table = rows("architecture.md", "Threads");
    let listed: BTreeSet<_> = table.iter().flat_map(|row| row[0].split("`, `")).collect();
    for name in &listed {
        assert!(text.contains(&format!("\"{name}")) || text.contains(&format!("}}{name}")), "no thread is called {name}");
    }
    // Threads of the simulator's own tests.
    let foreign = ["setter", "unlucky", "sim-"];
    for name in thread_names(&text).into_iter().filter(|name| !foreign.contains(name)) {
        assert!(listed.contains(name), "architecture.md does not list the thread {name}");
    }
    assert!(listed.len() > 10, "only {} threads were seen: this test does not look where it should", listed.len());
}

fn help(command: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_volfork")).args(["help", command]).env("COLUMNS", "1000").output().expect("the program");
    String::from_utf8(output.stdout).expect("help in UTF-8")
}

#[test]
fn defaults_of_commands_are_those_of_the_program() {
    let mut seen = 0;
    for row in rows("commands.md", "Defaults") {
        let (command, option) = row[0].split_once(" --").expect("a command and an option");
        let help = help(command);
        let line = help.lines().find(|line| line.trim_start().starts_with(&format!("--{option} "))).expect(&row[0]);
        assert!(line.contains(&format!("[default: {}]", row[1])), "{}: {line}", row[0]);
        seen += 1;
    }
    assert!(seen > 5, "only {seen} defaults were seen: this test does not look where it should");
}

#[test]
fn every_command_is_listed() {
    let page = read(&root().join("src/guide/commands.md"));
    let output = Command::new(env!("CARGO_BIN_EXE_volfork")).arg("--help").env("COLUMNS", "1000").output().expect("the program");
    let help = String::from_utf8(output.stdout).expect("help in UTF-8");
    let (_, commands) = help.split_once("Commands:").expect("the commands");
    let (commands, _) = commands.split_once("Options:").expect("the options");
    let names: Vec<_> = commands.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    for name in &names {
        let is_listed = [format!("`{name} "), format!("`{name}`")].iter().any(|written| page.contains(written));
        assert!(is_listed, "commands.md does not list {name}");
    }
    assert!(names.len() > 20, "only {} commands were seen: this test does not look where it should", names.len());
}

#[test]
fn constants_and_names_are_found() {
    let text =
        "pub const A_MAX: u64 = 16 << 20;\nconst T: Duration = Duration::from_secs(7 * 86_400);\n    a_max: 3 << 10,\n    a_max: u64,";
    assert_eq!(thread_names("b.name(\"x-y\".into()).name(format!(\"n-{}\", 1)).name(prefix)"), BTreeSet::from(["x-y", "n-"]));
    assert_eq!(constants(text, "A_MAX"), [16 << 20]);
    assert_eq!(constants(text, "T"), [604_800]);
    assert_eq!(constants(text, "a_max"), [3072]);
    assert_eq!((stated("16 MiB"), stated("30 s"), stated("64")), (16 << 20, 30, 64));
}
