//! The ring over io_uring.
//!
//! A plain ring, without deferred task work: its descriptor has to become readable although the owner is not in the kernel.
//!
//! # Invariants
//! - The poll on the waker is armed from the first moment on, so that a wake makes the descriptor readable even before the first
//!   `reap`, and is armed again in the call that takes its completion.
//! - Nothing stays in the submission queue unless a transfer is with the kernel: its completion makes the descriptor readable, and the
//!   `reap` that takes it submits the rest.
//! - A transfer that the kernel interrupts or cancels (it cancels those of a thread that ends) has not failed: it is done again.
//! - A ring that refuses to submit for good is *broken*, and submits nothing any more. What the kernel has not seen is done on the
//!   calling thread; what it has seen ends with its own completion. Then every call answers with the error.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use super::fixed::FixedBuffers;
use super::op::{Done, Op, run};
use super::transfers::{Answer, Transfers};
use super::waker::Wakes;
use crate::place::{index, length};
use crate::sync::time::Instant;

/// Marks completions of the poll on the waker.
const WAKE: u64 = u64::MAX;
/// Marks completions that only make the descriptor readable.
const NUDGE: u64 = u64::MAX - 1;
/// How often a busy kernel is asked again while no completion can be waited for.
const SUBMITS_MAX: u32 = 1000;
/// The pause between two such attempts.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// How long a broken ring waits for what the kernel has; then the memory of these transfers is never freed.
const BROKEN_PATIENCE: Duration = Duration::from_secs(10);

/// The last offset that a file may have.
const OFFSET_MAX: u64 = i64::MAX.unsigned_abs();
/// `POLLIN`, as an entry has it.
const POLL_READABLE: u32 = libc::POLLIN.unsigned_abs() as u32;

/// Why the ring submits nothing any more, and since when.
#[derive(Clone, Copy)]
struct Broken {
    number: i32,
    since: Instant,
}

pub struct UringRing {
    ring: IoUring,
    /// Dropped after the ring.
    fixed: FixedBuffers,
    /// Own buffers and files until their own completion.
    transfers: Transfers,
    /// Do not fit into the ring yet.
    waiting: VecDeque<usize>,
    /// In the submission queue, not seen by the kernel yet.
    queued: VecDeque<u64>,
    /// Entries that the kernel has or will get: bounded, so that no completion is lost.
    entries: usize,
    pub wakes: Wakes,
    armed: bool,
    closing: bool,
    broken: Option<Broken>,
    /// Ended without the kernel.
    ended: Vec<Done>,
}

impl UringRing {
    pub fn new(depth: u32) -> io::Result<Self> {
        let entries = depth.clamp(8, 4096).next_power_of_two();
        let ring = IoUring::builder().setup_submit_all().setup_cqsize(entries * 2).dontfork().build(entries);
        let ring = ring.or_else(|_| IoUring::new(entries))?;
        let mut ring = Self {
            ring,
            fixed: FixedBuffers::default(),
            transfers: Transfers::default(),
            waiting: VecDeque::new(),
            queued: VecDeque::new(),
            entries: 0,
            wakes: Wakes::new()?,
            armed: false,
            closing: false,
            broken: None,
            ended: Vec::new(),
        };
        ring.fill();
        ring.submit();
        match ring.failure() {
            Some(error) => Err(error),
            None => Ok(ring),
        }
    }

    pub fn in_flight(&self) -> usize {
        self.transfers.len() + self.ended.len()
    }

    /// Whether the next `reap` has something to do that the descriptor does not tell of.
    pub fn has_unseen(&self) -> bool {
        !self.waiting.is_empty() || !self.ended.is_empty()
    }

    /// Makes the descriptor readable until the next `reap`. Cheaper than a wake: it needs no poll.
    pub fn nudge(&mut self) {
        if self.broken.is_some() || self.entries >= self.room() {
            self.wakes.waker.wake();
            return;
        }
        self.queue(opcode::Nop::new().build().user_data(NUDGE));
        self.submit();
    }

    fn room(&self) -> usize {
        index(self.ring.params().sq_entries())
    }

    fn failure(&self) -> Option<io::Error> {
        self.broken.map(|broken| io::Error::from_raw_os_error(broken.number))
    }

    pub fn push(&mut self, token: u64, op: Op) {
        let (file, offset) = match &op {
            Op::Read { file, offset, .. } | Op::Write { file, offset, .. } => (file, offset),
        };
        if file.raw_fd().is_none() || *offset > OFFSET_MAX || op.bytes() == 0 || self.broken.is_some() {
            self.ended.push(run(token, op));
            return;
        }
        self.transfers.push(token, op, &mut self.waiting);
    }

