//! The history of a job, as `/explain` shows it.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::{
    cache::policy::NoStore,
    events::{
        What,
        jobs::{Happening, Past},
    },
};

/// The events of a job as JSON, oldest first.
pub(super) fn told(past: &Past) -> Value {
    past.happenings.iter().map(happening).collect()
}

/// One event as JSON, with the time of its last occurrence for programs and for people.
pub(super) fn happening(event: &Happening) -> Value {
    let mut object = json!({
        "what": event.what.as_str(),
        "at": time(at(event.last_ms)),
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
pub(super) struct Most {
    pub(super) outcome: &'static str,
    pub(super) why: &'static str,
    times: u64,
    of: u64,
}

impl fmt::Display for Most {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { why, times, of, .. } = self;
        match self.outcome {
            "pass" => write!(f, "its last requests bypassed the cache: {why}")?,
            _ => write!(f, "its last requests were misses: {why}")?,
        }
        write!(f, " ({times} of {of})")
    }
}

/// Returns the outcome of more than half of the recent requests if it has a reason. There is none
/// for hits, and for misses of a job without an entry.
pub(super) fn most(past: &Past) -> Option<Most> {
    let is_request = |event: &&Happening| {
        matches!(event.what, What::Hit | What::Miss | What::Pass | What::Error)
    };
    let requests = || past.happenings.iter().filter(is_request);
    let of = requests().map(|event| event.times).sum();
    let same = |as_this: &Happening| -> u64 {
        let same =
            requests().filter(|event| (event.what, event.why) == (as_this.what, as_this.why));
        same.map(|event| event.times).sum()
    };
    let most = requests().find(|event| same(event) > of / 2)?;
    let has_reason = matches!(most.what, What::Miss | What::Pass) && !most.why.is_empty();
    let (outcome, why, times) = (most.what.as_str(), most.why, same(most));
    has_reason.then_some(Most { outcome, why, times, of })
}

/// Returns why the last answer could not be stored, if the reason lies in the answer itself.
pub(super) fn refusal(past: &Past) -> Option<&'static str> {
    let refused = past.happenings.iter().rev().filter(|event| event.what == What::FillRefused);
    refused
        .map(|event| event.why)
        .find(|why| NoStore::ALL.iter().any(|no_store| no_store.as_str() == *why))
}

/// A write through this sidecar.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) what: What,
    pub(super) why: &'static str,
    last_ms: i64,
    first_ms: i64,
}

impl Written {
    /// Returns how long ago it began, if it is in flight, or ended.
    pub(super) fn ago(&self, now: SystemTime) -> Duration {
        let ms = if self.what == What::Write { self.first_ms } else { self.last_ms };
        now.duration_since(at(ms)).unwrap_or_default()
    }
}

/// Returns the begin or the end of the last write.
pub(super) fn write(past: &Past) -> Option<Written> {
    let is_write = |event: &&Happening| matches!(event.what, What::Write | What::WriteEnded);
    let event = past.happenings.iter().rev().find(is_write)?;
    let &Happening { what, why, first_ms, last_ms, .. } = event;
    Some(Written { what, why, last_ms, first_ms })
}

/// Formats a time as RFC 3339, in UTC.
pub(super) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

fn at(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(happenings: &[(What, &'static str, u64)]) -> Past {
        let happening = |&(what, why, times)| Happening {
            what,
            why,
            by: None,
            first_ms: 1_000,
            last_ms: 2_000,
            times,
        };
        Past { happenings: happenings.iter().map(happening).collect(), all_purged: None }
    }

    #[test]
    fn what_most_of_the_last_requests_came_to_is_told_where_it_has_a_reason() {
        let text = |happenings: &[_]| most(&past(happenings)).map(|most| most.to_string());
        let (query, hit) = ((What::Pass, "query", 8), (What::Hit, "", 5));
        let all = [query, (What::Purge, "confirmed", 50), hit, query];
        assert_eq!(
            text(&all).as_deref(),
            Some("its last requests bypassed the cache: query (16 of 21)")
        );
        let old = [(What::Miss, "no-cache", 3), (What::Hit, "", 1)];
        assert_eq!(text(&old).as_deref(), Some("its last requests were misses: no-cache (3 of 4)"));
        assert_eq!(text(&[query, hit, (What::Miss, "", 4)]), None, "not a majority");
        assert_eq!(text(&[hit, (What::Miss, "", 1)]), None);
        assert_eq!(text(&[]), None);
    }

    #[test]
    fn a_refusal_is_what_the_answer_itself_says() {
        let refused = |why| (What::FillRefused, why, 1);
        let all = past(&[refused("vary"), refused("set-cookie"), refused("revoked")]);
        assert_eq!(refusal(&all), Some("set-cookie"));
        assert_eq!(refusal(&past(&[refused("revoked")])), None);
    }
}
