//! The order of the engine's locks, checked in debug builds.
//!
//! A thread that holds a lock takes only locks of higher ranks. Every cycle of waiting threads breaks this rule somewhere, so a test
//! run that breaks it nowhere has no deadlock among ranked locks, whatever its threads were doing. Release builds carry no rank.

#[cfg(debug_assertions)]
use std::cell::RefCell;
#[cfg(debug_assertions)]
use std::panic::Location;

/// Ranks of locks, the first to be taken first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Outside the order, not checked: locks of tests.
    #[cfg(test)]
    Unranked,
    /// `serve`: the clients of a server.
    #[cfg(feature = "serve")]
    ServeClients,
    /// `volume`: a queue whose requests are futures.
    #[cfg(feature = "futures")]
    AsyncQueue,
    /// `volume`: the queues that one thread of the process waits for.
    #[cfg(feature = "futures")]
    AsyncQueues,
    /// `volume`: one change of size of a volume at a time. Held across barriers, and while an embedder says the new size and may close the
    /// store.
    Resizing,
    /// `store`: whether the store is open.
    Ownership,
    /// `store`: what background work does next.
    Background,
    /// `store`: what was told of the store's health.
    HealthTold,
    /// `store`: how background work failed last.
    BackgroundFailed,
    /// `layer`: one checkpoint at a time. Held across barriers.
    Checkpoint,
    /// `layer`: one sync of checksum pages at a time. Held during the sync.
    SyncingPages,
    /// `volume`: a look at hidden blocks of roots, and new forks of a root that stands.
    Roots,
    /// `volume`: names, layers, sizes, leases.
    Catalog,
    /// `volume`: the ring of a queue and its requests.
    QueueRing,
    /// `volume`: walks along a chain, against blocks that move.
    Forgetting,
    /// `layer`: records and blocks of one round.
    Beginning,
    /// `volume`: the heads that are open.
    Heads,
    /// `volume`: what keeps the limits of each volume's clients.
    #[cfg(feature = "serve")]
    Limiters,
    /// `volume`: rates of one volume's clients.
    #[cfg(feature = "serve")]
    Limiter,
    /// `volume`: names of volumes that are being made.
    Births,
    /// `volume`: snapshots that are not durable yet.
    Arrivals,
    /// `volume`: readers of snapshots.
    Pins,
    /// `volume`: freed layers whose files are still there.
    FreedLayers,
    /// `volume`: when leases were renewed.
    Renewals,
    /// `volume`: leases that were given back.
    GivenBack,
    /// `volume`: what is about to be destroyed by force.
    Condemned,
    /// `volume`: hosts with errands of leases.
    Errands,
    /// `volume`: leases at other hosts.
    Lessees,
    /// `volume`: recordings of first reads.
    Recorders,
    /// `volume`: hydrators of roots that need their source.
    Hydrations,
    /// `volume`: hydrators of layers that were freed.
    StoppedHydrations,
    /// `volume`: what hydrations that have ended had done.
    EndedHydrations,
    /// `hydrate`: whether a hydration is degraded, and why.
    HydrationHealth,
    /// `hydrate`: readers that wait for missing blocks.
    WaitingReaders,
    /// `hydrate`: pause and pace of a hydration.
    Throttle,
    /// `hydrate`: addresses of a root layer, and how each of them does.
    Addresses,
    /// `hydrate`: blocks of a root layer that nothing above needs.
    Cover,
    /// `hydrate`: ranges that are fetched before the rest.
    FirstRanges,
    /// `hydrate`: ranges that are being fetched.
    Claims,
    /// `volume`: a head's or a snapshot's layer on top, owner map and size.
    View,
    /// `volume`: what one fork has touched first.
    Recording,
    /// `volume`: where the next look for patches begins.
    NextPatch,
    /// `layer`: presence and latches of a layer.
    LayerState,
    /// `layer`: the layers with blocks that wait for their record.
    FreshLayers,
    /// `layer`: the layers with files that wait for a sync.
    WrittenLayers,
    /// `layer`: the layers with patches.
    PatchedLayers,
    /// `layer`: the layers with retiring blocks.
    RetiringLayers,
    /// `layer`: the layers with garbage.
    GarbageLayers,
    /// `layer`: the layers whose garbage could not be given back.
    UnpunchedLayers,
    /// `layer`: the log of changes that no frame has yet. Held while it is written.
    UnrecordedFiles,
    /// `layer`: notes that go to that log.
    UnrecordedNotes,
    /// `layer`: the journal, and the spare.
    Journal,
    /// `layer`: what the next round takes, and who leads.
    CommitQueue,
    /// `layer`: the table of layers.
    LayerTable,
    /// `layer`: a shard of the checksum pages.
    ChecksumPages,
    /// `layer`: one page of checksums is written at a time. Held during the write.
    WritingPage,
    /// `layer`: files of checksums that wait for a sync.
    UnsyncedPages,
    /// `layer`: files that are open. Held while one is opened.
    OpenFiles,
    /// `layer`: the queues that help waiters.
    Reapers,
    /// `layer`: the last damage that was met.
    LastDamage,
    /// `volume`: completions of a queue by workers.
    QueueFinished,
    /// `volume`: changes of a queue that workers make.
    QueueChanges,
    /// `volume`: jobs that wait for a worker.
    Workers,
    /// `volume`: who is inside a gate.
    Gate,
    /// `volume`: events that were not told yet.
    Events,
    /// `volume`: waits until all calls have left.
    Leaving,
    /// `volume`: threads of the engine that run callbacks.
    OwnThreads,
    /// `source`: threads that open an address, and who waits for them.
    SourceConnector,
    /// `source`: what one of these threads answers.
    SourceAnswer,
    /// `source`: what a connection has received in part; used by its reactor.
    NbdReplies,
    /// `source`: reads of a source that have not ended.
    SourceReads,
    /// `source`: the callback of one read, while it is called.
    SourceRead,
    /// `source`: one read that is made of several.
    SourceGather,
    /// `source`: connections that one thread serves.
    NbdReactor,
    /// `source`: connections of an NBD source, and requests that wait.
    NbdSource,
    /// `source`: requests under way on one connection.
    NbdLink,
    /// `source`: bytes that a socket had no room for.
    NbdUnsent,
    /// `source`: sources that are being closed.
    SourceClosings,
    /// `hydrate`: fetched blocks that are not stored yet.
    Fills,
    /// `hydrate`: what came for a backfill.
    Inbox,
    /// `hydrate`: what the hydrations of a store share: ways to hosts, and turns.
    Budget,
    /// `hydrate`: counts of bytes that a hydration has received.
    Received,
    /// `hydrate`: whether a hydration runs, was stopped, is complete.
    Life,
    /// `hydrate`: a count of changes that readers wait for.
    News,
    /// `hydrate`: how backfill is woken.
    HydrationWake,
    /// `hydrate`: the task of a backfill.
    HydrationTask,
    /// `hydrate`: the task that starts threads for hydrations.
    CrewStarter,
    /// `hydrate`: calls that are handed to it.
    CrewHanded,
    /// `tls`: connections that a thread of the relay has not taken yet.
    #[cfg(feature = "tls")]
    TlsRelay,
    /// `tls`: how a connection has ended.
    #[cfg(feature = "tls")]
    TlsFate,
    /// `io`: the step of a task that does not run.
    TaskStep,
    /// `io`: when a task goes on.
    TaskPhase,
    /// `io`: jobs, tasks and threads of a pool.
    WorkerPool,
    /// `io`: transfers that no thread of a thread ring has taken. Held by the thread that waits for the next one.
    RingJobs,
    /// `io`: transfers that a thread ring has ended.
    RingEnded,
    /// `io`: names of a disk that keeps changes in memory.
    OverlayNames,
    /// `io`: changes of a file that are kept in memory.
    OverlayChanges,
    /// `io`: open directories.
    Directories,
    /// `io`: the ring for syncs of several files. Held during the syncs.
    SyncRing,
    /// `io`: the ring for write-back before a sync. Held while one is submitted.
    WriteBack,
    /// `io`: transfers of a ring of a simulated run.
    #[cfg(feature = "sim")]
    SimulatedRing,
    #[cfg(test)]
    Outer,
    #[cfg(test)]
    Inner,
}

