//! Objects in a directory or a bucket: read whole, written whole, and changed only if they were not changed meanwhile.
//!
//! # Conditional writes
//! A bucket refuses a write whose precondition (`If-Match`, `If-None-Match`) does not hold, and the change is decided again from
//! what is there now. A directory has no such writes: there a lock file is held from the read to the write, by `flock`, which
//! excludes threads and processes alike (on a network file system only if that passes locks on). Writes replace a file by a
//! rename, so readers need no lock.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, RetryConfig, UpdateVersion};
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
use tokio::runtime::Runtime;

use super::layout::CLOCK;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::random_bytes;
use crate::sync::thread;
use crate::sync::time::Instant;

/// Objects that are read at the same time.
const READS_AT_ONCE: usize = 32;
/// Most objects of one kind that are listed.
const OBJECTS_MAX: usize = 100_000;
/// How often a change is decided again because others were faster.
const CHANGES_MAX: u32 = 64;
/// How long a bucket may fail before a request is given up.
const RETRY_TIME: Duration = Duration::from_secs(15);
/// How long to wait for the lock of a directory: its holder may have been stopped.
const LOCK_TIME: Duration = Duration::from_secs(30);

/// An object with its version, for conditional puts.
struct Object {
    bytes: Vec<u8>,
    version: UpdateVersion,
}

/// What is to become of an object that was looked at.
pub enum Change<T> {
    /// It stays as it is.
    Keep(T),
    /// It stays as it is, and the answer holds only if it was so all the while: other objects were compared with it.
    KeepIfSame(T),
    /// It gets these bytes.
    Write(Vec<u8>, T),
}

/// A directory or a bucket.
pub struct Bucket {
    name: String,
    objects: Arc<dyn ObjectStore>,
    runtime: Runtime,
    /// Of a directory: the file that is locked around changes.
    lock: Option<PathBuf>,
}

impl Bucket {
    /// Opens `s3://BUCKET/PREFIX`, `memory://` (empty, for tests), `file:///DIRECTORY` or a path.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an address that is not understood, [`ErrorKind::NotFound`] for a directory that is missing.
    pub fn open(url: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::io("cannot start a runtime", error))?;
        let (objects, lock): (Arc<dyn ObjectStore>, _) = match url.split_once("://") {
            Some(("s3", _)) => (open_s3(url)?, None),
            Some(("memory", "" | "/")) => (Arc::new(InMemory::new()), None),
            Some(("file", path)) => open_directory(Path::new(path))?,
            None if !url.is_empty() => open_directory(Path::new(url))?,
            _ => {
                let message = format!("'{url}' is no address of a fleet: use a directory, file:///DIRECTORY or s3://BUCKET/PREFIX");
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
        };
        Ok(Self { name: url.to_owned(), objects, runtime, lock })
    }

