//! Response headers that say nothing about a job.

/// How responses are compared, and what of them is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponsesConfig {
    /// Names of headers, in lower case, that are neither stored nor compared, in addition to the
    /// built-in list.
    pub volatile: Vec<String>,
}

/// Beginnings of the names of headers that carry meaning.
const PREFIXES: [&str; 4] = ["access-control-", "content-", "cross-origin-", "sec-"];

/// Returns whether clients or jobcache act on a response header, so that it may not be left out of an
/// answer. `name` is in lower case.
pub fn carries_meaning(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || matches!(
            name,
            "accept-patch"
                | "accept-ranges"
                | "age"
                | "allow"
                | "authentication-info"
                | "authorization"
                | "cache-control"
                | "cdn-cache-control"
                | "clear-site-data"
                | "connection"
                | "cookie"
                | "date"
                | "etag"
                | "expires"
                | "link"
                | "location"
                | "pragma"
                | "preference-applied"
                | "proxy-authenticate"
                | "referrer-policy"
                | "refresh"
                | "retry-after"
                | "set-cookie"
                | "strict-transport-security"
                | "surrogate-control"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "vary"
                | "www-authenticate"
                | "x-content-type-options"
                | "x-frame-options"
        )
}
