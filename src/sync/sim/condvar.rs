//! The condition variable.

use std::time::Duration;

use super::current;
use super::lock::MutexGuard;
use super::state::On;
use super::time::Instant;

/// As `parking_lot::Condvar`.
#[derive(Debug, Default)]
pub struct Condvar(parking_lot::Condvar);

/// As `parking_lot::WaitTimeoutResult`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether the time ended the wait.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    /// One that nothing waits for.
    pub const fn new() -> Self {
        Self(parking_lot::Condvar::new())
    }

    fn address(&self) -> usize {
        (&raw const self.0).addr()
    }

    /// Ends the wait of one thread; answers whether there was one.
    #[track_caller]
    pub fn notify_one(&self) -> bool {
        let Some(task) = current() else { return self.0.notify_one() };
        task.point("notify_one");
        task.world.state.lock().notify(self.address(), false) > 0
    }

    /// Ends the wait of all threads; answers how many.
    #[track_caller]
    pub fn notify_all(&self) -> usize {
        let Some(task) = current() else { return self.0.notify_all() };
        task.point("notify_all");
        task.world.state.lock().notify(self.address(), true)
    }

    /// Waits for a notification.
    #[track_caller]
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        match current() {
            None => self.0.wait(guard.real()),
            Some(_) => drop(self.wait_simulated(guard, None)),
        }
    }

    /// Waits for a notification, or for the time.
    #[track_caller]
    pub fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) -> WaitTimeoutResult {
        match current() {
            None => WaitTimeoutResult(self.0.wait_for(guard.real(), timeout).timed_out()),
            Some(task) => WaitTimeoutResult(self.wait_simulated(guard, task.after(timeout))),
        }
    }

    /// Waits for a notification, or for the moment.
    #[track_caller]
    pub fn wait_until<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, until: Instant) -> WaitTimeoutResult {
        self.wait_for(guard, until.saturating_duration_since(Instant::unobserved()))
    }

    /// Nothing runs between the release of the lock and the wait: the task keeps the baton.
    #[track_caller]
    fn wait_simulated<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, until: Option<u64>) -> bool {
        let Some(task) = current() else { return false };
        // Values that the caller has read without this lock may change before the wait.
        task.point("wait");
        guard.release();
        let timed_out = task.wait("wait", On::Notification(self.address()), until);
        guard.take_again();
        timed_out
    }
}
