//! Questions of backfill to a source: the trace of an earlier fork, and which bytes are zero.
//!
//! A source may hang, so each question runs on a thread of the source pool that touches nothing but the source. Backfill uses a reply when
//! it arrives.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::answer::{Answer, Answered};
use super::inbox::{Inbox, Message, Telling};
use super::scan::{Found, Scan};
use crate::format::{TRACE_RUNS_MAX, Trace};
use crate::hydrate::crew::Crew;
use crate::hydrate::parts::Parts;
use crate::source::{Source, SourceErrorKind};
use crate::sync::time::Instant;

/// Bytes of one question for zeros to a server that has to search for them. A run of zeros at the end is followed further.
const MAP_BYTES: u64 = 1 << 30;
/// How long to wait for a reply before fetching without it. A later reply is still used for the blocks that are missing then.
const PATIENCE: Duration = Duration::from_secs(2);

/// A question.
enum Ask {
    Trace,
    Zeros(Scan),
}

/// The questions asked so far, and those without a reply.
#[derive(Default)]
pub struct Questions {
    /// When each address was asked the question that it has not answered yet.
    open: HashMap<String, Instant>,
    /// Ranges for which each address was asked for zeros. All addresses are asked, because one may not know, fail, or hang.
    mapped: HashMap<String, Mapped>,
}

/// Ranges for which one address was asked for zeros.
#[derive(Default)]
struct Mapped {
    all: bool,
    /// Numbers of pieces of [`MAP_BYTES`].
    pieces: HashSet<u64>,
}

/// The address that is asked, and where its reply goes.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub uri: &'a str,
    pub source: &'a Arc<dyn Source>,
    pub inbox: &'a Arc<Inbox>,
    /// Threads of the store; `None` asks on the caller's thread.
    pub crew: Option<&'a Arc<Crew>>,
}

impl Questions {
    /// Asks an address once which bytes around a block are zero. Those blocks become zero without being fetched. False while the reply is
    /// awaited.
    pub fn map_zeros(&mut self, parts: &Arc<Parts>, asked: Asked<'_>, block: u64) -> bool {
        let size_bytes = parts.root.size_bytes;
        let piece = parts.root.block_size.offset_of(block) / MAP_BYTES;
        // An address has at most one open question.
        if let Some(since) = self.open.get(asked.uri) {
            return since.elapsed() >= PATIENCE;
        }
        let mapped = self.mapped.entry(asked.uri.to_owned()).or_default();
        // A volfork snapshot answers from its presence map, so it is asked for its whole size at once.
        let is_quick = asked.source.identity().is_some();
        if mapped.all || std::mem::replace(&mut mapped.all, is_quick) || !mapped.pieces.insert(piece) {
            return true;
        }
        let range = if is_quick { 0..size_bytes } else { piece * MAP_BYTES..((piece + 1) * MAP_BYTES).min(size_bytes) };
        // If the source cannot tell, blocks are fetched, and zeros are detected on arrival.
        self.ask(parts, asked, Ask::Zeros(Scan::new(range)));
        !self.open.contains_key(asked.uri)
    }

    /// Asks for the trace of an earlier fork. Backfill follows it once the reply arrives.
    pub fn ask_trace(&mut self, parts: &Arc<Parts>, asked: Asked<'_>) {
        self.ask(parts, asked, Ask::Trace);
    }

    /// Time until backfill stops waiting for the oldest open question; `None` if it waits for none.
    pub fn patience_left(&self) -> Option<Duration> {
        self.open.values().filter_map(|since| PATIENCE.checked_sub(since.elapsed())).min()
    }

    fn ask(&mut self, parts: &Arc<Parts>, asked: Asked<'_>, ask: Ask) {
        let Asked { uri, source, inbox, crew } = asked;
        let Some(crew) = crew else {
            let mut next = Some(ask);
            while let Some(ask) = next.take() {
                next = self.take_answer(parts, uri, answer_of(ask, &**source));
            }
            return;
        };
        self.open.entry(uri.to_owned()).or_insert_with(Instant::now);
        let of = |answer| Answered { uri: uri.to_owned(), source: Arc::clone(source), answer };
        let (telling, answered) = (Telling::new(inbox, Message::Answered(of(Answer::None))), of(Answer::None));
        let job = move || {
            let answer = answer_of(ask, &*answered.source);
            telling.tell(Message::Answered(Answered { answer, ..answered }));
        };
        let (handing, uri) = (Arc::clone(parts), uri.to_owned());
        crew.hand_over(move || handing.addresses.aside(&uri, job));
    }

    /// Takes a reply, and asks the rest of its question.
    pub fn take(&mut self, parts: &Arc<Parts>, inbox: &Arc<Inbox>, crew: Option<&Arc<Crew>>, answered: Answered) {
        let Answered { uri, source, answer } = answered;
        match self.take_answer(parts, &uri, answer) {
            Some(rest) => self.ask(parts, Asked { uri: &uri, source: &source, inbox, crew }, rest),
            None => drop(self.open.remove(&uri)),
        }
    }

    /// Uses a reply. Returns the rest of the question, if any.
    fn take_answer(&mut self, parts: &Parts, uri: &str, answer: Answer) -> Option<Ask> {
        match answer {
            Answer::None => None,
            Answer::Trace(runs) => {
                take_trace(parts, runs);
                None
            }
            Answer::Zeros(Found { zeros, error, rest }) => {
                zeros.iter().for_each(|zeros| parts.root.fill_zeros(zeros));
                // `Failed` means that the source cannot tell. It is no failure of the address: the blocks are fetched.
                if let Some(error) = error.filter(|error| error.kind != SourceErrorKind::Failed) {
                    parts.note_failure(uri, &error, None);
                    // The address is asked again when it is back.
                    self.mapped.remove(uri);
                }
                rest.map(Ask::Zeros)
            }
        }
    }
}

/// Asks a source. Blocks, and may hang.
fn answer_of(ask: Ask, source: &dyn Source) -> Answer {
    match ask {
        // An error is ignored here: the first read meets it again.
        Ask::Trace => Answer::Trace(source.trace().unwrap_or_default()),
        Ask::Zeros(scan) => Answer::Zeros(scan.turn(source)),
    }
}

/// Saves the trace of a source for later forks, and follows it.
fn take_trace(parts: &Parts, runs: Vec<Range<u64>>) {
    let root = &parts.root;
    // The end of a run has 32 bits, so the last block of the largest source is left out of traces.
    let number = |block: u64| u32::try_from(block).unwrap_or(u32::MAX);
    let inside = |run: &Range<u64>| run.start < run.end && run.end <= root.size_bytes;
    let blocks = |run: Range<u64>| number(root.block_size.block_of(run.start))..number(root.block_size.blocks_for(run.end));
    let runs = runs.into_iter().filter(inside).map(blocks);
    let trace = Trace { runs: runs.filter(|run| !run.is_empty()).take(TRACE_RUNS_MAX).collect() };
    if !trace.runs.is_empty() {
        // A trace only orders fetches: if it cannot be saved, later forks go without.
        let _ = root.layers.save_trace(root.layer.id, &trace);
    }
    follow(parts, trace);
}

/// Queues the blocks of a trace, which are then fetched before the rest.
pub fn follow(parts: &Parts, trace: Trace) {
    parts.queue.follow(trace.runs.into_iter().map(|run| u64::from(run.start)..u64::from(run.end)));
    parts.tell();
}
