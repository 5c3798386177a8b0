//! The scheduler itself: it finds what it should, and repeats it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::atomic::{AtomicBool, AtomicU64, Ordering};
use super::mpsc::{RecvTimeoutError, channel};
use super::time::Instant;
use super::{Condvar, Config, Early, FailureKind, Mutex, MutexGuard, OnceLock, Outcome, RwLock, SlowPlaces, Strategy, run, thread};
use crate::units::real;

/// Without early timers: the tests of time know what it is.
fn exact() -> Config {
    Config {
        early: Some(Early { one_in: 0, within: Duration::ZERO }),
        nap_one_in: Some(0),
        slow: Some(SlowPlaces { one_in: 0, nap_one_in: 0 }),
        ..Config::default()
    }
}

fn random() -> Config {
    Config { strategy: Some(Strategy::Random { switch_one_in: 2 }), ..exact() }
}

/// The first failure among many seeds.
fn first_failure<T: Send + 'static>(config: &Config, body: impl Fn() -> T + Clone + Send + 'static) -> Outcome<T> {
    let failures = (0..500).map(|seed| {
        let body = body.clone();
        run(seed, config.clone(), body)
    });
    failures.into_iter().find(|outcome| outcome.result.is_err()).expect("no seed finds it")
}

/// Two tasks that count without a lock.
fn lost_update() {
    let counter = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let seen = counter.load(Ordering::SeqCst);
                counter.store(seen + 1, Ordering::SeqCst);
            });
        }
    });
    assert_eq!(counter.load(Ordering::SeqCst), 2, "an update is lost");
}

#[test]
fn a_lost_update_is_found_and_repeated_exactly() {
    for config in [exact(), random(), Config { strategy: Some(Strategy::Priorities { changes: 2, horizon: 16 }), ..exact() }] {
        let found = first_failure(&config, lost_update);
        assert_eq!(found.result.as_ref().unwrap_err().kind, FailureKind::Panic);
        for _ in 0..2 {
            let again = run(found.seed, config.clone(), lost_update);
            assert_eq!((again.trace, again.steps, again.switches), (found.trace, found.steps, found.switches));
            assert!(again.result.unwrap_err().report.contains("an update is lost"));
        }
    }
}

#[test]
fn different_seeds_are_different_orders() {
    let traces: BTreeSet<u64> = (0..50).map(|seed| run(seed, random(), || drop(std::panic::catch_unwind(lost_update))).trace).collect();
    assert!(traces.len() > 10, "{} orders", traces.len());
}

/// Fails if others count to a hundred between two neighbouring lines.
fn long_stop() {
    let counter = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..300 {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        scope.spawn(|| {
            for _ in 0..50 {
                let before = counter.load(Ordering::SeqCst);
                let passed = counter.load(Ordering::SeqCst) - before;
                assert!(passed < 100, "{passed} steps of others");
            }
        });
    });
}

#[test]
fn a_place_that_is_slow_shows_what_needs_a_long_stop() {
    for seed in 0..500 {
        run(seed, random(), long_stop).unwrap();
    }
    let slow = Config { slow: Some(SlowPlaces { one_in: 8, nap_one_in: 4 }), ..random() };
    let found = first_failure(&slow, long_stop);
    let again = run(found.seed, slow, long_stop);
    assert_eq!((found.trace, found.steps), (again.trace, again.steps));
}

#[test]
fn a_lost_wake_is_a_deadlock_that_says_who_waits() {
    let found = first_failure(&exact(), || {
        let (ready, lock, changed) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(())), Arc::new(Condvar::new()));
        let setter = {
            let (ready, changed) = (Arc::clone(&ready), Arc::clone(&changed));
            // Without the lock, a notification between the look and the wait of the other task is lost.
            thread::Builder::new().name("setter".into()).spawn(move || {
                ready.store(true, Ordering::SeqCst);
                changed.notify_all();
            })
        };
        let mut guard = lock.lock();
        while !ready.load(Ordering::SeqCst) {
            changed.wait(&mut guard);
        }
        drop(guard);
        setter.unwrap().join().unwrap();
    });
    let failure = found.result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Deadlock);
    assert!(failure.report.contains("root: waits for a notification"), "{failure:?}");
    assert!(failure.report.contains("a_lost_wake_is_a_deadlock"), "there is no backtrace: {failure:?}");
}

