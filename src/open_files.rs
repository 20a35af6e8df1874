//! The limit of open files. Each connection is an open file.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// Files for other purposes than connections of clients and upstream: Redis, admin listener, log.
const SPARE_FILES: u64 = 256;

/// Raises the soft limit to what `wanted` connections need, as far as the hard limit allows. Shells
/// start programs with a soft limit of 1,024 for those that use `select`. Warns if the result is
/// less than `wanted`.
pub(crate) fn raise_limit(wanted: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(soft) = current else { return };
    let limit = maximum.unwrap_or(u64::MAX).min(wanted.saturating_add(SPARE_FILES)).max(soft);
    if limit > soft {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum }) {
            Ok(()) => info!(from = soft, to = limit, "raised the limit of open files"),
            Err(error) => warn!(%error, limit = soft, "cannot raise the limit of open files"),
        }
    }
    if limit < wanted {
        warn!(
            limit,
            wanted,
            "the limit of open files is less than server.max_connections plus \
             upstream.max_connections; raise it (ulimit -Hn, LimitNOFILE=) or lower those settings"
        );
    }
}
