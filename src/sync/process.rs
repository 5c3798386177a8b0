//! Values of which each process has one.

#[cfg(feature = "sim")]
use std::any::Any;
use std::sync::{Arc, OnceLock};

/// A value that the whole process shares, made when it is first used. A simulated run has a value of its own, so that two runs share
/// nothing.
pub struct PerProcess<T: 'static> {
    value: OnceLock<Arc<T>>,
    make: fn() -> T,
}

impl<T: Send + Sync + 'static> PerProcess<T> {
    /// A value that `make` makes at the first use. `make` must take no lock and wait for nothing.
    pub const fn new(make: fn() -> T) -> Self {
        Self { value: OnceLock::new(), make }
    }

    /// The value.
    ///
    /// # Panics
    /// Never: a value of a run is of the type of its static.
    pub fn get(&'static self) -> Arc<T> {
        #[cfg(feature = "sim")]
        if let Some(task) = super::sim::current() {
            let value = task.of_run((&raw const *self).addr(), || Arc::new((self.make)()) as Arc<dyn Any + Send + Sync>);
            return value.downcast().expect("the type of the static");
        }
        Arc::clone(self.value.get_or_init(|| Arc::new((self.make)())))
    }
}
