//! The history of a job, as `/explain` shows it.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::{
    observe::events::{
        EventKind,
        jobs::{JobEvent, JobHistory},
    },
    semantics::policy::NoStore,
};

/// The events of a job as JSON, oldest first.
pub(super) fn events_json(past: &JobHistory) -> Value {
    past.events.iter().map(event_json).collect()
}

/// One event as JSON, with the time of its last occurrence for programs and for people.
pub(super) fn event_json(event: &JobEvent) -> Value {
    let mut object = json!({
        "what": event.what.as_str(),
        "at": rfc3339(from_unix_ms(event.last_ms)),
        "at_ms": event.last_ms,
        "times": event.times,
    });
    if event.times > 1 {
        object["since_ms"] = event.first_ms.into();
    }
    if !event.why.is_empty() {
        object["why"] = event.why.into();
    }
    if let Some(by) = &event.by {
        object["by"] = by.as_ref().into();
    }
    object
}

/// The outcome of most recent requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UsualOutcome {
    pub(super) outcome: &'static str,
    pub(super) why: &'static str,
    times: u64,
    total: u64,
}

impl fmt::Display for UsualOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { why, times, total: of, .. } = self;
        match self.outcome {
            "pass" => write!(f, "its last requests bypassed the cache: {why}")?,
            _ => write!(f, "its last requests were misses: {why}")?,
        }
        write!(f, " ({times} of {of})")
    }
}

/// Returns the outcome of more than half of the recent requests if it has a reason. There is none
/// for hits, and for misses of a job without an entry.
pub(super) fn usual_outcome(past: &JobHistory) -> Option<UsualOutcome> {
    let is_request = |event: &&JobEvent| {
        matches!(event.what, EventKind::Hit | EventKind::Miss | EventKind::Pass | EventKind::Error)
    };
    let requests = || past.events.iter().filter(is_request);
    let of = requests().map(|event| event.times).sum();
    let same = |as_this: &JobEvent| -> u64 {
        let same =
            requests().filter(|event| (event.what, event.why) == (as_this.what, as_this.why));
        same.map(|event| event.times).sum()
    };
    let most = requests().find(|event| same(event) > of / 2)?;
    let has_reason = matches!(most.what, EventKind::Miss | EventKind::Pass) && !most.why.is_empty();
    let (outcome, why, times) = (most.what.as_str(), most.why, same(most));
    has_reason.then_some(UsualOutcome { outcome, why, times, total: of })
}

/// Returns why the last answer could not be stored, if the reason lies in the answer itself.
pub(super) fn last_refusal(past: &JobHistory) -> Option<&'static str> {
    let refused = past.events.iter().rev().filter(|event| event.what == EventKind::FillRefused);
    refused
        .map(|event| event.why)
        .find(|why| NoStore::ALL.iter().any(|no_store| no_store.as_str() == *why))
}

/// A write through this sidecar.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastWrite {
    pub(super) what: EventKind,
    pub(super) why: &'static str,
    last_ms: i64,
    first_ms: i64,
}

impl LastWrite {
    /// Returns how long ago it began, if it is in flight, or ended.
    pub(super) fn ago(&self, now: SystemTime) -> Duration {
        let ms = if self.what == EventKind::Write { self.first_ms } else { self.last_ms };
        now.duration_since(from_unix_ms(ms)).unwrap_or_default()
    }
}

/// Returns the begin or the end of the last write.
pub(super) fn last_write(past: &JobHistory) -> Option<LastWrite> {
    let is_write =
        |event: &&JobEvent| matches!(event.what, EventKind::Write | EventKind::WriteEnded);
    let event = past.events.iter().rev().find(is_write)?;
    let &JobEvent { what, why, first_ms, last_ms, .. } = event;
    Some(LastWrite { what, why, last_ms, first_ms })
}

/// Formats a time as RFC 3339, in UTC.
pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

fn from_unix_ms(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(happenings: &[(EventKind, &'static str, u64)]) -> JobHistory {
        let happening = |&(what, why, times)| JobEvent {
            what,
            why,
            by: None,
            first_ms: 1_000,
            last_ms: 2_000,
            times,
        };
        JobHistory { events: happenings.iter().map(happening).collect(), all_purged: None }
    }

    #[test]
    fn what_most_of_the_last_requests_came_to_is_told_where_it_has_a_reason() {
        let text = |happenings: &[_]| usual_outcome(&past(happenings)).map(|most| most.to_string());
        let (query, hit) = ((EventKind::Pass, "query", 8), (EventKind::Hit, "", 5));
        let all = [query, (EventKind::Purge, "confirmed", 50), hit, query];
        assert_eq!(
            text(&all).as_deref(),
            Some("its last requests bypassed the cache: query (16 of 21)")
        );
        let old = [(EventKind::Miss, "no-cache", 3), (EventKind::Hit, "", 1)];
        assert_eq!(text(&old).as_deref(), Some("its last requests were misses: no-cache (3 of 4)"));
        assert_eq!(text(&[query, hit, (EventKind::Miss, "", 4)]), None, "not a majority");
        assert_eq!(text(&[hit, (EventKind::Miss, "", 1)]), None);
        assert_eq!(text(&[]), None);
    }

    #[test]
    fn a_refusal_is_what_the_answer_itself_says() {
        let refused = |why| (EventKind::FillRefused, why, 1);
        let all = past(&[refused("vary"), refused("set-cookie"), refused("revoked")]);
        assert_eq!(last_refusal(&all), Some("set-cookie"));
        assert_eq!(last_refusal(&past(&[refused("revoked")])), None);
    }
}
