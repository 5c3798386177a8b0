//! A volume or snapshot becomes an image. Zeroes are never read, and never written where a hole says the same.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_getfl};
use volfork::volume::{Completion, Request, Run, RunKind};
use volfork::{ErrorKind, Queue, Snapshot, Store, Volume, format_bytes};

use super::pipe::{drain, unblocked};
use super::ranges::{ZEROES, nonzero_runs};
use super::writes::{DEPTH, PIECE_BYTES};
use crate::failure::{Failure, Result};
use crate::request::progress::{Progress, Watcher};
use crate::request::response::Moved;
use crate::request::target::Target;

/// Runs asked for at once.
const RUNS_MAX: usize = 1024;
/// Bytes that are left out as a whole, where they are zeroes.
const HOLE_BYTES: usize = 4096;

/// Writes the bytes of `target` into `file`.
pub fn export(store: &Store, target: &Target, file: File, watcher: &mut dyn Watcher) -> Result<Moved> {
    let begun = Instant::now();
    let origin = match &target.snapshot {
        Some(snapshot) => Origin::Snapshot(store.snapshot(&target.volume, snapshot)?),
        None => Origin::Volume(store.volume(&target.volume)?),
    };
    let size_bytes = origin.size_bytes();
    let mut sink = Sink::new(file, size_bytes)?;
    let data_bytes = copy(&origin, size_bytes, &mut sink, watcher)?;
    sink.finish(size_bytes)?;
    Ok(Moved { name: target.to_string(), size_bytes, data_bytes, seconds: begun.elapsed().as_secs_f64() })
}

/// Where the bytes come from.
enum Origin {
    Volume(Volume),
    Snapshot(Snapshot),
}

impl Origin {
    fn size_bytes(&self) -> u64 {
        match self {
            Self::Volume(volume) => volume.size_bytes(),
            Self::Snapshot(snapshot) => snapshot.size_bytes(),
        }
    }

    fn runs(&self, range: Range<u64>) -> Result<VecDeque<Run>> {
        let runs = match self {
            Self::Volume(volume) => volume.runs(range.clone(), RUNS_MAX)?,
            Self::Snapshot(snapshot) => snapshot.runs(range.clone(), RUNS_MAX)?,
        };
        if runs.is_empty() || runs.iter().any(|run| run.bytes == 0) {
            return Err(Failure::new(ErrorKind::Io, format!("nothing answers for bytes {} to {}", range.start, range.end)));
        }
        Ok(runs.into())
    }

    fn queue(&self) -> Result<Queue> {
        Ok(match self {
            Self::Volume(volume) => volume.queue(DEPTH)?,
            Self::Snapshot(snapshot) => snapshot.queue(DEPTH)?,
        })
    }
}

/// Where the bytes go.
enum Sink {
    /// A regular file: zeroes are holes.
    File(File),
    /// A block device, or a file that keeps its size like one: it has places, but its old bytes must be overwritten.
    Device(File),
    /// Bytes in order.
    Stream(File),
}

