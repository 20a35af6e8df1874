//! The warning about a Redis key that two routes or two APIs give to different jobs.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::warn;

use super::{cache_config::CacheConfig, entry, lookup_request::LookupRequest};
use crate::store::Seen;

/// Whether the warning has been given.
#[derive(Debug, Default)]
pub(super) struct SharedKeyWarning(AtomicBool);

impl SharedKeyWarning {
    /// Warns once that the value under the key of a request is of another API, route or job. The two
    /// replace each other, so neither is cached for long.
    pub(super) fn give(&self, config: &CacheConfig, request: &LookupRequest, seen: &Seen) {
        if self.0.swap(true, Ordering::Relaxed) {
            return;
        }
        let ours = config.identity(&request.key, request.route);
        let (other_api, other_route) = entry::origin_of(seen).unwrap_or_default();
        let remedy = if other_api == ours.api {
            "poll each job by one route, or give one route a sidecar of its own with another store.prefix"
        } else {
            "give one of the APIs another store.prefix, such as its name"
        };
        warn!(
            api = ours.api,
            route = ours.route,
            other_api,
            other_route,
            prefix = config.settings.prefix,
            remedy,
            "two routes or two APIs share the Redis key of a job and replace each other's entries"
        );
    }
}