#[cfg(debug_assertions)]
impl Rank {
    fn is_checked(self) -> bool {
        #[cfg(test)]
        return self != Self::Unranked;
        #[cfg(not(test))]
        true
    }
}

/// The rank of one lock. Empty in release builds.
#[derive(Clone, Copy)]
pub(super) struct Mark(#[cfg(debug_assertions)] Rank);

/// A lock that the present thread holds. Dropped with the guard.
pub(super) struct Held(#[cfg(debug_assertions)] Rank);

#[cfg(debug_assertions)]
thread_local! {
    /// What the thread holds, and where it took it.
    static HELD: RefCell<Vec<(Rank, &'static Location<'static>)>> = const { RefCell::new(Vec::new()) };
}

#[cfg(debug_assertions)]
impl Mark {
    pub const fn new(rank: Rank) -> Self {
        Self(rank)
    }

    /// To be called before the thread waits for the lock.
    ///
    /// # Panics
    /// The thread holds a lock of this rank or a higher one.
    #[track_caller]
    pub fn takes(self) -> Held {
        if self.0.is_checked() && !std::thread::panicking() {
            let above = HELD.with_borrow(|held| held.iter().copied().find(|(rank, _)| *rank >= self.0));
            if let Some((rank, place)) = above {
                panic!("takes lock {:?} while it holds {rank:?}, taken at {place}: see sync::rank", self.0);
            }
        }
        self.has()
    }

    /// To be called when the thread holds the lock and has not waited for it, so that no order is broken.
    #[track_caller]
    pub fn has(self) -> Held {
        let held = Held(self.0);
        held.enter();
        held
    }
}

#[cfg(debug_assertions)]
impl Held {
    #[track_caller]
    fn enter(&self) {
        if self.0.is_checked() {
            let place = Location::caller();
            // A destructor of another thread-local value may run after the list is gone; it holds nothing else.
            let _ = HELD.try_with(|held| held.borrow_mut().push((self.0, place)));
        }
    }

    fn leave(&self) {
        if self.0.is_checked() {
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                if let Some(at) = held.iter().rposition(|(rank, _)| *rank == self.0) {
                    held.remove(at);
                }
            });
        }
    }

    /// Runs `f` while the lock is released.
    #[track_caller]
    pub fn without<T>(&mut self, f: impl FnOnce() -> T) -> T {
        struct Again<'a>(&'a Held, &'static Location<'static>);
        impl Drop for Again<'_> {
            fn drop(&mut self) {
                if self.0.0.is_checked() {
                    let _ = HELD.try_with(|held| held.borrow_mut().push((self.0.0, self.1)));
                }
            }
        }
        self.leave();
        let _again = Again(self, Location::caller());
        f()
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(not(debug_assertions))]
impl Mark {
    pub const fn new(_: Rank) -> Self {
        Self()
    }

