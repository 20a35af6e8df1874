//! HTTP caching policy: the rules of RFC 9110 and RFC 9111 that a shared cache of job status reads
//! needs. Each rule is quoted above the branch that implements it.
//!
//! The policy is pure: `now` is an argument, and there is no store, upstream or clock. It deliberately
//! does less than the RFCs allow: no heuristic freshness beyond the configured TTL, only complete 200
//! responses to GET, no stale entries, no `must-understand`.

mod conditional;
mod directives;
mod freshness;
mod reason;
mod state_ttls;
mod storable;
mod stored_head;
mod volatile;

use std::time::Duration;

use hyper::header::HeaderName;

pub use conditional::not_modified;
pub use directives::RequestDirectives;
pub use freshness::{Freshness, StatedLifetimes, freshness, stated_lifetimes};
pub use reason::{Bypass, NoStore};
pub use state_ttls::StateTtls;
pub use storable::storable;
pub use stored_head::{LastModified, StoredHead};

/// Configured limits for storing responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Greatest age of an answer from the cache, and the lifetime of a response that states none.
    pub ttl: Duration,
    /// Whether only responses that state a lifetime are stored.
    pub stated_only: bool,
    /// Size of the largest body, in bytes.
    pub max_body: usize,
    /// Request headers that fingerprints cover. A response may vary by them, and by those of the
    /// policy's own list.
    pub vary: Vec<HeaderName>,
    /// Request headers that the configuration ignores. A response that varies by them is not stored.
    pub ignored: Vec<HeaderName>,
    /// TTL limits by the state that the body shows.
    pub state_ttls: Option<StateTtls>,
    /// Names of the cookies that count; if empty, all cookies count.
    pub cookies: Vec<String>,
    /// Configured names of response headers that are neither stored nor compared.
    pub volatile: Vec<HeaderName>,
}
