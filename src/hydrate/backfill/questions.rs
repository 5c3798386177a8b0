//! What backfill asks a source beside its bytes: the order in which an earlier fork touched them, and which of them are zero.
//!
//! A source may take long to answer, or never do so. So it is asked on a thread that touches nothing but the source, and backfill
//! takes what has come by then; a thread that is never answered costs itself.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::format::{TRACE_RUNS_MAX, Trace};
use crate::hydrate::parts::Parts;
use crate::source::{Source, SourceError, SourceErrorKind, SourceExtent};
use crate::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use crate::sync::thread::Builder;
use crate::sync::time::Instant;

/// Bytes whose zero ranges are asked for at once, of a server that has to look for them. A run of zeros is followed beyond.
const MAP_BYTES: u64 = 1 << 30;
/// How long to wait for an answer before going on without it. What comes later is used from then on.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a wait for an answer looks whether hydration was stopped.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long zeros are gathered before they are told.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Runs of zeros that are gathered before they are told.
const GATHERED_MAX: usize = 16 << 10;
/// Answers that are asked for one after another: a server that tells of a few bytes at a time is not worth it.
const ANSWERS_MAX: usize = 16 << 10;

/// One answer of a source.
enum Answer {
    Trace(Vec<Range<u64>>),
    /// Ranges of bytes that are zero.
    Zeros(Vec<Range<u64>>),
    Failed(SourceError),
}

/// One question, until the source has said all.
struct Question {
    uri: String,
    answers: Receiver<Answer>,
    /// The thread waits for this before it asks on: of what comes, one answer waits.
    go_on: Sender<()>,
    /// One of the answers so far says that the address has failed.
    failed: Cell<bool>,
}

/// What the addresses were asked, and the questions that are not answered yet.
#[derive(Default)]
pub struct Questions {
    open: Vec<Question>,
    /// Which zero ranges each address was asked for. All are asked: one may not know, die, or not answer.
    mapped: HashMap<String, Mapped>,
}

/// The zero ranges that an address was asked for.
#[derive(Default)]
struct Mapped {
    all: bool,
    /// Pieces of [`MAP_BYTES`].
    pieces: HashSet<u64>,
}

/// The address that is asked.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub uri: &'a str,
    pub source: &'a Arc<dyn Source>,
    /// Whether threads may be used.
    pub aside: bool,
}

/// Takes an answer. `false`: nobody wants further ones.
type Tell<'a> = &'a dyn Fn(Answer) -> bool;

impl Questions {
    /// Asks an address which bytes around a block are zero, unless that was done, and makes their blocks zero: zeros do not travel.
    pub fn map_zeros(&mut self, parts: &Parts, asked: Asked<'_>, block: u64) {
        let size_bytes = parts.root.size_bytes;
        let piece = parts.root.block_size.offset_of(block) / MAP_BYTES;
        // One that owes an answer is not asked anything else meanwhile.
        if self.open.iter().any(|question| question.uri == asked.uri) {
            return;
        }
        let mapped = self.mapped.entry(asked.uri.to_owned()).or_default();
        // A volfork snapshot answers from its presence map, for all of it at once.
        let is_quick = asked.source.identity().is_some();
        if mapped.all || std::mem::replace(&mut mapped.all, is_quick) || !mapped.pieces.insert(piece) {
            return;
        }
        let range = if is_quick { 0..size_bytes } else { piece * MAP_BYTES..((piece + 1) * MAP_BYTES).min(size_bytes) };
        // The blocks of a source that cannot tell are fetched, and zeros seen on arrival.
        let ask = move |source: &dyn Source, tell: Tell<'_>| tell_zeros(source, range.clone(), tell);
        if !self.ask(parts, asked, ask) {
            self.mapped.remove(asked.uri);
        }
    }

    /// Asks in which order an earlier fork touched its blocks, and follows it from when the answer comes.
    pub fn ask_trace(&mut self, parts: &Parts, asked: Asked<'_>) {
        let ask = |source: &dyn Source, tell: Tell<'_>| {
            // What fails here shows at the first read.
            tell(Answer::Trace(source.trace().unwrap_or_default()));
        };
        self.ask(parts, asked, ask);
    }

    /// Asks, and takes the answers that come soon. `false`: the address has failed.
    fn ask(&mut self, parts: &Parts, asked: Asked<'_>, ask: impl Fn(&dyn Source, Tell<'_>) + Clone + Send + 'static) -> bool {
        let Asked { uri, source, aside } = asked;
        let (answer, answers) = channel();
        let (go_on, going_on) = channel();
        let (asking, asked) = (ask.clone(), Arc::clone(source));
        let thread = move || asking(&*asked, &|told| answer.send(told).is_ok() && going_on.recv().is_ok());
        if !aside || Builder::new().name("hydrate-ask".into()).spawn(thread).is_err() {
            let succeeded = Cell::new(true);
            ask(&**source, &|told| {
                succeeded.set(succeeded.get() & take_answer(parts, uri, told));
                true
            });
            return succeeded.get();
        }
        let question = Question { uri: uri.to_owned(), answers, go_on, failed: Cell::new(false) };
        match question.take(parts, PATIENCE) {
            Some(succeeded) => succeeded,
            None => {
                self.open.push(question);
                true
            }
        }
    }

    /// Takes what has been answered. Addresses that have failed are asked anew when they are back.
    pub fn take_answers(&mut self, parts: &Parts) {
        let Self { open, mapped } = self;
        open.retain(|question| {
            let ended = question.take(parts, Duration::ZERO);
            if ended == Some(false) {
                mapped.remove(&question.uri);
            }
            ended.is_none()
        });
    }
}

