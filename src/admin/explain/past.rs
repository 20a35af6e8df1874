//! What happened to a job, as it is told.

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

/// All of it, oldest first.
pub(super) fn told(past: &Past) -> Value {
    past.happenings.iter().map(happening).collect()
}

/// With the time of the last of them for programs and for people.
pub(super) fn happening(it: &Happening) -> Value {
    let mut told = json!({
        "what": it.what.as_str(),
        "at": time(at(it.last_ms)),
        "at_ms": it.last_ms,
        "times": it.times,
    });
    if it.times > 1 {
        told["since_ms"] = it.first_ms.into();
    }
    if !it.why.is_empty() {
        told["why"] = it.why.into();
    }
    if let Some(by) = &it.by {
        told["by"] = by.as_ref().into();
    }
    told
}

/// What most of the last requests came to.
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
            "pass" => write!(f, "its last requests passed: {why}")?,
            _ => write!(f, "its last requests were misses: {why}")?,
        }
        write!(f, " ({times} of {of})")
    }
}

/// What most of the last requests came to, where that has a reason; none where they were hits, or
/// misses of a job that was not there.
pub(super) fn most(past: &Past) -> Option<Most> {
    let asked =
        |it: &&Happening| matches!(it.what, What::Hit | What::Miss | What::Pass | What::Error);
    let requests = || past.happenings.iter().filter(asked);
    let of = requests().map(|it| it.times).sum();
    let same = |of: &Happening| -> u64 {
        requests().filter(|it| (it.what, it.why) == (of.what, of.why)).map(|it| it.times).sum()
    };
    let most = requests().find(|it| same(it) > of / 2)?;
    let is_told = matches!(most.what, What::Miss | What::Pass) && !most.why.is_empty();
    let (outcome, why, times) = (most.what.as_str(), most.why, same(most));
    is_told.then_some(Most { outcome, why, times, of })
}

/// Why its last answer could not be stored, as the answer itself would have it.
pub(super) fn refusal(past: &Past) -> Option<&'static str> {
    let refused = past.happenings.iter().rev().filter(|it| it.what == What::FillRefused);
    refused
        .map(|it| it.why)
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
    /// Since when one is in flight, or has ended.
    pub(super) fn ago(&self, now: SystemTime) -> Duration {
        let ms = if self.what == What::Write { self.first_ms } else { self.last_ms };
        now.duration_since(at(ms)).unwrap_or_default()
    }
}

/// The beginning or the end of the last one.
pub(super) fn write(past: &Past) -> Option<Written> {
    let is_write = |it: &&Happening| matches!(it.what, What::Write | What::WriteEnded);
    let it = past.happenings.iter().rev().find(is_write)?;
    Some(Written { what: it.what, why: it.why, last_ms: it.last_ms, first_ms: it.first_ms })
}

/// A time as RFC 3339 writes it, in UTC.
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
        let said = |happenings: &[_]| most(&past(happenings)).map(|most| most.to_string());
        let (query, hit) = ((What::Pass, "query", 8), (What::Hit, "", 5));
        let all = [query, (What::Purge, "confirmed", 50), hit, query];
        assert_eq!(said(&all).as_deref(), Some("its last requests passed: query (16 of 21)"));
        let old = [(What::Miss, "no-cache", 3), (What::Hit, "", 1)];
        assert_eq!(said(&old).as_deref(), Some("its last requests were misses: no-cache (3 of 4)"));
        assert_eq!(said(&[query, hit, (What::Miss, "", 4)]), None, "not most");
        assert_eq!(said(&[hit, (What::Miss, "", 1)]), None);
        assert_eq!(said(&[]), None);
    }

    #[test]
    fn a_refusal_is_what_the_answer_itself_says() {
        let refused = |why| (What::FillRefused, why, 1);
        let all = past(&[refused("vary"), refused("set-cookie"), refused("revoked")]);
        assert_eq!(refusal(&all), Some("set-cookie"));
        assert_eq!(refusal(&past(&[refused("revoked")])), None);
    }
}
