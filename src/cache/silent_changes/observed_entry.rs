//! The entries that reads and fills report to the memory of silent changes.

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    cache::{cache_config::CacheConfig, entry::Entry, lookup_request::LookupRequest},
    semantics::audience::Caller,
    store::{Key, Lease},
};

/// An entry that was stored or read.
#[derive(Clone, Copy)]
pub(in crate::cache) struct ObservedEntry<'a> {
    pub(in crate::cache) key: &'a Key,
    pub(in crate::cache) caller: Caller,
    /// Template of the route.
    pub(in crate::cache) route: &'a str,
    pub(in crate::cache) entry: &'a Entry,
    pub(in crate::cache) generation: Option<u64>,
    pub(in crate::cache) expires_at_ms: i64,
    /// Now by the store's clock.
    pub(in crate::cache) now_ms: i64,
}

/// How an upstream response was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum StoredAs {
    /// Under a lease that was granted at this time by the store's clock.
    Fill { granted_at_ms: i64, generation: Option<u64> },
    /// In place of an entry that had not expired.
    Replacement,
    /// Not stored: the caller joined the audience of an existing entry.
    Admission { expires_at_ms: i64, generation: Option<u64> },
}

impl StoredAs {
    pub(in crate::cache) fn fill(lease: &Lease) -> Self {
        let generation = generation(lease.token().as_str());
        Self::Fill { granted_at_ms: lease.granted_at_ms(), generation }
    }

    pub(in crate::cache) fn admission(to: &Entry) -> Self {
        let generation = generation(to.generation());
        Self::Admission { expires_at_ms: to.expires_at_ms(), generation }
    }
}

impl<'a> ObservedEntry<'a> {
    /// An entry that the store had for a caller.
    pub(in crate::cache) fn of_read(
        config: &'a CacheConfig,
        request: &'a LookupRequest,
        entry: &'a Entry,
        now_ms: i64,
    ) -> Self {
        Self {
            key: &request.key,
            caller: request.caller,
            route: config.identity(&request.key, request.route).route,
            entry,
            generation: generation(entry.generation()),
            expires_at_ms: entry.expires_at_ms(),
            now_ms,
        }
    }
}

/// Returns the hash of the token under which an entry was stored.
fn generation(token: &str) -> Option<u64> {
    (!token.is_empty()).then(|| xxh3_64(token.as_bytes()))
}
