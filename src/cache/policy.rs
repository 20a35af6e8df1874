//! What HTTP allows a shared cache to do: the rules of RFC 9110 and RFC 9111 that a cache of job
//! status reads needs, each quoted above the branch that implements it.
//!
//! Pure: `now` is an argument, and nothing here knows of stores or upstreams. It deliberately does
//! less than the RFCs allow: no heuristic freshness beyond the configured TTL, nothing but complete
//! 200 responses to GET, no serving of stale entries, no `must-understand`.

mod conditional;
mod directives;
mod freshness;
mod reason;
mod states;
mod storable;

pub use conditional::not_modified;
pub use directives::RequestDirectives;
pub use freshness::{Freshness, Policy, freshness};
pub use reason::{Bypass, NoStore};
pub use states::States;
pub use storable::{is_stored, storable};
