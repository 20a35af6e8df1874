//! The sentences of a verdict, and the history of a job that they quote. Each sentence continues "a
//! request like this ...".

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Method;
use serde_json::{Value, json};

use crate::{
    cache::{
        OUTCOME_UNKNOWN,
        entry::Reject,
        forecast::{ForecastReport, MissReason},
    },
    observe::events::{
        EventKind,
        jobs::{JobEvent, JobHistory},
    },
    proxy::framing::Refusal,
    semantics::{
        policy::{Bypass, NoStore},
        push_request::PushRequest,
    },
};

/// The sentence for a hit.
pub(super) fn hit_text(explained: &ForecastReport, ttl: Duration) -> String {
    let from = if explained.near { "this process" } else { "Redis" };
    let left = ttl.as_secs();
    format!(
        "would be a hit, from {from}: the API has served this to the same caller; {left} s left"
    )
}

/// The sentence for a miss, whose answer is stored if that is allowed.
pub(super) fn miss_text(reason: MissReason, explained: &ForecastReport, now: SystemTime) -> String {
    let text = match reason {
        MissReason::NoEntry => {
            "would go to the API: there is no entry; the answer is stored if that is allowed"
        }
        MissReason::NotInAudience => {
            "would go to the API: this credential is not in the audience of the entry; it is added if \
             the API gives it the same answer; otherwise its answer replaces the entry"
        }
        MissReason::OtherVariant => {
            "would go to the API: the entry is for this credential, but for another variant (host, \
             path, Accept or another header that is not known to say nothing about the caller)"
        }
        MissReason::Lapsed => {
            "would go to the API: the API last served this to the same caller too long ago \
             (credentials.recheck)"
        }
        MissReason::TooOld => {
            "would go to the API: the entry is older than the request accepts (its Cache-Control); the \
             answer replaces the entry"
        }
        MissReason::Unconfirmed(why) => return bypass_text(why, explained, now),
        MissReason::Rejected(why) => rejected_text(why),
    };
    match reason {
        MissReason::NotInAudience | MissReason::OtherVariant | MissReason::Lapsed => {
            format!("{text}{}", differing_text(explained))
        }
        _ => text.to_owned(),
    }
}

fn rejected_text(why: Reject) -> &'static str {
    match why {
        Reject::Foreign => {
            "would go to the API: the value in Redis was not stored by jobcache, so it is dropped and \
             the answer is stored"
        }
        Reject::Corrupt => {
            "would go to the API: this version cannot read the entry in Redis; the answer replaces it"
        }
        Reject::Epoch => {
            "would go to the API: the entry is from before Redis restarted or failed over; the answer \
             replaces it"
        }
        Reject::Purged => {
            "would go to the API: the entry is from before a purge of all; the answer replaces it"
        }
        Reject::Identity => {
            "would go to the API: the entry in Redis is of another route or API with the same key; the \
             answer replaces it (give one of them another store.prefix)"
        }
    }
}

/// The addition for a client that asks to wait for the next version; empty for any other, and if the
/// read bypasses the cache.
pub(super) fn push_text(outcome: &str, waits: Option<PushRequest>) -> String {
    match waits.filter(|_| ["hit", "miss"].contains(&outcome)) {
        None => String::new(),
        Some(PushRequest::Poll { wait }) => format!(
            "; it has If-None-Match and Prefer: wait, so it would be held until the job has another \
             ETag than that, for at most {} s",
            wait.as_secs()
        ),
        Some(PushRequest::Stream { .. }) => {
            "; it accepts text/event-stream, so it would get a stream of events with this version and \
             each later one"
                .to_owned()
        }
    }
}

/// The addition if unknown headers keep the callers of a job apart; empty if there are none.
pub(super) fn splitting_text(headers: &[String]) -> String {
    if headers.is_empty() {
        return String::new();
    }
    format!(
        "; callers of this job are kept apart by unknown headers with many values ({}): if the API's \
         answer does not depend on one, add it to credentials.ignore; if it identifies the caller, add \
         it to credentials.headers",
        headers.join(", ")
    )
}

/// Names the headers in which recent answers with the same body differed, if there are any.
fn differing_text(explained: &ForecastReport) -> String {
    let names = explained.marks.differing_headers.join(", ");
    if names.is_empty() {
        return String::new();
    }
    format!(
        "; the last answers for this job had the same body and differed in {names}, so callers do not \
         share them (if that says nothing about the job: responses.volatile)"
    )
}

/// The sentence for a bypass, with its cause and how long it lasts if they are known.
pub(super) fn bypass_text(why: Bypass, explained: &ForecastReport, now: SystemTime) -> String {
    let state = explained.state.as_ref().ok();
    let text =
        bypass_cause(why, explained, now).unwrap_or_else(|| bypass_reason_text(why).to_owned());
    match why {
        Bypass::Fenced => with_time_left(text, state.and_then(|state| state.fence_left_ms)),
        Bypass::Leased => with_time_left(text, lease_left_ms(explained)),
        _ => text,
    }
}

