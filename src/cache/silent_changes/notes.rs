//! What reads and fills tell the memory of silent changes.

use xxhash_rust::xxh3::xxh3_64;

use super::{Sighting, StoredAs};
use crate::{
    cache::{Cache, LookupRequest, entry::Entry},
    semantics::{audience::Caller, identity::RouteIndex},
    store::{Fill, Key},
};

impl Cache {
    /// Notes what became of a response. A fill that was refused shows that the job has changed.
    pub(in crate::cache) fn note_fill(
        &self,
        ((key, route), caller): (&(Key, RouteIndex), Caller),
        entry: &Entry,
        stored: StoredAs,
        fill: Fill,
    ) {
        if fill == Fill::Revoked {
            return self.silent_changes.forget(std::slice::from_ref(key));
        }
        let now_ms = self.store.now_ms();
        let (expires_at_ms, generation) = match stored {
            StoredAs::Admission { expires_at_ms, generation } => (expires_at_ms, generation),
            StoredAs::Fill { generation, .. } => (entry.expires_at_ms(), generation),
            StoredAs::Replacement => (entry.expires_at_ms(), None),
        };
        let route = self.identity(key, *route).route;
        let sighting = Sighting { key, caller, route, entry, generation, expires_at_ms, now_ms };
        self.silent_changes.stored(sighting, stored);
    }

    /// Notes an entry that the store had for a caller.
    pub(in crate::cache) fn note_read(&self, request: &LookupRequest, entry: &Entry, now_ms: i64) {
        self.silent_changes.seen(Sighting {
            key: &request.key,
            caller: request.caller,
            route: self.identity(&request.key, request.route).route,
            entry,
            generation: generation(entry.generation()),
            expires_at_ms: entry.expires_at_ms(),
            now_ms,
        });
    }
}

/// Returns the hash of the token under which an entry was stored.
pub(super) fn generation(token: &str) -> Option<u64> {
    (!token.is_empty()).then(|| xxh3_64(token.as_bytes()))
}
