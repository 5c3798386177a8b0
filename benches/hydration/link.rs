//! A link between two TUN devices: packets of one come out of the other after a delay, at a limited bandwidth, with loss.
//!
//! Always used, also where the kernel has `netem`, so that results of different machines can be compared. Above the link is the
//! TCP of the kernel, so its congestion control sees the delay, the queue and the losses.
//!
//! # Model, for each direction by itself
//! - A packet that arrives while more than `queue_bytes` wait for the transmitter is dropped (drop-tail).
//! - The transmitter sends one packet after the other at `rate_bits` a second.
//! - Of the packets sent a random share is lost, by a seeded generator; the others come out after `delay`, in order.
//!
//! One thread for each direction sleeps in `ppoll` until a packet arrives or one is due.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::random::Random;

/// The smallest queue of the transmitter.
const QUEUE_BYTES_MIN: u64 = 256 << 10;
/// Packets taken before those that are due are looked at again.
const BATCH: usize = 32;

/// Waits of this thread end on time; else the kernel adds up to 50 microseconds to each.
pub fn wake_sharply() {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// What the link is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rate_bits: u64,
    /// Both ways.
    pub rtt: Duration,
    /// Share of lost packets, 0 to 1.
    pub loss: f64,
    pub mtu: usize,
    pub seed: u64,
}

impl Shape {
    /// One product of bandwidth and round trip.
    fn queue_bytes(&self) -> u64 {
        ((self.rate_bits as f64 / 8.0 * self.rtt.as_secs_f64()) as u64).max(QUEUE_BYTES_MIN)
    }
}

/// Traffic in one direction so far, including the headers of IP and TCP.
#[derive(Debug, Default)]
struct Counters {
    /// Bytes by the port they go to, which tells the connections of a client apart.
    by_port: Mutex<HashMap<u16, u64>>,
    bytes: AtomicU64,
    packets: AtomicU64,
    overflowed: AtomicU64,
    lost: AtomicU64,
}

/// A reading of the counters of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Bytes that were sent, those of lost packets included, those of overflowed packets not.
    pub bytes: u64,
    pub packets: u64,
    /// Packets that found the queue full.
    pub overflowed: u64,
    /// Packets lost by chance.
    pub lost: u64,
}

impl std::ops::Sub for Traffic {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            bytes: self.bytes - before.bytes,
            packets: self.packets - before.packets,
            overflowed: self.overflowed - before.overflowed,
            lost: self.lost - before.lost,
        }
    }
}

impl Counters {
    fn read(&self) -> Traffic {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic { bytes: get(&self.bytes), packets: get(&self.packets), overflowed: get(&self.overflowed), lost: get(&self.lost) }
    }
}

