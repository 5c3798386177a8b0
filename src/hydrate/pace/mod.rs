//! Rates of hydration: the budget that the hydrations of a store share, and the settings of an operator for one of them.

mod budget;
mod foreground;
mod rates;
mod throttle;
mod window;

pub use budget::{Budget, Sending, Wake};
pub use rates::{Rate, Waits, is_late, start_pause};
pub use throttle::{Asks, Throttle};
pub use window::Sent;
