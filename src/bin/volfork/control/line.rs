//! One line of a stream, bounded in length and time, and the descriptor that came with it.

use std::fs::File;
use std::io::{self, BufRead, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

/// Sends `line` and a line feed; `file` travels with the first byte.
pub fn send(mut stream: &UnixStream, line: &[u8], file: Option<&File>) -> io::Result<()> {
    let mut whole = line.to_vec();
    whole.push(b'\n');
    let mut sent = 0;
    if let Some(file) = file {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [file.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(invalid("no room for the descriptor"));
        }
        sent = sendmsg(stream, &[IoSlice::new(&whole)], &mut control, SendFlags::NOSIGNAL)?;
    }
    stream.write_all(&whole[sent..])
}

/// Receives one line of at most `bytes_max` bytes within `patience`, and at most one descriptor.
pub fn receive(stream: &UnixStream, bytes_max: usize, patience: Duration) -> io::Result<(Vec<u8>, Option<File>)> {
    let deadline = Instant::now() + patience;
    let mut line = Vec::new();
    let mut files: Vec<OwnedFd> = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = match recvmsg(stream, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                files.extend(fds);
            }
        }
        if files.len() > 1 {
            return Err(invalid("more than one descriptor"));
        }
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&buffer[..received]);
        match line.iter().position(|byte| *byte == b'\n') {
            Some(end) if end + 1 == line.len() => {
                line.pop();
                return Ok((line, files.pop().map(File::from)));
            }
            Some(_) => return Err(invalid("bytes behind the line")),
            None if line.len() > bytes_max => return Err(invalid(format!("a line of more than {bytes_max} bytes"))),
            None => {}
        }
    }
}

/// The next line of a buffered stream, without its line feed.
pub fn next(reader: &mut impl BufRead, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(bytes_max).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => Ok(line),
        Some(_) if line.len() as u64 + 1 == bytes_max => Err(invalid(format!("a line of more than {bytes_max} bytes"))),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Seek, SeekFrom};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    fn received(bytes: &[u8]) -> io::Result<(Vec<u8>, Option<File>)> {
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.write_all(bytes)?;
        ours.shutdown(std::net::Shutdown::Write)?;
        receive(&theirs, 8192, PATIENCE)
    }

    #[test]
    fn a_line_brings_its_descriptor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through the socket").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        send(&ours, b"hello", Some(&file)).unwrap();
        let (line, passed) = receive(&theirs, 100, PATIENCE).unwrap();
        assert_eq!(line, b"hello");
        let mut text = String::new();
        passed.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the socket");
        send(&ours, b"alone", None).unwrap();
        let (line, passed) = receive(&theirs, 100, PATIENCE).unwrap();
        assert!(line == b"alone" && passed.is_none());
    }

    #[test]
    fn hostile_lines_are_refused() {
        assert_eq!(received(b"a line\n").unwrap().0, b"a line");
        assert_eq!(received(b"\n").unwrap().0, b"");
        for (bytes, kind) in [
            (&b""[..], io::ErrorKind::UnexpectedEof),
            (b"no end", io::ErrorKind::UnexpectedEof),
            (b"one\ntwo", io::ErrorKind::InvalidData),
            (&[b'x'; 20_000], io::ErrorKind::InvalidData),
        ] {
            assert_eq!(received(bytes).unwrap_err().kind(), kind);
        }
    }

    #[test]
    fn a_silent_or_slow_client_is_not_waited_for() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let begun = Instant::now();
        let slow = std::thread::spawn(move || {
            while ours.write_all(b"x").is_ok() && begun.elapsed() < 4 * PATIENCE {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(receive(&theirs, 100_000, PATIENCE).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < 3 * PATIENCE);
        drop(theirs);
        slow.join().unwrap();
    }

    #[test]
    fn two_descriptors_are_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [file.as_fd(), file.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&ours, &[IoSlice::new(b"hi\n")], &mut control, SendFlags::empty()).unwrap();
        assert_eq!(receive(&theirs, 100, PATIENCE).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn answers_are_bounded_too() {
        let mut reader = BufReader::new(&b"first\nsecond is long\nthird"[..]);
        assert_eq!(next(&mut reader, 10).unwrap(), b"first");
        assert_eq!(next(&mut reader, 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut reader = BufReader::new(&b"cut"[..]);
        assert_eq!(next(&mut reader, 10).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
