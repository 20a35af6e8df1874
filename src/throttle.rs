//! A throttle for warnings that every request may cause. It is independent of the logger.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Shortest interval between two equal warnings.
const REPEAT_AFTER: Duration = Duration::from_mins(1);
/// Shortest interval between two different warnings.
const RENEW_AFTER: Duration = Duration::from_secs(1);

/// Suppresses repeated warnings and counts them. A warning with a new text is admitted sooner.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Option<Given>>);

#[derive(Debug)]
struct Given {
    text: String,
    at: Instant,
    suppressed: u64,
}

impl Throttle {
    /// Returns `Some` if the warning should be logged now, with the number of warnings that were
    /// suppressed since the last one.
    pub fn admit(&self, text: &str) -> Option<u64> {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut suppressed = 0;
        if let Some(last) = given.as_mut() {
            let interval = if last.text == text { REPEAT_AFTER } else { RENEW_AFTER };
            if last.at.elapsed() < interval {
                last.suppressed += 1;
                return None;
            }
            suppressed = last.suppressed;
        }
        *given = Some(Given { text: text.to_owned(), at: Instant::now(), suppressed: 0 });
        Some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_given_once_a_minute_and_sooner_if_it_says_something_new() {
        let throttle = Throttle::default();
        assert_eq!(throttle.admit("refused"), Some(0));
        assert_eq!((throttle.admit("refused"), throttle.admit("no auth")), (None, None));
        let age = |by| {
            let mut given = throttle.0.lock().unwrap();
            let given = given.as_mut().unwrap();
            given.at = given.at.checked_sub(by).unwrap();
        };
        age(RENEW_AFTER);
        assert_eq!(throttle.admit("refused"), None);
        assert_eq!(throttle.admit("no auth"), Some(3));
        age(REPEAT_AFTER);
        assert_eq!(throttle.admit("no auth"), Some(0));
    }
}
