//! The oracle of a disk: the bytes that its writers expect.

use std::path::Path;
use std::process::{Command, Output};

use crate::world::text;

pub const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
/// Zeros that no host ever sends.
const ZEROS: std::ops::Range<usize> = 8 * MIB..16 * MIB;

/// What a disk holds, and where clients reach it.
pub struct Disk {
    pub uri: String,
    pub bytes: Vec<u8>,
}

/// An image of 32 MiB, a quarter of it zeros; each other block has a byte of its own.
pub fn image() -> Vec<u8> {
    let byte = |block: usize| if ZEROS.contains(&(block * BLOCK)) { 0 } else { (block % 251) as u8 + 1 };
    (0..32 * MIB / BLOCK).flat_map(|block| [byte(block); BLOCK]).collect()
}

/// Bytes of it that are not zero.
pub const DATA_BYTES: u64 = (24 * MIB) as u64;

impl Disk {
    fn io(&self, commands: &[String]) -> Output {
        let mut client = Command::new("qemu-io");
        client.args(["-f", "raw", "-t", "writeback"]);
        for command in commands {
            client.args(["-c", command]);
        }
        client.arg(&self.uri).output().unwrap()
    }

    /// Writes through a client, which flushes or not.
    pub fn write(&mut self, at: usize, length: usize, byte: u8, flush: bool) {
        let mut commands = vec![format!("write -P {byte} {at} {length}")];
        commands.extend(flush.then(|| "flush".to_owned()));
        let output = self.io(&commands);
        let said = text(&output.stdout);
        assert!(output.status.success() && said.contains(&format!("wrote {length}/{length}")), "{said}{}", text(&output.stderr));
        self.bytes[at..at + length].fill(byte);
    }

    /// A write for which there is no room says so, and changes nothing.
    pub fn cannot_write(&self, at: usize, length: usize) {
        let output = self.io(&[format!("write -P 99 {at} {length}")]);
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert!(said.contains("write failed: No space left on device"), "{}: {said}", self.uri);
    }

    /// Reads blocks by a client, which compares them.
    pub fn check_blocks(&self, blocks: impl Iterator<Item = usize>) {
        let command = |block: usize| format!("read -P {} {} {BLOCK}", self.bytes[block * BLOCK], block * BLOCK);
        let output = self.io(&blocks.map(command).collect::<Vec<_>>());
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && !said.contains("failed") && !said.contains("error"), "{}: {said}", self.uri);
    }

    /// A block that nobody has is an error, and neither zeros nor other bytes.
    pub fn cannot_read(&self, block: usize) {
        let output = self.io(&[format!("read -P {} {} {BLOCK}", self.bytes[block * BLOCK], block * BLOCK)]);
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert!(said.contains("read failed") && !said.contains("verification failed"), "{}: {said}", self.uri);
    }

    /// Copies all of it by another client, and compares.
    pub fn check(&self, directory: &Path) {
        let copy = directory.join("copy");
        let output = Command::new("nbdcopy").arg(&self.uri).arg(&copy).output().unwrap();
        assert!(output.status.success(), "{}: {}", self.uri, text(&output.stderr));
        let copied = std::fs::read(&copy).unwrap();
        std::fs::remove_file(&copy).unwrap();
        let differ = (0..self.bytes.len() / BLOCK).find(|block| {
            let range = block * BLOCK..(block + 1) * BLOCK;
            copied.get(range.clone()) != Some(&self.bytes[range])
        });
        assert!(copied.len() == self.bytes.len() && differ.is_none(), "{}: block {differ:?} of {} differs", self.uri, copied.len());
    }
}
