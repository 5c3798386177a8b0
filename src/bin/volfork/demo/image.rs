//! An image like those that machines start from: an ext4 file system where `mkfs.ext4` is there, otherwise a mixture of its own.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::chance::{Random, prose};
use crate::failure::{Failure, Result};

/// Where `mkfs.ext4` may be although the user's PATH does not say so.
const MKFS: [&str; 3] = ["mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"];
/// Share of the image that holds data, in percent.
const DATA_PERCENT: u64 = 45;

/// Makes an image of `size_bytes` at `path`; answers what it is. `going_on` is asked between files.
pub fn make(path: &Path, size_bytes: u64, scratch: &Path, going_on: &dyn Fn() -> Result<()>) -> Result<String> {
    let wrong = |error| Failure::io("make the image", error);
    File::create(path).and_then(|file| file.set_len(size_bytes)).map_err(wrong)?;
    let files = scratch.join("files");
    let count = fill_tree(&files, size_bytes / 100 * DATA_PERCENT, going_on)?;
    let made = MKFS.iter().any(|mkfs| make_ext4(mkfs, path, &files));
    fs::remove_dir_all(&files).map_err(wrong)?;
    if made {
        return Ok(format!("an ext4 file system with {count} files"));
    }
    // A failed mkfs may have left anything.
    File::create(path).and_then(|file| file.set_len(size_bytes).and_then(|()| mix(&file, size_bytes))).map_err(wrong)?;
    Ok("a mixture of text, noise and holes".into())
}

fn make_ext4(mkfs: &str, path: &Path, files: &Path) -> bool {
    let command = Command::new(mkfs)
        .args(["-q", "-F", "-d"])
        .arg(files)
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    command.is_ok_and(|status| status.success())
}

/// Files of several sizes: text, noise, and sparse ones. Answers how many.
fn fill_tree(root: &Path, budget: u64, going_on: &dyn Fn() -> Result<()>) -> Result<u64> {
    let mut random = Random::new(1);
    let large = (budget / 16).clamp(64 << 10, 16 << 20);
    let (mut count, mut used) = (0, 0);
    while used < budget {
        going_on()?;
        let directory = root.join(format!("{:03}", count / 64));
        let made = fs::create_dir_all(&directory).and_then(|()| match count % 8 {
            0..=3 => {
                let bytes = 1_000 + random.below(60_000);
                fs::write(directory.join(format!("{count}.log")), prose(&mut random, bytes as usize)).map(|()| bytes)
            }
            4 => {
                let bytes = large / 4 + random.below(large);
                fs::write(directory.join(format!("{count}.txt")), prose(&mut random, bytes as usize)).map(|()| bytes)
            }
            5 | 6 => {
                let bytes = large / 2 + random.below(large);
                fs::write(directory.join(format!("{count}.bin")), random.bytes(bytes as usize)).map(|()| bytes)
            }
            _ => sparse(&directory.join(format!("{count}.db")), 2 * large, &mut random),
        });
        used += made.map_err(|error| Failure::io("make the image", error))?;
        count += 1;
    }
    Ok(count)
}

/// A file with a few blocks in a long hole.
fn sparse(path: &Path, size_bytes: u64, random: &mut Random) -> io::Result<u64> {
    let file = File::create(path)?;
    file.set_len(size_bytes)?;
    for _ in 0..4 {
        let block = random.below(size_bytes / 4096);
        file.write_all_at(&random.bytes(4096), block * 4096)?;
    }
    Ok(4 * 4096)
}

/// Without a file system: every extent is text, noise, or a hole with a block in it.
fn mix(file: &File, size_bytes: u64) -> io::Result<()> {
    const EXTENT: u64 = 4 << 20;
    let mut random = Random::new(2);
    let mut offset = 0;
    while offset < size_bytes {
        let bytes = EXTENT.min(size_bytes - offset);
        match random.below(4) {
            0 => file.write_all_at(&prose(&mut random, bytes as usize), offset)?,
            1 => file.write_all_at(&random.bytes(bytes as usize), offset)?,
            _ => file.write_all_at(&random.bytes(bytes.min(4096) as usize), offset)?,
        }
        offset += bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_image_has_its_size_data_and_holes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        make(&path, 32 << 20, directory.path(), &|| Ok(())).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 32 << 20);
        assert!(meta.blocks() * 512 > 8 << 20 && meta.blocks() * 512 < 31 << 20, "{}", meta.blocks() * 512);
        assert!(!directory.path().join("files").exists());

        let file = File::create(&path).unwrap();
        file.set_len(32 << 20).unwrap();
        mix(&file, 32 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 32 << 20);
    }

    #[test]
    fn interruption_ends_it() {
        let directory = tempfile::tempdir().unwrap();
        let failed = make(&directory.path().join("image"), 32 << 20, directory.path(), &|| Err(Failure::interrupted("enough")));
        assert_eq!(failed.unwrap_err().message, "enough");
    }
}