    /// The address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the objects below a folder, in order.
    ///
    /// # Errors
    /// The bucket fails, or there are too many.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let prefix = object_store::path::Path::from(folder);
        let listed = self.objects.list(Some(&prefix)).map_ok(|meta| String::from(meta.location)).take(OBJECTS_MAX + 1).try_collect();
        let mut names: Vec<String> = self.runtime.block_on(listed).map_err(|error| self.failed("list", folder, &error))?;
        if names.len() > OBJECTS_MAX {
            let message = format!("{}: there are more than {OBJECTS_MAX} objects in {folder}/: this is not a fleet", self.name);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The bytes of an object; `None` if there is no such object.
    ///
    /// # Errors
    /// The bucket fails; [`ErrorKind::Corrupt`] for an object of more than `bytes_max`.
    pub fn read(&self, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        Ok(self.runtime.block_on(self.fetch(path, bytes_max))?.map(|object| object.bytes))
    }

    /// As [`Bucket::read`] for many groups of objects, several groups at the same time; the objects of a group one after the other.
    /// `take` makes what is answered of each group when it is there, so that few objects are held at once. Each may fail alone.
    pub fn read_all<const N: usize, T>(
        &self,
        groups: &[[String; N]],
        bytes_max: u64,
        take: impl Fn(usize, [Option<Vec<u8>>; N]) -> Result<T>,
    ) -> Vec<Result<T>> {
        let read = async |(number, group): (usize, &[String; N])| {
            let mut found = [const { None }; N];
            for (path, found) in group.iter().zip(&mut found) {
                *found = self.fetch(path, bytes_max).await?.map(|object| object.bytes);
            }
            take(number, found)
        };
        self.runtime.block_on(stream::iter(groups.iter().enumerate()).map(read).buffered(READS_AT_ONCE).collect())
    }

    /// Changes an object by a conditional put. `decide` gets the present bytes, and is called again if another writer changed them first.
    ///
    /// # Errors
    /// That of `decide`; the bucket fails; [`ErrorKind::Busy`] if other writers were faster too often.
    pub fn change<T>(&self, path: &str, bytes_max: u64, decide: impl FnMut(Option<&[u8]>) -> Result<Change<T>>) -> Result<T> {
        self.change_tagged(path, bytes_max, decide).map(|(answer, _)| answer)
    }

    /// As [`Bucket::change`]; also answers the tag of what was written, as [`Bucket::tag`] does.
    ///
    /// # Errors
    /// As there.
    pub fn change_tagged<T>(
        &self,
        path: &str,
        bytes_max: u64,
        mut decide: impl FnMut(Option<&[u8]>) -> Result<Change<T>>,
    ) -> Result<(T, Option<String>)> {
        let _locked = self.lock.as_deref().map(|path| locked(path, LOCK_TIME)).transpose()?;
        for attempt in 0..CHANGES_MAX {
            let found = self.runtime.block_on(self.fetch(path, bytes_max))?;
            let (bytes, answer) = match decide(found.as_ref().map(|object| &object.bytes[..]))? {
                Change::Keep(answer) => return Ok((answer, found.and_then(|object| object.version.e_tag))),
                Change::KeepIfSame(answer) => {
                    let was = found.map(|object| object.version.e_tag);
                    if self.lock.is_some() || self.tag(path)? == was {
                        return Ok((answer, was.flatten()));
                    }
                    continue;
                }
                Change::Write(bytes, answer) => (bytes, answer),
            };
            let mode = match found {
                _ if self.lock.is_some() => PutMode::Overwrite,
                None => PutMode::Create,
                Some(object) => PutMode::Update(object.version),
            };
            if let Some(tag) = self.put(path, bytes, mode)? {
                return Ok((answer, tag));
            }
            thread::sleep(pause_after(attempt)?);
        }
        let message = format!("{}: {path} was changed by others {CHANGES_MAX} times in a row: try again later", self.name);
        Err(Error::new(ErrorKind::Busy, message))
    }

    /// What tells this version of an object from all others, as far as the bucket says; `None` if there is no such object.
    ///
    /// # Errors
    /// The bucket fails.
    pub fn tag(&self, path: &str) -> Result<Option<Option<String>>> {
        match self.runtime.block_on(self.objects.head(&object_store::path::Path::from(path))) {
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            found => Ok(Some(found.map_err(|error| self.failed("look at", path, &error))?.e_tag)),
        }
    }

    /// The bucket's clock, in seconds since the Unix epoch: the time at which it wrote an object that is not read. That of a
    /// directory says when the lock file was touched.
    ///
    /// # Errors
    /// The bucket fails; [`ErrorKind::Unsupported`] if it does not tell when an object was written.
    pub fn time(&self) -> Result<u64> {
        if let Some(path) = &self.lock {
            return touched(path).map_err(|error| Error::io(format!("cannot touch {}", path.display()), error));
        }
        self.put(CLOCK, Vec::new(), PutMode::Overwrite)?;
        let written = self.runtime.block_on(self.objects.head(&object_store::path::Path::from(CLOCK)));
        let written = written.map_err(|error| self.failed("look at", CLOCK, &error))?.last_modified.timestamp();
        // Without the header it is the epoch.
        u64::try_from(written).ok().filter(|seconds| *seconds > 0).ok_or_else(|| {
            let message = format!("{} does not tell when {CLOCK} was written (Last-Modified), so clocks cannot be compared", self.name);
            Error::new(ErrorKind::Unsupported, message)
        })
    }

    /// The tag of what was written; `None` if the precondition does not hold.
    fn put(&self, path: &str, bytes: Vec<u8>, mode: PutMode) -> Result<Option<Option<String>>> {
        use object_store::Error::{AlreadyExists, Precondition};
        let location = object_store::path::Path::from(path);
        match self.runtime.block_on(self.objects.put_opts(&location, bytes.into(), mode.into())) {
            Ok(put) => Ok(Some(put.e_tag)),
            Err(AlreadyExists { .. } | Precondition { .. }) => Ok(None),
            Err(error) => Err(self.failed("write", path, &error)),
        }
    }

    async fn fetch(&self, path: &str, bytes_max: u64) -> Result<Option<Object>> {
        let got = match self.objects.get(&object_store::path::Path::from(path)).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            got => got.map_err(|error| self.failed("read", path, &error))?,
        };
        if got.meta.size > bytes_max {
            let message = format!("{}: {path} has {} bytes, and at most {bytes_max} are taken: remove it", self.name, got.meta.size);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let version = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
        let bytes = got.bytes().await.map_err(|error| self.failed("read", path, &error))?;
        Ok(Some(Object { bytes: bytes.into(), version }))
    }

    fn failed(&self, what: &str, path: &str, error: &object_store::Error) -> Error {
        let kind = match error {
            object_store::Error::NotFound { .. } => ErrorKind::NotFound,
            object_store::Error::InvalidPath { .. } => ErrorKind::InvalidInput,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("{}: cannot {what} {path}: {error}", self.name))
    }
}

fn open_s3(url: &str) -> Result<Arc<dyn ObjectStore>> {
    let wrong = |error: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidInput, format!("cannot use {url}: {error}"));
    let parsed = url::Url::parse(url).map_err(|error| wrong(&error))?;
    let mut builder = AmazonS3Builder::from_env().with_url(url);
    let is_http = |key| builder.get_config_value(&key).is_some_and(|value| value.starts_with("http://"));
    if is_http(AmazonS3ConfigKey::Endpoint) || is_http(AmazonS3ConfigKey::S3Endpoint) {
        // A user who names such an address means it.
        builder = builder.with_allow_http(true);
    }
    let retry = RetryConfig { max_retries: 5, retry_timeout: RETRY_TIME, ..RetryConfig::default() };
    let bucket = builder.with_retry(retry).build().map_err(|error| wrong(&error))?;
    let prefix = object_store::path::Path::from_url_path(parsed.path()).map_err(|error| wrong(&error))?;
    Ok(Arc::new(PrefixStore::new(bucket, prefix)))
}

