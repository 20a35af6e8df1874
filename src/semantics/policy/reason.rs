//! Reasons why a request bypasses the cache and why a response is not stored, with the words that
//! logs, metrics and headers share.

use std::fmt;

/// Declares a reason enum with the word of each variant, so that every variant has one and is in
/// `ALL`.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// All reasons in the order of declaration: the label values of the metric.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns the reason in kebab-case, which is also a valid token of a structured field.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why a request bypasses the cache.
    Bypass {
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
        /// The store did not answer within the budget.
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

reasons! {
    /// Why a response is not stored.
    NoStore {
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Bypass, NoStore};

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
        check(&Bypass::ALL.iter().map(|why| why.as_str()).collect::<Vec<_>>());
        check(&NoStore::ALL.iter().map(|why| why.as_str()).collect::<Vec<_>>());
        assert_eq!(Bypass::StoreDown.to_string(), "store-down");
    }
}
