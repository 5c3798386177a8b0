//! What backfill asks a source beside its bytes: the order in which an earlier fork touched them, and which of them are zero.
//!
//! A source may take long to answer, or never do so. So it is asked on a thread of the sources, which touches nothing but the source,
//! and backfill takes what has come by then.

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

/// Bytes whose zero ranges are asked for at once, of a server that has to look for them. A run of zeros is followed beyond.
const MAP_BYTES: u64 = 1 << 30;
/// How long to wait for an answer before going on without it. What comes later is used from then on.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a source is asked.
enum Ask {
    Trace,
    Zeros(Scan),
}

/// What the addresses were asked, and the questions that are not answered yet.
#[derive(Default)]
pub struct Questions {
    /// When each address was asked what it has not answered.
    open: HashMap<String, Instant>,
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

/// The address that is asked, and by whom.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub uri: &'a str,
    pub source: &'a Arc<dyn Source>,
    pub inbox: &'a Arc<Inbox>,
    /// `None`: it is asked on this thread.
    pub crew: Option<&'a Arc<Crew>>,
}

impl Questions {
    /// Asks an address which bytes around a block are zero, unless that was done, and makes their blocks zero: zeros do not travel. `false`:
    /// the answer is waited for.
    pub fn map_zeros(&mut self, parts: &Arc<Parts>, asked: Asked<'_>, block: u64) -> bool {
        let size_bytes = parts.root.size_bytes;
        let piece = parts.root.block_size.offset_of(block) / MAP_BYTES;
        // One that owes an answer is not asked anything else meanwhile.
        if let Some(since) = self.open.get(asked.uri) {
            return since.elapsed() >= PATIENCE;
        }
        let mapped = self.mapped.entry(asked.uri.to_owned()).or_default();
        // A volfork snapshot answers from its presence map, for all of it at once.
        let is_quick = asked.source.identity().is_some();
        if mapped.all || std::mem::replace(&mut mapped.all, is_quick) || !mapped.pieces.insert(piece) {
            return true;
        }
        let range = if is_quick { 0..size_bytes } else { piece * MAP_BYTES..((piece + 1) * MAP_BYTES).min(size_bytes) };
        // The blocks of a source that cannot tell are fetched, and zeros seen on arrival.
        self.ask(parts, asked, Ask::Zeros(Scan::new(range)));
        !self.open.contains_key(asked.uri)
    }

    /// Asks in which order an earlier fork touched its blocks, and follows it from when the answer comes.
    pub fn ask_trace(&mut self, parts: &Arc<Parts>, asked: Asked<'_>) {
        self.ask(parts, asked, Ask::Trace);
    }

    /// When the first of the answers that are waited for is not waited for any longer.
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

    /// Takes what an address has answered.
    pub fn take(&mut self, parts: &Arc<Parts>, inbox: &Arc<Inbox>, crew: Option<&Arc<Crew>>, answered: Answered) {
        let Answered { uri, source, answer } = answered;
        match self.take_answer(parts, &uri, answer) {
            Some(rest) => self.ask(parts, Asked { uri: &uri, source: &source, inbox, crew }, rest),
            None => drop(self.open.remove(&uri)),
        }
    }

    /// Uses an answer. Answers what is left to be asked.
    fn take_answer(&mut self, parts: &Parts, uri: &str, answer: Answer) -> Option<Ask> {
        match answer {
            Answer::None => None,
            Answer::Trace(runs) => {
                take_trace(parts, runs);
                None
            }
            Answer::Zeros(Found { zeros, error, rest }) => {
                zeros.iter().for_each(|zeros| parts.root.fill_zeros(zeros));
                // One that cannot tell has not failed: its blocks are fetched.
                if let Some(error) = error.filter(|error| error.kind != SourceErrorKind::Failed) {
                    parts.note_failure(uri, &error, None);
                    // It is asked anew when it is back.
                    self.mapped.remove(uri);
                }
                rest.map(Ask::Zeros)
            }
        }
    }
}

/// Asks a source, which may take long.
fn answer_of(ask: Ask, source: &dyn Source) -> Answer {
    match ask {
        // What fails here shows at the first read.
        Ask::Trace => Answer::Trace(source.trace().unwrap_or_default()),
        Ask::Zeros(scan) => Answer::Zeros(scan.turn(source)),
    }
}

/// Keeps and follows the order that a source has recorded.
fn take_trace(parts: &Parts, runs: Vec<Range<u64>>) {
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

/// Lets the blocks of a trace be fetched before the rest.
pub fn follow(parts: &Parts, trace: Trace) {
    parts.queue.follow(trace.runs.into_iter().map(|run| u64::from(run.start)..u64::from(run.end)));
    parts.tell();
}
