//! Errors of the store and of its cluster nodes, and how the replies of a server become such errors.

use std::{fmt, io, time::Duration};

use redis::{
    ErrorKind::{
        AuthenticationFailed, Extension, InvalidClientConfig, Io, Parse, Server,
        UnexpectedReturnType,
    },
    RedisError,
    ServerErrorKind::{Ask, ClusterDown, Moved, TryAgain},
};
use tokio::time::error::Elapsed;

use super::diagnosis::{Diagnosis, Extent};
use crate::semantics::labels::labels;

labels! {
    /// A cluster node's refusal of a command for a slot that it does not serve alone; its word is
    /// the server's error code in lower case.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Redirect {
        /// The slot belongs to another node: the slot map is out of date.
        Moved = "moved",
        /// The slot is moving to this node, and the key is there already or does not exist.
        Ask(Option<NodeAddress>) = "ask",
        /// The slot is moving, and of several keys some are on each node.
        TryAgain = "tryagain",
        /// The node has lost the majority of the cluster, or the slot has no owner.
        Down = "clusterdown",
    }
}

labels! {
    /// The errors of the store as metrics and operators see them. The server's own words may contain
    /// its address, which only the log may show.
    pub enum StoreErrorKind {
        /// There is no trusted connection.
        Down = "down",
        /// An invalidation of the key is not confirmed yet.
        Pending = "pending",
        /// The server has just restarted or failed over.
        Grace = "grace",
        /// The server is too far away for the budget.
        Far = "far",
        /// The budget ran out.
        Timeout = "timeout",
        /// There was no connection, or not to a server to use.
        Lost = "lost",
        /// TLS could not be set up.
        Tls = "tls",
        /// The server answered with an error.
        Refused = "refused",
        /// A cluster node does not serve the slot.
        Redirected = "redirected",
    }
}

/// The result of an operation of the store.
pub(super) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why the store gave no answer. None of these reaches a client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No trusted connection: the breaker is open.
    #[error("the store is down")]
    Down,
    /// An invalidation of this key is not confirmed yet.
    #[error("an invalidation is pending")]
    Pending,
    /// The server has restarted or failed over, and others may still owe it invalidations.
    #[error("the server has just restarted or failed over")]
    Grace,
    /// The server is too far away for the budget.
    #[error("the store is too far away for store.budget")]
    Far,
    /// The budget ran out.
    #[error("the store did not answer within its budget")]
    Timeout,
    /// The server runs a script, and answers no commands meanwhile.
    #[error("the store is busy with a script")]
    Busy,
    /// The budget ran out, which says little about the server: more than half of it had been spent
    /// before this operation, or the server was sending a large reply.
    #[error("the budget was spent before the store could answer")]
    Spent,
    /// No connection was made.
    #[error("cannot connect to the store {0}")]
    Unreachable(String),
    /// A connection that was in use broke.
    #[error("the connection to the store broke: {0}")]
    Lost(String),
    /// The server answers, but is not one to use: a replica, another master, a server that loads
    /// its data.
    #[error("the store cannot be used: {0}")]
    Unusable(String),
    /// TLS could not be set up.
    #[error("TLS to the store failed: {0}")]
    Tls(String),
    /// The server answered with an error.
    #[error("the store refused: {0}")]
    Refused(String),
    /// The server, or what it said, shows what is wrong.
    #[error("{intro}{1}; {remedy}", intro = intro(*.0), remedy = .0.remedy())]
    Denied(Diagnosis, String),
    /// A cluster node does not serve the slot of the key.
    #[error("the cluster node answered {}{}", .0.as_str(), .0.remedy())]
    Redirected(Redirect),
    /// The journal of unconfirmed invalidations cannot be opened.
    #[error("cannot open the journal {}: {source}", path.display())]
    Journal {
        /// The path in `pending.journal`.
        path: std::path::PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl StoreError {
    /// Returns the same error for another key of the operation that has failed with it.
    pub(super) fn of_another_key(&self) -> Self {
        match self {
            Self::Timeout => Self::Timeout,
            Self::Busy => Self::Busy,
            Self::Spent => Self::Spent,
            Self::Down => Self::Down,
            Self::Far => Self::Far,
            Self::Refused(text) => Self::Refused(text.clone()),
            Self::Denied(diagnosis, text) => Self::Denied(*diagnosis, text.clone()),
            other => Self::Lost(other.to_string()),
        }
    }

    /// Returns the label for metrics and operators.
    pub fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Down => StoreErrorKind::Down,
            Self::Pending => StoreErrorKind::Pending,
            Self::Grace => StoreErrorKind::Grace,
            Self::Far => StoreErrorKind::Far,
            Self::Timeout | Self::Busy | Self::Spent => StoreErrorKind::Timeout,
            Self::Unreachable(_) | Self::Lost(_) | Self::Unusable(_) => StoreErrorKind::Lost,
            Self::Tls(_) => StoreErrorKind::Tls,
            Self::Refused(_) | Self::Journal { .. } => StoreErrorKind::Refused,
            Self::Redirected(_) => StoreErrorKind::Redirected,
            Self::Denied(diagnosis, _) => match diagnosis.extent() {
                Extent::SomeCommands | Extent::AllCommands => StoreErrorKind::Refused,
                Extent::Unusable | Extent::Unreachable => StoreErrorKind::Lost,
                Extent::Silent => StoreErrorKind::Timeout,
                Extent::Tls => StoreErrorKind::Tls,
            },
        }
    }

    /// The same error of an attempt to connect to a server, which says what to do about silence.
    pub(super) fn while_connecting(self, to: impl fmt::Display, within: Duration) -> Self {
        let Self::Timeout = self else { return self };
        Self::Denied(Diagnosis::NoAnswer, format!("{to}: no answer within {within:?}"))
    }

    /// Returns the diagnosis, if there is one.
    pub fn diagnosis(&self) -> Option<Diagnosis> {
        match self {
            Self::Denied(diagnosis, _) => Some(*diagnosis),
            Self::Redirected(Redirect::Down) => Some(Diagnosis::ClusterDown),
            _ => None,
        }
    }
}