/// The sentence for a request that waits for the entry of another reader.
pub(super) fn wait_text(explained: &ForecastReport) -> String {
    let text = "would wait at most 250 ms for another sidecar that is reading the job for the same \
                caller, then go to the API as well";
    with_time_left(text.to_owned(), lease_left_ms(explained))
}

pub(super) fn lease_left_ms(explained: &ForecastReport) -> Option<i64> {
    explained.state.as_ref().ok()?.lease.as_ref().map(|lease| lease.left_ms)
}

fn with_time_left(text: String, left_ms: Option<i64>) -> String {
    match left_ms.and_then(|left_ms| u64::try_from(left_ms).ok()) {
        Some(left_ms) => format!("{text} (at most {left_ms} ms left)"),
        None => text,
    }
}

/// Returns a more precise sentence if the marks or the events show the cause.
fn bypass_cause(why: Bypass, explained: &ForecastReport, now: SystemTime) -> Option<String> {
    match why {
        Bypass::Audience if explained.marks.is_replaced_too_often => Some(format!(
            "would go to the API: it answers each client differently (one client's answer replaced \
             another's {} times recently){}",
            explained.marks.replacements,
            differing_text(explained)
        )),
        Bypass::Audience => Some(
            "would go to the API: more clients poll this job than credentials.audience".to_owned(),
        ),
        Bypass::Uncacheable => last_refusal(&explained.history).map(|refusal| {
            format!("would go to the API: the last answer could not be stored ({refusal})")
        }),
        Bypass::Fenced => last_write(&explained.history, now).map(|(last, ago)| {
            let ago = ago.as_secs();
            match (last.what, last.why) {
                (EventKind::Write, _) => {
                    format!("would go to the API: a write has been in flight for {ago} s")
                }
                (_, OUTCOME_UNKNOWN) => format!(
                    "would go to the API: a write ended {ago} s ago, and its outcome is unknown"
                ),
                _ => format!(
                    "would go to the API: a write ended {ago} s ago, and nothing is stored until the \
                     settle time is over (settle)"
                ),
            }
        }),
        _ => None,
    }
}

/// The sentence for a bypass in shadow mode, if it differs from that of mode `on`.
pub(super) fn shadow_text(why: Bypass) -> Option<&'static str> {
    match why {
        Bypass::OnlyIfCached => Some(
            "would go to the API (mode is shadow): with mode on it would be answered 504, because it \
             accepts only a cached answer",
        ),
        Bypass::Leased => Some(
            "would go to the API (mode is shadow): another caller or sidecar is reading the job, and \
             with mode on it would wait for that at most 250 ms, if that is for the same caller",
        ),
        _ => None,
    }
}

/// The sentence for a request that is refused before routing.
pub(super) fn refused_text(why: Refusal) -> &'static str {
    match why {
        Refusal::Host => {
            "a request over HTTP/1.1 needs exactly one valid Host; if it was left out only here, add it \
             or leave out HTTP/1.1"
        }
        Refusal::Target => "its target has a form that its method does not allow",
        Refusal::TransferCoding => "its Transfer-Encoding is not chunked",
        Refusal::Connect => "jobcache does not open tunnels",
        Refusal::UriTooLong => "its path and query are longer than server.max_uri",
        Refusal::TooManyHeaders => "it has more fields than server.max_headers",
    }
}

/// The sentence for a write.
pub(super) fn write_text(method: &Method) -> &'static str {
    let upper = method.as_str().to_ascii_uppercase();
    if upper != method.as_str() && ["GET", "HEAD", "OPTIONS", "TRACE"].contains(&&*upper) {
        return "would be forwarded as a write, and the entry is dropped before the answer is sent: \
                method names are case-sensitive, and a lower-case method may do anything";
    }
    "would be forwarded as a write, and the entry is dropped before the answer is sent"
}

