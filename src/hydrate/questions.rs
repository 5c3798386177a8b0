//! What backfill asks a source beside its bytes: the order in which an earlier fork touched them, and which of them are zero.
//!
//! A source may take long to answer, or never do so. So it is asked on a thread that touches nothing but the source, and backfill
//! takes what has come by then; a thread that is never answered costs itself.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::hydrator::Hydrator;
use crate::format::{TRACE_RUNS_MAX, Trace};
use crate::source::{Source, SourceError, SourceErrorKind, SourceExtent};
use crate::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use crate::sync::thread::Builder;
use crate::sync::time::Instant;

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

/// The questions that are not answered yet.
#[derive(Default)]
pub(super) struct Questions(Vec<Question>);

/// Takes an answer. `false`: nobody wants further ones.
type Tell<'a> = &'a dyn Fn(Answer) -> bool;

impl Questions {
    /// Whether an address owes an answer: it is not asked anything else meanwhile.
    pub fn is_asked(&self, uri: &str) -> bool {
        self.0.iter().any(|question| question.uri == uri)
    }

    /// Asks which bytes of a range are zero, and makes their blocks zero as the answers come. `false`: the address has failed.
    /// `aside`: threads may be used.
    pub fn ask_zeros(&mut self, hydrator: &Hydrator, uri: &str, source: &Arc<dyn Source>, range: Range<u64>, aside: bool) -> bool {
        let ask = move |source: &dyn Source, tell: Tell<'_>| tell_zeros(source, range.clone(), tell);
        self.ask(hydrator, uri, source, aside, ask)
    }

    /// Asks in which order an earlier fork touched its blocks, and follows it from when the answer comes.
    pub fn ask_trace(&mut self, hydrator: &Hydrator, uri: &str, source: &Arc<dyn Source>, aside: bool) {
        let ask = |source: &dyn Source, tell: Tell<'_>| {
            // What fails here shows at the first read.
            tell(Answer::Trace(source.trace().unwrap_or_default()));
        };
        self.ask(hydrator, uri, source, aside, ask);
    }

    fn ask(
        &mut self,
        hydrator: &Hydrator,
        uri: &str,
        source: &Arc<dyn Source>,
        aside: bool,
        ask: impl Fn(&dyn Source, Tell<'_>) + Clone + Send + 'static,
    ) -> bool {
        let (answer, answers) = channel();
        let (go_on, going_on) = channel();
        let (asked, asking) = (Arc::clone(source), ask.clone());
        let thread = move || asking(&*asked, &|told| answer.send(told).is_ok() && going_on.recv().is_ok());
        if !aside || Builder::new().name("hydrate-ask".into()).spawn(thread).is_err() {
            let succeeded = Cell::new(true);
            ask(&**source, &|told| {
                succeeded.set(succeeded.get() & hydrator.take_answer(uri, told));
                true
            });
            return succeeded.get();
        }
        let question = Question { uri: uri.to_owned(), answers, go_on, failed: Cell::new(false) };
        match question.take(hydrator, PATIENCE) {
            Some(succeeded) => succeeded,
            None => {
                self.0.push(question);
                true
            }
        }
    }

    /// Takes what has been answered. Answers the addresses that have failed.
    pub fn take_answers(&mut self, hydrator: &Hydrator) -> Vec<String> {
        let mut failed = Vec::new();
        self.0.retain(|question| match question.take(hydrator, Duration::ZERO) {
            None => true,
            Some(succeeded) => {
                failed.extend((!succeeded).then(|| question.uri.clone()));
                false
            }
        });
        failed
    }
}

impl Question {
    /// Takes answers for at most so long. `None`: not all has been said; otherwise whether it succeeded.
    fn take(&self, hydrator: &Hydrator, patience: Duration) -> Option<bool> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left.min(LOOK_INTERVAL)) {
                Err(RecvTimeoutError::Timeout) if left > LOOK_INTERVAL && !hydrator.state.lock().stopped => continue,
                Ok(answer) => self.failed.set(self.failed.get() | !hydrator.take_answer(&self.uri, answer)),
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

impl Hydrator {
    /// `false`: the source failed.
    fn take_answer(&self, uri: &str, answer: Answer) -> bool {
        if self.state.lock().stopped {
            return true;
        }
        let config = &self.config;
        match answer {
            // It cannot tell: its blocks are fetched, and zeros seen on arrival.
            Answer::Failed(SourceError { kind: SourceErrorKind::Failed, .. }) => {}
            Answer::Failed(error) => {
                self.note_error(uri, &error);
                return false;
            }
            Answer::Zeros(zeros) => {
                for zero in zeros {
                    let first = config.block_size.blocks_for(zero.start);
                    let last = match zero.end == config.record.size_bytes {
                        true => config.block_size.blocks_for(zero.end),
                        false => config.block_size.block_of(zero.end),
                    };
                    if first < last {
                        config.layers.zeroes.fill_zero(&config.layer, crate::place::BlockSpan::new(first, last));
                    }
                }
            }
            Answer::Trace(runs) => {
                // The end of a run is a number of 32 bits: the last block of the largest source is in none.
                let number = |block: u64| block.min(u64::from(u32::MAX)) as u32;
                let inside = |run: &Range<u64>| run.start < run.end && run.end <= config.record.size_bytes;
                let blocks = |run: Range<u64>| number(config.block_size.block_of(run.start))..number(config.block_size.blocks_for(run.end));
                let runs = runs.into_iter().filter(inside).map(blocks);
                let trace = Trace { runs: runs.filter(|run| !run.is_empty()).take(TRACE_RUNS_MAX).collect() };
                if !trace.runs.is_empty() {
                    // Kept for later forks. Advice: without the file, they have to do without.
                    let _ = config.layers.save_trace(config.layer.id, &trace);
                }
                self.follow_trace(trace);
            }
        }
        true
    }
}