    /// Moves waiting transfers into the submission queue as far as they fit.
    fn fill(&mut self) {
        if self.broken.is_some() {
            return;
        }
        if !self.armed && !self.closing && self.entries < self.room() {
            self.armed = true;
            self.queue(opcode::PollAdd::new(types::Fd(self.wakes.waker.as_raw_fd()), POLL_READABLE).build().user_data(WAKE));
        }
        // One entry stays free for the poll, which must never wait for a transfer.
        while self.entries + usize::from(!self.armed) < self.room()
            && let Some(slot) = self.waiting.pop_front()
        {
            match self.transfers.entry(slot, &mut self.fixed, &self.ring.submitter()) {
                Some(entry) => self.queue(entry),
                None => self.ended.extend(self.transfers.run(slot, &mut self.fixed)),
            }
        }
    }

    /// Puts an entry into the submission queue. There is room: `entries` is below the size of the queue.
    fn queue(&mut self, entry: squeue::Entry) {
        // SAFETY: buffer and file of the entry are owned by its transfer until its own completion was taken; the ring is
        // not dropped before (see `drop`).
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            debug_assert!(false, "the submission queue is full");
            return;
        }
        self.queued.push_back(entry.get_user_data());
        self.entries += 1;
    }

    /// Hands the submission queue to the kernel. If the kernel is busy, the rest stays in the queue until a completion was taken.
    fn submit(&mut self) {
        let mut busy = 0;
        while !self.queued.is_empty() && self.broken.is_none() {
            let submitted = self.ring.submit();
            let left = self.ring.submission().len();
            let seen = self.queued.len().saturating_sub(left);
            self.queued.drain(..seen);
            let number = match submitted {
                Ok(_) if seen > 0 => continue,
                Ok(_) => libc::EBUSY,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            match number {
                libc::EINTR => {}
                libc::EBUSY | libc::EAGAIN => {
                    let with_kernel = self.entries - self.queued.len();
                    if with_kernel > usize::from(self.armed) {
                        return;
                    }
                    // No transfer will end, so no later call would look at the queue again.
                    busy += 1;
                    if busy > SUBMITS_MAX {
                        self.fail(number);
                    }
                    crate::sync::thread::sleep(BUSY_PAUSE);
                }
                _ => self.fail(number),
            }
        }
    }

    fn fail(&mut self, number: i32) {
        self.broken.get_or_insert_with(|| Broken { number, since: Instant::now() });
    }

    pub fn reap(&mut self, done: &mut Vec<Done>) -> io::Result<usize> {
        let before = done.len();
        done.append(&mut self.ended);
        loop {
            self.fill();
            self.submit();
            let taken = self.take(done);
            if self.broken.is_some() {
                self.end_unseen(done);
                break;
            }
            let more = !self.waiting.is_empty() && self.entries < self.room();
            let busy = !self.queued.is_empty() && taken > 0;
            if !more && !busy && (self.armed || self.closing) {
                break;
            }
        }
        match (done.len() - before, self.failure()) {
            (0, Some(error)) => Err(error),
            (count, _) => Ok(count),
        }
    }

    /// Takes the completions there are; answers how many.
    fn take(&mut self, done: &mut Vec<Done>) -> usize {
        let completions: Vec<(u64, i32)> = self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        let count = completions.len();
        for (slot, result) in completions {
            // Those of abandoned transfers do not count any more.
            self.entries = self.entries.saturating_sub(1);
            match slot {
                WAKE => {
                    self.wakes.clear();
                    self.armed = false;
                    if result < 0 && !matches!(-result, libc::ECANCELED | libc::EINTR | libc::EAGAIN) {
                        self.fail(-result);
                    }
                }
                NUDGE => self.wakes.woken = true,
                _ => self.end(length(slot), result, done),
            }
        }
        count
    }

    fn end(&mut self, slot: usize, result: i32, done: &mut Vec<Done>) {
        match self.transfers.answer(slot, result, &mut self.fixed) {
            Answer::Again => self.waiting.push_back(slot),
            Answer::Here => done.extend(self.transfers.run(slot, &mut self.fixed)),
            Answer::Ended(ended) => done.extend(ended),
        }
    }

    /// The ring is broken: ends what the kernel has not seen, and in the end what it never answers for.
    fn end_unseen(&mut self, done: &mut Vec<Done>) {
        let before = done.len();
        for user_data in std::mem::take(&mut self.queued) {
            self.entries -= 1;
            match user_data {
                WAKE => self.armed = false,
                NUDGE => self.wakes.woken = true,
                slot => done.extend(self.transfers.run(length(slot), &mut self.fixed)),
            }
        }
        for slot in std::mem::take(&mut self.waiting) {
            done.extend(self.transfers.run(slot, &mut self.fixed));
        }
        if done.len() > before || self.transfers.len() == 0 {
            return;
        }
        match self.broken {
            Some(broken) if broken.since.elapsed() >= BROKEN_PATIENCE => self.abandon(broken.number, done),
            // There is nothing to wait for these completions with.
            _ => crate::sync::thread::sleep(BUSY_PAUSE),
        }
    }

    /// Ends transfers whose completion never came.
    fn abandon(&mut self, number: i32, done: &mut Vec<Done>) {
        self.transfers.abandon(number, done);
        self.entries = 0;
        self.armed = false;
    }
}

