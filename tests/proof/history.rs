//! A history: several lives of one store, each with many threads. Disk states that were saved meanwhile are opened and verified.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use volfork::Planted;

use crate::disk::Medium;
use crate::oracle::Oracle;
use crate::plan::Plan;
use crate::queuer::Queuer;
use crate::random::Random;
use crate::shaper::Shaper;
use crate::source::FOR_EVER;
use crate::threads::{JoinHandle, fail_starts_of_threads, sleep, spawn};
use crate::verify::{Case, verify};
use crate::world::World;
use crate::writer::Writer;

/// How long a store without threads is left alone when there is nothing to do, or it cannot be done.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub histories: u64,
    pub states: u64,
    pub operations: u64,
    pub points: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.states += other.states;
        self.operations += other.operations;
        self.points += other.points;
    }
}

/// Starts all threads that make calls.
fn start(plan: &Plan, world: &Arc<World>, mut seed: impl FnMut() -> u64) -> Vec<JoinHandle<()>> {
    let mut threads = Vec::new();
    for number in 0..plan.writers {
        let (world, random, calls) = (Arc::clone(world), Random::new(seed()), plan.calls);
        threads.push(spawn("writer", move || {
            let mut writer = Writer { world: &world, random, hot: number % 3 != 2 };
            (0..calls).for_each(|_| writer.act());
        }));
    }
    for _ in 0..plan.flushers {
        let (world, random, calls) = (Arc::clone(world), Random::new(seed()), plan.calls);
        threads.push(spawn("flusher", move || {
            let mut writer = Writer { world: &world, random, hot: false };
            for _ in 0..calls {
                if let Some((key, volume)) = world.some_volume(&mut writer.random) {
                    writer.flush(key, &volume);
                }
            }
        }));
    }
    for _ in 0..plan.queuers {
        let (world, random, calls) = (Arc::clone(world), Random::new(seed()), plan.calls);
        threads.push(spawn("queuer", move || {
            let mut queuer = Queuer::new(Writer { world: &world, random, hot: true });
            (0..2).for_each(|_| queuer.act(calls));
        }));
    }
    for _ in 0..plan.scrubbers {
        let world = Arc::clone(world);
        threads.push(spawn("scrubber", move || world.scrub()));
    }
    for _ in 0..plan.shapers {
        let (world, random, calls) = (Arc::clone(world), Random::new(seed()), plan.calls);
        threads.push(spawn("shaper", move || {
            let mut shaper = Shaper { world: &world, random };
            (0..calls).for_each(|_| shaper.act());
        }));
    }
    threads
}

/// One life: opens the store, lets all threads make their calls, and ends. Answers what was set aside.
fn live(plan: &Plan, Case { medium, oracle }: Case, random: &mut Random) -> Vec<Case> {
    let world = World::open(plan, medium, oracle, random);
    let missing = plan.volumes.saturating_sub(world.oracle().volumes.len() as u64);
    for _ in 0..missing {
        world.create(plan.window as u64 - random.below(8));
    }
    let threads = start(plan, &world, || random.below(u64::MAX));
    let over = Arc::new(AtomicBool::new(false));
    let stepper = (!plan.threads).then(|| {
        let (world, over) = (Arc::clone(&world), Arc::clone(&over));
        spawn("stepper", move || {
            while !over.load(Ordering::Acquire) {
                match world.store.step() {
                    Ok(true) => {}
                    Ok(false) => sleep(PAUSE),
                    Err(error) => {
                        world.excuse("background", &error, &[]);
                        // While it tried again at once, no time would pass for the others.
                        sleep(PAUSE);
                    }
                }
            }
        })
    });
    // From here on only the engine starts threads, and servers.
    fail_starts_of_threads(plan.weather.threads);
    for thread in threads {
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
    over.store(true, Ordering::Release);
    if let Some(stepper) = stepper {
        stepper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
    world.disk.medium().calm();
    fail_starts_of_threads(0);
    if plan.elsewhere && (plan.weather.servers > 0 || plan.weather.threads > 0) {
        // Servers that failed are asked again.
        sleep(2 * FOR_EVER);
    }
    world.compare();
    world.rest();
    world.end(random.below(3) == 0)
}

/// Runs a history. Answers what was wrong, as text.
pub fn run(seed: u64, planted: Planted) -> Result<Tally, String> {
    let mut plan = Plan::new(seed);
    plan.limits.planted = planted;
    let mut random = Random::new(seed);
    let mut tally = Tally { histories: 1, ..Tally::default() };
    let mut case = Case { medium: Medium::new(seed), oracle: Oracle::new(plan.window) };
    for life in 0..1 + random.below(2) {
        let (begun, plan_of_life, mut random_of_life) = (case.clone(), plan.clone(), Random::new(random.below(u64::MAX)));
        let lived = crate::threads::run(seed * 16 + life, move || live(&plan_of_life, begun, &mut random_of_life));
        let (kept, steps) = lived.map_err(|error| format!("seed {seed}, life {life}: {error}\n{plan:?}"))?;
        tally.points += steps;
        tally.operations += kept.last().map_or(0, |case| case.medium.operations);
        let next = random.below(kept.len() as u64) as usize;
        for (number, kept) in kept.into_iter().enumerate() {
            for _ in 0..2 {
                let end = verify(&plan, kept.clone(), &mut random).map_err(|error| format!("seed {seed}: {error}\n{plan:?}"))?;
                tally.states += 1;
                if number == next {
                    case = end;
                }
            }
        }
    }
    Ok(tally)
}
