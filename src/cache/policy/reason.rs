//! Why a request goes past the cache and why a response is not stored, in the words that logs,
//! metrics and headers share.

use std::fmt;

/// Declares a reason enum with its words, so that no variant can lack one or be missing in `ALL`.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every reason, in the order of declaration: the label values of its metric.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The reason in kebab-case, also a valid token of a structured field.
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
    /// Why a request goes to the upstream past the cache.
    Bypass {
        /// Not a job path.
        Path = "path",
        /// A method that neither reads a job nor changes one.
        Method = "method",
        /// A query string: it may change what the path means.
        Query = "query",
        /// A job path in another than the canonical spelling.
        Spelling = "spelling",
        /// A read with a body.
        RequestBody = "request-body",
        /// A change of protocol.
        Upgrade = "upgrade",
        /// A part of the body is asked for.
        Range = "range",
        /// `If-Match` or `If-Unmodified-Since`, which only the upstream can judge.
        Precondition = "precondition",
        /// A header that names another method, a safe one.
        MethodOverride = "method-override",
        /// A header that names another URL.
        UrlOverride = "url-override",
        /// The request carries a credential that may not be answered from the cache.
        Credentials = "credentials",
        /// The client asked that nothing be stored.
        NoStore = "no-store",
        /// The client wants nothing older than now (`no-cache`, `max-age`).
        NoCache = "no-cache",
        /// The client wants nothing but what the cache has, and it has nothing.
        OnlyIfCached = "only-if-cached",
        /// This job's answers could not be stored lately (hit-for-miss).
        Uncacheable = "uncacheable",
        /// A write is in flight, or its outcome is unknown.
        Fenced = "fenced",
        /// Somebody else is filling: another sidecar, or a caller here who does not share.
        Leased = "leased",
        /// An invalidation of this job is not confirmed.
        Pending = "pending",
        /// The store is known to be down.
        StoreDown = "store-down",
        /// The store did not answer within the budget.
        StoreTimeout = "store-timeout",
        /// The store answered with an error.
        StoreError = "store-error",
        /// The key holds a value that the application itself wrote.
        Foreign = "foreign",
        /// The entry is for others, and this client cannot be added: there are too many, or the
        /// upstream answers each differently.
        Audience = "audience",
        /// As many reads are shared as may be at a time.
        Flights = "flights",
        /// What the flight brought could not be shared.
        Alone = "alone",
        /// In shadow mode, where else there would have been a hit.
        ShadowHit = "shadow-hit",
        /// In shadow mode, where else another's read would have been shared.
        Shadow = "shadow",
        /// The cache is switched off.
        Off = "off",
    }
}

reasons! {
    /// Why a response is not stored.
    NoStore {
        /// Not the answer to a GET.
        Method = "method",
        /// Another status than 200.
        Status = "status",
        /// `Cache-Control: no-store`, of the response or of the request.
        NoStore = "no-store",
        /// `Cache-Control: private`.
        Private = "private",
        /// `Cache-Control: no-cache`.
        NoCache = "no-cache",
        /// A `Cache-Control` that cannot be read.
        Malformed = "malformed",
        /// `Set-Cookie`.
        SetCookie = "set-cookie",
        /// `Vary` over a header that entries are not told apart by.
        Vary = "vary",
        /// A content coding other than identity.
        Encoding = "encoding",
        /// A stream of events or parts, which has no end to wait for.
        EventStream = "event-stream",
        /// No body.
        Empty = "empty",
        /// A body larger than the limit.
        TooLarge = "too-large",
        /// As many bytes as may be are held in memory on their way into the cache.
        Memory = "memory",
        /// Trailers, which an entry cannot hold.
        Trailers = "trailers",
        /// Neither a length nor chunks: the end of the connection may be the end of the body, or of
        /// the upstream.
        Unframed = "unframed",
        /// It states no lifetime, and only what does is stored.
        Unstated = "unstated",
        /// Expired on arrival, or its lifetime cannot be read.
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
