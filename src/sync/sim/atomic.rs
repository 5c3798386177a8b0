//! Atomic numbers: each operation is a point, and sequentially consistent.

use std::fmt;
pub use std::sync::atomic::Ordering;

use super::current;

#[track_caller]
fn point(what: &'static str) {
    if let Some(task) = current() {
        task.point(what);
    }
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        /// As the one of the standard library.
        #[derive(Default)]
        pub struct $name(std::sync::atomic::$name);

        impl $name {
            /// One of this value.
            pub const fn new(value: $value) -> Self {
                Self(std::sync::atomic::$name::new(value))
            }

            /// The value.
            #[track_caller]
            pub fn load(&self, order: Ordering) -> $value {
                point("load");
                self.0.load(order)
            }

            /// Sets it.
            #[track_caller]
            pub fn store(&self, value: $value, order: Ordering) {
                point("store");
                self.0.store(value, order);
            }

            /// Sets it; answers what it was.
            #[track_caller]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                point("swap");
                self.0.swap(value, order)
            }

            /// Sets it if it is `old`; answers what it was.
            #[track_caller]
            pub fn compare_exchange(&self, old: $value, new: $value, success: Ordering, failure: Ordering) -> Result<$value, $value> {
                point("exchange");
                self.0.compare_exchange(old, new, success, failure)
            }

            /// As `compare_exchange`; does not fail without reason here.
            #[track_caller]
            pub fn compare_exchange_weak(&self, old: $value, new: $value, success: Ordering, failure: Ordering) -> Result<$value, $value> {
                point("exchange");
                self.0.compare_exchange(old, new, success, failure)
            }

            /// Sets it to what `f` gives for it, as one operation; answers what it was.
            #[track_caller]
            pub fn fetch_update(&self, set: Ordering, fetch: Ordering, f: impl FnMut($value) -> Option<$value>) -> Result<$value, $value> {
                point("update");
                self.0.fetch_update(set, fetch, f)
            }

            /// The value; nothing else can have it.
            pub fn get_mut(&mut self) -> &mut $value {
                self.0.get_mut()
            }

            /// The value.
            pub fn into_inner(self) -> $value {
                self.0.into_inner()
            }
        }

        impl From<$value> for $name {
            fn from(value: $value) -> Self {
                Self::new(value)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! fetch {
    ($name:ident, $value:ty, $($operation:ident),*) => {
        impl $name {
            $(
                /// Changes it; answers what it was.
                #[track_caller]
                pub fn $operation(&self, value: $value, order: Ordering) -> $value {
                    point(stringify!($operation));
                    self.0.$operation(value, order)
                }
            )*
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
atomic!(AtomicUsize, usize);
fetch!(AtomicBool, bool, fetch_or, fetch_and, fetch_xor, fetch_nand);
fetch!(AtomicU32, u32, fetch_add, fetch_sub, fetch_or, fetch_and, fetch_xor, fetch_max, fetch_min);
fetch!(AtomicU64, u64, fetch_add, fetch_sub, fetch_or, fetch_and, fetch_xor, fetch_max, fetch_min);
fetch!(AtomicUsize, usize, fetch_add, fetch_sub, fetch_or, fetch_and, fetch_xor, fetch_max, fetch_min);