impl Sink {
    fn new(mut file: File, size_bytes: u64) -> Result<Self> {
        let wrong = |error| Failure::io("write the image", error);
        let kind = file.metadata().map_err(wrong)?.file_type();
        if kind.is_block_device() {
            return Self::device(file, size_bytes);
        }
        let appends = fcntl_getfl(&file).is_ok_and(|flags| flags.contains(OFlags::APPEND));
        if kind.is_file() && !appends && file.stream_position().is_ok_and(|position| position == 0) {
            let cut = file.set_len(0);
            if cut.as_ref().is_err_and(|error| matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP))) {
                // So does FUSE show a device.
                return Self::device(file, size_bytes);
            }
            cut.and_then(|()| file.set_len(size_bytes)).map_err(|error| unfit(&file, size_bytes, error))?;
            return Ok(Self::File(file));
        }
        Ok(Self::Stream(unblocked(file, true)))
    }

    fn device(mut file: File, size_bytes: u64) -> Result<Self> {
        let room = file.seek(io::SeekFrom::End(0)).map_err(|error| Failure::io("write the image", error))?;
        match room < size_bytes {
            true => {
                let message = format!("the device has {room} bytes, and {size_bytes} are needed: choose a larger one");
                Err(Failure::new(ErrorKind::NoSpace, message))
            }
            false => Ok(Self::Device(file)),
        }
    }

    /// Writes what was read; answers how much of it, in small blocks, is not zero. What is still at a source may be zeroes, too.
    fn piece(&mut self, offset: u64, data: &Bytes, wanted: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        let runs = nonzero_runs(data, HOLE_BYTES);
        match self {
            Self::File(_) => {
                for run in &runs {
                    self.data(offset + run.start as u64, &data[run.clone()], wanted)?;
                }
            }
            Self::Device(_) | Self::Stream(_) => self.data(offset, data, wanted)?,
        }
        Ok(runs.iter().map(|run| run.len() as u64).sum())
    }

    fn data(&mut self, offset: u64, bytes: &[u8], wanted: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let written = match self {
            Self::File(file) | Self::Device(file) => file.write_all_at(bytes, offset),
            Self::Stream(file) => drain(file, bytes, wanted)?,
        };
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(ErrorKind::Io, "the reader of the pipe ended before the image did"),
            _ => Failure::io("write the image", error),
        })
    }

    fn zeroes(&mut self, offset: u64, bytes: u64, wanted: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if let Self::File(_) = self {
            return Ok(());
        }
        let mut done = 0;
        while done < bytes {
            let step = (ZEROES.len() as u64).min(bytes - done);
            self.data(offset + done, &ZEROES[..step as usize], wanted)?;
            done += step;
            if done % (64 << 20) == 0 {
                wanted()?;
            }
        }
        Ok(())
    }

    /// Leaves the position of a shared descriptor behind the image, as if the bytes had been written in order.
    fn finish(self, size_bytes: u64) -> Result<()> {
        let ended = match self {
            Self::File(mut file) => file.seek(io::SeekFrom::Start(size_bytes)).map(drop),
            Self::Device(file) => file.sync_data(),
            Self::Stream(_) => Ok(()),
        };
        ended.map_err(|error| Failure::io("write the image", error))
    }
}

/// Why a file does not get its size. Where its file system ends is found by trying: there is nothing to ask.
fn unfit(file: &File, size_bytes: u64, error: io::Error) -> Failure {
    if error.raw_os_error() != Some(libc::EFBIG) {
        return Failure::io("write the image", error);
    }
    let (mut fits, mut too_large) = (0, size_bytes);
    while too_large - fits > 1 {
        let middle = fits + (too_large - fits) / 2;
        match file.set_len(middle) {
            Ok(()) => fits = middle,
            Err(_) => too_large = middle,
        }
    }
    // Nothing is left of the trials; a failure would hide what failed first.
    let _ = file.set_len(0);
    let own = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    let place = own.parent().map(|place| format!(" in {}", place.display())).unwrap_or_default();
    let message = format!(
        "the file system{place} takes files of at most {} ({fits} bytes) here, and the image has {} ({size_bytes} bytes): export to \
         another file system, to a block device, or through a pipe",
        format_bytes(fits),
        format_bytes(size_bytes)
    );
    Failure::new(ErrorKind::NoSpace, message)
}

/// A part of the image on its way.
struct Piece {
    offset: u64,
    bytes: u64,
    state: PieceState,
}

enum PieceState {
    Zero,
    Reading,
    Read(Bytes),
}

/// Pieces in the order of the image; the token of a piece is its number since the beginning.
struct Reads<'a> {
    origin: &'a Origin,
    queue: Queue,
    completions: Vec<Completion>,
    runs: VecDeque<Run>,
    pieces: VecDeque<Piece>,
    first: u64,
    next_offset: u64,
    size_bytes: u64,
    data_bytes: u64,
}

fn copy(origin: &Origin, size_bytes: u64, sink: &mut Sink, watcher: &mut dyn Watcher) -> Result<u64> {
    let queue = origin.queue()?;
    let (completions, runs, pieces) = (Vec::new(), VecDeque::new(), VecDeque::new());
    let mut reads = Reads { origin, queue, completions, runs, pieces, first: 0, next_offset: 0, size_bytes, data_bytes: 0 };
    let mut done = 0;
    let copied = loop {
        match step(&mut reads, sink, &mut done, watcher) {
            Ok(true) => {}
            Ok(false) => break Ok(reads.data_bytes),
            Err(failure) => break Err(failure),
        }
    };
    // The queue owns the buffers, so it may be dropped with reads under way.
    copied
}

