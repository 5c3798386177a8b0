//! Threads.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::current as present;
use super::state::On;
use super::world::Task;

pub use std::thread::{Thread, ThreadId, current};

/// As `std::thread::Builder`.
#[derive(Debug)]
pub struct Builder {
    real: std::thread::Builder,
    name: String,
    /// Its start may fail when that is simulated.
    may_fail: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

/// As `std::thread::JoinHandle`.
pub struct JoinHandle<T> {
    real: std::thread::JoinHandle<T>,
    task: Option<Task>,
}

/// As `std::thread::ScopedJoinHandle`.
pub struct ScopedJoinHandle<'scope, T> {
    real: std::thread::ScopedJoinHandle<'scope, T>,
    task: Option<Task>,
}

/// As `std::thread::Scope`.
#[repr(transparent)]
pub struct Scope<'scope, 'env: 'scope>(std::thread::Scope<'scope, 'env>);

/// A task for a new thread, if the present one belongs to a run.
#[track_caller]
fn prepare(name: &str, may_fail: bool) -> io::Result<Option<Task>> {
    let Some(task) = present() else { return Ok(None) };
    task.point("spawn");
    let fails = {
        let mut state = task.world.state.lock();
        let one_in = state.config.spawn_failure_one_in;
        may_fail && state.random.one_in(one_in)
    };
    if fails {
        return Err(io::Error::from_raw_os_error(libc::EAGAIN));
    }
    Ok(Some(task.add(name.to_owned())))
}

impl Builder {
    /// A thread without a name.
    pub fn new() -> Self {
        Self { real: std::thread::Builder::new(), name: "thread".into(), may_fail: true }
    }

    /// For callers that cannot do without: no failure is simulated.
    fn sure() -> Self {
        Self { may_fail: false, ..Self::new() }
    }

    /// Names it.
    #[must_use]
    pub fn name(self, name: String) -> Self {
        Self { real: self.real.name(name.clone()), name, ..self }
    }

    /// Sets the size of its stack.
    #[must_use]
    pub fn stack_size(self, bytes: usize) -> Self {
        Self { real: self.real.stack_size(bytes), ..self }
    }

    /// Starts it.
    ///
    /// # Errors
    /// The machine has no more threads.
    #[track_caller]
    pub fn spawn<T: Send + 'static>(self, body: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
        let Some(task) = prepare(&self.name, self.may_fail)? else {
            return Ok(JoinHandle { real: self.real.spawn(body)?, task: None });
        };
        let life = task.clone();
        let real = self.real.spawn(move || life.life(body)).inspect_err(|_| task.never_started())?;
        task.starts(real.thread().clone());
        Ok(JoinHandle { real, task: Some(task) })
    }

    /// Starts it in a scope.
    ///
    /// # Errors
    /// The machine has no more threads.
    #[track_caller]
    pub fn spawn_scoped<'scope, T: Send + 'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        body: impl FnOnce() -> T + Send + 'scope,
    ) -> io::Result<ScopedJoinHandle<'scope, T>> {
        let Some(task) = prepare(&self.name, self.may_fail)? else {
            return Ok(ScopedJoinHandle { real: self.real.spawn_scoped(&scope.0, body)?, task: None });
        };
        let life = task.clone();
        let real = self.real.spawn_scoped(&scope.0, move || life.life(body)).inspect_err(|_| task.never_started())?;
        task.starts(real.thread().clone());
        task.world.state.lock().scoped.push((scope.address(), task.id));
        Ok(ScopedJoinHandle { real, task: Some(task) })
    }
}

impl<'scope, 'env> Scope<'scope, 'env> {
    fn address(&self) -> usize {
        (&raw const self.0).addr()
    }

    /// Starts a thread.
    ///
    /// # Panics
    /// If the machine has no more threads.
    #[track_caller]
    pub fn spawn<T: Send + 'scope>(&'scope self, body: impl FnOnce() -> T + Send + 'scope) -> ScopedJoinHandle<'scope, T> {
        Builder::sure().spawn_scoped(self, body).expect("a thread")
    }
}

/// As `std::thread::scope`.
#[track_caller]
pub fn scope<'env, T>(f: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T) -> T {
    std::thread::scope(|real| {
        // SAFETY: `Scope` is a transparent wrapper, and the reference lives as long as the one that it is made of.
        let scope = unsafe { &*std::ptr::from_ref(real).cast::<Scope<'_, 'env>>() };
        let Some(task) = present() else { return f(scope) };
        let result = catch_unwind(AssertUnwindSafe(|| f(scope)));
        // The standard library would wait for real.
        while let Some(other) = task.take_scoped(scope.address()) {
            task.join(other);
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Starts a thread.
///
/// # Panics
/// If the machine has no more threads.
#[track_caller]
pub fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::sure().spawn(body).expect("a thread")
}

impl<T> JoinHandle<T> {
    /// Waits for its end.
    ///
    /// # Errors
    /// It panicked.
    #[track_caller]
    pub fn join(self) -> std::thread::Result<T> {
        wait_for(self.task.as_ref());
        self.real.join()
    }

    /// Whether it has ended.
    #[track_caller]
    pub fn is_finished(&self) -> bool {
        has_ended(self.task.as_ref()).unwrap_or_else(|| self.real.is_finished())
    }

    /// The thread.
    pub fn thread(&self) -> &std::thread::Thread {
        self.real.thread()
    }
}

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits for its end.
    ///
    /// # Errors
    /// It panicked.
    #[track_caller]
    pub fn join(self) -> std::thread::Result<T> {
        wait_for(self.task.as_ref());
        self.real.join()
    }

    /// Whether it has ended.
    #[track_caller]
    pub fn is_finished(&self) -> bool {
        has_ended(self.task.as_ref()).unwrap_or_else(|| self.real.is_finished())
    }
}

#[track_caller]
fn wait_for(task: Option<&Task>) {
    if let (Some(task), Some(me)) = (task, present()) {
        me.join(task.id);
    }
}

#[track_caller]
fn has_ended(task: Option<&Task>) -> Option<bool> {
    let (task, me) = (task?, present()?);
    me.point("is_finished");
    Some(me.has_ended(task.id))
}

/// Waits for some time.
#[track_caller]
pub fn sleep(duration: Duration) {
    match present() {
        None => std::thread::sleep(duration),
        Some(task) => drop(task.wait("sleep", On::Time, task.after(duration))),
    }
}

/// Lets others run.
#[track_caller]
pub fn yield_now() {
    match present() {
        None => std::thread::yield_now(),
        Some(task) => task.yield_now(),
    }
}
