//! A throttle for warnings that every request may cause. It is independent of the logger.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Shortest interval between two equal warnings.
const SAME_TEXT_INTERVAL: Duration = Duration::from_mins(1);
/// Shortest interval between two different warnings.
const NEW_TEXT_INTERVAL: Duration = Duration::from_secs(1);

/// Suppresses repeated warnings and counts them. A warning with a new text is admitted sooner.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Option<LastWarning>>);

#[derive(Debug)]
struct LastWarning {
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
            let interval = if last.text == text { SAME_TEXT_INTERVAL } else { NEW_TEXT_INTERVAL };
            if last.at.elapsed() < interval {
                last.suppressed += 1;
                return None;
            }
            suppressed = last.suppressed;
        }
        *given = Some(LastWarning { text: text.to_owned(), at: Instant::now(), suppressed: 0 });
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
        age(NEW_TEXT_INTERVAL);
        assert_eq!(throttle.admit("refused"), None);
        assert_eq!(throttle.admit("no auth"), Some(3));
        age(SAME_TEXT_INTERVAL);
        assert_eq!(throttle.admit("no auth"), Some(0));
    }
}
