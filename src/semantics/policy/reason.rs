//! Reasons why a request bypasses the cache and why a response is not stored, with the words that
//! logs, metrics and headers share; and the `Cache-Status` field (RFC 9211), which shows them.

use std::fmt;

use hyper::{
    HeaderMap,
    header::{CACHE_STATUS, HeaderValue},
};

use crate::semantics::labels::labels;

labels! {
    /// Why a request bypasses the cache.
    pub enum Bypass {
        /// The path is not a job path.
        Path = "path",
        /// The method neither reads nor changes a job.
        Method = "method",
        /// The query string may change the meaning of the path.
        Query = "query",
        /// The job path is not in its canonical spelling.
        Spelling = "spelling",
        /// The id is a word without a digit, which most likely names no job.
        Word = "word",
        /// The path is one of `except`.
        Except = "except",
        /// The read has a body.
        RequestBody = "request-body",
        /// The request asks for another protocol.
        Upgrade = "upgrade",
        /// The request asks for a part of the body.
        Range = "range",
        /// The request has `If-Match` or `If-Unmodified-Since`, which only the upstream can evaluate.
        Precondition = "precondition",
        /// A header names another, safe method.
        MethodOverride = "method-override",
        /// A header names another URL.
        UrlOverride = "url-override",
        /// The request carries a credential that may not be answered from the cache.
        Credentials = "credentials",
        /// The connection carries a login (NTLM, Negotiate, Kerberos), or this request begins one.
        BoundConnection = "bound-connection",
        /// The client allows nothing to be stored.
        NoStore = "no-store",
        /// The client does not accept what the cache has (`no-cache`, `max-age`, `min-fresh`).
        NoCache = "no-cache",
        /// The client wants only a cached answer, and there is none.
        OnlyIfCached = "only-if-cached",
        /// A recent response for this job could not be stored (hit-for-miss).
        Uncacheable = "uncacheable",
        /// A write is in flight, or its outcome is unknown.
        Fenced = "fenced",
        /// Another reader is filling: in another sidecar, or in this one with another coalesce key.
        Leased = "leased",
        /// An invalidation of this job is not confirmed.
        Pending = "pending",
        /// The store is known to be down.
        StoreDown = "store-down",
        /// The store is too far away for the budget.
        StoreSlow = "store-slow",
        /// The store did not answer within the budget, or the value of this job took longer than that a
        /// moment ago.
        StoreTimeout = "store-timeout",
        /// The store answered with an error.
        StoreError = "store-error",
        /// The store has just restarted or failed over, and others may still owe it invalidations.
        Grace = "grace",
        /// The key holds a value that another program wrote, usually the application itself.
        Foreign = "foreign",
        /// The entry is for other callers, and this one cannot be added: there are too many, or the
        /// upstream answers each client differently.
        Audience = "audience",
        /// The limit of flights is reached.
        Flights = "flights",
        /// The joined flight had no result that could be shared.
        Alone = "alone",
        /// Shadow mode is on; otherwise this would have been a hit.
        ShadowHit = "shadow-hit",
        /// Shadow mode is on; otherwise an upstream read would have been shared.
        Shadow = "shadow",
        /// The cache is switched off.
        Off = "off",
    }
}

labels! {
    /// Why a response is not stored.
    pub enum NoStore {
        /// The status is not 200.
        Status = "status",
        /// The response has `Persistent-Auth`: it belongs to the login of its connection.
        BoundConnection = "bound-connection",
        /// The response or the request has `Cache-Control: no-store`.
        NoStore = "no-store",
        /// The response has `Cache-Control: private`.
        Private = "private",
        /// The response has `Cache-Control: no-cache`.
        NoCache = "no-cache",
        /// The response has a `Cache-Control` that cannot be parsed.
        Malformed = "malformed",
        /// The response sets a cookie that counts.
        SetCookie = "set-cookie",
        /// `Vary` lists a header that fingerprints do not cover.
        Vary = "vary",
        /// The content coding is not identity.
        Encoding = "encoding",
        /// The body is an endless stream of events or parts.
        EventStream = "event-stream",
        /// There is no body.
        Empty = "empty",
        /// The body is larger than the limit.
        TooLarge = "too-large",
        /// The memory for responses that are being read into the cache is used up.
        Memory = "memory",
        /// The response has trailers, which an entry cannot hold.
        Trailers = "trailers",
        /// There is neither a length nor chunked framing: a closed connection may mean the end of the
        /// body or a failure of the upstream.
        Unframed = "unframed",
        /// The response states no lifetime, and the configuration requires one.
        Unstated = "unstated",
        /// The response has expired on arrival, or its lifetime cannot be parsed.
        Stale = "stale",
    }
}

