//! Sizes: lines of a file, lines of a function, columns of a line, letters of a test's name, files of an `impl`.

use std::collections::{BTreeMap, BTreeSet};

use crate::sources::{Source, all, is_word, read};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const TEST_NAME_LETTERS_MAX: usize = 60;
const IMPL_FILES_MAX: usize = 3;

#[test]
fn files_and_functions_stay_small() {
    let mut problems = Vec::new();
    let mut functions = 0;
    for Source { path, text } in all() {
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > FILE_LINES_MAX {
            problems.push(format!("{path}: {} lines", lines.len()));
        }
        for (number, line) in lines.iter().enumerate() {
            let trimmed = line.trim_start();
            let begins = ["fn ", "pub fn ", "pub(super) fn ", "pub(crate) fn ", "unsafe fn "];
            if !begins.iter().any(|begin| trimmed.starts_with(begin)) || trimmed.ends_with(';') {
                continue;
            }
            functions += 1;
            // `cargo fmt` puts the closing brace below the first letter of the function.
            let end = format!("{}}}", &line[..line.len() - trimmed.len()]);
            let length = lines[number..].iter().position(|line| *line == end).unwrap_or(0) + 1;
            if length > FUNCTION_LINES_MAX {
                problems.push(format!("{path}:{}: a function of {length} lines", number + 1));
            }
        }
    }
    assert!(functions > 300, "only {functions} functions were seen");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn lines_are_as_wide_as_rustfmt_makes_them() {
    let setting = read("rustfmt.toml");
    let columns = setting.lines().find_map(|line| line.strip_prefix("max_width = ")).expect("max_width");
    let columns: usize = columns.parse().expect("a number");
    let mut problems = Vec::new();
    for Source { path, text } in all() {
        let wide = text.lines().enumerate().filter(|(_, line)| line.chars().count() > columns && !line.starts_with("//! |"));
        problems.extend(wide.map(|(number, _)| format!("{path}:{}: more than {columns} columns", number + 1)));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Names of the functions that follow a line `#[test]`, other attributes in between.
fn test_names(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
        if let Some(rest) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn ")).filter(|_| is_test) {
            names.push(rest.split(|letter| !is_word(letter)).next().unwrap_or_default());
            is_test = false;
        }
    }
    names
}

#[test]
fn names_of_tests_are_short() {
    let mut problems = Vec::new();
    let mut seen = 0;
    for Source { path, text } in all() {
        for name in test_names(&text) {
            seen += 1;
            if name.len() > TEST_NAME_LETTERS_MAX {
                problems.push(format!("{path}: {name} has {} letters", name.len()));
            }
        }
    }
    assert!(seen > 500, "only {seen} tests were seen");
    assert!(problems.is_empty(), "at most {TEST_NAME_LETTERS_MAX} letters:\n{}", problems.join("\n"));
}

/// The type of an inherent `impl` that begins in a line without indentation.
fn impl_type(line: &str) -> Option<&str> {
    let mut rest = line.strip_prefix("impl")?;
    if rest.starts_with('<') {
        let mut depth = 0;
        let end = rest.char_indices().find(|(at, letter)| {
            let is_arrow = *letter == '>' && rest[..*at].ends_with('-');
            depth += i32::from(*letter == '<') - i32::from(*letter == '>' && !is_arrow);
            depth == 0
        });
        rest = &rest[end?.0 + 1..];
    }
    let rest = rest.strip_prefix(' ')?;
    let name = rest.split(|letter| !is_word(letter)).next().filter(|name| !name.is_empty())?;
    (!rest.contains(" for ")).then_some(name)
}

#[test]
fn the_impl_of_a_type_stands_in_few_files() {
    let mut files: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for source in all().iter().filter(|source| source.below("src").is_some()) {
        let module = source.module().unwrap_or("bin").to_owned();
        for name in source.code().lines().filter_map(impl_type) {
            files.entry((module.clone(), name.to_owned())).or_default().insert(source.path.clone());
        }
    }
    assert!(files.len() > 200, "only {} types were seen", files.len());
    let mut problems = Vec::new();
    for ((module, name), files) in files {
        if files.len() > IMPL_FILES_MAX {
            problems.push(format!("impl {module}::{name} stands in {} files, {IMPL_FILES_MAX} are allowed: {files:?}", files.len()));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn the_type_of_an_impl_is_read_as_it_is_written() {
    assert_eq!(impl_type("impl Core {"), Some("Core"));
    assert_eq!(impl_type("impl<'a, T: Fn() -> u8> Cell<'a, T> {"), Some("Cell"));
    for other in ["impl fmt::Debug for Core {", "impl<T> Drop for Cell<T> {", "implement();", "    impl Core {"] {
        assert_eq!(impl_type(other), None, "{other}");
    }
}
