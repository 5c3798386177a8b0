//! Bytes that came from a client and are no requests under way yet.

use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

use crate::io::AlignedBuffer;

/// Buffer of a client that sends little at once.
const QUIET_BYTES: usize = 16 << 10;
/// Buffer of a client that filled its last one.
const BUSY_BYTES: usize = 128 << 10;
/// With less room than this, a buffer is not read into any more.
const ROOM_BYTES_MIN: usize = 4 << 10;
/// A payload from this size on has memory of its own.
pub const OWN_BYTES_MIN: usize = 32 << 10;
/// Bytes that are received at most together with a payload that has memory of its own, and behind it: the next such payload begins
/// there, and that part of it is copied.
const BEHIND_BYTES: usize = 4 << 10;

/// Bytes that were received and not taken.
///
/// # Invariants
/// - The payload of a request from [`OWN_BYTES_MIN`] on is received into memory of its own, of its size, which the disk takes as it is. So
///   no large buffer outlives its request, and none is copied but for what came with its header.
/// - While such a payload is not whole, `bytes` are the header before it and nothing else.
pub struct Input {
    /// Length of a request's header.
    header_bytes: usize,
    /// Initialised up to its capacity.
    bytes: BytesMut,
    /// Size of the buffer that `bytes` are a part of.
    buffer_bytes: usize,
    /// The last buffer was filled at once.
    busy: bool,
    payload: Option<Payload>,
    /// The last payload had memory of its own.
    large: bool,
}

/// A payload in memory of its own.
struct Payload {
    memory: AlignedBuffer,
    filled: usize,
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
    /// Nothing yet, of a client whose requests have headers of this length.
    pub fn new(header_bytes: usize) -> Self {
        Self { header_bytes, bytes: BytesMut::new(), buffer_bytes: 0, busy: false, payload: None, large: false }
    }

    /// The first bytes that were received and not taken: at least the header of the first request, if that has come.
    pub fn head(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes that were received and not taken.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.payload.as_ref().map_or(0, |payload| payload.filled)
    }

    /// Takes the first request, header and payload, and answers the payload. All of it has come.
    pub fn take(&mut self, payload_bytes: usize) -> Bytes {
        let _ = self.bytes.split_to(self.header_bytes);
        self.large = self.payload.is_some();
        match self.payload.take() {
            Some(payload) => payload.memory.into_bytes(),
            None => self.bytes.split_to(payload_bytes).freeze(),
        }
    }

    /// Memory for what was received.
    pub fn held_bytes(&self) -> usize {
        let buffer = if self.bytes.is_empty() { 0 } else { self.buffer_bytes };
        buffer + self.payload.as_ref().map_or(0, |payload| payload.memory.len())
    }

    /// Length of the payload of which `missing` bytes are missing, if it is to have memory of its own.
    fn own_bytes(&self, missing: usize) -> Option<usize> {
        let payload = (self.bytes.len() + missing).checked_sub(self.header_bytes)?;
        (self.bytes.len() >= self.header_bytes && payload >= OWN_BYTES_MIN).then_some(payload)
    }

    /// Memory that the first request needs of which `missing` bytes are missing, if it needs some of its own and has none yet.
    pub fn growth(&self, missing: usize) -> usize {
        if self.payload.is_some() { 0 } else { self.own_bytes(missing).unwrap_or(0) }
    }

    /// Makes room for the bytes of the first request that were not received yet.
    pub fn make_room(&mut self, missing: usize) {
        if self.payload.is_some() {
            return;
        }
        if let Some(bytes) = self.own_bytes(missing) {
            let begun = self.bytes.split_off(self.header_bytes);
            let mut memory = AlignedBuffer::new(bytes);
            memory[..begun.len()].copy_from_slice(&begun);
            self.payload = Some(Payload { memory, filled: begun.len() });
            return;
        }
        let least = missing.max(ROOM_BYTES_MIN);
        if self.bytes.capacity() - self.bytes.len() >= least || self.bytes.try_reclaim(least) {
            return;
        }
        let size = if self.busy { BUSY_BYTES } else { QUIET_BYTES };
        let mut buffer = BytesMut::zeroed(size.max(self.bytes.len() + least));
        self.buffer_bytes = buffer.capacity();
        buffer.clear();
        buffer.extend_from_slice(&self.bytes);
        self.bytes = buffer;
    }

