//! Bytes that came from a client and are no requests under way yet.

use std::io;
use std::os::fd::AsFd;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::budget::SMALL_BYTES;

/// Buffer of a client that sends little at once.
const QUIET_BYTES: usize = 16 << 10;
/// With less room than this, a buffer is not read into any more.
const ROOM_BYTES_MIN: usize = 4 << 10;

/// Bytes that were received and not taken.
///
/// # Invariants
/// - A request larger than [`SMALL_BYTES`] has a buffer of its own, of its size. So no large buffer outlives its request.
#[derive(Default)]
pub struct Input {
    bytes: BytesMut,
    /// Size of the buffer that `bytes` are a part of.
    buffer_bytes: usize,
    /// The last buffer was filled at once.
    busy: bool,
}

/// The outcome of one receive from the socket.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Some,
    /// Nothing is there at this moment.
    Nothing,
    /// The client sends no more.
    End,
}

impl Input {
    /// The bytes that were received and not taken.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the first bytes.
    pub fn take(&mut self, count: usize) -> Bytes {
        self.bytes.split_to(count).freeze()
    }

    /// Memory for what was received.
    pub fn held_bytes(&self) -> usize {
        if self.bytes.is_empty() { 0 } else { self.buffer_bytes }
    }

    fn is_large(&self, missing: usize) -> bool {
        self.bytes.len() + missing > SMALL_BYTES
    }

    /// Memory that a large request needs of which `missing` bytes are missing, if it has none yet.
    pub fn growth(&self, missing: usize) -> usize {
        let has_room = self.bytes.capacity() - self.bytes.len() >= missing;
        if self.is_large(missing) && !has_room { self.bytes.len() + missing } else { 0 }
    }

    /// Makes room for the bytes of the first request that were not received yet.
    pub fn make_room(&mut self, missing: usize) {
        let room = self.bytes.capacity() - self.bytes.len();
        let least = if self.is_large(missing) { missing } else { missing.max(ROOM_BYTES_MIN) };
        if room >= least || !self.is_large(missing) && self.bytes.try_reclaim(least) {
            return;
        }
        let size = match (self.is_large(missing), self.busy) {
            (true, _) => 0,
            (false, true) => SMALL_BYTES,
            (false, false) => QUIET_BYTES,
        };
        let mut buffer = BytesMut::with_capacity(size.max(self.bytes.len() + least));
        buffer.extend_from_slice(&self.bytes);
        self.buffer_bytes = buffer.capacity();
        self.bytes = buffer;
    }

    /// Takes what the socket has, as far as there is room; of a large request no more than it lacks.
    ///
    /// # Errors
    /// The socket failed.
    pub fn receive(&mut self, socket: impl AsFd, missing: usize) -> io::Result<Received> {
        self.make_room(missing);
        let large = self.is_large(missing);
        let room = self.bytes.spare_capacity_mut();
        let most = if large { missing.min(room.len()) } else { room.len() };
        match recv(socket, &mut room[..most], RecvFlags::empty()) {
            Ok(((received, _), _)) => {
                let count = received.len();
                // SAFETY: so many bytes behind the length were received, and so are initialised.
                unsafe { self.bytes.set_len(self.bytes.len() + count) };
                self.busy |= count == most && !large;
                Ok(if count == 0 { Received::End } else { Received::Some })
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives back memory that nothing is in; `idle`: nothing is expected soon.
    pub fn rest(&mut self, idle: bool) {
        let most = if idle { QUIET_BYTES } else { SMALL_BYTES };
        if self.bytes.is_empty() && self.buffer_bytes > most {
            *self = Self { busy: self.busy && !idle, ..Self::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_large_request_gets_its_own_buffer_which_is_freed_again() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut input = Input::default();
        assert_eq!(input.receive(&server, 28).unwrap(), Received::Nothing);
        assert_eq!(input.held_bytes(), 0);
        client.write_all(&[1; 1028]).unwrap();
        assert_eq!(input.receive(&server, 28).unwrap(), Received::Some);
        assert_eq!((input.bytes().len(), input.held_bytes()), (1028, QUIET_BYTES));
        assert_eq!(input.take(28).len(), 28);
        // The rest begins a request of a mebibyte.
        let mut missing = (1 << 20) - 1000;
        assert_eq!(input.growth(missing), 1 << 20);
        let writer = crate::sync::thread::spawn(move || client.write_all(&vec![2; 2 << 20]).map(|()| client));
        while missing > 0 {
            let before = input.bytes().len();
            input.receive(&server, missing).unwrap();
            missing -= input.bytes().len() - before;
            assert_eq!(input.growth(missing), 0);
        }
        assert_eq!((input.bytes().len(), input.held_bytes()), (1 << 20, 1 << 20), "nothing of the next request is in it");
        let request = input.take(1 << 20);
        assert!(request[..1000] == [1; 1000] && request[1000..].iter().all(|byte| *byte == 2));
        input.rest(false);
        assert_eq!(input.buffer_bytes, 0);
        let mut left = (1 << 20) + 1000;
        while left > 0 {
            input.receive(&server, 28).unwrap();
            let count = input.bytes().len();
            left -= count;
            drop(input.take(count));
        }
        drop(writer.join().unwrap().unwrap());
        input.rest(true);
        assert!(input.buffer_bytes <= QUIET_BYTES);
        assert_eq!(input.receive(&server, 28).unwrap(), Received::End);
    }
}
