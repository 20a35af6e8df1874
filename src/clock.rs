//! The one owner of the wall clock, so that everything else takes `now` as an argument.

use std::time::SystemTime;

/// Now, by this machine's clock.
#[allow(clippy::disallowed_methods, reason = "this is the owner that the ban points to")]
pub fn now() -> SystemTime {
    SystemTime::now()
}