impl Question {
    /// Takes answers for at most so long. `None`: not all has been said; otherwise whether it succeeded.
    fn take(&self, parts: &Parts, patience: Duration) -> Option<bool> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left.min(LOOK_INTERVAL)) {
                Err(RecvTimeoutError::Timeout) if left > LOOK_INTERVAL && !parts.life.is_stopped() => continue,
                Ok(answer) => self.failed.set(self.failed.get() | !take_answer(parts, &self.uri, answer)),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => return Some(!self.failed.get()),
            }
            let _ = self.go_on.send(());
        }
    }
}

/// Tells which bytes of a range are zero. Each run is told once and whole, however many answers it takes, unless these are slow; a
/// run that reaches the end of the range is followed to its own end.
fn tell_zeros(source: &dyn Source, range: Range<u64>, tell: Tell<'_>) {
    let size_bytes = source.size_bytes();
    let mut zeros = Zeros { at: range.start, run: None, whole: Vec::new() };
    let mut told_at = Instant::now();
    for _ in 0..ANSWERS_MAX {
        let (before, goes_on) = (zeros.at, zeros.run.is_some());
        let end = if before < range.end { range.end } else { size_bytes };
        if before >= end || (before >= range.end && !goes_on) {
            break;
        }
        match source.extents(before..end) {
            Ok(extents) => extents.iter().for_each(|extent| zeros.add(extent, end)),
            Err(error) => {
                let _ = zeros.tell(tell) && tell(Answer::Failed(error));
                return;
            }
        }
        if zeros.at == before {
            break;
        }
        if told_at.elapsed() > TELL_INTERVAL || zeros.whole.len() > GATHERED_MAX {
            told_at = Instant::now();
            if !zeros.tell(tell) {
                return;
            }
        }
    }
    zeros.tell(tell);
}

/// What is known of zeros, and was not told.
struct Zeros {
    /// Everything before this is known.
    at: u64,
    /// Where the run begins that reaches as far as that.
    run: Option<u64>,
    whole: Vec<Range<u64>>,
}

impl Zeros {
    fn add(&mut self, extent: &SourceExtent, end: u64) {
        let next = self.at.saturating_add(extent.bytes).min(end);
        match (extent.zero, self.run) {
            (true, None) if self.at < next => self.run = Some(self.at),
            (false, Some(start)) => {
                self.whole.push(start..self.at);
                self.run = None;
            }
            _ => {}
        }
        self.at = next;
    }

    fn tell(&mut self, tell: Tell<'_>) -> bool {
        let mut zeros = std::mem::take(&mut self.whole);
        if let Some(start) = &mut self.run {
            zeros.push(*start..self.at);
            *start = self.at;
        }
        tell(Answer::Zeros(zeros))
    }
}

/// `false`: the source failed.
fn take_answer(parts: &Parts, uri: &str, answer: Answer) -> bool {
    if parts.life.is_stopped() {
        return true;
    }
    match answer {
        // It cannot tell: its blocks are fetched, and zeros seen on arrival.
        Answer::Failed(SourceError { kind: SourceErrorKind::Failed, .. }) => {}
        Answer::Failed(error) => {
            parts.note_failure(uri, &error, None);
            return false;
        }
        Answer::Zeros(zeros) => zeros.iter().for_each(|zeros| parts.root.fill_zeros(zeros)),
        Answer::Trace(runs) => {
            let root = &parts.root;
            // The end of a run is a number of 32 bits: the last block of the largest source is in none.
            let number = |block: u64| u32::try_from(block).unwrap_or(u32::MAX);
            let inside = |run: &Range<u64>| run.start < run.end && run.end <= root.size_bytes;
            let blocks = |run: Range<u64>| number(root.block_size.block_of(run.start))..number(root.block_size.blocks_for(run.end));
            let runs = runs.into_iter().filter(inside).map(blocks);
            let trace = Trace { runs: runs.filter(|run| !run.is_empty()).take(TRACE_RUNS_MAX).collect() };
            if !trace.runs.is_empty() {
                // Kept for later forks. Advice: without the file, they have to do without.
                let _ = root.layers.save_trace(root.layer.id, &trace);
            }
            follow(parts, trace);
        }
    }
    true
}

/// Lets the blocks of a trace be fetched before the rest.
pub fn follow(parts: &Parts, trace: Trace) {
    parts.queue.follow(trace.runs.into_iter().map(|run| u64::from(run.start)..u64::from(run.end)));
    parts.tell();
}