/// One task takes two locks, and when it has ended another one takes them in the other order; both under a third one or not.
fn two_orders(under: bool) {
    let gate = Mutex::new(());
    let locks = (Mutex::new(1), RwLock::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _gate = under.then(|| gate.lock());
            *locks.0.lock() + *locks.1.read()
        });
    });
    let _gate = under.then(|| gate.lock());
    let second = locks.1.write();
    assert_eq!(*second - *locks.0.lock(), 1);
}

#[test]
fn locks_in_two_orders_are_found_though_the_tasks_never_meet() {
    let failure = run(1, exact(), || two_orders(false)).result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::LockOrder);
    assert_eq!(failure.report.matches("sim/tests.rs").count().min(4), 4, "both orders are told: {failure:?}");
    run(1, exact(), || two_orders(true)).unwrap();
}

#[test]
fn a_lock_that_is_tried_waits_for_nobody() {
    let outcome = run(1, exact(), || {
        let locks = (Mutex::new(1), Mutex::new(2));
        drop((locks.0.lock(), locks.1.lock()));
        let _second = locks.1.lock();
        drop(locks.0.try_lock());
    });
    outcome.unwrap();
}

#[test]
fn a_second_read_beside_a_writer_is_a_deadlock() {
    let found = first_failure(&exact(), || {
        let lock = Arc::new(RwLock::new(0));
        let other = Arc::clone(&lock);
        let writer = thread::spawn(move || *other.write() += 1);
        let first = lock.read();
        let second = lock.read();
        assert_eq!(*first, *second);
        drop((first, second));
        writer.join().unwrap();
        assert_eq!(*lock.read(), 1);
    });
    assert_eq!(found.result.unwrap_err().kind, FailureKind::Deadlock);
}

#[test]
fn a_loop_without_an_end_spends_the_budget() {
    let config = Config { steps_max: 10_000, ..exact() };
    let outcome = run(1, config, || {
        let flag = AtomicBool::new(false);
        while !flag.load(Ordering::SeqCst) {}
    });
    assert_eq!(outcome.result.unwrap_err().kind, FailureKind::Livelock);
}

#[test]
fn a_loop_that_waits_for_another_task_ends_under_every_strategy() {
    for seed in 0..100 {
        run(seed, exact(), || {
            let flag = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| while !flag.load(Ordering::SeqCst) {});
                scope.spawn(|| {
                    while !flag.load(Ordering::SeqCst) {
                        thread::yield_now();
                    }
                });
                scope.spawn(|| flag.store(true, Ordering::SeqCst));
            });
        })
        .unwrap();
    }
}

#[test]
fn timed_waits_and_sleeps_end_by_virtual_time() {
    let began = std::time::Instant::now();
    for seed in 0..20 {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let outcome = run(seed, exact(), move || {
            let before = Instant::now();
            let (lock, changed) = (Mutex::new(()), Condvar::new());
            let sleeper = thread::spawn(move || thread::sleep(hours(3)));
            let mut guard = lock.lock();
            assert!(changed.wait_for(&mut guard, hours(1)).timed_out());
            assert!(changed.wait_until(&mut guard, Instant::now() + hours(1)).timed_out());
            let (_sender, receiver) = channel::<()>();
            assert_eq!(receiver.recv_timeout(hours(2)), Err(RecvTimeoutError::Timeout));
            sleeper.join().unwrap();
            assert!(before.elapsed() >= hours(4) && before.elapsed() < hours(5));
        });
        assert!(outcome.elapsed >= hours(4));
        outcome.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(600), "time is not virtual");
}

