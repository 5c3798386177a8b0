//! Pipes and other streams, without a wait that nothing can end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::failure::Result;

/// How long a wait lasts before it looks whether it is still wanted.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// A file of its own open description for a pipe, that does not block. Changing the flags of the descriptor itself would change them
/// for every process that shares it, the user's shell for example. What cannot be opened again is used as it is.
pub fn unblocked(file: File, write: bool) -> File {
    if !file.metadata().is_ok_and(|meta| meta.file_type().is_fifo()) {
        return file;
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let nonblock = OFlags::NONBLOCK.bits() as i32;
    OpenOptions::new().read(!write).write(write).custom_flags(nonblock).open(path).unwrap_or(file)
}

fn ready(file: &File, flags: PollFlags) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), flags)];
    match poll(&mut fds, Some(&LOOK_EVERY)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Fills `buffer` as far as the stream reaches; `None` when it is not `wanted` any more.
pub fn fill(file: &mut File, buffer: &mut [u8], wanted: &mut dyn FnMut() -> bool) -> io::Result<Option<usize>> {
    let mut filled = 0;
    while filled < buffer.len() {
        if !wanted() {
            return Ok(None);
        }
        if !ready(file, PollFlags::IN)? {
            continue;
        }
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(filled))
}

/// Writes all of `bytes`; `wanted` is asked while the other end takes none.
pub fn drain(file: &mut File, mut bytes: &[u8], wanted: &mut dyn FnMut() -> Result<()>) -> Result<io::Result<()>> {
    while !bytes.is_empty() {
        match ready(file, PollFlags::OUT) {
            Ok(true) => {}
            Ok(false) => {
                wanted()?;
                continue;
            }
            Err(error) => return Ok(Err(error)),
        }
        match file.write(bytes) {
            Ok(0) => return Ok(Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::failure::Failure;

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
    }

    #[test]
    fn a_full_pipe_does_not_hold_the_writer() {
        let (reader, writer) = pipe();
        let mut writer = unblocked(writer, true);
        let mut asked = 0;
        let ended = drain(&mut writer, &vec![7; 1 << 20], &mut || {
            asked += 1;
            if asked > 1 { Err(Failure::interrupted("enough")) } else { Ok(()) }
        });
        assert_eq!(ended.unwrap_err().message, "enough");
        drop(reader);
        let broken = drain(&mut writer, &[1], &mut || Ok(())).unwrap();
        assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn an_empty_pipe_does_not_hold_the_reader() {
        let (reader, mut writer) = pipe();
        let mut reader = unblocked(reader, false);
        let stop = AtomicBool::new(false);
        let mut buffer = [0; 8];
        writer.write_all(b"12345678abc").unwrap();
        assert_eq!(fill(&mut reader, &mut buffer, &mut || !stop.load(Ordering::Relaxed)).unwrap(), Some(8));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(50));
                stop.store(true, Ordering::Relaxed);
            });
            assert_eq!(fill(&mut reader, &mut buffer, &mut || !stop.load(Ordering::Relaxed)).unwrap(), None);
        });
        stop.store(false, Ordering::Relaxed);
        drop(writer);
        assert_eq!(fill(&mut reader, &mut buffer, &mut || !stop.load(Ordering::Relaxed)).unwrap(), Some(0));
    }
}
