//! The recording of one fork.

use std::sync::Arc;
use std::time::Duration;

use roaring::RoaringBitmap;

use crate::format::{TRACE_RUNS_MAX, Trace};
use crate::ids::{LayerId, VolumeId};
use crate::place::BlockSpan;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, Rank};

/// Blocks of a unit. Touches are noted in units, so that a trace stays short.
const UNIT_BLOCKS: u32 = 16;
#[derive(Default)]
struct Touches {
    /// The sealed layer that the fork stands on.
    layer: LayerId,
    until: Duration,
    /// Units seen.
    seen: RoaringBitmap,
    trace: Trace,
    /// It has something that the file does not have.
    changed: bool,
}

/// The recording of one fork, for the sealed layer below it. Earlier recordings of that layer keep their place before it.
pub struct Recorder {
    fork: VolumeId,
    active: AtomicBool,
    touches: Mutex<Touches>,
}

impl Recorder {
    pub fn new(layer: LayerId, fork: VolumeId, until: Duration) -> Arc<Self> {
        let touches = Mutex::ranked(Rank::Recording, Touches { layer, until, ..Touches::default() });
        Arc::new(Self { fork, active: AtomicBool::new(true), touches })
    }

    /// The sealed layer that its fork stands on.
    pub fn layer(&self) -> LayerId {
        self.touches.lock().layer
    }

    /// Whether it records touches of a layer now.
    pub fn is_of(&self, layer: LayerId) -> bool {
        self.active.load(Ordering::Relaxed) && self.layer() == layer
    }

    /// Notes nothing more. The next look at the recordings saves and ends it.
    pub fn end(&self) {
        self.active.store(false, Ordering::Relaxed);
    }

    /// Begins again, with nothing noted.
    pub fn restart(&self, layer: LayerId, until: Duration) {
        *self.touches.lock() = Touches { layer, until, ..Touches::default() };
        self.active.store(true, Ordering::Relaxed);
    }

    /// Notes a read of blocks.
    pub fn touch(&self, blocks: BlockSpan) {
        if !self.active.load(Ordering::Relaxed) {
            return;
        }
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return };
        let mut touches = self.touches.lock();
        let touches = &mut *touches;
        for unit in first.number() / UNIT_BLOCKS..=last.number() / UNIT_BLOCKS {
            if !touches.seen.insert(unit) {
                continue;
            }
            touches.changed = true;
            let start = unit * UNIT_BLOCKS;
            let end = start.saturating_add(UNIT_BLOCKS);
            match touches.trace.runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => touches.trace.runs.push(start..end),
            }
        }
        if touches.trace.runs.len() >= TRACE_RUNS_MAX {
            self.active.store(false, Ordering::Relaxed);
        }
    }

    /// The fork that it records.
    pub fn fork(&self) -> VolumeId {
        self.fork
    }

    /// Whether it ends: nothing more comes, or its time is over at `now`.
    pub fn is_over(&self, now: Duration) -> bool {
        now >= self.touches.lock().until || !self.active.load(Ordering::Relaxed)
    }

    /// What it has noted, if that is more than at the last call.
    pub fn take_changed(&self) -> Option<Trace> {
        let mut touches = self.touches.lock();
        std::mem::take(&mut touches.changed).then(|| touches.trace.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::wide;

    #[test]
    fn units_are_noted_once_in_the_order_of_their_first_touch() {
        let recorder = Recorder::new(LayerId(1), VolumeId(1), Duration::ZERO);
        for (start, end) in [(100, 101), (0, 1), (16, 40), (101, 102), (5, 6), (40, 41)] {
            recorder.touch(BlockSpan::new(start, end));
        }
        assert_eq!(recorder.touches.lock().trace.runs, [96..112, 0..48]);
    }

    #[test]
    fn a_recording_is_bounded() {
        let recorder = Recorder::new(LayerId(1), VolumeId(1), Duration::ZERO);
        for block in 0..3 * wide(TRACE_RUNS_MAX) {
            recorder.touch(BlockSpan::new(block * 32, block * 32 + 1));
        }
        assert_eq!(recorder.touches.lock().trace.runs.len(), TRACE_RUNS_MAX);
    }
}
