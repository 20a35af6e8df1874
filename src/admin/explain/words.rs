//! The sentences of a verdict. Each goes on from "a request like this ...".

use std::time::{Duration, SystemTime};

use hyper::Method;

use super::past;
use crate::{
    cache::{
        OUTCOME_UNKNOWN, REPLACEMENTS,
        entry::Reject,
        explain::{Because, Explained},
        policy::Bypass,
    },
    events::What,
    proxy::framing::Refusal,
};

/// Why it would be a hit.
pub(super) fn hit(explained: &Explained, ttl: Duration) -> String {
    let from = if explained.near { "this process" } else { "Redis" };
    let left = ttl.as_secs();
    format!(
        "would be a hit, from {from}: the API has served this to the same caller; {left} s left"
    )
}

/// Why it would be read from the API, and stored if that is allowed.
pub(super) fn because(because: Because) -> &'static str {
    match because {
        Because::Nothing => {
            "would go to the API: there is no entry; its answer is stored if it may be"
        }
        Because::Outside => {
            "would go to the API: this credential is not in the audience of the entry; it joins if \
             the API gives it the same, and replaces the entry if not"
        }
        Because::OtherForm => {
            "would go to the API: the entry is for this credential, but in another form (host, path, \
             Accept or another header that the API may answer by)"
        }
        Because::Lapsed => {
            "would go to the API: it has served this to the same caller too long ago \
             (credentials.recheck)"
        }
        Because::Old => {
            "would go to the API: the request wants nothing as old as the entry (its Cache-Control); \
             the answer replaces the entry"
        }
        Because::Unconfirmed(why) => pass(why),
        Because::Rejected(Reject::Foreign) => {
            "would go to the API: the value in Redis is not what jobcache has stored, so it is \
             dropped and filled anew"
        }
        Because::Rejected(Reject::Corrupt) => {
            "would go to the API: the entry in Redis cannot be read by this version, and is filled anew"
        }
        Because::Rejected(Reject::Epoch) => {
            "would go to the API: the entry is from before Redis restarted or failed over, and is \
             filled anew"
        }
    }
}

/// Why it would go past the cache, which of its causes it is, and how long that lasts.
pub(super) fn left(why: Bypass, explained: &Explained, now: SystemTime) -> String {
    let state = explained.state.as_ref().ok();
    let left_ms = match why {
        Bypass::Fenced => state.and_then(|state| state.fence_left_ms),
        Bypass::Leased => state.and_then(|state| state.lease.as_ref()).map(|lease| lease.left_ms),
        _ => None,
    };
    let text = cause(why, explained, now).unwrap_or_else(|| pass(why).to_owned());
    match left_ms.and_then(|left_ms| u64::try_from(left_ms).ok()) {
        Some(left_ms) => format!("{text} (at most {left_ms} ms left)"),
        None => text,
    }
}

/// Which of its causes it is, where the marks or the events tell.
fn cause(why: Bypass, explained: &Explained, now: SystemTime) -> Option<String> {
    match why {
        Bypass::Audience if explained.replaced >= REPLACEMENTS => Some(format!(
            "would go to the API: it answers each client differently (its answer to one has replaced \
             another's {} times lately)",
            explained.replaced
        )),
        Bypass::Audience => Some(
            "would go to the API: more clients poll this job than credentials.audience".to_owned(),
        ),
        Bypass::Uncacheable => past::refusal(&explained.past).map(|refusal| {
            format!("would go to the API: the last answer could not be stored ({refusal})")
        }),
        Bypass::Fenced => past::write(&explained.past).map(|last| {
            let ago = last.ago(now).as_secs();
            match (last.what, last.why) {
                (What::Write, _) => {
                    format!("would go to the API: a write is in flight, since {ago} s")
                }
                (_, OUTCOME_UNKNOWN) => format!(
                    "would go to the API: a write ended {ago} s ago, and its outcome is unknown"
                ),
                _ => format!(
                    "would go to the API: a write ended {ago} s ago, and nothing is stored so soon \
                     after it (settle)"
                ),
            }
        }),
        _ => None,
    }
}