fn open_directory(path: &Path) -> Result<(Arc<dyn ObjectStore>, Option<PathBuf>)> {
    if !path.is_dir() {
        let message = format!("there is no directory {}: make it, or mount what holds the fleet there", path.display());
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    let objects = LocalFileSystem::new_with_prefix(path);
    let objects = objects.map_err(|error| Error::new(ErrorKind::Io, format!("cannot use {}: {error}", path.display())))?;
    Ok((Arc::new(objects.with_fsync(true)), Some(path.join("lock"))))
}

/// The lock file of a directory, which may have to be made.
#[expect(clippy::disallowed_methods, reason = "a directory that hosts share is not on the disk of a store")]
fn lock_file(path: &Path) -> io::Result<File> {
    File::options().create(true).write(true).truncate(false).open(path)
}

/// Gives the lock file of a directory the time of its file system, as any user may who may lock it. Answers that.
fn touched(path: &Path) -> io::Result<u64> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let file = lock_file(path)?;
    futimens(&file, &Timestamps { last_access: now, last_modification: now })?;
    Ok(u64::try_from(file.metadata()?.mtime()).unwrap_or(0))
}

/// Locks the lock file of a directory until what is answered is dropped.
fn locked(path: &Path, patience: Duration) -> Result<File> {
    let wrong = |error| Error::io(format!("cannot lock {}", path.display()), error);
    let begun = Instant::now();
    loop {
        let file = lock_file(path).map_err(wrong)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(wrong(error)),
            Err(TryLockError::WouldBlock) if begun.elapsed() < patience => {
                thread::sleep(pause_after(0)?);
                continue;
            }
            Err(TryLockError::WouldBlock) => {
                let message = format!(
                    "{} was locked by others for {} s: find out which process has it (fuser), and end it if it has stopped",
                    path.display(),
                    patience.as_secs()
                );
                return Err(Error::new(ErrorKind::Busy, message));
            }
        }
        // If the directory was wiped meanwhile, this lock has no name any more: other processes make a new one.
        let own = file.metadata().map_err(wrong)?;
        if std::fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())) {
            return Ok(file);
        }
    }
}

