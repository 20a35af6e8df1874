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

pub use conditional::not_modified;
pub use directives::RequestDirectives;
pub use freshness::{Freshness, Policy, StatedLifetimes, freshness, stated_lifetimes};
pub use reason::{Bypass, NoStore};
pub use state_ttls::StateTtls;
pub use storable::storable;
pub use stored_head::{LastModified, StoredHead};
