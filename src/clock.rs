//! The only place that reads the wall clock. All other code takes `now` as an argument.

use std::time::SystemTime;

/// Returns the current time of the system clock.
#[allow(clippy::disallowed_methods, reason = "the lint points to this function")]
pub fn now() -> SystemTime {
    SystemTime::now()
}