    pub fn takes(self) -> Held {
        Held()
    }

    pub fn has(self) -> Held {
        Held()
    }
}

#[cfg(not(debug_assertions))]
impl Held {
    pub fn without<T>(&mut self, f: impl FnOnce() -> T) -> T {
        f()
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::Rank;
    use crate::sync::{Condvar, Mutex, MutexGuard, RwLock};

    fn panics(f: impl FnOnce() + Send) -> bool {
        crate::sync::thread::scope(|scope| scope.spawn(f).join().is_err())
    }

    #[test]
    fn locks_are_taken_by_rank() {
        let (outer, inner) = (Mutex::ranked(Rank::Outer, 1), RwLock::ranked(Rank::Inner, 2));
        assert!(!panics(|| {
            let outer = outer.lock();
            assert_eq!(*outer + *inner.read(), 3);
            *inner.write() += 1;
        }));
        for write in [false, true] {
            assert!(panics(|| {
                let _inner = if write { (Some(inner.write()), None) } else { (None, Some(inner.read())) };
                drop(outer.lock());
            }));
        }
    }

    #[test]
    fn two_locks_of_one_rank_are_not_held_together() {
        let (one, other) = (Mutex::ranked(Rank::Inner, ()), Mutex::ranked(Rank::Inner, ()));
        assert!(panics(|| {
            let _one = one.lock();
            drop(other.lock());
        }));
        assert!(!panics(|| {
            drop(one.lock());
            drop(other.lock());
        }));
    }

    #[test]
    fn a_lock_that_is_tried_is_held_but_breaks_no_order() {
        let (outer, inner) = (Mutex::ranked(Rank::Outer, ()), Mutex::ranked(Rank::Inner, ()));
        assert!(!panics(|| {
            let _inner = inner.lock();
            drop(outer.try_lock());
        }));
        assert!(panics(|| {
            let _inner = inner.try_lock();
            drop(outer.lock());
        }));
    }

    #[test]
    fn a_released_lock_does_not_count() {
        let (outer, inner, changed) = (Mutex::ranked(Rank::Outer, ()), Mutex::ranked(Rank::Inner, ()), Condvar::new());
        assert!(!panics(|| {
            let mut held = inner.lock();
            MutexGuard::unlocked(&mut held, || drop(outer.lock()));
            assert!(changed.wait_for(&mut held, std::time::Duration::ZERO).timed_out());
        }));
        assert!(panics(|| {
            let mut held = inner.lock();
            MutexGuard::unlocked(&mut held, || ());
            drop(outer.lock());
        }));
    }

    #[test]
    fn unranked_locks_are_taken_in_any_order() {
        let (unranked, inner) = (Mutex::new(()), Mutex::ranked(Rank::Inner, ()));
        assert!(!panics(|| {
            let _inner = inner.lock();
            let _unranked = unranked.lock();
        }));
        assert!(!panics(|| {
            let _unranked = unranked.lock();
            let _inner = inner.lock();
        }));
    }
}
