//! TTL limits by the state of a job, which is read from the body.
//!
//! After a lost purge, clients see the old state until the TTL ends. That matters while a job runs,
//! but not once it has finished. So each state may have its own limit.

use std::{collections::HashMap, time::Duration};

use crate::semantics::{json_pointer::JsonPointer, settings};

/// Greatest TTL of an entry, by the state of its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateTtls {
    pointer: JsonPointer,
    ttls: HashMap<String, Duration>,
    /// Limit for unknown states, in which a job may change often.
    shortest: Duration,
}

impl StateTtls {
    /// Creates the limits from the configuration; `None` if no state has one.
    pub fn new(settings: &settings::StateTtlConfig) -> Option<Self> {
        let shortest = settings.map.iter().map(|(_, ttl)| *ttl).min()?;
        let ttls = settings.map.iter().cloned().collect();
        Some(Self { pointer: settings.pointer.clone(), ttls, shortest })
    }

    /// Returns the limit for a job with this body. Returns the shortest limit if the state is not in
    /// the map or cannot be found, or if the body is not JSON.
    pub fn ttl(&self, body: &[u8]) -> Duration {
        let state = self.pointer.scalar(body);
        state.and_then(|state| self.ttls.get(&state).copied()).unwrap_or(self.shortest)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::StateTtls;
    use crate::{config, semantics::json_pointer::JsonPointer};

    fn config(map: &[(&str, u64)]) -> config::StateTtlConfig {
        let pointer = JsonPointer::parse("/job/status").unwrap();
        let ttl =
            |&(state, seconds): &(&str, u64)| (state.to_owned(), Duration::from_secs(seconds));
        config::StateTtlConfig { pointer, map: map.iter().map(ttl).collect() }
    }

    #[track_caller]
    fn check(body: &str, seconds: u64) {
        let map = [("completed", 300), ("running", 10), ("true", 60), ("3", 30)];
        let states = StateTtls::new(&config(&map)).unwrap();
        assert_eq!(states.ttl(body.as_bytes()), Duration::from_secs(seconds), "{body}");
    }

    #[test]
    fn each_state_has_its_own_life() {
        check(r#"{"job":{"status":"completed"}}"#, 300);
        check(r#"{"job":{"status":"running"}}"#, 10);
        check(r#"{"job":{"status":true}}"#, 60);
        check(r#"{"job":{"status":3}}"#, 30);
        check(r#"{"job":{"status":"3"}}"#, 30);
    }

    #[test]
    fn what_is_not_known_has_the_shortest() {
        for status in ["\"paused\"", "\"Completed\"", "false", "4", "3.0", "null", "{}", "[3]"] {
            check(&format!(r#"{{"job":{{"status":{status}}}}}"#), 10);
        }
        check(r#"{"job":{}}"#, 10);
        check(r#"{"status":"completed"}"#, 10);
        check(r#"{"job":{"status":"completed"}"#, 10);
        check("completed", 10);
        check("", 10);
    }

    #[test]
    fn without_states_there_is_no_such_limit() {
        assert_eq!(StateTtls::new(&config(&[])), None);
    }
}
