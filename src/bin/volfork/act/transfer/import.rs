//! An image becomes a volume.
//!
//! A thread reads the image ahead, the caller's thread writes what is not zero through a queue.
//!
//! # Crash ordering
//! The volume gets its name after the last flush, so a volume that has its name is whole: see [`volfork::store::Unfinished`]. A failed
//! import destroys it; what a crash left is found and destroyed when the store is opened again.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::{SeekFrom, seek};
use volfork::store::ReservedName;
use volfork::{ErrorKind, Store, Volume};

use super::pipe::{fill, unblocked};
use super::ranges::{next_data, nonzero_runs};
use super::writes::{DEPTH, PIECE_BYTES, Writes};
use crate::act::gate::{Gate, Labels};
use crate::failure::{Failure, Result};
use crate::request::progress::{Progress, Watcher};
use crate::request::response::Moved;

/// Pieces read ahead of the writes.
const AHEAD: usize = 8;
/// The volume of a stream grows by half of its size, and at least by this, where there is room; it is cut to the stream's length at
/// the end.
const GROWTH_BYTES_MIN: u64 = 1 << 30;
/// First bytes of a qcow2 image.
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";

/// Makes the volume `name` with the bytes of `file`. `raw` skips the test for image formats.
pub fn import(store: &Store, name: &str, file: File, raw: bool, gate: &dyn Gate, watcher: &mut dyn Watcher) -> Result<Moved> {
    let begun = Instant::now();
    let reserved = reserve(store, name)?;
    let mut image = Image::new(file)?;
    let head = image.head(watcher)?;
    if !raw && head.starts_with(QCOW2_MAGIC) {
        let message =
            "the image is qcow2, not raw: run 'qemu-img convert -O raw IMAGE RAW' and import RAW, or give --raw to import it as it is";
        return Err(Failure::new(ErrorKind::InvalidInput, message));
    }
    if head.is_empty() {
        return Err(Failure::new(ErrorKind::InvalidInput, "the image is empty: a volume needs at least one byte"));
    }
    let size_bytes = image.size_bytes().unwrap_or(head.len() as u64);
    // From now on the host has it, under whatever name.
    let mut unfinished = gate.admit(store, name, size_bytes, &mut Labels::new())?.conclude(reserved.create(size_bytes))?;
    let volume = unfinished.volume().clone();
    let grow = |size_bytes| gate.grow(store, &volume.name(), volume.size_bytes()..size_bytes)?.conclude(volume.resize(size_bytes, false));
    let copied = copy(&volume, &grow, image, head, watcher)?;
    unfinished.finish([].into())?;
    Ok(Moved { name: name.into(), size_bytes: volume.size_bytes(), data_bytes: copied, seconds: begun.elapsed().as_secs_f64() })
}

fn reserve(store: &Store, name: &str) -> Result<ReservedName> {
    store.reserve_name(name).map_err(|error| match (error.kind(), store.show(name)) {
        (ErrorKind::Exists, Ok(info)) if !info.id.is_empty() => {
            let message = format!("volume '{name}' exists already: choose another name, or run 'volfork destroy {name}' first");
            Failure::new(ErrorKind::Exists, message)
        }
        _ => error.into(),
    })
}

/// What is imported: a file with places, or bytes in order.
enum Image {
    File { file: File, size_bytes: u64 },
    Stream(File),
}

impl Image {
    fn new(mut file: File) -> Result<Self> {
        let kind = file.metadata().map_err(|error| Failure::io("read the image", error))?.file_type();
        let whole = (kind.is_file() || kind.is_block_device()) && io::Seek::stream_position(&mut file).is_ok_and(|position| position == 0);
        if !whole {
            return Ok(Self::Stream(unblocked(file, false)));
        }
        let size_bytes = seek(&file, SeekFrom::End(0)).map_err(|error| Failure::io("size of the image", error))?;
        Ok(Self::File { file, size_bytes })
    }

    fn size_bytes(&self) -> Option<u64> {
        match self {
            Self::File { size_bytes, .. } => Some(*size_bytes),
            Self::Stream(_) => None,
        }
    }

    /// The first bytes: of a stream a whole piece, which is not read again.
    fn head(&mut self, watcher: &mut dyn Watcher) -> Result<Vec<u8>> {
        let mut told = Ok(());
        let read = match self {
            Self::File { file, size_bytes } => {
                let mut head = vec![0; (*size_bytes).min(QCOW2_MAGIC.len() as u64) as usize];
                file.read_exact_at(&mut head, 0).map(|()| head)
            }
            Self::Stream(file) => {
                let mut head = vec![0; PIECE_BYTES];
                let mut wanted = || {
                    told = watcher.tell(Progress::bytes(0, None));
                    told.is_ok()
                };
                fill(file, &mut head, &mut wanted).map(|filled| {
                    head.truncate(filled.unwrap_or(0));
                    head
                })
            }
        };
        told?;
        read.map_err(|error| Failure::io("read the image", error))
    }
}