impl AsRawFd for UringRing {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for UringRing {
    fn drop(&mut self) {
        // A transfer that the kernel has not seen can be dropped; each other one ends with its own completion only.
        self.waiting.clear();
        self.closing = true;
        self.wakes.waker.wake();
        let mut done = Vec::new();
        while self.entries > 0 {
            self.submit();
            if self.broken.is_some() {
                for user_data in std::mem::take(&mut self.queued) {
                    self.entries -= 1;
                    self.armed &= user_data != WAKE;
                }
                self.take(&mut done);
                self.waiting.clear();
                if self.entries <= usize::from(self.armed) {
                    // The poll refers to no memory of ours.
                    return;
                }
                self.end_unseen(&mut done);
                continue;
            }
            if let Err(error) = self.ring.submit_and_wait(1)
                && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
            {
                self.fail(error.raw_os_error().unwrap_or(libc::EIO));
            }
            self.take(&mut done);
            self.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::io::transfers::TRIES_MAX;
    use crate::io::{AlignedBuffer, Disk, DiskFile, DiskFileExt, IoMode, OpenMode, SystemDisk};

    fn file(dir: &tempfile::TempDir) -> Arc<dyn DiskFile> {
        SystemDisk::new().open(&dir.path().join("f"), OpenMode::Create, IoMode::Buffered).unwrap()
    }

    fn write(file: &Arc<dyn DiskFile>, number: u64) -> Op {
        Op::Write { file: Arc::clone(file), data: Bytes::from(vec![u8::try_from(number).unwrap(); 8192]), offset: number * 8192 }
    }

    fn check(file: &Arc<dyn DiskFile>, count: u64) {
        for number in 0..count {
            let mut bytes = [0; 8192];
            file.read_at(&mut bytes, number * 8192).unwrap();
            assert!(bytes.iter().all(|byte| u64::from(*byte) == number), "transfer {number}");
        }
    }

    /// From here on the kernel refuses the ring, as it does when the process has put itself under a stricter seccomp filter.
    fn break_for_good(ring: &UringRing) {
        let null = File::open("/dev/null").unwrap();
        // SAFETY: both descriptors are open, and nobody but this ring, which is made to fail here, uses the second one.
        assert!(unsafe { libc::dup2(null.as_raw_fd(), ring.as_raw_fd()) } >= 0);
    }

    #[test]
    fn interrupted_cancelled_and_short_transfers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(mut ring) = UringRing::new(8) else { return println!("this machine has no io_uring") };
        let (file, mut done) = (file(&dir), Vec::new());
        for number in 0..5 {
            ring.push(number, write(&file, number));
        }
        for (slot, result) in [-libc::EINTR, -libc::EAGAIN, -libc::ECANCELED, 4096].into_iter().enumerate() {
            assert_eq!(ring.waiting.pop_front(), Some(slot));
            if result > 0 {
                file.write_at(&[3; 4096], 3 * 8192).unwrap();
            }
            ring.end(slot, result, &mut done);
        }
        // It is never left to chance whether a transfer ends that the kernel cancels again and again.
        assert_eq!(ring.waiting.pop_front(), Some(4));
        for _ in 0..TRIES_MAX {
            ring.end(4, -libc::ECANCELED, &mut done);
            assert_eq!(ring.waiting.pop_back(), Some(4));
        }
        ring.end(4, -libc::ECANCELED, &mut done);
        assert!(done.len() == 1 && done[0].token == 4 && done[0].result.is_ok());
        while ring.in_flight() > 0 {
            ring.reap(&mut done).unwrap();
        }
        assert!(done.len() == 5 && done.iter().all(|done| done.result.is_ok()));
        check(&file, 5);
    }

    #[test]
    fn a_buffered_write_is_given_in_pieces_and_ends_once() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(mut ring) = UringRing::new(8) else { return println!("this machine has no io_uring") };
        let (path, offset) = (dir.path().join("f"), (64 << 10) - 4096);
        let data = Bytes::from_iter((0..200_000u32).map(|number| number.to_le_bytes()[1]));
        let open = |mode| SystemDisk::new().open(&path, mode, IoMode::Buffered).unwrap();
        for (mode, works) in [(OpenMode::Create, true), (OpenMode::Read, false)] {
            let mut done = Vec::new();
            ring.push(7, Op::Write { file: open(mode), data: data.clone(), offset });
            // The rest of the first folio, three whole ones, and nothing of the fifth.
            assert_eq!((ring.waiting.len(), ring.in_flight()), (4, 1));
            while ring.in_flight() > 0 {
                ring.reap(&mut done).unwrap();
            }
            let [Done { token: 7, op: Op::Write { data: written, offset: at, .. }, result }] = &done[..] else { panic!("{done:?}") };
            assert!(*written == data && *at == offset && result.is_ok() == works, "{result:?}");
        }
        let mut bytes = vec![0; data.len()];
        open(OpenMode::Read).read_exact_at(&mut bytes, offset).unwrap();
        assert_eq!(bytes, data);
    }

