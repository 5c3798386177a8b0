//! A cpio archive ("newc"), which is what a kernel unpacks as its first file system.

use std::fs;
use std::io::Write;
use std::path::Path;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive in memory.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let fields = [self.entries, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        fields.iter().for_each(|field| write!(self.bytes, "{field:08x}").unwrap());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    /// An empty directory.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, &[]);
    }

    /// A symbolic link.
    pub fn link(&mut self, name: &str, to: &str) {
        self.entry(name, LINK, to.as_bytes());
    }

    /// A file that may be executed, with the bytes of a file of this machine.
    pub fn file(&mut self, name: &str, from: &Path) {
        self.entry(name, PROGRAM, &fs::read(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())));
    }

    /// Writes it to a file.
    pub fn write(mut self, to: &Path) {
        self.entry("TRAILER!!!", 0, &[]);
        fs::write(to, self.bytes).unwrap();
    }
}
