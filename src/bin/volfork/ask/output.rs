//! The file that an export writes.
//!
//! A file gets its name when it is whole. Until then it has none, or on file systems without unnamed files, a name that begins with a
//! dot. Devices, pipes, files with several names and files of other owners are written in place.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use volfork::ErrorKind;

use crate::failure::{Failure, Result};

/// Mode of a new file, before the user's mask.
const MODE: u32 = 0o666;

/// A file on its way to its name.
pub struct Output {
    /// Where it will be.
    path: PathBuf,
    /// The name that it has until then, if it has one.
    temporary: PathBuf,
    is_named: bool,
    file: File,
}

/// Opens the file of an export. The [`Output`] names it when it is whole.
pub fn open(path: &Path) -> Result<(File, Option<Output>)> {
    let wrong = |error| Failure::io(format!("write {}", path.display()), error);
    let begun = |output: Output| Ok((output.file.try_clone()?, Some(output)));
    match fs::metadata(path) {
        Ok(old) => {
            // A user who may not write the file must not replace it. Old bytes stay until the export begins, so a wrong name loses
            // nothing.
            let file = open_old(path, &old)?;
            let replacing = is_replaceable(path, &old).then(|| fs::canonicalize(path).and_then(Output::begin).and_then(begun));
            match replacing {
                Some(Ok(output)) => Ok(output),
                // Its directory takes no other file.
                _ => Ok((file, None)),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            Output::begin(path.to_path_buf()).and_then(begun).map_err(wrong)
        }
        Err(error) => Err(wrong(error)),
    }
}

/// Opens what is there; a device only if the machine does not use it, as a mounted one.
fn open_old(path: &Path, old: &Metadata) -> Result<File> {
    let mut options = File::options();
    if old.file_type().is_block_device() {
        options.custom_flags(OFlags::EXCL.bits() as i32);
    }
    options.write(true).open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => {
            let message = format!("{} is in use, perhaps mounted: unmount it, or name another device", path.display());
            Failure::new(ErrorKind::Busy, message)
        }
        _ => Failure::io(format!("write {}", path.display()), error),
    })
}

/// Whether another file may replace this one without harm to other names or owners.
fn is_replaceable(path: &Path, old: &Metadata) -> bool {
    let is_special = ["/dev", "/proc"].iter().any(|place| path.starts_with(place));
    let is_own = old.uid() == rustix::process::geteuid().as_raw();
    old.is_file() && old.nlink() == 1 && is_own && !is_special
}

impl Output {
    fn begin(path: PathBuf) -> io::Result<Self> {
        if path.file_name().is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let temporary = path.with_file_name(format!(".volfork-{}.part", std::process::id()));
        let unnamed = OFlags::TMPFILE.bits() as i32;
        let mut options = File::options();
        options.read(true).write(true).mode(MODE);
        match options.clone().custom_flags(unnamed).open(parent(&path)) {
            Ok(file) => Ok(Self { path, temporary, is_named: false, file }),
            // The file system, or the kernel, has no files without a name.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {
                let file = options.create_new(true).open(&temporary)?;
                Ok(Self { path, temporary, is_named: true, file })
            }
            Err(error) => Err(error),
        }
    }

    /// Renames the file over the old one. Power loss leaves the old file or the whole new one.
    pub fn keep(mut self) -> Result<()> {
        let kept = self.sync_and_name();
        kept.map_err(|error| Failure::io(format!("write {}", self.path.display()), error))
    }

    fn sync_and_name(&mut self) -> io::Result<()> {
        if let Ok(old) = fs::metadata(&self.path) {
            // It stays in its group, if its owner is in that.
            let _ = rustix::fs::fchown(&self.file, None, Some(rustix::fs::Gid::from_raw(old.gid())));
            self.file.set_permissions(old.permissions())?;
        }
        self.file.sync_all()?;
        self.name()?;
        self.is_named = false;
        File::open(parent(&self.path))?.sync_all()
    }

    fn name(&mut self) -> io::Result<()> {
        if !self.is_named {
            let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let link = |name: &Path| linkat(CWD, &unnamed, CWD, name, AtFlags::SYMLINK_FOLLOW);
            match link(&self.temporary) {
                // A process of the same number was killed between its two steps.
                Err(rustix::io::Errno::EXIST) => {
                    fs::remove_file(&self.temporary)?;
                    link(&self.temporary)?;
                }
                linked => linked?,
            }
            self.is_named = true;
        }
        fs::rename(&self.temporary, &self.path)
    }
}

/// The directory of a file.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.is_named {
            // The failure of the export is reported; this one would hide it.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x".repeat(255));
        for text in ["first", "second"] {
            let before = fs::read(&path).ok();
            let (mut file, output) = open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            assert_eq!(fs::read(&path).ok(), before, "not yet");
            output.unwrap().keep().unwrap();
            assert_eq!(fs::read(&path).unwrap(), text.as_bytes());
            // Owners and modes are kept.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        // One that does not become whole leaves what was there.
        let (mut file, output) = open(&path).unwrap();
        file.write_all(b"third").unwrap();
        drop(output);
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(directory.path()).len(), 1);
    }

    #[test]
    fn a_file_with_a_temporary_name_is_renamed_or_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, temporary) = (directory.path().join("image"), directory.path().join(".volfork-1.part"));
        let begin = || {
            let file = File::create(&temporary).unwrap();
            Output { path: path.clone(), temporary: temporary.clone(), is_named: true, file }
        };
        drop(begin());
        assert!(names(directory.path()).is_empty());
        begin().keep().unwrap();
        assert_eq!(names(directory.path()), ["image"]);
    }

    #[test]
    fn an_export_follows_links_and_writes_hard_links_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("image"), "old").unwrap();
        std::os::unix::fs::symlink("image", at("link")).unwrap();
        let (mut file, output) = open(&at("link")).unwrap();
        file.write_all(b"new").unwrap();
        output.unwrap().keep().unwrap();
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(fs::read(at("image")).unwrap(), b"new");
        fs::hard_link(at("image"), at("other")).unwrap();
        assert!(open(&at("image")).unwrap().1.is_none());
        assert!(open(Path::new("/dev/null")).unwrap().1.is_none());
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        for wrong in [at("dangling"), at("no/such/directory"), directory.path().into(), "/".into()] {
            assert!(open(&wrong).is_err(), "{}", wrong.display());
        }
        assert_eq!(names(directory.path()), ["dangling", "image", "link", "other"]);
    }
}