#[test]
fn a_timer_may_fire_before_those_who_could_run() {
    let early = Config { early: Some(Early { one_in: 4, within: Duration::from_secs(60) }), ..Config::default() };
    let timed_out = |config: Config| {
        (0..100).filter(move |seed| {
            let outcome = run(*seed, config.clone(), || {
                let shared = Arc::new((Mutex::new(false), Condvar::new()));
                let other = Arc::clone(&shared);
                thread::spawn(move || {
                    *other.0.lock() = true;
                    other.1.notify_all();
                });
                let mut done = shared.0.lock();
                !*done && shared.1.wait_for(&mut done, Duration::from_secs(30)).timed_out()
            });
            outcome.unwrap()
        })
    };
    assert_eq!(timed_out(exact()).count(), 0);
    assert!(timed_out(early).count() > 0);
}

#[test]
fn one_notification_ends_one_wait_and_any() {
    let mut woken = BTreeSet::new();
    for seed in 0..60 {
        let first = run(seed, random(), || {
            let shared = Arc::new((Mutex::new((0, Vec::new())), Condvar::new()));
            let start = |number: usize| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let mut state = shared.0.lock();
                    state.0 += 1;
                    shared.1.wait(&mut state);
                    state.1.push(number);
                })
            };
            let threads = [start(0), start(1), start(2)];
            while shared.0.lock().0 < 3 {
                thread::yield_now();
            }
            assert!(shared.1.notify_one());
            thread::sleep(Duration::from_secs(1));
            assert_eq!(shared.0.lock().1.len(), 1);
            assert_eq!(shared.1.notify_all(), 2);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            shared.0.lock().1[0]
        });
        woken.insert(first.unwrap());
    }
    assert_eq!(woken.len(), 3, "only {woken:?} are ever woken first");
}

#[test]
fn an_unlocked_guard_locks_again_after_a_panic() {
    for seed in 0..20 {
        run(seed, exact(), || {
            let lock = Mutex::new(0);
            let mut guard = lock.lock();
            MutexGuard::unlocked(&mut guard, || thread::scope(|scope| drop(scope.spawn(|| *lock.lock() += 1))));
            assert_eq!(*guard, 1);
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                MutexGuard::unlocked(&mut guard, || std::panic::resume_unwind(Box::new("a panic")));
            }));
            assert!(panicked.is_err() && *guard == 1 && lock.try_lock().is_none());
        })
        .unwrap();
    }
}

#[test]
fn a_value_is_made_once_and_again_after_a_panic() {
    for seed in 0..50 {
        run(seed, random(), || {
            let (cell, made) = (OnceLock::new(), AtomicU64::new(0));
            let make = |fails: bool| {
                let make = || {
                    assert_eq!(made.fetch_add(1, Ordering::SeqCst), 0, "two tasks make it");
                    thread::yield_now();
                    made.fetch_sub(1, Ordering::SeqCst);
                    if fails { std::panic::resume_unwind(Box::new("a panic")) } else { 7 }
                };
                *cell.get_or_init(make)
            };
            thread::scope(|scope| {
                scope.spawn(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| make(true))).unwrap_or(7));
                let values = [scope.spawn(|| make(false)), scope.spawn(|| make(false))];
                for value in values {
                    assert_eq!(value.join().unwrap(), 7);
                }
            });
            assert_eq!(cell.get(), Some(&7));
        })
        .unwrap();
    }
}

#[test]
fn channels_keep_their_order_and_end() {
    for seed in 0..50 {
        run(seed, exact(), || {
            let (sender, receiver) = channel();
            for thread in 0..2 {
                let sender = sender.clone();
                thread::spawn(move || (0..5).for_each(|number| sender.send((thread, number)).unwrap()));
            }
            drop(sender);
            let all: Vec<(u32, u32)> = receiver.into_iter().collect();
            for thread in 0..2 {
                let one: Vec<u32> = all.iter().filter(|(from, _)| *from == thread).map(|(_, number)| *number).collect();
                assert_eq!(one, [0, 1, 2, 3, 4]);
            }
        })
        .unwrap();
    }
}