    /// Takes what the socket has, as far as there is room.
    ///
    /// # Errors
    /// The socket failed.
    pub fn receive(&mut self, socket: impl AsFd, missing: usize) -> io::Result<Received> {
        self.make_room(missing);
        let room = self.bytes.spare_capacity_mut();
        // SAFETY: a buffer is made of zeros, so all of its capacity is initialised.
        let room = unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<u8>(), room.len()) };
        let limited = self.payload.is_some() || self.large && self.bytes.is_empty();
        let most = if limited { room.len().min(BEHIND_BYTES) } else { room.len() };
        let own = self.payload.as_mut().map(|payload| &mut payload.memory[payload.filled..]).unwrap_or_default();
        let own_bytes = own.len();
        let mut slices = [IoSliceMut::new(own), IoSliceMut::new(&mut room[..most])];
        match recvmsg(socket, &mut slices, &mut RecvAncillaryBuffer::default(), RecvFlags::empty()) {
            Ok(message) if message.bytes == 0 => Ok(Received::End),
            Ok(message) => {
                let behind = message.bytes.saturating_sub(own_bytes);
                if let Some(payload) = &mut self.payload {
                    payload.filled += message.bytes - behind;
                }
                // SAFETY: so many bytes behind the length were received.
                unsafe { self.bytes.set_len(self.bytes.len() + behind) };
                self.busy |= behind == most && !limited;
                Ok(Received::Some)
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives back memory that nothing is in; `idle`: nothing is expected soon.
    pub fn rest(&mut self, idle: bool) {
        if idle && self.len() == 0 && self.buffer_bytes > QUIET_BYTES {
            *self = Self::new(self.header_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    const HEADER: usize = 28;

    /// Receives until `missing` bytes have come.
    fn receive_all(input: &mut Input, socket: &UnixStream, mut missing: usize) {
        while missing > 0 {
            let before = input.len();
            input.receive(socket, missing).unwrap();
            missing = missing.saturating_sub(input.len() - before);
        }
    }

    #[test]
    fn a_large_payload_gets_aligned_memory_of_its_own() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut input = Input::new(HEADER);
        assert_eq!(input.receive(&server, HEADER).unwrap(), Received::Nothing);
        assert_eq!(input.held_bytes(), 0);
        client.write_all(&[1; 1028]).unwrap();
        assert_eq!(input.receive(&server, HEADER).unwrap(), Received::Some);
        assert_eq!((input.len(), input.held_bytes()), (1028, QUIET_BYTES));
        // A request of 28 and 100 bytes, and then one of a mebibyte whose payload begins with 872 bytes.
        assert_eq!(input.growth(0), 0);
        assert_eq!(input.take(100).len(), 100);
        let missing = HEADER + (1 << 20) - 900;
        assert_eq!((input.len(), input.growth(missing)), (900, 1 << 20));
        let writer = crate::sync::thread::spawn(move || client.write_all(&vec![2; missing + 1000 * HEADER]).map(|()| client));
        receive_all(&mut input, &server, missing);
        assert_eq!((input.growth(0), input.held_bytes()), (0, QUIET_BYTES + (1 << 20)));
        assert!(input.head()[..HEADER] == [1; HEADER] && input.head()[HEADER..].iter().all(|byte| *byte == 2));
        let behind = input.len() - HEADER - (1 << 20);
        assert!(behind <= BEHIND_BYTES);
        let payload = input.take(1 << 20);
        assert!(payload.as_ptr().addr().is_multiple_of(4096) && payload.len() == 1 << 20);
        assert!(payload[..872] == [1; 872] && payload[872..].iter().all(|byte| *byte == 2));
        assert_eq!((input.len(), input.held_bytes()), (behind, if behind > 0 { QUIET_BYTES } else { 0 }));
        for _ in 0..1000 {
            let missing = HEADER.saturating_sub(input.len());
            receive_all(&mut input, &server, missing);
            assert!(input.take(0).is_empty());
        }
        drop(writer.join().unwrap().unwrap());
        input.rest(true);
        assert!(input.buffer_bytes <= QUIET_BYTES);
        assert_eq!(input.receive(&server, HEADER).unwrap(), Received::End);
    }
}
