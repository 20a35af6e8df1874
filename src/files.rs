//! The limit of open files: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// For what is no connection of client or upstream: Redis, the admin listener, the log.
const SPARE: u64 = 256;

/// Raises the soft limit as far as it may be: shells start programs with 1,024, for the sake of those
/// that use `select`. Warns where even that is less than `wanted` connections take.
pub(crate) fn allow(wanted: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(soft) = current else { return };
    let limit = maximum.unwrap_or(u64::MAX).min(wanted.saturating_add(SPARE)).max(soft);
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
            "the limit of open files is less than server.max_connections and \
             upstream.max_connections; raise it (ulimit -Hn, LimitNOFILE=) or lower those"
        );
    }
}
