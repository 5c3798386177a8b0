//! Pools and tasks: bounds, turns, slow calls, wakes.

use std::sync::Arc;
use std::time::Duration;

use super::{Bounds, Next, Refusal, Task, Workers};
use crate::sync::mpsc::{Sender, channel};

const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const FEW: Bounds = Bounds { threads_max: 1, slow_max: 1, of_key_max: 2, waiting_max: 3, in_background: false };

/// A job that blocks until the sender is dropped, and one that says when it has begun.
fn block(workers: &Workers, key: &str) -> Sender<()> {
    let (release, wait) = channel::<()>();
    let (began, begun) = channel();
    let job = move || {
        began.send(()).unwrap();
        let _ = wait.recv();
    };
    workers.run(key, Box::new(job)).ok().unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    release
}

/// Sends its name when it runs.
fn tell(workers: &Workers, key: &str, name: &'static str, sender: &Sender<&'static str>) {
    let sender = sender.clone();
    workers.run(key, Box::new(move || sender.send(name).unwrap())).ok().unwrap();
}

#[test]
fn a_call_that_never_returns_costs_its_thread_only() {
    let workers = Workers::new("test", FEW);
    let (sender, receiver) = channel();
    let hung = block(&workers, "silent");
    tell(&workers, "other", "first", &sender);
    assert_eq!(receiver.recv_timeout(PATIENCE), Ok("first"));
    // The host that is slow gets no second thread, others do.
    tell(&workers, "silent", "late", &sender);
    tell(&workers, "other", "second", &sender);
    assert_eq!(receiver.recv_timeout(PATIENCE), Ok("second"));
    // Now all threads hang: others wait until one of them returns.
    let other = block(&workers, "other");
    tell(&workers, "third", "third", &sender);
    assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err());
    drop(other);
    assert_eq!(receiver.recv_timeout(PATIENCE), Ok("third"));
    drop(hung);
    assert_eq!(receiver.recv_timeout(PATIENCE), Ok("late"));
}

#[test]
fn keys_take_turns_and_a_crowd_is_refused() {
    let workers = Workers::new("test", Bounds { slow_max: 0, ..FEW });
    let (sender, receiver) = channel();
    // One that is not known to be quick has no second call while threads are scarce.
    tell(&workers, "a", "quick", &sender);
    assert_eq!(receiver.recv_timeout(PATIENCE), Ok("quick"));
    let gate = block(&workers, "a");
    for name in ["a1", "a2", "a3"] {
        tell(&workers, "a", name, &sender);
    }
    tell(&workers, "b", "b1", &sender);
    let refused = workers.run("a", Box::new(|| ())).unwrap_err();
    assert_eq!(refused.why, Refusal::Crowded);
    drop(gate);
    let order: Vec<_> = (0..4).map(|_| receiver.recv_timeout(PATIENCE).unwrap()).collect();
    assert_eq!(order, ["a1", "b1", "a2", "a3"]);
}

#[test]
fn a_job_that_panics_costs_itself() {
    let workers = Workers::new("test", FEW);
    let (sender, receiver) = channel();
    for name in ["first", "second"] {
        workers.run("a", Box::new(|| panic!("a job panics, as it was told"))).ok().unwrap();
        tell(&workers, "a", name, &sender);
        assert_eq!(receiver.recv_timeout(PATIENCE), Ok(name));
    }
}

#[test]
fn a_closed_pool_drops_what_waits_and_waits_for_nothing() {
    let workers = Workers::new("test", FEW);
    let hung = block(&workers, "a");
    let waits = Arc::new(());
    let kept = Arc::clone(&waits);
    workers.run("b", Box::new(move || drop(kept))).ok().unwrap();
    workers.close();
    assert_eq!(Arc::strong_count(&waits), 1);
    assert_eq!(workers.run("b", Box::new(|| ())).unwrap_err().why, Refusal::Closed);
    assert!(Task::begin(&workers, None, || Next::Over).is_err());
    drop(hung);
}