/// The beginning of the text of an error.
fn intro(diagnosis: Diagnosis) -> &'static str {
    match diagnosis.extent() {
        Extent::SomeCommands | Extent::AllCommands => "the store refused: ",
        Extent::Unusable => "the store cannot be used: ",
        Extent::Tls => "TLS to the store failed: ",
        Extent::Unreachable | Extent::Silent => "cannot connect to the store ",
    }
}

impl Redirect {
    /// The remedy after the word, if one is needed.
    fn remedy(&self) -> String {
        match self {
            Self::Down => format!("; {}", Diagnosis::ClusterDown.remedy()),
            Self::Moved | Self::Ask(_) | Self::TryAgain => String::new(),
        }
    }
}

/// The address at which a node is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeAddress {
    /// A host name, or an IP address without brackets.
    pub host: Box<str>,
    /// The port of the protocol that we speak, plain or TLS.
    pub port: u16,
}

impl NodeAddress {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Parses `host:port` as in a redirection, where an IPv6 address has no brackets.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some(Self { host: host.into(), port: port.parse().ok()? })
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Timeout for connecting, and for operations that no client waits for: fills, releases, repeated
/// ends.
pub(super) const DETACHED_TIMEOUT: Duration = Duration::from_secs(1);
/// First and longest pause between two attempts to connect; doubles each time.
pub(super) const BACKOFF: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(1));
/// Error of a script that accesses a key which is not on this node, or no longer there.
const NON_LOCAL: &str = "non local key";

/// Classifies errors by how they are handled: `Lost` and `Unusable` end the session, `Refused` does
/// not. An error message with a known diagnosis is `Denied`.
impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        let message = server_message(&error);
        match error.kind() {
            // The `redis` crate has no kind for BUSY: a script has been running for too long, and
            // the server answers no commands.
            _ if error.code() == Some("BUSY") => Self::Busy,
            Server(Moved) => Self::Redirected(Redirect::Moved),
            Server(Ask) => {
                let to = error.redirect_node().and_then(|(to, _)| NodeAddress::parse(to));
                Self::Redirected(Redirect::Ask(to))
            }
            Server(TryAgain) => Self::Redirected(Redirect::TryAgain),
            Server(ClusterDown) => Self::Redirected(Redirect::Down),
            // A script in a migrating slot has deleted a key and then accesses it.
            Server(_) if message.contains(NON_LOCAL) => Self::Redirected(Redirect::TryAgain),
            Server(_) | Extension => match Diagnosis::of(&message) {
                Some(diagnosis) => Self::Denied(diagnosis, message),
                None => Self::Refused(message),
            },
            // The first two are replies that cannot be decoded. If the stream itself is corrupt, the
            // connection ends with it, and the next operation reports that. The last one is
            // permanent: the settings do not fit together.
            UnexpectedReturnType | Parse | InvalidClientConfig => Self::Refused(message),
            AuthenticationFailed => Self::Denied(Diagnosis::WrongLogin, message),
            Io => Self::Lost(message),
            // Most are `Client`: found before the command was sent, or in the replies to a login.
            // They say nothing about the operation, so it is safe to begin again.
            _ => Self::Unusable(message),
        }
    }
}

/// The error message of a server, as sent. A pipeline may have several: the first with a known diagnosis
/// counts.
pub(super) fn server_message(error: &RedisError) -> String {
    let Some(errors) = error.clone().into_server_errors() else { return error.to_string() };
    let said = errors.iter().map(|(_, error)| {
        let said = format!("{} {}", error.code(), error.details().unwrap_or_default());
        said.trim_end().trim_end_matches('.').to_owned()
    });
    let said: Vec<_> = said.collect();
    let telling = said.iter().find(|said| Diagnosis::of(said).is_some());
    telling.or(said.first()).cloned().unwrap_or_default()
}

/// A socket that was in use broke.
impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<Elapsed> for StoreError {
    fn from(_: Elapsed) -> Self {
        Self::Timeout
    }
}

#[cfg(test)]
mod tests {
    use redis::ErrorKind;

    use super::*;

    #[test]
    fn an_error_of_the_client_ends_the_session_and_one_of_its_settings_is_refused() {
        let error = |kind: ErrorKind| StoreError::from(RedisError::from((kind, "why")));
        assert!(matches!(error(ErrorKind::InvalidClientConfig), StoreError::Refused(_)));
        assert!(matches!(error(ErrorKind::Client), StoreError::Unusable(_)));
        assert!(matches!(error(ErrorKind::Io), StoreError::Lost(_)));
    }
}
