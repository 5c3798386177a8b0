//! Scripted sources.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use volfork::source::{
    Checksums, OnArrival, Part, ReadClass, Source, SourceError, SourceErrorKind, SourceExtent, SourceOpener, content_checksum,
};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;

/// How one read ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Play {
    /// As it should.
    Answer,
    /// Not before [`Actor::release`].
    Hang,
    /// The first part comes, the rest not before [`Actor::release`].
    Stall,
    /// With an error: the source answers that it cannot read this.
    Fail,
    /// With the loss of the source.
    Lose,
    /// With bytes that are not what their checksums say.
    Damage,
}

/// The `nice` level of this thread.
pub fn nice() -> i32 {
    rustix::process::getpriority_process(None).expect("a thread has a level")
}

pub type Script = Box<dyn Fn(&Range<u64>, ReadClass) -> Play + Send + Sync>;

#[derive(Default)]
pub struct Seen {
    reads: Vec<(Range<u64>, ReadClass)>,
    held: Vec<(Range<u64>, OnArrival)>,
    lost: bool,
    opened: usize,
    closed: usize,
    /// Whether connecting waits, and how often it was begun.
    open_hangs: bool,
    begun: usize,
    /// The `nice` level of the threads that connected.
    nice: Vec<i32>,
    /// Whether questions for zeros wait, and whether one came.
    extents_hang: bool,
    extents_asked: bool,
}

/// One source.
pub struct Actor {
    pub uri: String,
    pub data: Bytes,
    pub identity: Option<String>,
    pub has_checksums: bool,
    pub trace: Vec<Range<u64>>,
    pub script: Mutex<Script>,
    pub seen: Mutex<Seen>,
    pub changed: Condvar,
}