/// Why it would go past the cache in shadow mode, where that is for another reason than in service.
pub(super) fn in_shadow(why: Bypass) -> Option<&'static str> {
    match why {
        Bypass::OnlyIfCached => Some(
            "would go to the API: in service it would be answered 504, for it wants nothing but a \
             cached answer (mode is shadow)",
        ),
        Bypass::Leased => Some(
            "would go to the API: somebody else (another caller here, or another sidecar) is reading it \
             at this moment, for which it would wait at most 250 ms in service (mode is shadow)",
        ),
        _ => None,
    }
}

/// Why it would be refused.
pub(super) fn refused(why: Refusal) -> &'static str {
    match why {
        Refusal::Host => {
            "a request over HTTP/1.1 has one Host, and that is a host; if it was left out here, add it \
             or leave out HTTP/1.1"
        }
        Refusal::Target => "its target is in a form that is not for its method",
        Refusal::TransferCoding => "its Transfer-Encoding is another than chunked",
        Refusal::UriTooLong => "its path and query are longer than server.max_uri",
        Refusal::TooManyHeaders => "it has more fields than server.max_headers",
    }
}

/// What becomes of a write.
pub(super) fn write(method: &Method) -> &'static str {
    let upper = method.as_str().to_ascii_uppercase();
    if upper != method.as_str() && ["GET", "HEAD", "OPTIONS", "TRACE"].contains(&&*upper) {
        return "would be forwarded as a write, and the entry dropped before it is answered: the names \
                of methods are in upper case, and one in lower case may do anything";
    }
    "would be forwarded as a write, and the entry dropped before it is answered"
}

/// Why it would go past the cache.
pub(super) fn pass(why: Bypass) -> &'static str {
    match why {
        Bypass::Path => "would go to the API: its path is no job's (routes)",
        Bypass::Method => {
            "would go to the API: its method fills nothing, and there is no entry for it"
        }
        Bypass::Query => {
            "would go to the API: it has a query string (query.ignore and query.allow let some in)"
        }
        Bypass::Spelling => {
            "would go to the API: its path is not the canonical spelling of a job's"
        }
        Bypass::RequestBody => "would go to the API: it is a read with a body",
        Bypass::Upgrade => "would go to the API: it asks for another protocol",
        Bypass::Range => "would go to the API: it asks for a part",
        Bypass::Precondition => "would go to the API: only the API can judge its precondition",
        Bypass::MethodOverride => "would go to the API: a header names another method",
        Bypass::UrlOverride => "would go to the API: a header names another URL",
        Bypass::Credentials => {
            "would go to the API: it carries a credential, and credentials.mode is bypass"
        }
        Bypass::NoStore => "would go to the API: the request says no-store, and is no hit",
        Bypass::NoCache => "would go to the API: the request wants nothing from a cache",
        Bypass::OnlyIfCached => {
            "would be answered 504: it wants nothing but a cached answer, and there is none for it"
        }
        Bypass::Uncacheable => {
            "would go to the API: the last answer could not be stored; see fill-refused in the events"
        }
        Bypass::Fenced => {
            "would go to the API: a write is in flight, its outcome is unknown, or it has just ended \
             (settle)"
        }
        Bypass::Leased => {
            "would wait at most 250 ms for somebody else (another caller here, or another sidecar) who \
             is reading it at this moment, then go to the API"
        }
        Bypass::Pending => {
            "would go to the API: Redis has not confirmed an invalidation, which is repeated until it \
             has"
        }
        Bypass::StoreDown => "would go to the API: Redis is down",
        Bypass::StoreTimeout => "would go to the API: Redis does not answer in time",
        Bypass::StoreError => {
            "would go to the API: Redis answers with an error, such as for a key of another type"
        }
        Bypass::Foreign => {
            "would go to the API: somebody else, most likely the application, keeps writing this key"
        }
        Bypass::Audience => {
            "would go to the API: it answers each client differently, or more clients poll this job \
             than credentials.audience"
        }
        Bypass::Flights => "would go to the API: as many reads are shared as may be (max_flights)",
        Bypass::Alone => "would go to the API: what it waited for could not be shared",
        Bypass::ShadowHit => "would go to the API, and be compared with what the cache has (mode)",
        Bypass::Shadow => "would go to the API by itself, and share nothing (mode is shadow)",
        Bypass::Off => "would go to the API: mode is off",
    }
}