/// Random, so that those who collided once do not do so again.
fn pause_after(attempt: u32) -> Result<Duration> {
    Ok(Duration::from_micros(random()? % (4_000 << attempt.min(6))))
}

/// A random number.
///
/// # Errors
/// The system has no randomness.
pub fn random() -> Result<u64> {
    random_bytes().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(bucket: &Bucket) -> Result<u64> {
        bucket.change("a/count", 100, |found| {
            let number = found.map_or(0, |bytes| String::from_utf8_lossy(bytes).parse::<u64>().unwrap()) + 1;
            Ok(Change::Write(number.to_string().into_bytes(), number))
        })
    }

    #[test]
    fn an_answer_that_changes_nothing_holds_if_nothing_changed() {
        let bucket = Bucket::open("memory://").unwrap();
        let (mut asked, mut seen) = (0, Vec::new());
        let answer = bucket.change("a/count", 100, |found| {
            seen.push(found.map(<[u8]>::to_vec));
            asked += 1;
            if asked < 3 {
                count(&bucket)?;
            }
            Ok(Change::KeepIfSame(asked))
        });
        assert_eq!((answer.unwrap(), seen), (3, vec![None, Some(b"1".to_vec()), Some(b"2".to_vec())]));
        let directory = tempfile::tempdir().unwrap();
        let bucket = Bucket::open(directory.path().to_str().unwrap()).unwrap();
        assert_eq!(bucket.change("a/count", 100, |_| Ok(Change::KeepIfSame(7))).unwrap(), 7);
    }

    fn conforms(bucket: &Bucket) {
        assert_eq!(bucket.read("a/none", 10).unwrap(), None);
        assert_eq!(bucket.list("a").unwrap(), Vec::<String>::new());
        for bytes in [b"one", b"two"] {
            bucket.change("a/x", 3, |_| Ok(Change::Write(bytes.to_vec(), ()))).unwrap();
        }
        assert_eq!(bucket.read("a/x", 3).unwrap().as_deref(), Some(&b"two"[..]));
        let error = bucket.read("a/x", 2).unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("a/x"), "{error}");
        assert_eq!(bucket.list("a").unwrap(), ["a/x"]);
        let all =
            bucket.read_all(&[["a/none".into(), "a/x".into()], ["a/x".into(), "a/none".into()]], 3, |number, found| Ok((number, found)));
        let two = || Some(b"two".to_vec());
        assert!(matches!(&all[..], [Ok((0, first)), Ok((1, second))] if *first == [None, two()] && *second == [two(), None]));
        let failing = bucket.read_all(&[["a/x".into()], ["a/none".into()]], 2, |_, found| Ok(found));
        assert!(matches!(&failing[..], [Err(_), Ok([None])]));
        // No change is lost.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!((0..10).all(|_| count(bucket).is_ok())));
            }
        });
        assert_eq!(count(bucket).unwrap(), 41);
        let kept = bucket.change("a/count", 100, |_| Ok(Change::Keep(7))).unwrap();
        assert_eq!(kept, 7);
    }

    #[test]
    fn memory_and_directories_conform() {
        conforms(&Bucket::open("memory://").unwrap());
        let directory = tempfile::tempdir().unwrap();
        conforms(&Bucket::open(directory.path().to_str().unwrap()).unwrap());
        let url = format!("file://{}", directory.path().display());
        assert_eq!(Bucket::open(&url).unwrap().read("a/x", 3).unwrap().as_deref(), Some(&b"two"[..]));
    }

    #[test]
    fn a_lock_that_is_never_given_back_is_not_waited_for_forever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = locked(&path, Duration::ZERO).unwrap();
        let refused = locked(&path, Duration::from_millis(10)).unwrap_err();
        assert!(refused.kind() == ErrorKind::Busy && refused.to_string().contains("was locked by others"), "{refused}");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| locked(&path, LOCK_TIME));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn addresses_are_checked() {
        for (url, kind) in [("", ErrorKind::InvalidInput), ("ftp://x", ErrorKind::InvalidInput), ("/nowhere/at/all", ErrorKind::NotFound)] {
            assert_eq!(Bucket::open(url).err().map(|error| error.kind()), Some(kind), "{url}");
        }
    }
}
