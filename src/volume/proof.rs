//! The gate and the workers under the seeded scheduler.

use super::gate::{Gate, Inside};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{sim, thread};

#[test]
fn a_gate_lets_writes_in_or_one_change() {
    for seed in sim::seeds(300) {
        sim::run(seed, sim::Config::default(), || {
            let (gate, inside, changes) = (Gate::default(), AtomicUsize::new(0), AtomicBool::new(false));
            let write = |held: Inside<&Gate>| {
                inside.fetch_add(1, Ordering::SeqCst);
                assert!(!changes.load(Ordering::SeqCst), "a write is inside during a change");
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(held);
            };
            let change = || {
                let closed = gate.close(|| {});
                assert!(!changes.swap(true, Ordering::SeqCst), "two changes at a time");
                assert_eq!(inside.load(Ordering::SeqCst), 0, "a write is inside during a change");
                changes.store(false, Ordering::SeqCst);
                drop(closed);
            };
            thread::scope(|scope| {
                let (gate, write) = (&gate, &write);
                for writer in 0..3 {
                    scope.spawn(move || {
                        for _ in 0..3 {
                            let held = loop {
                                match if writer == 0 { Gate::try_enter(gate) } else { Some(gate.enter()) } {
                                    Some(held) => break held,
                                    None => thread::yield_now(),
                                }
                            };
                            write(if writer == 1 { held.keep(gate) } else { held });
                        }
                    });
                }
                for _ in 0..2 {
                    scope.spawn(|| (0..2).for_each(|_| change()));
                }
            });
        })
        .unwrap();
    }
}
