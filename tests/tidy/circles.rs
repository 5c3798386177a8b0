//! Files of a crate do not form circles: a file never needs a file that needs it.
//!
//! A file needs the files that define the items it names by `super::`, `crate::` or a child module. A name that a `mod.rs` only
//! re-exports belongs to the file that defines it.

use std::collections::{BTreeMap, BTreeSet};

use crate::sources::{Source, all, is_word};

/// A `use` declaration.
struct Use {
    path: Vec<String>,
    name: String,
    is_public: bool,
}

/// One file as a module of its crate.
struct Module {
    file: String,
    uses: Vec<Use>,
    /// The code without `use` declarations.
    body: String,
}

/// A crate's modules by their paths.
struct Tree(BTreeMap<Vec<String>, Module>);

/// Splits a `use` tree into whole paths, each with the name that it gets.
fn expand(tree: &str, prefix: &[String], found: &mut Vec<(Vec<String>, String)>) {
    let tree = tree.trim();
    let (mut depth, mut start) = (0, 0);
    let mut parts = Vec::new();
    for (at, letter) in tree.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        let mut path = prefix.to_vec();
        if let Some((before, group)) = part.split_once('{') {
            path.extend(before.split("::").map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned));
            expand(group.strip_suffix('}').unwrap_or(group), &path, found);
            continue;
        }
        let (named, renamed) = part.split_once(" as ").unwrap_or((part, ""));
        path.extend(named.split("::").map(|word| word.trim().to_owned()));
        if path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let name = if renamed.is_empty() { path.last().cloned().unwrap_or_default() } else { renamed.trim().to_owned() };
        found.push((path, name));
    }
}

fn parse(source: &Source) -> Module {
    let (mut uses, mut body) = (Vec::new(), String::new());
    let mut pending: Option<(bool, String)> = None;
    let mut is_inline = false;
    for line in source.code().lines() {
        let trimmed = line.trim();
        is_inline = line.ends_with('{') && line.split(' ').any(|word| word == "mod") || is_inline && line != "}";
        if pending.is_none() {
            let (visibility, rest) = trimmed.split_once("use ").unwrap_or(("-", ""));
            let is_use = visibility.is_empty() || visibility.starts_with("pub") && visibility.ends_with(' ') && !visibility.contains('{');
            if !is_use {
                body.push_str(line);
                body.push('\n');
                continue;
            }
            pending = Some((!visibility.is_empty(), rest.to_owned()));
        } else if let Some((_, text)) = &mut pending {
            text.push_str(trimmed);
        }
        if trimmed.ends_with(';') {
            let (is_public, text) = pending.take().expect("a declaration");
            let mut found = Vec::new();
            expand(text.trim_end_matches(';'), &[], &mut found);
            // In an inline module, `super` is the file.
            let from_file = |path: Vec<String>| path.into_iter().skip_while(|word| is_inline && word == "super").collect();
            uses.extend(found.into_iter().map(|(path, name)| Use { path: from_file(path), name, is_public }));
        }
    }
    // A visibility names a module and needs nothing of it.
    let body = body.replace("pub(in crate::", "pub(in ");
    Module { file: source.path.clone(), uses, body }
}

/// Paths of identifiers in a text: `a::b::C`.
fn paths(body: &str) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for part in body.split(|letter| !is_word(letter) && letter != ':') {
        let words: Vec<String> = part.split("::").filter(|word| !word.is_empty()).map(str::to_owned).collect();
        if words.len() > 1 {
            found.insert(words);
        }
    }
    found
}

