//! The status of a master, for operators.

/// A master of a cluster.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// The address at which it is reached.
    pub address: String,
    /// Number of slots that it owns.
    pub slots: usize,
    /// Whether it is trusted.
    pub up: bool,
    /// Whether changes on it are tracked.
    pub tracked: bool,
}
