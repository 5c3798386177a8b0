//! The sources of the project as text: files, their modules, and what they name.

use std::path::{Path, PathBuf};

/// One source file.
pub struct Source {
    /// Path below the root of the project.
    pub path: String,
    /// The file.
    pub text: String,
}

impl Source {
    /// The code, without comments and without tests at the end of the file.
    pub fn code(&self) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        let is_test = |number: &usize| {
            lines[*number].starts_with("#[cfg(")
                && lines[*number].contains("test")
                && lines.get(number + 1).is_some_and(|next| next.starts_with("mod tests {"))
        };
        let end = (0..lines.len()).find(is_test).unwrap_or(lines.len());
        let code = lines[..end]
            .iter()
            .map(|line| if line.trim_start().starts_with("//") { "" } else { line.split(" // ").next().unwrap_or(line) });
        code.collect::<Vec<_>>().join("\n")
    }

    /// Whether all of it is for tests.
    pub fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        ["tests.rs", "proof.rs", "faulty.rs"].contains(&name) || self.path.contains("/tests/")
    }

    /// Path below `folder`, if the file is there.
    pub fn below(&self, folder: &str) -> Option<&str> {
        self.path.strip_prefix(folder)?.strip_prefix('/')
    }

    /// The first module below `src`, except for `lib.rs` and the binary.
    pub fn module(&self) -> Option<&str> {
        let first = self.below("src")?.split('/').next()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (name != "lib" && name != "bin").then_some(name)
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn visit(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            visit(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

/// Every source of the project, in the order of their paths.
pub fn all() -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz"].map(|folder| root().join(folder)).iter().filter(|folder| folder.exists()) {
        visit(folder, &mut paths);
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a source");
        let path = path.strip_prefix(root()).expect("a path below the root").display().to_string();
        Source { path, text }
    };
    paths.into_iter().map(read).collect()
}

/// A file of the project that is no source.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect("a file of the project")
}

/// The letters of an identifier.
pub fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}
