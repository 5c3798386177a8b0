//! Read-ahead: predicts from misses what will be read next.
//!
//! A reader that goes on where it stopped, or jumps by the same distance each time, is recognised at its second step; what is
//! fetched ahead of it doubles with every step that was guessed right, as in the readahead of the Linux page cache.

use std::collections::VecDeque;
use std::ops::Range;

/// Most streams that are tracked at once.
const STREAMS_MAX: usize = 16;
/// Bytes around a single miss that are fetched with it, because near blocks are often read together.
const AROUND_BYTES: u64 = 128 << 10;
/// First and largest number of bytes fetched ahead of a recognised stream.
const AHEAD_BYTES: Range<u64> = 256 << 10..8 << 20;
/// Most steps that are fetched ahead of a strided stream.
const STEPS_MAX: u64 = 64;
/// Equal steps after which a stream counts as strided.
const STEPS_MIN: u32 = 2;

/// A sequential or strided sequence of misses.
#[derive(Debug)]
struct Stream {
    last: Range<u64>,
    stride: i64,
    /// Equal steps in a row.
    steps: u32,
    /// First block after the range that was fetched ahead.
    ahead: u64,
    /// Bytes to fetch ahead at the next step.
    bytes: u64,
}

/// The streams of misses of one source.
#[derive(Debug, Default)]
pub struct Readers {
    /// Most recent stream first.
    streams: VecDeque<Stream>,
}

impl Readers {
    /// Notes a miss and returns the ranges to fetch ahead, nearest first. Ranges are in blocks of `block_bytes` bytes.
    pub fn miss(&mut self, miss: &Range<u64>, block_bytes: u64) -> Vec<Range<u64>> {
        let near = AROUND_BYTES / block_bytes;
        let sequential = |stream: &Stream| {
            let from = stream.last.start;
            miss.start >= from && miss.start <= stream.ahead.max(stream.last.end) + near
        };
        let strided = |stream: &Stream| stream.stride != 0 && miss.start.cast_signed() - stream.last.start.cast_signed() == stream.stride;
        let found = self.streams.iter().position(strided).or_else(|| self.streams.iter().position(sequential));
        let Some(mut stream) = found.and_then(|at| self.streams.remove(at)) else { return self.begin(miss, near) };
        let stride = miss.start.cast_signed() - stream.last.start.cast_signed();
        let jumps = stride == stream.stride && stride.unsigned_abs() > near;
        let goes_on = sequential(&stream);
        stream.steps = if stride == stream.stride { stream.steps + 1 } else { 0 };
        stream.stride = stride;
        stream.last = miss.clone();
        // A sequential stream also makes equal steps, from one end of the fetched range to the next, so it is checked first.
        let ahead = match (goes_on, jumps && stream.steps + 1 >= STEPS_MIN) {
            (true, _) => stream.run_ahead(miss, block_bytes),
            (false, true) => stream.jump_ahead(miss, block_bytes),
            (false, false) => Vec::new(),
        };
        self.streams.push_front(stream);
        ahead
    }

    /// Begins a new stream at a miss that belongs to no known stream.
    fn begin(&mut self, miss: &Range<u64>, near: u64) -> Vec<Range<u64>> {
        // The distance from the most recent stream may be the first step of a stride.
        let stride = self.streams.front().map_or(0, |latest| miss.start.cast_signed() - latest.last.start.cast_signed());
        let around = miss.start / near * near..miss.end.next_multiple_of(near);
        self.streams.truncate(STREAMS_MAX - 1);
        self.streams.push_front(Stream { last: miss.clone(), stride, steps: 0, ahead: around.end, bytes: AHEAD_BYTES.start });
        [miss.end..around.end, around.start..miss.start].into_iter().filter(|range| !range.is_empty()).collect()
    }
}

impl Stream {
    fn grow(&mut self) {
        self.bytes = (self.bytes * 2).min(AHEAD_BYTES.end);
    }

    fn run_ahead(&mut self, miss: &Range<u64>, block_bytes: u64) -> Vec<Range<u64>> {
        let start = miss.end.max(self.ahead);
        let end = miss.end + self.bytes / block_bytes;
        self.grow();
        if end <= start {
            return Vec::new();
        }
        self.ahead = end;
        std::iter::once(start..end).collect()
    }

    fn jump_ahead(&mut self, miss: &Range<u64>, block_bytes: u64) -> Vec<Range<u64>> {
        let blocks = miss.end - miss.start;
        let steps = (self.bytes / block_bytes / blocks.max(1)).clamp(1, STEPS_MAX);
        self.grow();
        let stride = self.stride;
        // The next miss of the stride comes after the last step that is fetched now.
        let step = |number: u64| miss.start.checked_add_signed(stride.checked_mul(number.cast_signed())?);
        let ahead: Vec<_> = (1..=steps).map_while(step).map(|start| start..start + blocks).collect();
        if let Some(last) = ahead.last() {
            self.last = last.clone();
        }
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Reads blocks one after the other; answers how many of the reads were misses.
    fn misses(reads: impl Iterator<Item = u64>) -> usize {
        let (mut readers, mut here, mut count) = (Readers::default(), std::collections::HashSet::new(), 0);
        for block in reads {
            if here.insert(block) {
                count += 1;
                for range in readers.miss(&(block..block + 1), 4096) {
                    here.extend(range);
                }
            }
        }
        count
    }

    #[test]
    fn a_sequential_reader_misses_seldom() {
        let count = misses(0..16384);
        assert!(count < 20, "{count} misses");
    }

    #[test]
    fn several_sequential_readers_at_once_miss_seldom() {
        assert!(misses((0..16384).map(|number| number % 4 * 1_000_000 + number / 4)) < 80);
    }

    #[test]
    fn a_strided_reader_misses_seldom_in_both_directions() {
        assert!(misses((0..4096).map(|number| number * 1000)) < 4096 / 16);
        assert!(misses((0..4096).rev().map(|number| number * 1000)) < 4096 / 16);
    }

    #[test]
    fn a_random_reader_fetches_little_in_vain() {
        let mut readers = Readers::default();
        let mut ahead = 0;
        let mut random = Random::new(12_345);
        for _ in 0..1000 {
            let at = random.below(1 << 31);
            ahead += readers.miss(&(at..at + 1), 4096).iter().map(|range| range.end - range.start).sum::<u64>();
        }
        assert!(ahead <= 1000 * 32, "{ahead} blocks were fetched for 1000 random misses");
    }

    #[test]
    fn readers_are_bounded() {
        let mut readers = Readers::default();
        for number in 0..1000u64 {
            readers.miss(&(number * number * 1000..number * number * 1000 + 1), 4096);
        }
        assert!(readers.streams.len() <= STREAMS_MAX);
    }
}
