//! Examples: the docs of every type that the library exports have one.

use std::collections::BTreeMap;

use crate::sources::{all, is_word};

/// Public modules without types of their own.
const WITHOUT_TYPES: [&str; 1] = ["guide"];

/// Texts of the library by module: `volume::report`, and the empty name for `lib.rs`.
type Modules = BTreeMap<String, String>;

fn modules() -> Modules {
    let of_library = |path: &str| {
        let path = path.strip_prefix("src/")?.strip_suffix(".rs")?;
        let path = path.strip_suffix("/mod").unwrap_or(if path == "lib" { "" } else { path });
        (!path.starts_with("bin/")).then(|| path.replace('/', "::"))
    };
    all().into_iter().filter_map(|source| Some((of_library(&source.path)?, source.text))).collect()
}

fn join(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

/// Whether attributes before a line hide what it says.
fn is_hidden(lines: &[&str], number: usize) -> bool {
    lines[..number].iter().rev().take_while(|line| line.starts_with("#[")).any(|line| *line == "#[doc(hidden)]")
}

/// The modules that `lib.rs` shows.
fn public_modules(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let shown = |(number, line): (usize, &&'_ str)| !is_hidden(&lines, number) && line.starts_with("pub mod ") && line.ends_with(';');
    let numbers: Vec<usize> = lines.iter().enumerate().filter(|line| shown(*line)).map(|(number, _)| number).collect();
    let name = |number: usize| lines[number].trim_start_matches("pub mod ").trim_end_matches(';');
    numbers.into_iter().map(name).filter(|name| !WITHOUT_TYPES.contains(name)).collect()
}

/// The paths that the text of a `use` names.
fn paths(text: &str) -> Vec<String> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => parts.push(&text[std::mem::replace(&mut begin, at + 1)..at]),
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    let mut found = Vec::new();
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        match part.split_once('{') {
            Some((prefix, inner)) => {
                found.extend(paths(inner.trim_end_matches('}')).into_iter().map(|path| format!("{prefix}{path}")));
            }
            None => found.push(part.split(" as ").next().unwrap_or(part).to_owned()),
        }
    }
    found
}

/// What a module shows by `pub use`, as paths from the root of the library.
fn uses(module: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let Some(begin) = line.strip_prefix("pub use ").filter(|_| !is_hidden(&lines, number)) else { continue };
        let rest = lines[number + 1..].iter().copied();
        let statement: Vec<&str> = std::iter::once(begin).chain(rest).collect();
        let statement = statement.join(" ");
        let statement = statement.split(';').next().unwrap_or_default();
        for path in paths(statement) {
            let own = path.trim_start_matches("self::");
            found.push(path.strip_prefix("crate::").map_or_else(|| join(module, own), str::to_owned));
        }
    }
    found
}

/// The name of the type that a line without indentation defines.
fn defined(line: &str) -> Option<&str> {
    let kinds = ["pub struct ", "pub enum ", "pub trait ", "pub type "];
    let rest = kinds.iter().find_map(|kind| line.strip_prefix(kind))?;
    rest.split(|letter| !is_word(letter)).next()
}

/// The comment above the definition of a type; attributes between both are skipped.
fn docs<'a>(text: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut number = lines.iter().position(|line| defined(line) == Some(name))?;
    let mut docs = Vec::new();
    while number > 0 {
        number -= 1;
        match lines[number] {
            line if line.starts_with("///") => docs.push(line),
            line if line.starts_with("#[") => {}
            ")]" => number = lines[..number].iter().rposition(|line| line.starts_with("#["))?,
            _ => break,
        }
    }
    docs.reverse();
    Some(docs)
}

/// The comment of a type, by a path from the root; exports are followed to where it is defined. `None`: it is no type of this library.
fn docs_of<'a>(modules: &'a Modules, path: &str) -> Option<Vec<&'a str>> {
    let (module, name) = path.rsplit_once("::").unwrap_or(("", path));
    let text = modules.get(module)?;
    let again = || uses(module, text).into_iter().find(|used| used.ends_with(&format!("::{name}")) && used != path);
    docs(text, name).or_else(|| docs_of(modules, &again()?))
}

/// Whether a comment has code that is compiled and run, or with `no_run` compiled. Every other fence ends a block.
fn has_example(docs: &[&str]) -> bool {
    let mut begins = docs.iter().filter(|line| line.starts_with("/// ```")).step_by(2);
    begins.any(|line| ["/// ```", "/// ```no_run"].contains(line))
}

/// Types that a module shows, by their names and the paths of their definitions.
fn exported(module: &str, text: &str) -> BTreeMap<String, String> {
    let own = text.lines().filter_map(defined).map(|name| join(module, name));
    let shown = uses(module, text).into_iter().chain(own);
    let name = |path: &str| path.rsplit("::").next().unwrap_or(path).to_owned();
    // Functions and modules are lower-case, and constants have no lower-case letter.
    let is_type = |name: &str| name.starts_with(char::is_uppercase) && name.contains(char::is_lowercase);
    shown.map(|path| (name(&path), path)).filter(|(name, _)| is_type(name)).collect()
}

#[test]
fn the_docs_of_every_exported_type_have_an_example() {
    let modules = modules();
    let mut problems = Vec::new();
    let mut seen = 0;
    for module in std::iter::once("").chain(public_modules(&modules[""])) {
        for (name, path) in exported(module, &modules[module]) {
            seen += 1;
            match docs_of(&modules, &path) {
                Some(docs) if has_example(&docs) => {}
                Some(_) => problems.push(format!("{} has no example in its docs", join(module, &name))),
                None => problems.push(format!("{} is not found: {path}", join(module, &name))),
            }
        }
    }
    assert!(seen > 150, "only {seen} types were seen");
    assert!(problems.is_empty(), "a code block in the comment of the type, which runs as a test:\n{}", problems.join("\n"));
}

#[test]
fn exports_are_read_as_they_are_written() {
    let text = "pub use crate::format::{A, B as C};\n#[doc(hidden)]\npub use ring::Ring;\npub use report::{\n    D, deep::{E, f},\n};\n";
    assert_eq!(uses("volume", text), ["format::A", "format::B", "volume::report::D", "volume::report::deep::E", "volume::report::deep::f"]);
    assert_eq!(public_modules("pub mod io;\n#[cfg(x)]\n#[doc(hidden)]\npub mod wire;\nmod cursor;\n"), ["io"]);
    let text = "/// ```\n/// ```\n#[cfg_attr(\n    a,\n)]\n#[derive(Debug)]\npub struct A;\n/// B.\npub enum B {}\n";
    assert!(has_example(&docs(text, "A").unwrap()) && !has_example(&docs(text, "B").unwrap()));
    assert_eq!(docs(text, "C"), None);
    let other = ["/// ```text", "/// ```"];
    assert!(!has_example(&other) && !has_example(&["/// ```ignore", "/// ```"]) && has_example(&[other, ["/// ```"; 2]].concat()));
}
