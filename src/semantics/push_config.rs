//! The settings of push: answers that wait for the next version of a job, as a long poll or as a
//! stream of events.

use std::time::Duration;

use hyper::http::HeaderValue;

use super::{json_pointer::JsonPointer, labels::labels};

/// How a client may wait for the next version of a job, and what that may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushConfig {
    /// Ways in which a client may wait.
    pub mode: PushMode,
    /// `Accept` of the reads for streams.
    pub accept: HeaderValue,
    /// Longest time for which a poll is held.
    pub max_wait: Duration,
    /// Reads of the upstream for held clients at a time.
    pub max_reads: usize,
    /// Time after which a job without news is read again for its held clients.
    pub recheck: Duration,
    /// Clients that may be held at a time, polls and streams together.
    pub max_waiting: usize,
    /// States in which a job no longer changes.
    pub final_states: FinalStates,
}

labels! {
    /// Ways in which a client may wait for the next version of a job.
    pub enum PushMode {
        /// Every read is answered at once.
        Off = "off",
        /// `Prefer: wait` (RFC 7240) with `If-None-Match`.
        LongPoll = "long-poll",
        /// `Accept: text/event-stream`.
        Sse = "sse",
        /// Both.
        All = "all",
    }
}

impl PushMode {
    /// Returns whether a poll may be held.
    pub const fn has_long_poll(self) -> bool {
        matches!(self, Self::LongPoll | Self::All)
    }

    /// Returns whether a client may open a stream of events.
    pub const fn has_streams(self) -> bool {
        matches!(self, Self::Sse | Self::All)
    }
}

/// States in which a job no longer changes, so that its streams end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalStates {
    /// Place of the state in the body.
    pub pointer: JsonPointer,
    /// The states as text; if it is empty, no state is final.
    pub values: Vec<String>,
}