/// The sentence for a bypass, by its reason alone.
pub(super) fn bypass_reason_text(why: Bypass) -> &'static str {
    match why {
        Bypass::Path => "would go to the API: its path is not the path of a job (routes)",
        Bypass::Method => {
            "would go to the API: its method does not fill an entry, and there is no entry for it"
        }
        Bypass::Query => {
            "would go to the API: it has a query string (query.ignore and query.allow admit parameters)"
        }
        Bypass::Spelling => {
            "would go to the API: its path is not the canonical spelling of a job's path (ids = \
             \"opaque\" takes ids as text)"
        }
        Bypass::Word => {
            "would go to the API: an id without a digit is taken for a word, such as stats or latest, \
             and not for a job (ids = \"opaque\" takes ids as text)"
        }
        Bypass::Except => {
            "would go to the API: its path is one of those that are never cached (except)"
        }
        Bypass::RequestBody => "would go to the API: it is a read with a body",
        Bypass::Upgrade => "would go to the API: it asks for a protocol upgrade",
        Bypass::Range => "would go to the API: it asks for a range",
        Bypass::Precondition => "would go to the API: only the API can evaluate its precondition",
        Bypass::MethodOverride => "would go to the API: a header names another method",
        Bypass::UrlOverride => "would go to the API: a header names another URL",
        Bypass::Credentials => {
            "would go to the API: it carries a credential, and credentials.mode is bypass"
        }
        Bypass::BoundConnection => {
            "would go to the API: a login over NTLM, Negotiate or Kerberos belongs to its connection"
        }
        Bypass::NoStore => "would go to the API: the request says no-store, and there is no hit",
        Bypass::NoCache => "would go to the API: the request does not accept a cached answer",
        Bypass::OnlyIfCached => {
            "would be answered 504: it accepts only a cached answer, and there is none for it"
        }
        Bypass::Uncacheable => {
            "would go to the API: the last answer could not be stored; see fill-refused in the events"
        }
        Bypass::Fenced => {
            "would go to the API: a write is in flight, its outcome is unknown, or it has just ended \
             (settle)"
        }
        Bypass::Leased => {
            "would go to the API: another caller or sidecar is reading the job, or another route or API \
             with the same key, and it is of no use to wait for that"
        }
        Bypass::Pending => {
            "would go to the API: Redis has not confirmed an invalidation, which is retried until it is \
             confirmed"
        }
        Bypass::StoreDown => "would go to the API: Redis is down",
        Bypass::StoreSlow => {
            "would go to the API: Redis is too far away for store.budget; the log names the value to set"
        }
        Bypass::StoreTimeout => {
            "would go to the API: Redis does not answer in time, or the value of this job took too long \
             a moment ago"
        }
        Bypass::StoreError => {
            "would go to the API: Redis answers with an error, such as for a key of another type"
        }
        Bypass::Grace => {
            "would go to the API: Redis has just restarted or failed over, and other sidecars may still \
             have to repeat invalidations (store.reconnect_grace)"
        }
        Bypass::Foreign => {
            "would go to the API: another program, most likely the application, stores values of its own \
             under the keys of this cache (switch that off, but keep its DELs)"
        }
        Bypass::Audience => {
            "would go to the API: it answers each client differently, or more clients poll this job \
             than credentials.audience"
        }
        Bypass::Flights => {
            "would go to the API: the limit of shared reads is reached (max_flights)"
        }
        Bypass::Alone => "would go to the API: the answer that it waited for could not be shared",
        Bypass::ShadowHit => {
            "would go to the API, and its answer would be compared with the entry (mode is shadow)"
        }
        Bypass::Shadow => "would go to the API by itself without sharing a read (mode is shadow)",
        Bypass::Off => "would go to the API: mode is off",
    }
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

/// Returns the outcome of more than half of the recent requests if it has a reason, and a sentence
/// about it. There is none for hits, and for misses of a job without an entry.
pub(super) fn usual_outcome(past: &JobHistory) -> Option<(&JobEvent, String)> {
    let is_request = |event: &&JobEvent| {
        matches!(event.what, EventKind::Hit | EventKind::Miss | EventKind::Pass | EventKind::Error)
    };
    let requests = || past.events.iter().filter(is_request);
    let total: u64 = requests().map(|event| event.times).sum();
    let same = |as_this: &JobEvent| -> u64 {
        let same =
            requests().filter(|event| (event.what, event.why) == (as_this.what, as_this.why));
        same.map(|event| event.times).sum()
    };
    let most =
        requests().find(|event| same(event) > total / 2).filter(|most| !most.why.is_empty())?;
    let (why, times) = (most.why, same(most));
    let outcome = match most.what {
        EventKind::Pass => "bypassed the cache",
        EventKind::Miss => "were misses",
        _ => return None,
    };
    Some((most, format!("its last requests {outcome}: {why} ({times} of {total})")))
}

/// Returns why the last answer could not be stored, if the reason lies in the answer itself.
fn last_refusal(past: &JobHistory) -> Option<&'static str> {
    let refused = past.events.iter().rev().filter(|event| event.what == EventKind::FillRefused);
    refused.map(|event| event.why).find(|why| NoStore::WORDS.contains(why))
}

/// Returns the begin or the end of the last write through this sidecar, and how long ago it was.
fn last_write(past: &JobHistory, now: SystemTime) -> Option<(&JobEvent, Duration)> {
    let is_write =
        |event: &&JobEvent| matches!(event.what, EventKind::Write | EventKind::WriteEnded);
    let last = past.events.iter().rev().find(is_write)?;
    let at_ms = if last.what == EventKind::Write { last.first_ms } else { last.last_ms };
    Some((last, now.duration_since(from_unix_ms(at_ms)).unwrap_or_default()))
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
        let text = |happenings: &[_]| usual_outcome(&past(happenings)).map(|(_, text)| text);
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