#[test]
fn a_panic_of_any_task_fails_the_run() {
    let outcome = run(7, exact(), || {
        thread::Builder::new().name("unlucky".into()).spawn(|| std::panic::panic_any("oh")).unwrap();
    });
    let failure = outcome.result.unwrap_err();
    assert!(failure.kind == FailureKind::Panic && failure.report.contains("(unlucky) panicked: oh"), "{failure:?}");
}

#[test]
fn a_task_that_never_ends_is_a_failure_after_the_root() {
    let outcome = run(7, exact(), || {
        let (sender, receiver) = channel::<()>();
        thread::spawn(move || receiver.recv());
        std::mem::forget(sender);
    });
    assert_eq!(outcome.result.unwrap_err().kind, FailureKind::Deadlock);
}

#[test]
fn starts_of_threads_fail_when_that_is_wanted() {
    let config = Config { spawn_failure_one_in: 2, ..exact() };
    let started = |seed| run(seed, config.clone(), || thread::Builder::new().spawn(|| ()).is_ok()).unwrap();
    assert_eq!((0..50).map(started).collect::<BTreeSet<bool>>().len(), 2);
}

#[test]
fn sockets_and_polls_wait_in_virtual_time() {
    for seed in 0..50 {
        run(seed, exact(), || {
            let (near, far) = UnixStream::pair().unwrap();
            near.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
            let mut fds = [libc::pollfd { fd: near.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            assert_eq!(crate::sync::poll(&mut fds, Some(Duration::from_secs(1000))).unwrap(), 0);
            let mut byte = [0; 1];
            let error = crate::sync::recv(&near, &mut byte).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            // More than fits into the buffers of the socket.
            let sent = vec![7; 4 << 20];
            let writer = thread::spawn(move || Sim(&far).write_all(&sent));
            let mut received = Vec::new();
            Sim(&near).read_to_end(&mut received).unwrap();
            assert_eq!(received.len(), 4 << 20);
            writer.join().unwrap().unwrap();
        })
        .unwrap();
    }

    struct Sim<'a>(&'a UnixStream);
    impl Read for Sim<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            crate::sync::recv(self.0, buffer)
        }
    }
    impl Write for Sim<'_> {
        fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
            crate::sync::send(self.0, &[std::io::IoSlice::new(buffer)])
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}

#[test]
fn hash_tables_and_random_bytes_come_from_the_seed() {
    let order = |seed| {
        let order = run(seed, exact(), || {
            let table: std::collections::HashSet<u32> = (0..100).collect();
            table.into_iter().collect::<Vec<u32>>()
        });
        order.unwrap()
    };
    assert!(order(1) == order(1) && order(1) != order(2));
}

#[test]
fn threads_outside_a_run_see_real_primitives() {
    let shared = Arc::new((Mutex::new(false), Condvar::new()));
    let other = Arc::clone(&shared);
    let thread = thread::spawn(move || {
        *other.0.lock() = true;
        other.1.notify_all();
    });
    let mut done = shared.0.lock();
    while !*done {
        shared.1.wait(&mut done);
    }
    assert!(shared.1.wait_for(&mut done, Duration::from_millis(1)).timed_out());
    thread.join().unwrap();
    assert!(!super::is_running());
}

/// Prints what a switch and a step cost: `cargo test --features sim --lib costs -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn costs_of_switches_and_steps() {
    for switch_one_in in [1, 1 << 30] {
        let config = Config { strategy: Some(Strategy::Random { switch_one_in }), ..exact() };
        let began = std::time::Instant::now();
        let outcome = run(1, config, || {
            let counter = AtomicU64::new(0);
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| (0..20_000).map(|_| counter.fetch_add(1, Ordering::SeqCst)).max());
                }
            });
        });
        let seconds = began.elapsed().as_secs_f64();
        println!("1 in {switch_one_in}: {:.0} steps/s, {:.0} switches/s", real(outcome.steps) / seconds, real(outcome.switches) / seconds);
        outcome.unwrap();
    }
}