impl Actor {
    pub fn new(uri: &str, data: &[u8]) -> Self {
        Self {
            uri: uri.into(),
            data: Bytes::copy_from_slice(data),
            identity: None,
            has_checksums: false,
            trace: Vec::new(),
            script: Mutex::new(Box::new(|_, _| Play::Answer)),
            seen: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub fn play(&self, script: impl Fn(&Range<u64>, ReadClass) -> Play + Send + Sync + 'static) {
        *self.script.lock() = Box::new(script);
    }

    /// Nobody answers, now or at new connections; or somebody does again.
    pub fn lose(&self, lost: bool) {
        self.seen.lock().lost = lost;
    }

    /// Questions for zeros wait, or do not any more.
    pub fn hang_extents(&self, hang: bool) {
        self.seen.lock().extents_hang = hang;
        self.changed.notify_all();
    }

    /// Connecting waits, or does not any more.
    pub fn hang_open(&self, hang: bool) {
        self.seen.lock().open_hangs = hang;
        self.changed.notify_all();
    }

    /// Waits until somebody has begun to connect so many times.
    pub fn await_open(&self, times: usize) {
        let mut seen = self.seen.lock();
        while seen.begun < times {
            assert!(!self.changed.wait_for(&mut seen, PATIENCE).timed_out(), "nobody connects to {}", self.uri);
        }
    }

    /// Ends the reads that hang with the loss of the source; answers how many there were.
    pub fn fail_held(&self) -> usize {
        self.fail_held_with(SourceErrorKind::Lost)
    }

    /// Ends the reads that hang with an error; answers how many there were.
    pub fn fail_held_with(&self, kind: SourceErrorKind) -> usize {
        let held = std::mem::take(&mut self.seen.lock().held);
        let count = held.len();
        for (_, arrival) in held {
            arrival.end(Err(self.error(kind, "fails a request")));
        }
        count
    }

    pub fn was_asked_extents(&self) -> bool {
        self.seen.lock().extents_asked
    }

    /// How often somebody began to connect.
    pub fn begun(&self) -> usize {
        self.seen.lock().begun
    }

    pub fn opened(&self) -> usize {
        self.seen.lock().opened
    }

    /// Waits until so many connections were closed.
    pub fn await_closed(&self, count: usize) {
        let mut seen = self.seen.lock();
        while seen.closed < count {
            assert!(!self.changed.wait_for(&mut seen, PATIENCE).timed_out(), "{} of {count} connections were closed", seen.closed);
        }
    }

    pub fn nice_of_openers(&self) -> Vec<i32> {
        self.seen.lock().nice.clone()
    }

    pub fn reads(&self) -> Vec<(Range<u64>, ReadClass)> {
        self.seen.lock().reads.clone()
    }

    pub fn bytes_read(&self) -> u64 {
        self.reads().iter().map(|(range, _)| range.end - range.start).sum()
    }

    /// Waits until a read was seen that `wanted` accepts.
    pub fn await_read(&self, wanted: impl Fn(&Range<u64>, ReadClass) -> bool) {
        let mut seen = self.seen.lock();
        while !seen.reads.iter().any(|(range, class)| wanted(range, *class)) {
            assert!(!self.changed.wait_for(&mut seen, PATIENCE).timed_out(), "no such read came: {:?}", seen.reads);
        }
    }

    /// Waits until so many reads were seen.
    pub fn await_reads(&self, count: usize) {
        let mut seen = self.seen.lock();
        while seen.reads.len() < count {
            assert!(!self.changed.wait_for(&mut seen, PATIENCE).timed_out(), "{count} reads did not come: {:?}", seen.reads);
        }
    }

    /// Answers the reads that hang.
    pub fn release(&self) {
        let held = std::mem::take(&mut self.seen.lock().held);
        for (range, arrival) in held {
            self.answer(&range, arrival, false);
        }
    }

    fn answer(&self, range: &Range<u64>, mut arrival: OnArrival, damage: bool) {
        // In two parts, if it is long enough.
        let middle = (range.start / 65536 + 1) * 65536;
        let cuts = [range.start, middle.min(range.end), range.end];
        for part in cuts.windows(2).map(|cut| cut[0]..cut[1]).filter(|part| !part.is_empty()) {
            let bytes = self.data.slice(part.start as usize..part.end as usize);
            let values = bytes.chunks(BLOCK).map(|block| Some(content_checksum(block, BLOCK))).collect();
            let checksums = Checksums { block_bytes: BLOCK as u32, first: part.start, values };
            let mut bytes = bytes.to_vec();
            bytes[0] ^= u8::from(damage);
            let checksums = if self.has_checksums { checksums } else { Checksums::default() };
            arrival.part(Part { offset: part.start, bytes: bytes.into(), checksums });
        }
        arrival.end(Ok(()));
    }

    fn error(&self, kind: SourceErrorKind, what: &str) -> SourceError {
        SourceError { kind, message: format!("{} {what}", self.uri) }
    }
}

/// A connection to an [`Actor`], and whether it was closed.
struct Connection(Arc<Actor>, AtomicBool);

impl Source for Connection {
    fn size_bytes(&self) -> u64 {
        self.0.data.len() as u64
    }

    fn read(&self, range: Range<u64>, class: ReadClass, mut arrival: OnArrival) {
        assert!(range.start < range.end && range.end <= self.size_bytes() && range.end - range.start <= 1 << 20, "{range:?}");
        let play = {
            // Behind the lock, so that a read which is to hang is held before anybody releases those that are.
            let mut seen = self.0.seen.lock();
            let play = (self.0.script.lock())(&range, class);
            if self.1.load(Ordering::SeqCst) {
                drop(seen);
                return arrival.end(Err(self.0.error(SourceErrorKind::Closed, "was closed")));
            }
            seen.reads.push((range.clone(), class));
            self.0.changed.notify_all();
            if play == Play::Stall {
                drop(seen);
                let part = range.start..range.end.min((range.start / 65536 + 1) * 65536);
                let bytes = self.0.data.slice(part.start as usize..part.end as usize);
                arrival.part(Part::new(part.start, bytes));
                return self.0.seen.lock().held.push((range, arrival));
            }
            if play == Play::Hang {
                return seen.held.push((range, arrival));
            }
            if seen.lost {
                drop(seen);
                return arrival.end(Err(self.0.error(SourceErrorKind::Lost, "is gone")));
            }
            play
        };
        match play {
            Play::Fail => arrival.end(Err(self.0.error(SourceErrorKind::Failed, "cannot read"))),
            Play::Lose => arrival.end(Err(self.0.error(SourceErrorKind::Lost, "cannot read"))),
            _ => self.0.answer(&range, arrival, play == Play::Damage),
        }
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        {
            let mut seen = self.0.seen.lock();
            seen.extents_asked = true;
            while seen.extents_hang {
                self.0.changed.wait(&mut seen);
            }
        }
        let mut extents: Vec<SourceExtent> = Vec::new();
        for block in self.0.data[range.start as usize..range.end as usize].chunks(BLOCK) {
            let (bytes, zero) = (block.len() as u64, block.iter().all(|byte| *byte == 0));
            match extents.last_mut() {
                Some(last) if last.zero == zero => last.bytes += bytes,
                _ => extents.push(SourceExtent { bytes, zero }),
            }
        }
        Ok(extents)
    }

    fn identity(&self) -> Option<String> {
        self.0.identity.clone()
    }

    fn trace(&self) -> Result<Vec<Range<u64>>, SourceError> {
        Ok(self.0.trace.clone())
    }

    fn describe(&self) -> String {
        self.0.uri.clone()
    }

    fn close(&self) {
        let held = {
            let mut seen = self.0.seen.lock();
            seen.closed += usize::from(!self.1.swap(true, Ordering::SeqCst));
            self.0.changed.notify_all();
            std::mem::take(&mut seen.held)
        };
        for (_, arrival) in held {
            arrival.end(Err(self.0.error(SourceErrorKind::Closed, "was closed")));
        }
    }
}

/// All sources of a test.
#[derive(Clone, Default)]
pub struct Stage(Arc<Mutex<HashMap<String, Arc<Actor>>>>);

impl Stage {
    pub fn add(&self, actor: Actor) -> Arc<Actor> {
        let actor = Arc::new(actor);
        self.0.lock().insert(actor.uri.clone(), Arc::clone(&actor));
        actor
    }
}

impl SourceOpener for Stage {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        let actor = self.0.lock().get(uri).cloned();
        let invalid = || SourceError { kind: SourceErrorKind::Invalid, message: format!("{uri} is not on stage") };
        let actor = actor.ok_or_else(invalid)?;
        let mut seen = actor.seen.lock();
        seen.begun += 1;
        seen.nice.push(nice());
        actor.changed.notify_all();
        while seen.open_hangs {
            actor.changed.wait(&mut seen);
        }
        if seen.lost {
            return Err(actor.error(SourceErrorKind::Lost, "does not answer"));
        }
        seen.opened += 1;
        drop(seen);
        Ok(Arc::new(Connection(actor, AtomicBool::new(false))))
    }
}