/// A running link; it stops when it is dropped.
pub struct Link {
    counters: [Arc<Counters>; 2],
    stop: Arc<AtomicBool>,
    wakers: Vec<io::PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl Link {
    /// Joins two TUN devices. The first is the server's: [`Link::sent_by_server`] counts what comes out of it.
    pub fn start(server: &File, client: &File, shape: Shape) -> io::Result<Self> {
        let counters: [Arc<Counters>; 2] = Default::default();
        let mut link = Self { counters, stop: Arc::default(), wakers: Vec::new(), threads: Vec::new() };
        for (number, (from, to)) in [(server, client), (client, server)].into_iter().enumerate() {
            let (woken, waker) = io::pipe()?;
            let direction = Direction {
                from: from.try_clone()?,
                to: to.try_clone()?,
                woken,
                shape,
                counters: Arc::clone(&link.counters[number]),
                stop: Arc::clone(&link.stop),
                random: Random::new(shape.seed ^ number as u64),
                on_the_way: VecDeque::new(),
                spare: Vec::new(),
                transmitter_free: Instant::now(),
            };
            link.wakers.push(waker);
            let thread = std::thread::Builder::new().name(format!("link-{number}")).spawn(move || direction.run())?;
            link.threads.push(thread);
        }
        Ok(link)
    }

    /// How the bytes that the server has sent since the last call spread over connections, the largest first, in percent.
    pub fn take_shares(&self) -> Vec<u32> {
        let by_port = std::mem::take(&mut *self.counters[0].by_port.lock().expect("no thread panicked"));
        let all = by_port.values().sum::<u64>().max(1) as f64;
        let mut shares: Vec<u32> = by_port.into_values().map(|bytes| (bytes as f64 * 100.0 / all).round() as u32).collect();
        shares.sort_unstable_by(|a, b| b.cmp(a));
        shares
    }

    /// What the server has sent.
    pub fn sent_by_server(&self) -> Traffic {
        self.counters[0].read()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // The other ends of the pipes are readable from now on.
        self.wakers.clear();
        for thread in self.threads.drain(..) {
            // A panic in the thread was printed there.
            let _ = thread.join();
        }
    }
}

/// The port that a packet of TCP over IPv4 goes to.
fn port_to(packet: &[u8]) -> Option<u16> {
    let header = usize::from(packet.first()? & 15) * 4;
    (packet.get(9)? == &(libc::IPPROTO_TCP as u8)).then_some(())?;
    Some(u16::from_be_bytes([*packet.get(header + 2)?, *packet.get(header + 3)?]))
}

struct Packet {
    due: Instant,
    bytes: Vec<u8>,
}

struct Direction {
    from: File,
    to: File,
    woken: io::PipeReader,
    shape: Shape,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    random: Random,
    on_the_way: VecDeque<Packet>,
    /// Buffers of packets that were delivered.
    spare: Vec<Vec<u8>>,
    /// When the transmitter has sent all it has.
    transmitter_free: Instant,
}

impl Direction {
    fn run(mut self) {
        wake_sharply();
        while !self.stop.load(Ordering::Acquire) {
            self.deliver();
            let more = self.take();
            if !more {
                self.wait();
            }
        }
    }

    /// Hands over every packet that is due.
    fn deliver(&mut self) {
        while self.on_the_way.front().is_some_and(|packet| packet.due <= Instant::now()) {
            let Some(packet) = self.on_the_way.pop_front() else { break };
            // A device that is full or down loses the packet, as a real one does.
            let _ = self.to.write(&packet.bytes);
            self.spare.push(packet.bytes);
        }
    }

    /// Takes what the device has, a bounded number of packets; answers whether there may be more.
    fn take(&mut self) -> bool {
        for _ in 0..BATCH {
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.resize(self.shape.mtu, 0);
            match self.from.read(&mut bytes) {
                Ok(length) => {
                    bytes.truncate(length);
                    self.send(bytes);
                }
                Err(_) => {
                    self.spare.push(bytes);
                    return false;
                }
            }
        }
        true
    }

    fn send(&mut self, bytes: Vec<u8>) {
        let now = Instant::now();
        let on_the_wire = |bytes: u64| Duration::from_secs_f64(bytes as f64 * 8.0 / self.shape.rate_bits as f64);
        let count = |counter: &AtomicU64, by: u64| counter.fetch_add(by, Ordering::Relaxed);
        let begin = self.transmitter_free.max(now);
        if begin - now > on_the_wire(self.shape.queue_bytes()) {
            count(&self.counters.overflowed, 1);
            return self.spare.push(bytes);
        }
        self.transmitter_free = begin + on_the_wire(bytes.len() as u64);
        count(&self.counters.bytes, bytes.len() as u64);
        count(&self.counters.packets, 1);
        if let Some(port) = port_to(&bytes) {
            *self.counters.by_port.lock().expect("no thread panicked").entry(port).or_default() += bytes.len() as u64;
        }
        if self.random.chance(self.shape.loss) {
            count(&self.counters.lost, 1);
            return self.spare.push(bytes);
        }
        self.on_the_way.push_back(Packet { due: self.transmitter_free + self.shape.rtt / 2, bytes });
    }

    /// Sleeps until a packet arrives, one is due, or the link stops.
    fn wait(&self) {
        let poll = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [poll(self.from.as_raw_fd()), poll(self.woken.as_raw_fd())];
        let left = self.on_the_way.front().map(|packet| packet.due.saturating_duration_since(Instant::now()));
        let left = left.map(|left| libc::timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        let timeout = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `fds` and what `timeout` points to live past the call, and the length of `fds` is passed.
        unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout, std::ptr::null()) };
    }
}
