//! Strategies and settings of a run.

use std::panic::Location;
use std::time::Duration;

use crate::place::{length, wide};
use crate::units::whole_nanos;

/// How the scheduler chooses the next task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// At one point in `switch_one_in`, another task is drawn with equal probability.
    Random {
        /// 1: at every point.
        switch_one_in: u32,
    },
    /// The ready task of the highest priority runs. Priorities are random, and at some random steps that of the running task becomes
    /// the lowest (probabilistic concurrency testing): finds orders that need few switches at rare places.
    Priorities {
        /// Steps at which a priority changes.
        changes: u32,
        /// The changes are among this many first steps.
        horizon: u64,
    },
}

/// Timers that fire although other tasks could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Early {
    /// At one point in this many; 0 is never.
    pub one_in: u32,
    /// Only timers that are due within this time.
    pub within: Duration,
}

/// Slow places: places in the code where tasks often sleep. Each run draws its own. They find faults that need a task to stop for long
/// between two given lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowPlaces {
    /// One place in this many is slow; 0 is none.
    pub one_in: u32,
    /// A task sleeps at one pass in this many of a slow place.
    pub nap_one_in: u32,
}

/// What a run may do. `None`: chosen from the seed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Points after which a run fails as one that does not end.
    pub steps_max: u64,
    /// The choice of tasks.
    pub strategy: Option<Strategy>,
    /// Early timers.
    pub early: Option<Early>,
    /// At one point in this many, the task sleeps while the others make some steps, as if it had lost its processor; 0 is never.
    pub nap_one_in: Option<u32>,
    /// Places in the code where tasks sleep more often than elsewhere.
    pub slow: Option<SlowPlaces>,
    /// Virtual time of a step.
    pub step: Option<Duration>,
    /// One start of a thread in this many fails; 0 is none.
    pub spawn_failure_one_in: u32,
    /// Real time without a step after which the holder of the baton counts as blocked outside the scheduler.
    pub stall: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            steps_max: 2_000_000,
            strategy: None,
            early: None,
            nap_one_in: None,
            slow: None,
            step: None,
            spawn_failure_one_in: 0,
            stall: Duration::from_secs(60),
        }
    }
}

/// Numbers from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        length(self.next() % wide(end.max(1)))
    }

    /// True once in `many`; never for 0.
    pub fn one_in(&mut self, many: u32) -> bool {
        many != 0 && self.next().is_multiple_of(u64::from(many))
    }
}

impl Strategy {
    pub(super) fn of(random: &mut Random) -> Self {
        match random.below(3) {
            0 => {
                let (changes, horizon) = ([1, 2, 3, 4, 5, 6, 7, 8][random.below(8)], 1 << (8 + random.below(10)));
                Self::Priorities { changes, horizon }
            }
            _ => Self::Random { switch_one_in: 2 << random.below(6) },
        }
    }

    /// The steps at which a priority changes, the last one first.
    pub(super) fn change_steps(self, random: &mut Random) -> Vec<u64> {
        let Self::Priorities { changes, horizon } = self else { return Vec::new() };
        let mut steps: Vec<u64> = (0..changes).map(|_| random.next() % horizon.max(1)).collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        steps
    }
}

impl Early {
    pub(super) fn of(random: &mut Random) -> Self {
        let one_in = [0, 0, 4096, 512, 64][random.below(5)];
        Self { one_in, within: Duration::from_secs(2) }
    }
}

/// How often tasks sleep at a point.
pub(super) fn nap_one_in(config: &Config, random: &mut Random) -> u32 {
    let drawn = [0, 0, 4096, 512, 128][random.below(5)];
    config.nap_one_in.unwrap_or(drawn)
}

impl SlowPlaces {
    pub(super) fn of(random: &mut Random) -> Self {
        let one_in = [0, 0, 8, 32, 128][random.below(5)];
        Self { one_in, nap_one_in: 1 << random.below(4) }
    }

    /// Whether a place is slow in a run with this salt. The choice depends on its file and line.
    pub(super) fn has(self, place: &Location<'_>, salt: u64) -> bool {
        let position = u64::from(place.line()) << 32 | u64::from(place.column());
        let name = place.file().bytes().fold(salt, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Random::new(name ^ position).one_in(self.one_in)
    }
}

/// Steps of others for which a task sleeps at a point.
pub(super) fn nap_steps(random: &mut Random) -> u64 {
    8 << random.below(10)
}

/// Virtual nanoseconds of a step.
pub(super) fn step_nanos(config: &Config, random: &mut Random) -> u64 {
    let drawn = [100, 1_000, 10_000, 100_000][random.below(4)];
    config.step.map_or(drawn, whole_nanos)
}