impl Tree {
    /// The crate whose root is the file `root`, of all files below its folder.
    fn new<'a>(root: &str, sources: impl Iterator<Item = &'a Source>) -> Self {
        let folder = &root[..root.rfind('/').map_or(0, |at| at + 1)];
        let mut modules = BTreeMap::new();
        for source in sources.filter(|source| source.path.starts_with(folder)) {
            let inside = source.path[folder.len()..].strip_suffix(".rs").expect("a source");
            let mut path: Vec<String> = inside.split('/').map(str::to_owned).collect();
            if source.path == root || path.last().is_some_and(|last| last == "mod") {
                path.pop();
            }
            modules.insert(path, parse(source));
        }
        Self(modules)
    }

    /// The module that defines what `path` names in module `at`; `None` if it is of another crate.
    fn resolve(&self, at: &[String], path: &[String], depth: usize) -> Option<Vec<String>> {
        if depth > 8 {
            return None;
        }
        let mut here = at.to_vec();
        let mut rest = path;
        let mut is_inside = false;
        while let Some((first, after)) = rest.split_first() {
            match first.as_str() {
                "crate" => here = Vec::new(),
                "super" => drop(here.pop()?),
                "self" => {}
                _ => break,
            }
            rest = after;
            is_inside = true;
        }
        while let Some((first, after)) = rest.split_first() {
            let child: Vec<String> = here.iter().chain([first]).cloned().collect();
            if self.0.contains_key(&child) {
                here = child;
                rest = after;
                is_inside = true;
                continue;
            }
            if !is_inside {
                return None;
            }
            // A name that the module has from elsewhere, by its name or by a glob.
            let module = self.0.get(&here)?;
            let named = module.uses.iter().filter(|import| import.name == *first);
            let whole = |import: &Use| import.path.iter().chain(after).cloned().collect::<Vec<_>>();
            return Some(named.filter_map(|import| self.resolve(&here, &whole(import), depth + 1)).next().unwrap_or(here));
        }
        Some(here)
    }

    /// The modules that a module needs.
    fn needs(&self, at: &[String]) -> BTreeSet<Vec<String>> {
        let module = &self.0[at];
        let words: BTreeSet<&str> = module.body.split(|letter| !is_word(letter)).collect();
        let mut found: BTreeSet<Vec<String>> = BTreeSet::new();
        for import in module.uses.iter().filter(|import| !import.is_public || words.contains(import.name.as_str())) {
            found.extend(self.resolve(at, &import.path, 0));
        }
        for path in paths(&module.body) {
            found.extend(self.resolve(at, &path, 0));
        }
        found.remove(at);
        found
    }

    /// Sets of files that need one another, the largest first.
    fn circles(&self) -> Vec<BTreeSet<String>> {
        let needs: BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> = self.0.keys().map(|at| (at, self.needs(at))).collect();
        let reach = |start: &Vec<String>| {
            let mut reached: BTreeSet<&Vec<String>> = BTreeSet::new();
            let mut todo: Vec<&Vec<String>> = needs[start].iter().collect();
            while let Some(next) = todo.pop() {
                if reached.insert(next) {
                    todo.extend(&needs[next]);
                }
            }
            reached
        };
        let reached: BTreeMap<&Vec<String>, BTreeSet<&Vec<String>>> = self.0.keys().map(|at| (at, reach(at))).collect();
        let circle = |at: &Vec<String>| -> BTreeSet<String> {
            let others = reached[at].iter().filter(|other| reached[*other].contains(at));
            others.map(|other| self.0[*other].file.clone()).collect()
        };
        let circles: BTreeSet<BTreeSet<String>> = self.0.keys().map(circle).filter(|circle| !circle.is_empty()).collect();
        let mut circles: Vec<_> = circles.into_iter().collect();
        circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
        circles
    }
}

#[test]
fn files_do_not_form_circles() {
    let sources = all();
    let library = sources.iter().filter(|source| source.below("src").is_some() && source.below("src/bin").is_none());
    let binary = sources.iter().filter(|source| source.below("src/bin/volfork").is_some());
    let (library, binary) = (Tree::new("src/lib.rs", library), Tree::new("src/bin/volfork/main.rs", binary));
    let needs: usize = library.0.keys().map(|at| library.needs(at).len()).sum();
    assert!(needs > 500, "only {needs} needs were seen");
    let circles: Vec<String> = library.circles().into_iter().chain(binary.circles()).map(|circle| format!("{circle:?}")).collect();
    assert!(circles.is_empty(), "these need one another:\n{}", circles.join("\n"));
}

#[test]
fn a_circle_of_files_is_found() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let files = [
        source("lib.rs", "mod room;\nmod hall;\n"),
        source("hall.rs", "use crate::room::Chair;\n"),
        source("room/mod.rs", "pub use table::Table;\nuse lamp::Lamp;\npub struct Chair(Lamp);\n"),
        source("room/table.rs", "use super::{Chair, lamp::{self, Lamp}};\n"),
        // Names the table by what `mod.rs` re-exports.
        source("room/lamp.rs", "fn light() -> super::Table { todo() }\n#[cfg(test)]\nmod tests {\nuse crate::hall::Hall;\n}\n"),
        source("room/window.rs", "use super::Table;\n"),
    ];
    let circles = Tree::new("lib.rs", files.iter()).circles();
    assert_eq!(circles.len(), 1);
    assert_eq!(circles[0], BTreeSet::from(["room/lamp.rs", "room/mod.rs", "room/table.rs"].map(str::to_owned)));
    let without: Vec<Source> = files.into_iter().filter(|file| file.path != "room/lamp.rs").collect();
    assert!(Tree::new("lib.rs", without.iter()).circles().is_empty());
}
