//! Holding back warnings that every request may give. It knows nothing of logs, and nothing of ours.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A warning that says the same is given as often as this.
const REPEAT_AFTER: Duration = Duration::from_mins(1);
/// One that says something new, as often as this.
const RENEW_AFTER: Duration = Duration::from_secs(1);

/// Holds back a warning that has been given of late, unless it says something new, and counts how
/// often it did.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Option<Given>>);

#[derive(Debug)]
struct Given {
    text: String,
    at: Instant,
    suppressed: u64,
}

impl Throttle {
    /// Whether to give the warning now: how many were held back since the last.
    pub fn admit(&self, text: &str) -> Option<u64> {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut suppressed = 0;
        if let Some(last) = given.as_mut() {
            let pause = if last.text == text { REPEAT_AFTER } else { RENEW_AFTER };
            if last.at.elapsed() < pause {
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
        let earlier = |by| {
            let mut given = throttle.0.lock().unwrap();
            let given = given.as_mut().unwrap();
            given.at = given.at.checked_sub(by).unwrap();
        };
        earlier(RENEW_AFTER);
        assert_eq!(throttle.admit("refused"), None);
        assert_eq!(throttle.admit("no auth"), Some(3));
        earlier(REPEAT_AFTER);
        assert_eq!(throttle.admit("no auth"), Some(0));
    }
}
