//! Entries in this process, in front of Redis.

use std::time::Duration;

/// Entries in this process, in front of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearConfig {
    /// When an entry may be used.
    pub mode: NearMode,
    /// Largest age of the last confirmation in [`NearMode::Bounded`].
    pub max_staleness: Duration,
    /// Memory for the entries, in bytes.
    pub max_bytes: usize,
    /// Changes that Redis reports.
    pub tracking: NearTracking,
}

/// Changes in Redis that are reported to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearTracking {
    /// The changes of every job.
    Broadcast,
    /// The changes of jobs that this process has read since their last change.
    Keys,
}

/// When an entry in this process may be used without asking Redis for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearMode {
    /// After Redis has answered a `PING` that was sent after the request arrived, so that nothing
    /// older than the guarantee allows is served. Requests share the `PING`.
    Strict,
    /// While the last such answer is young enough.
    Bounded,
    /// Never: each hit asks Redis.
    Off,
}

impl NearMode {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Bounded => "bounded",
            Self::Off => "off",
        }
    }
}