/// The handling of a request other than a hit (RFC 9211 2). [`Entry::hit`] writes the
/// `Cache-Status` of hits.
///
/// [`Entry::hit`]: crate::cache::entry::Entry::hit
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheStatus {
    /// Answered by jobcache without the upstream.
    Refused {
        /// Why, as a kebab-case reason of jobcache.
        detail: &'static str,
    },
    /// Answered from the cache.
    Hit {
        /// More about the answer, as a kebab-case word of jobcache.
        detail: &'static str,
    },
    /// Sent to the upstream.
    Forwarded {
        /// Why, as a registered value of `fwd`.
        why: Forward,
        /// Whether one upstream read answered several requests.
        collapsed: bool,
        /// Whether the response was stored.
        stored: bool,
        /// Why, as a kebab-case reason of jobcache.
        detail: Option<&'static str>,
        /// The setting with which the request would be cached.
        setting: Option<&'static str>,
    },
}

labels! {
    /// The registered values of `fwd` (RFC 9211 2.2) that jobcache uses.
    pub(crate) enum Forward {
        /// "The cache was configured to not handle this request."
        Bypass = "bypass",
        /// "The request method's semantics require the request to be forwarded."
        Method = "method",
        /// "The cache did not contain any responses that could be used to satisfy this request."
        Miss = "miss",
        /// "The cache was able to select a fresh response for the request, but the request's semantics
        /// (e.g., Cache-Control request directives) did not allow its use."
        Request = "request",
    }
}

impl From<Bypass> for Forward {
    fn from(why: Bypass) -> Self {
        why.shown().0
    }
}

impl Bypass {
    /// Whether the reason depends on what other clients have read: it shows that there is an entry,
    /// or a read under way.
    pub(crate) fn reveals_others(self) -> bool {
        self.shown().1
    }

    /// Returns `fwd`, and whether the reason reveals others.
    fn shown(self) -> (Forward, bool) {
        use Bypass::{
            Alone, Audience, BoundConnection, Credentials, Except, Fenced, Flights, Foreign, Grace,
            Leased, Method, MethodOverride, NoCache, NoStore, Off, OnlyIfCached, Path, Pending,
            Precondition, Query, Range, RequestBody, Shadow, ShadowHit, Spelling, StoreDown,
            StoreError, StoreSlow, StoreTimeout, Uncacheable, Upgrade, UrlOverride, Word,
        };
        match self {
            Method | MethodOverride => (Forward::Method, false),
            NoStore => (Forward::Request, false),
            NoCache => (Forward::Request, true),
            Audience | Leased | Shadow | ShadowHit | Uncacheable => (Forward::Bypass, true),
            Path | Query | Spelling | Word | Except | RequestBody | Upgrade | Range
            | Precondition | UrlOverride | Credentials | BoundConnection | OnlyIfCached
            | Fenced | Pending | StoreDown | StoreSlow | StoreTimeout | StoreError | Grace
            | Foreign | Flights | Alone | Off => (Forward::Bypass, false),
        }
    }
}

/// Appends the member of jobcache to `Cache-Status`, also in answers that jobcache makes itself.
/// RFC 9211 2 says that a cache "SHOULD NOT" do the latter, but this is where an operator looks
/// first when a job is missing.
///
/// "The first member represents the cache closest to the origin server, and the last member
/// represents the cache closest to the user" RFC 9211 2
pub(crate) fn cache_status(headers: &mut HeaderMap, status: CacheStatus) {
    // Cannot fail for our own words, and a missing header is no reason to fail a response.
    if let Ok(value) = HeaderValue::try_from(status.to_string()) {
        headers.append(CACHE_STATUS, value);
    }
}

impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // "fwd [..] indicates that the request went forward towards the origin" RFC 9211 2.2
            Self::Refused { detail } => write!(f, "jobcache; detail={detail}"),
            Self::Hit { detail } => write!(f, "jobcache; hit; detail={detail}"),
            Self::Forwarded { why, collapsed, stored, detail, setting } => {
                write!(f, "jobcache; fwd={why}")?;
                if *collapsed {
                    f.write_str("; collapsed")?;
                }
                if *stored {
                    f.write_str("; stored")?;
                }
                detail.map_or(Ok(()), |detail| write!(f, "; detail={detail}"))?;
                setting.map_or(Ok(()), |setting| write!(f, "; setting=\"{setting}\""))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use hyper::{
        HeaderMap,
        header::{CACHE_STATUS, HeaderValue},
    };
    use sfv::{BareItem, FieldType as _, Item, List, ListEntry, Parser};

    use super::{Bypass, CacheStatus, Forward, NoStore, cache_status};

    #[track_caller]
    fn check(words: &[&str]) {
        assert_eq!(words.iter().collect::<HashSet<_>>().len(), words.len(), "words repeat");
        for word in words {
            let kebab = word
                .split('-')
                .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase()));
            assert!(kebab, "{word}");
        }
    }

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        check(&Bypass::WORDS);
        check(&NoStore::WORDS);
        assert_eq!(Bypass::StoreDown.to_string(), "store-down");
    }

    #[track_caller]
    fn check_status(status: CacheStatus, want: &str) {
        let mut headers = HeaderMap::new();
        headers.append(CACHE_STATUS, HeaderValue::from_static("origin; hit"));
        cache_status(&mut headers, status);
        let lines: Vec<_> = headers.get_all(CACHE_STATUS).into_iter().collect();
        assert_eq!(lines, ["origin; hit", want]);
        check_registered(&headers);
    }

    /// Expects a list of two members, and in ours only what RFC 9211 registers, in the registered
    /// types.
    #[track_caller]
    fn check_registered(headers: &HeaderMap) {
        let lines: Vec<_> =
            headers.get_all(CACHE_STATUS).iter().map(HeaderValue::as_bytes).collect();
        let list: List = Parser::new(&lines.join(&b", "[..])).parse().unwrap();
        let [_, ListEntry::Item(Item { bare_item, params })] = &list[..] else {
            panic!("not two items: {}", list.serialize().unwrap())
        };
        assert_eq!(bare_item.as_token().map(sfv::TokenRef::as_str), Some("jobcache"));
        let forwarded = params.contains_key("fwd");
        assert!(!(forwarded && params.contains_key("hit")), "{params:?}");
        for (name, value) in params {
            let registered = match (name.as_str(), value) {
                ("fwd", BareItem::Token(why)) => {
                    let words = "bypass method uri-miss vary-miss miss request stale partial";
                    words.split(' ').any(|word| word == why.as_str())
                }
                ("stored" | "collapsed", BareItem::Boolean(true)) => forwarded,
                ("hit", BareItem::Boolean(true))
                | ("ttl", BareItem::Integer(_))
                | ("detail", BareItem::Token(_))
                // An extension, as RFC 9211 2 allows.
                | ("setting", BareItem::String(_)) => true,
                _ => false,
            };
            assert!(registered, "{name:?} = {value:?}");
        }
    }

    #[test]
    fn every_reason_is_told_in_registered_words() {
        let stored = NoStore::WORDS.map(|why| (Forward::Miss, why)).into_iter();
        let passed = Bypass::ALL.map(|why| (Forward::from(why), why.as_str()));
        for (why, detail) in stored.chain(passed) {
            let detail = Some(detail);
            let (collapsed, stored, setting) = (true, true, Some("ids=opaque"));
            let status = CacheStatus::Forwarded { why, collapsed, stored, detail, setting };
            let mut headers = HeaderMap::new();
            headers.append(CACHE_STATUS, HeaderValue::from_static("origin; fwd=miss; ttl=-3"));
            cache_status(&mut headers, status);
            check_registered(&headers);
        }
    }

    #[test]
    fn cache_status_is_appended_in_registered_words() {
        check_status(CacheStatus::Refused { detail: "connect" }, "jobcache; detail=connect");
        check_status(CacheStatus::Hit { detail: "held" }, "jobcache; hit; detail=held");
        let forwarded = |why, collapsed, stored, detail| CacheStatus::Forwarded {
            why,
            collapsed,
            stored,
            detail,
            setting: None,
        };
        let miss = Forward::Miss;
        check_status(forwarded(miss, false, false, None), "jobcache; fwd=miss");
        check_status(forwarded(miss, false, true, None), "jobcache; fwd=miss; stored");
        check_status(forwarded(miss, true, true, None), "jobcache; fwd=miss; collapsed; stored");
        check_status(
            forwarded(Forward::Request, false, true, None),
            "jobcache; fwd=request; stored",
        );
        let why = Bypass::StoreDown;
        let status = forwarded(why.into(), false, false, Some(why.as_str()));
        check_status(status, "jobcache; fwd=bypass; detail=store-down");
        check_status(forwarded(Bypass::Method.into(), false, false, None), "jobcache; fwd=method");
    }
}
