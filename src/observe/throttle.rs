//! Throttles for warnings that every request may cause. They are independent of the logger.

use std::{
    collections::HashMap,
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

/// Interval between two warnings about one name.
const NAME_INTERVAL: Duration = Duration::from_hours(1);
/// Most names that are remembered with their last warning.
const MAX_NAMES: usize = 64;

/// Admits one warning per name and hour. The names may come from clients, so at most 64
/// are remembered; there are no warnings about further names until one expires.
#[derive(Debug, Default)]
pub struct HourlyPerName(Mutex<HashMap<Box<str>, Instant>>);

impl HourlyPerName {
    /// Whether a warning about this name should be logged now.
    pub fn admits(&self, name: &str) -> bool {
        let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.get(name).is_some_and(|at| at.elapsed() < NAME_INTERVAL) {
            return false;
        }
        if warned.len() >= MAX_NAMES {
            warned.retain(|_, at| at.elapsed() < NAME_INTERVAL);
        }
        let has_room = warned.len() < MAX_NAMES;
        if has_room {
            warned.insert(name.into(), Instant::now());
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_warned_about_once_an_hour_and_the_names_are_bounded() {
        let throttle = HourlyPerName::default();
        assert!(throttle.admits("x-token") && !throttle.admits("x-token"));
        for n in 1..MAX_NAMES {
            assert!(throttle.admits(&n.to_string()));
        }
        assert!(!throttle.admits("one too many"));
        let age = |name: &str| {
            let mut warned = throttle.0.lock().unwrap();
            let at = warned.get_mut(name).unwrap();
            *at = at.checked_sub(NAME_INTERVAL).unwrap();
        };
        age("x-token");
        assert!(throttle.admits("one too many") && !throttle.admits("x-token"));
        age("7");
        assert!(throttle.admits("x-token"));
    }

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