#[test]
fn a_task_runs_by_time_and_by_wakes_until_it_is_over() {
    let workers = Workers::new("test", FEW);
    for key in [None, Some("steps")] {
        let (sender, receiver) = channel();
        let mut steps = 0;
        let task = Task::begin(&workers, key, move || {
            steps += 1;
            sender.send(steps).unwrap();
            match steps {
                1 => Next::After(Duration::from_millis(1)),
                2 | 3 => Next::After(HOUR),
                4 => panic!("a step panics, as it was told"),
                _ => Next::Over,
            }
        });
        let task = task.ok().unwrap();
        assert_eq!([1, 2].map(|_| receiver.recv_timeout(PATIENCE).unwrap()), [1, 2]);
        for step in 3..5 {
            task.wake();
            assert_eq!(receiver.recv_timeout(PATIENCE), Ok(step));
        }
        // After the pause that follows a panic. The step is dropped as it ends, and its sender with it.
        assert_eq!(receiver.recv_timeout(PATIENCE), Ok(5));
        assert!(receiver.recv().is_err());
        task.wake();
    }
}

#[test]
fn a_task_that_is_dropped_ends() {
    let workers = Workers::new("test", FEW);
    let (sender, receiver) = channel();
    let task = Task::begin(&workers, None, move || {
        sender.send(()).unwrap();
        Next::After(HOUR)
    });
    receiver.recv_timeout(PATIENCE).unwrap();
    drop(task);
    assert!(receiver.recv().is_err());
}

#[cfg(feature = "sim")]
mod simulated {
    use super::*;
    use crate::sync::atomic::{AtomicUsize, Ordering};
    use crate::sync::{Condvar, Mutex, sim, thread};

    /// Time does not pass unless nothing else can.
    fn exact() -> sim::Config {
        let early = sim::Early { one_in: 0, within: Duration::ZERO };
        let slow = sim::SlowPlaces { one_in: 0, nap_one_in: 0 };
        sim::Config { early: Some(early), nap_one_in: Some(0), slow: Some(slow), ..sim::Config::default() }
    }

    /// Jobs that wait for one another: when a wake is lost, a job waits though there is a thread for it.
    fn jobs() {
        let bounds = Bounds { threads_max: 2, slow_max: 0, of_key_max: 2, waiting_max: 64, in_background: false };
        let workers = Workers::new("test", bounds);
        for keys in [["a", "a"], ["a", "b"], ["b", "b"], ["b", "a"]] {
            let ((one, other), (done, ended)) = (channel(), channel());
            let ending = done.clone();
            workers
                .run(
                    keys[0],
                    Box::new(move || {
                        other.recv().unwrap();
                        ending.send(()).unwrap();
                    }),
                )
                .ok()
                .unwrap();
            workers
                .run(
                    keys[1],
                    Box::new(move || {
                        one.send(()).unwrap();
                        done.send(()).unwrap();
                    }),
                )
                .ok()
                .unwrap();
            (0..2).for_each(|_| ended.recv().unwrap());
        }
        assert!(sim::now() < Duration::from_millis(500), "a wake was lost: {:?}", sim::now());
    }

    #[test]
    fn no_wake_of_a_job_is_lost() {
        for seed in sim::seeds(300) {
            sim::run(seed, exact(), jobs).unwrap();
        }
        // Whatever happens to time and to threads, each job runs, and every thread ends.
        for seed in sim::seeds(50) {
            let config = sim::Config { spawn_failure_one_in: 3, ..sim::Config::default() };
            sim::run(seed, config, retried).unwrap();
        }
    }

    /// As a caller does that may run a job itself.
    fn retried() {
        let workers = Workers::new("test", FEW);
        for _ in 0..5 {
            let (sender, receiver) = channel();
            if let Err(refused) = workers.run("a", Box::new(move || sender.send(()).unwrap())) {
                (refused.job)();
            }
            // Dropped if no thread can be had for long.
            let _ = receiver.recv();
        }
    }

    /// Hosts of which none has ever answered, each with as many calls as it may have.
    #[test]
    fn hung_hosts_leave_threads_to_others() {
        for seed in sim::seeds(50) {
            let hangs = || {
                let workers = Workers::new("test", Bounds { threads_max: 2, slow_max: 2, ..FEW });
                let (gate, receiver) = (channel::<()>(), channel());
                let waits = Arc::new(Mutex::new(gate.1));
                for key in ["one", "two"] {
                    for _ in 0..2 {
                        let waits = Arc::clone(&waits);
                        workers.run(key, Box::new(move || assert!(waits.lock().recv().is_err()))).ok().unwrap();
                    }
                    thread::sleep(Duration::from_secs(3));
                }
                tell(&workers, "healthy", "answered", &receiver.0);
                assert_eq!(receiver.1.recv_timeout(PATIENCE), Ok("answered"));
                drop(gate.0);
            };
            sim::run(seed, exact(), hangs).unwrap();
        }
    }

