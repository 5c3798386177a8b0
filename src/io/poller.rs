//! Sockets of which one thread sees when they are ready.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Most sockets that one look answers.
const READY_MAX: usize = 64;

/// A socket that is ready.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The number with which it was added.
    pub number: u64,
    /// There is something to read: bytes, the end, or an error.
    pub readable: bool,
    /// There is room for bytes.
    pub writable: bool,
    /// Both directions have ended.
    #[cfg(feature = "tls")]
    pub hung_up: bool,
}

/// A set of sockets (epoll(7)).
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

fn flags(writable: bool) -> EventFlags {
    if writable { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN }
}

impl Poller {
    /// # Errors
    /// The machine has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Adds a socket; it is seen while it has something to read.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add(&self, socket: impl AsFd, number: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(number), flags(false))?)
    }

    /// Adds a socket that is seen each time that it comes to have something to read, or room (edge-triggered): whoever is told goes on
    /// until a transfer would wait.
    ///
    /// # Errors
    /// What the kernel says.
    #[cfg(feature = "tls")]
    pub fn add_edges(&self, socket: impl AsFd, number: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(number), flags)?)
    }

    /// Whether a socket is also seen while it has room.
    ///
    /// # Errors
    /// It is not in the set.
    pub fn set_writable(&self, socket: impl AsFd, number: u64, writable: bool) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(number), flags(writable))?)
    }

    /// Takes a socket out of the set.
    pub fn remove(&self, socket: impl AsFd) {
        // One that is not in it is what is wanted.
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// Waits until a socket is ready or the timeout passes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait(&self, timeout: Duration) -> io::Result<Vec<Ready>> {
        let timeout = crate::sync::before_wait(self.epoll.as_raw_fd(), timeout)?;
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut events: Vec<Event> = Vec::with_capacity(READY_MAX);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |event: Event| Ready {
            number: event.data.u64(),
            readable: { event.flags }.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR),
            writable: { event.flags }.contains(EventFlags::OUT),
            #[cfg(feature = "tls")]
            hung_up: { event.flags }.intersects(EventFlags::HUP | EventFlags::ERR),
        };
        Ok(events.into_iter().map(ready).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn sockets_are_seen_when_they_are_ready() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let poller = Poller::new().unwrap();
        let (mut one, mut other) = UnixStream::pair().unwrap();
        poller.add(&one, 7).unwrap();
        assert!(poller.wait(Duration::ZERO).unwrap().is_empty());
        other.write_all(b"x").unwrap();
        let ready = poller.wait(PATIENCE).unwrap();
        assert_eq!(ready.iter().map(|ready| (ready.number, ready.readable, ready.writable)).collect::<Vec<_>>(), [(7, true, false)]);
        one.read_exact(&mut [0]).unwrap();
        poller.set_writable(&one, 7, true).unwrap();
        assert!(poller.wait(PATIENCE).unwrap()[0].writable);
        poller.set_writable(&one, 7, false).unwrap();
        drop(other);
        assert!(poller.wait(PATIENCE).unwrap()[0].readable);
        poller.remove(&one);
        assert!(poller.wait(Duration::ZERO).unwrap().is_empty());
    }
}
