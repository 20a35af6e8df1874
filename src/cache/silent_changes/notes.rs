//! What reads and fills tell the memory of silent changes.

use xxhash_rust::xxh3::xxh3_64;

use super::{Sighting, StoredAs};
use crate::{
    cache::{Cache, LookupRequest, audience::Caller, entry::Entry},
    store::{Fill, Key},
};

impl Cache {
    /// Notes what became of a response. A fill that was refused shows that the job has changed.
    pub(in crate::cache) fn note_fill(
        &self,
        (key, caller, path): (&Key, Caller, &[u8]),
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
        let sighting = Sighting { key, caller, path, entry, generation, expires_at_ms, now_ms };
        self.silent_changes.stored(sighting, stored);
    }

    /// Notes an entry that the store had for a caller.
    pub(in crate::cache) fn note_read(&self, request: &LookupRequest, entry: &Entry, now_ms: i64) {
        self.silent_changes.seen(Sighting {
            key: &request.key,
            caller: request.caller,
            path: request.variant.path(),
            entry,
            generation: generation(entry.generation()),
            expires_at_ms: entry.expires_at_ms(),
            now_ms,
        });
    }
}

/// Returns the path with `{id}` in place of the job. The id is the longest segment that the key ends
/// with, because the key is a prefix and the id.
pub(super) fn route_name(key: &str, path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path);
    let path = path.split('?').next().unwrap_or_default();
    let is_id = |segment: &&str| !segment.is_empty() && key.ends_with(segment);
    let Some(id) = path.split('/').filter(is_id).max_by_key(|segment| segment.len()) else {
        return "(other routes)".to_owned();
    };
    let shown = path.split('/').map(|segment| if segment == id { "{id}" } else { segment });
    shown.collect::<Vec<_>>().join("/")
}

/// Returns the hash of the token under which an entry was stored.
pub(super) fn generation(token: &str) -> Option<u64> {
    (!token.is_empty()).then(|| xxh3_64(token.as_bytes()))
}
