//! The `Cache-Status` field (RFC 9211): what happened to a request, and why.

use std::fmt;

use hyper::{
    HeaderMap,
    header::{CACHE_STATUS, HeaderValue},
};

use crate::semantics::policy::Bypass;

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
    },
}

/// The registered values of `fwd` (RFC 9211 2.2) that jobcache uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forward {
    /// "The cache was configured to not handle this request."
    Bypass,
    /// "The request method's semantics require the request to be forwarded."
    Method,
    /// "The cache did not contain any responses that could be used to satisfy this request."
    Miss,
    /// "The cache was able to select a fresh response for the request, but the request's semantics
    /// (e.g., Cache-Control request directives) did not allow its use."
    Request,
}

impl Forward {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::Miss => "miss",
            Self::Request => "request",
        }
    }
}

impl From<Bypass> for Forward {
    fn from(why: Bypass) -> Self {
        match why {
            Bypass::Method | Bypass::MethodOverride => Self::Method,
            Bypass::NoCache | Bypass::NoStore => Self::Request,
            _ => Self::Bypass,
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
            Self::Forwarded { why, collapsed, stored, detail } => {
                write!(f, "jobcache; fwd={}", why.as_str())?;
                if *collapsed {
                    f.write_str("; collapsed")?;
                }
                if *stored {
                    f.write_str("; stored")?;
                }
                detail.map_or(Ok(()), |detail| write!(f, "; detail={detail}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::{
        HeaderMap,
        header::{CACHE_STATUS, HeaderValue},
    };

    use sfv::{BareItem, FieldType as _, Item, List, ListEntry, Parser};

    use super::{CacheStatus, Forward, cache_status};
    use crate::semantics::policy::{Bypass, NoStore};

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
                | ("detail", BareItem::Token(_)) => true,
                _ => false,
            };
            assert!(registered, "{name:?} = {value:?}");
        }
    }

    #[test]
    fn every_reason_is_told_in_registered_words() {
        let stored = NoStore::ALL.iter().map(|why| (Forward::Miss, why.as_str()));
        let passed = Bypass::ALL.iter().map(|why| (Forward::from(*why), why.as_str()));
        for (why, detail) in stored.chain(passed) {
            let detail = Some(detail);
            let status = CacheStatus::Forwarded { why, collapsed: true, stored: true, detail };
            let mut headers = HeaderMap::new();
            headers.append(CACHE_STATUS, HeaderValue::from_static("origin; fwd=miss; ttl=-3"));
            cache_status(&mut headers, status);
            check_registered(&headers);
        }
    }

    #[test]
    fn cache_status_is_appended_in_registered_words() {
        check_status(CacheStatus::Refused { detail: "connect" }, "jobcache; detail=connect");
        let forwarded = |why, collapsed, stored, detail| CacheStatus::Forwarded {
            why,
            collapsed,
            stored,
            detail,
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