/// Gives a volume a larger size.
type Grow<'a> = dyn Fn(u64) -> volfork::Result<()> + 'a;

/// Bytes of the image at their place.
type Piece = (u64, Bytes);

/// Moves all of the image; answers how many bytes were written.
fn copy(volume: &Volume, grow: &Grow<'_>, image: Image, head: Vec<u8>, watcher: &mut dyn Watcher) -> Result<u64> {
    let total = image.size_bytes();
    let stop = AtomicBool::new(false);
    let (sender, receiver) = mpsc::sync_channel(AHEAD);
    std::thread::scope(|scope| {
        let stop = &stop;
        let reader = scope.spawn(move || read(image, head, &sender, stop));
        let mut target = Target {
            volume,
            resize: grow,
            writes: Writes::new(volume.queue(DEPTH)?),
            grows: total.is_none(),
            step: u64::MAX,
            end: 0,
            data_bytes: 0,
        };
        let written = loop {
            match receiver.recv_timeout(Duration::from_millis(200)) {
                Ok((offset, data)) => {
                    if let Err(failure) = target.take(offset, &data) {
                        break Err(failure);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break Ok(()),
            }
            if let Err(failure) = watcher.tell(Progress::bytes(target.end, total)) {
                break Err(failure);
            }
        };
        stop.store(true, Ordering::Relaxed);
        drop(receiver);
        let read = reader.join().unwrap_or_else(|_| Err(io::Error::other("the reading thread ended")));
        written?;
        read.map_err(|error| Failure::io("read the image", error))?;
        target.finish()
    })
}

/// Reads the image ahead, until its end or until the receiver is gone.
fn read(image: Image, head: Vec<u8>, sender: &SyncSender<Piece>, stop: &AtomicBool) -> io::Result<()> {
    match image {
        Image::File { file, size_bytes } => read_file(&file, size_bytes, sender),
        Image::Stream(file) => read_stream(file, head, sender, stop),
    }
}

fn read_file(file: &File, size_bytes: u64, sender: &SyncSender<Piece>) -> io::Result<()> {
    let mut offset = 0;
    while let Some(range) = next_data(file, offset, size_bytes)? {
        // Pieces begin at multiples of their size, so that blocks are whole in them.
        offset = range.start / PIECE_BYTES as u64 * PIECE_BYTES as u64;
        while offset < range.end {
            let bytes = (PIECE_BYTES as u64).min(size_bytes - offset);
            let mut piece = vec![0; bytes as usize];
            file.read_exact_at(&mut piece, offset)?;
            if sender.send((offset, piece.into())).is_err() {
                return Ok(());
            }
            offset += bytes;
        }
    }
    Ok(())
}

fn read_stream(mut file: File, head: Vec<u8>, sender: &SyncSender<Piece>, stop: &AtomicBool) -> io::Result<()> {
    let mut offset = 0;
    let mut piece = head;
    loop {
        let bytes = piece.len();
        if bytes == 0 || sender.send((offset, piece.into())).is_err() {
            return Ok(());
        }
        offset += bytes as u64;
        if bytes < PIECE_BYTES {
            return Ok(());
        }
        piece = vec![0; PIECE_BYTES];
        match fill(&mut file, &mut piece, &mut || !stop.load(Ordering::Relaxed))? {
            Some(filled) => piece.truncate(filled),
            None => return Ok(()),
        }
    }
}

/// The volume that is being filled.
struct Target<'a> {
    volume: &'a Volume,
    resize: &'a Grow<'a>,
    writes: Writes,
    /// The length is not known before the end.
    grows: bool,
    /// Most that it grows by next.
    step: u64,
    end: u64,
    data_bytes: u64,
}

impl Target<'_> {
    fn take(&mut self, offset: u64, data: &Bytes) -> Result<()> {
        self.end = offset + data.len() as u64;
        self.grow()?;
        for run in nonzero_runs(data, self.volume.block_bytes() as usize) {
            self.data_bytes += run.len() as u64;
            self.writes.write(offset + run.start as u64, data.slice(run))?;
        }
        self.writes.push()
    }

    /// In few steps, because each one is a record with a barrier, and in a fleet a reservation. What does not fit is halved, so near the
    /// largest size, and on a host with little room, the steps are few, too.
    fn grow(&mut self) -> Result<()> {
        let size_bytes = self.volume.size_bytes();
        if self.end <= size_bytes {
            return Ok(());
        }
        let mut step = self.step.min((size_bytes / 2).max(GROWTH_BYTES_MIN));
        loop {
            let wanted = self.end.max(size_bytes + step);
            match (self.resize)(wanted) {
                Err(error) if wanted > self.end && matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::InvalidInput) => step /= 2,
                resized => {
                    self.step = step.saturating_mul(2);
                    return Ok(resized?);
                }
            }
        }
    }

    fn finish(self) -> Result<u64> {
        self.writes.finish()?;
        if self.grows && self.volume.size_bytes() != self.end {
            self.volume.resize(self.end, true)?;
        }
        self.volume.flush()?;
        Ok(self.data_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;

    use volfork::StoreOptions;

    use super::*;

    struct Nobody;

    impl Watcher for Nobody {
        fn tell(&mut self, _: Progress) -> Result<()> {
            Ok(())
        }
    }

    fn pieces(image: Image, head: Vec<u8>) -> Vec<Piece> {
        let (sender, receiver) = mpsc::sync_channel(64);
        read(image, head, &sender, &AtomicBool::new(false)).unwrap();
        drop(sender);
        receiver.into_iter().collect()
    }

    /// Each step is a reservation in a fleet: a book has room for ten thousand.
    #[test]
    fn a_stream_takes_the_last_room_of_a_host_in_few_steps() {
        const ROOM: u64 = 3_000 << 20;
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path().join("store"), StoreOptions::default()).unwrap();
        let volume = store.create_volume("v", 1 << 20).unwrap();
        let (tries, steps) = (Cell::new(0), Cell::new(0));
        let grow = |size_bytes: u64| {
            tries.set(tries.get() + 1);
            if size_bytes > ROOM {
                return Err(volfork::Error::new(ErrorKind::NoSpace, "no room"));
            }
            steps.set(steps.get() + 1);
            volume.resize(size_bytes, false)
        };
        let writes = Writes::new(volume.queue(DEPTH).unwrap());
        let mut target = Target { volume: &volume, resize: &grow, writes, grows: true, step: u64::MAX, end: 0, data_bytes: 0 };
        for end in (1..=ROOM >> 20).map(|piece| piece << 20) {
            target.end = end;
            target.grow().unwrap();
        }
        assert_eq!(volume.size_bytes(), ROOM);
        assert!(steps.get() < 30 && tries.get() < 90, "{} steps, {} tries", steps.get(), tries.get());
        target.end += 1;
        assert!(target.grow().unwrap_err().is(ErrorKind::NoSpace));
        // Only a lack of room is worth smaller steps.
        let broken = Cell::new(0);
        let fail = |_| {
            broken.set(broken.get() + 1);
            Err(volfork::Error::new(ErrorKind::Io, "the bucket is gone"))
        };
        target.resize = &fail;
        assert!(target.grow().unwrap_err().is(ErrorKind::Io) && broken.get() == 1);
    }

    #[test]
    fn a_file_is_read_sparsely_and_whole() {
        let mut file = tempfile::tempfile().unwrap();
        let size_bytes = (10 << 20) + 100;
        file.set_len(size_bytes).unwrap();
        file.write_all_at(&[1; 4096], (4 << 20) + 8192).unwrap();
        file.write_all_at(&[2; 10], size_bytes - 10).unwrap();
        file.flush().unwrap();
        let mut image = Image::new(file).unwrap();
        assert_eq!(image.size_bytes(), Some(size_bytes));
        let head = image.head(&mut Nobody).unwrap();
        let read = pieces(image, head);
        let starts: Vec<u64> = read.iter().map(|piece| piece.0).collect();
        assert!(starts.contains(&(4 << 20)) && starts.contains(&(10 << 20)), "{starts:?}");
        assert!(starts.is_sorted() && starts.iter().all(|start| start % PIECE_BYTES as u64 == 0));
        let (offset, last) = read.last().unwrap();
        assert_eq!(offset + last.len() as u64, size_bytes);
    }

    #[test]
    fn a_stream_is_read_in_order() {
        let (reader, mut writer) = io::pipe().unwrap();
        let content: Vec<u8> = (0..3 * PIECE_BYTES + 5).map(|index| (index / 7) as u8).collect();
        let expected = content.clone();
        let thread = std::thread::spawn(move || writer.write_all(&content));
        let mut image = Image::new(File::from(std::os::fd::OwnedFd::from(reader))).unwrap();
        assert_eq!(image.size_bytes(), None);
        let head = image.head(&mut Nobody).unwrap();
        let mut whole = Vec::new();
        for (offset, piece) in pieces(image, head) {
            assert_eq!(offset, whole.len() as u64);
            whole.extend_from_slice(&piece);
        }
        thread.join().unwrap().unwrap();
        assert!(whole == expected);
    }
}