    #[test]
    fn a_ring_that_breaks_ends_every_transfer_before_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(mut ring) = UringRing::new(8) else { return println!("this machine has no io_uring") };
        let (file, mut done) = (file(&dir), Vec::new());
        for number in 0..6 {
            ring.push(number, write(&file, number));
        }
        ring.reap(&mut done).unwrap();
        for number in 6..20 {
            ring.push(number, write(&file, number));
        }
        break_for_good(&ring);
        while ring.in_flight() > 0 {
            ring.reap(&mut done).unwrap_or_default();
        }
        assert!(done.len() == 20 && done.iter().all(|done| done.result.is_ok()));
        check(&file, 20);
        ring.reap(&mut done).unwrap_err();
        ring.push(20, write(&file, 20));
        assert_eq!(ring.reap(&mut done).unwrap(), 1);
        ring.push(21, write(&file, 21));
        drop(ring);
        check(&file, 22);
    }

    #[test]
    fn a_ring_that_breaks_with_transfers_under_way_can_be_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(mut ring) = UringRing::new(8) else { return println!("this machine has no io_uring") };
        let file = file(&dir);
        let data = Bytes::from(vec![5; 8 << 20]);
        ring.push(0, Op::Write { file: Arc::clone(&file), data: data.clone(), offset: 0 });
        ring.reap(&mut Vec::new()).unwrap();
        ring.push(1, write(&file, 1));
        break_for_good(&ring);
        drop(ring);
        assert!(data.is_unique(), "the ring has given its buffer back");
    }

    /// Writes `count` buffers of 64 KiB through the ring, and reads them.
    fn transfer_large(ring: &mut UringRing, file: &Arc<dyn DiskFile>, count: u8) {
        const BYTES: usize = 64 << 10;
        let mut done = Vec::new();
        for number in 0..count {
            let mut buffer = AlignedBuffer::new(BYTES);
            buffer.fill(number + 1);
            let offset = u64::from(number) * 65536;
            ring.push(u64::from(number), Op::Write { file: Arc::clone(file), data: buffer.into_bytes(), offset });
        }
        while ring.in_flight() > 0 {
            ring.reap(&mut done).unwrap();
        }
        assert!(done.len() == usize::from(count) && done.drain(..).all(|done| done.result.is_ok()));
        for number in 0..count {
            let (buffer, offset) = (AlignedBuffer::zeroed(BYTES).into(), u64::from(number) * 65536);
            ring.push(u64::from(number), Op::Read { file: Arc::clone(file), buffer, offset });
        }
        while ring.in_flight() > 0 {
            ring.reap(&mut done).unwrap();
        }
        for Done { token, op, result } in done {
            result.unwrap();
            let Op::Read { buffer, .. } = op else { panic!("a read ends as a read") };
            assert!(buffer.iter().all(|byte| u64::from(*byte) == token + 1), "transfer {token}");
        }
    }

    #[test]
    fn large_direct_transfers_use_registered_memory() {
        let dir = tempfile::tempdir().unwrap();
        let (Ok(mut ring), Ok(file)) =
            (UringRing::new(128), SystemDisk::new().open(&dir.path().join("d"), OpenMode::Create, IoMode::Direct))
        else {
            return println!("this machine has no io_uring, or no direct I/O there");
        };
        // More than the table has entries for: the rest is transferred as it is.
        for count in [4, 100, 100] {
            transfer_large(&mut ring, &file, count);
            assert!(ring.fixed.uses().all(|uses| uses == 0));
        }
        println!("{} regions are registered", ring.fixed.uses().count());
        assert!(ring.fixed.is_refused() || (1..=64).contains(&ring.fixed.uses().count()));
        transfer_large(&mut ring, &super::tests::file(&dir), 10);
    }
}
