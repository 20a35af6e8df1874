//! Why the store gave no answer.

use std::fmt;

use super::node_address::NodeAddress;

/// A cluster node's refusal of a command for a slot that it does not serve alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// The slot belongs to another node: the slot map is out of date.
    Moved,
    /// The slot is moving to this node, and the key is there already or does not exist.
    Ask(Option<NodeAddress>),
    /// The slot is moving, and of several keys some are on each node.
    TryAgain,
    /// The node has lost the majority of the cluster, or the slot has no owner.
    Down,
}

impl Redirect {
    /// Returns the label for metrics: the server's error code in lower case.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Ask(_) => "ask",
            Self::TryAgain => "tryagain",
            Self::Down => "clusterdown",
        }
    }
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

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
    /// The budget ran out.
    #[error("the store did not answer within its budget")]
    Timeout,
    /// The budget ran out, and more than half of it had been spent before this operation.
    #[error("the budget was spent before the store could answer")]
    Spent,
    /// No connection was made.
    #[error("cannot connect to the store {0}")]
    Unreachable(String),
    /// A connection that was in use broke.
    #[error("the connection to the store broke: {0}")]
    Lost(String),
    /// The server answers, but is not one to use: a replica, another master, a server that loads its
    /// data.
    #[error("the store cannot be used: {0}")]
    Unusable(String),
    /// TLS could not be set up.
    #[error("TLS to the store failed: {0}")]
    Tls(String),
    /// The server answered with an error.
    #[error("the store refused: {0}")]
    Refused(String),
    /// A cluster node does not serve the slot of the key.
    #[error("the cluster node answered {0}")]
    Redirected(Redirect),
    /// The journal of unconfirmed invalidations cannot be opened.
    #[error("cannot open the journal {}: {source}", path.display())]
    Journal {
        /// The path in `pending.journal`.
        path: std::path::PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

impl StoreError {
    /// Returns the label for metrics and operators. The server's own words may contain its address,
    /// which only the log may show.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Pending => "pending",
            Self::Grace => "grace",
            Self::Timeout | Self::Spent => "timeout",
            Self::Unreachable(_) | Self::Lost(_) | Self::Unusable(_) => "lost",
            Self::Tls(_) => "tls",
            Self::Refused(_) | Self::Journal { .. } => "refused",
            Self::Redirected(_) => "redirected",
        }
    }
}
