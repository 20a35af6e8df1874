//! Errors of the `redis` crate, and time limits that hold in the whole of this folder.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::store::{
    errors::{Redirect, StoreError},
    node_address::NodeAddress,
};

/// Timeout for connecting, and for operations that no client waits for: fills, releases, repeated
/// ends.
pub(super) const DETACHED_TIMEOUT: Duration = Duration::from_secs(1);
/// First and longest pause between two attempts to connect; doubles each time.
pub(super) const BACKOFF: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(1));
/// Error of a script that accesses a key which is not on this node, or no longer there.
const NON_LOCAL: &str = "non local key";

/// Classifies errors by how they are handled: `Lost` ends the session, `Refused` does not.
pub(super) fn classify(error: &RedisError) -> StoreError {
    match error.kind() {
        // The `redis` crate has no kind for BUSY: a script has been running for too long, and the
        // server answers no commands.
        _ if error.code() == Some("BUSY") => StoreError::Timeout,
        ErrorKind::Server(
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading,
        ) => StoreError::Unusable(error.to_string()),
        ErrorKind::Server(ServerErrorKind::Moved) => StoreError::Redirected(Redirect::Moved),
        ErrorKind::Server(ServerErrorKind::Ask) => {
            let to = error.redirect_node().and_then(|(to, _)| NodeAddress::parse(to));
            StoreError::Redirected(Redirect::Ask(to))
        }
        ErrorKind::Server(ServerErrorKind::TryAgain) => StoreError::Redirected(Redirect::TryAgain),
        ErrorKind::Server(ServerErrorKind::ClusterDown) => StoreError::Redirected(Redirect::Down),
        // A script in a migrating slot has deleted a key and then accesses it.
        ErrorKind::Server(_) if error.to_string().contains(NON_LOCAL) => {
            StoreError::Redirected(Redirect::TryAgain)
        }
        // The last two are replies that cannot be decoded. If the stream itself is corrupt, the
        // connection ends with it, and the next operation reports that.
        ErrorKind::Server(_)
        | ErrorKind::Extension
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::Parse => StoreError::Refused(error.to_string()),
        _ => StoreError::Lost(error.to_string()),
    }
}