/// One round: start reads, take what is there, write what is in order. `false` at the end.
fn step(reads: &mut Reads<'_>, sink: &mut Sink, done: &mut u64, watcher: &mut dyn Watcher) -> Result<bool> {
    reads.start()?;
    if reads.pieces.is_empty() {
        return Ok(false);
    }
    reads.take()?;
    while let Some(piece) = reads.pop_ready() {
        let at = *done;
        let size_bytes = reads.size_bytes;
        let mut wanted = || watcher.tell(Progress::bytes(at, Some(size_bytes)));
        match &piece.state {
            PieceState::Read(data) => reads.data_bytes += sink.piece(piece.offset, data, &mut wanted)?,
            _ => sink.zeroes(piece.offset, piece.bytes, &mut wanted)?,
        }
        *done = piece.offset + piece.bytes;
        // Keeps reads under way while the written ones make room.
        reads.start()?;
    }
    watcher.tell(Progress::bytes(*done, Some(reads.size_bytes)))?;
    Ok(true)
}

impl Reads<'_> {
    fn start(&mut self) -> Result<()> {
        while self.next_offset < self.size_bytes && self.pieces.len() < DEPTH as usize && self.queue.in_flight() < DEPTH as usize {
            if self.runs.is_empty() {
                self.runs = self.origin.runs(self.next_offset..self.size_bytes)?;
            }
            let Some(run) = self.runs.front_mut() else { break };
            let offset = self.next_offset;
            let left = run.bytes.min(self.size_bytes - offset);
            let (bytes, state) = match run.kind {
                RunKind::Zero => (left, PieceState::Zero),
                _ => {
                    // Pieces end at multiples of their size, so that blocks are whole in them.
                    let bytes = left.min(PIECE_BYTES as u64 - offset % PIECE_BYTES as u64);
                    let token = self.first + self.pieces.len() as u64;
                    self.queue.submit(token, Request::Read { offset, bytes: bytes as u32 })?;
                    (bytes, PieceState::Reading)
                }
            };
            run.bytes = run.bytes.saturating_sub(bytes);
            if run.bytes == 0 || left == bytes && matches!(state, PieceState::Zero) {
                self.runs.pop_front();
            }
            self.next_offset += bytes;
            self.pieces.push_back(Piece { offset, bytes, state });
        }
        self.queue.reap(&mut self.completions)?;
        self.settle()
    }

    /// Waits for a completion unless the first piece is there.
    fn take(&mut self) -> Result<()> {
        let waits = self.pieces.front().is_some_and(|piece| matches!(piece.state, PieceState::Reading));
        if waits {
            self.queue.wait(&mut self.completions, Some(Duration::from_millis(200)))?;
        }
        self.settle()
    }

    fn settle(&mut self) -> Result<()> {
        for completion in self.completions.drain(..) {
            let data = completion.result?;
            let index = completion.token.checked_sub(self.first).map(|index| index as usize);
            match index.and_then(|index| self.pieces.get_mut(index)) {
                Some(piece) if data.len() as u64 == piece.bytes => piece.state = PieceState::Read(data),
                _ => return Err(Failure::new(ErrorKind::Io, format!("a read answered {} bytes that were not asked for", data.len()))),
            }
        }
        Ok(())
    }

    fn pop_ready(&mut self) -> Option<Piece> {
        if matches!(self.pieces.front()?.state, PieceState::Reading) {
            return None;
        }
        self.first += 1;
        self.pieces.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_keeps_holes_and_a_stream_gets_zeroes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        fs::write(&path, vec![9; 1 << 20]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let mut sink = Sink::new(file, 64 << 20).unwrap();
        sink.data(4096, b"abc", &mut || Ok(())).unwrap();
        let piece = Bytes::from([vec![0; 8 << 20], vec![7; 10]].concat());
        assert_eq!(sink.piece(16 << 20, &piece, &mut || Ok(())).unwrap(), 10);
        sink.zeroes(8192, 8 << 20, &mut || Ok(())).unwrap();
        sink.finish(64 << 20).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        let read = fs::read(&path).unwrap();
        assert_eq!(
            (&read[4094..4100], &read[(24 << 20) - 1..(24 << 20) + 11]),
            (&b"\0\0abc\0"[..], &b"\0\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\0"[..])
        );

        let log = directory.path().join("log");
        fs::write(&log, "kept").unwrap();
        let file = File::options().append(true).open(&log).unwrap();
        let mut sink = Sink::new(file, 7).unwrap();
        sink.data(0, b"abc", &mut || Ok(())).unwrap();
        sink.zeroes(3, 4, &mut || Ok(())).unwrap();
        sink.finish(7).unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"keptabc\0\0\0\0");
    }
}