    /// No thread can be had for a while: what a call waits for ends, and a task goes on as soon as there is one.
    #[test]
    fn a_task_outlives_a_lack_of_threads() {
        for seed in sim::seeds(50) {
            let lack = || {
                let workers = Workers::new("test", FEW);
                let ((stepped, steps), (sender, dropped)) = (channel(), channel::<()>());
                let _lead = Task::begin(&workers, None, || Next::After(HOUR)).ok().unwrap();
                sim::fail_starts_of_threads(1);
                let task = Task::begin(&workers, Some("steps"), move || {
                    stepped.send(()).unwrap();
                    Next::After(HOUR)
                });
                let task = task.ok().unwrap();
                workers.run("call", Box::new(move || sender.send(()).unwrap())).ok().unwrap();
                assert!(dropped.recv().is_err(), "a call waits for threads without end");
                sim::fail_starts_of_threads(0);
                task.wake();
                steps.recv_timeout(PATIENCE).expect("a task is forgotten");
                // It is woken as before.
                task.wake();
                steps.recv_timeout(PATIENCE).expect("a wake is lost");
            };
            sim::run(seed, exact(), lack).unwrap();
        }
    }

    /// A call that is dropped because no thread can be had, and panics at that, costs the pool nothing.
    #[test]
    fn a_drop_of_a_call_that_panics_ends_no_pool() {
        struct Panics;
        impl Drop for Panics {
            fn drop(&mut self) {
                panic!("by its destructor");
            }
        }
        for seed in sim::seeds(10) {
            let lack = || {
                let workers = Workers::new("test", FEW);
                let _lead = Task::begin(&workers, None, || Next::After(HOUR)).ok().unwrap();
                sim::fail_starts_of_threads(1);
                let (sender, dropped) = channel::<()>();
                let panics = Panics;
                workers.run("call", Box::new(move || drop(panics))).ok().unwrap();
                workers.run("call", Box::new(move || sender.send(()).unwrap())).ok().unwrap();
                assert!(dropped.recv().is_err());
                sim::fail_starts_of_threads(0);
                let (sender, answer) = channel();
                workers.run("call", Box::new(move || sender.send("answered").unwrap())).ok().unwrap();
                assert_eq!(answer.recv_timeout(PATIENCE), Ok("answered"));
            };
            sim::run(seed, exact(), lack).unwrap();
        }
    }

    /// A task that looks at a number, and threads that change it and wake the task.
    fn wakes(key: Option<&str>) {
        let workers = Workers::new("test", FEW);
        let (number, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new((Mutex::new(0), Condvar::new())));
        let (looked_at, told) = (Arc::clone(&number), Arc::clone(&seen));
        let task = Task::begin(&workers, key, move || {
            *told.0.lock() = looked_at.load(Ordering::SeqCst);
            told.1.notify_all();
            Next::After(HOUR)
        });
        let task = task.ok().unwrap();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..3 {
                        number.fetch_add(1, Ordering::SeqCst);
                        task.wake();
                    }
                });
            }
        });
        let mut last = seen.0.lock();
        while *last < 6 {
            seen.1.wait(&mut last);
        }
        assert!(sim::now() < HOUR, "a wake was lost");
    }

    #[test]
    fn no_wake_of_a_task_is_lost() {
        for seed in sim::seeds(300) {
            sim::run(seed, exact(), move || wakes((seed % 2 == 0).then_some("steps"))).unwrap();
        }
    }

    /// A task is dropped while its step runs, ends or is woken; nothing keeps its lead.
    #[test]
    fn a_task_may_be_dropped_at_any_moment() {
        for seed in sim::seeds(200) {
            let outcome = sim::run(seed, exact(), || {
                let workers = Workers::new("test", FEW);
                let mut steps = 0;
                let task = Task::begin(&workers, None, move || {
                    steps += 1;
                    if steps > 3 { Next::Over } else { Next::After(Duration::from_micros(1)) }
                });
                let task = task.ok().unwrap();
                task.wake();
                drop(task);
                std::mem::forget(workers);
            });
            outcome.unwrap();
        }
    }
}
