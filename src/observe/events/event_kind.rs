//! What happened, in an event.

use std::sync::Arc;

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A request was answered from the cache.
    Hit,
    /// A request was answered by a read of the upstream, which other requests may share.
    Miss,
    /// A request bypassed the cache.
    Pass,
    /// A request was answered by jobcache itself, with an error.
    Error,
    /// An answer was stored.
    Fill,
    /// An answer was not stored.
    FillRefused,
    /// A client was added to the audience of an entry, because the upstream gave it the same
    /// answer.
    Admitted,
    /// The entry was replaced, because the upstream gave a client another answer.
    Replaced,
    /// A write through this sidecar began.
    Write,
    /// A write through this sidecar ended: its request and its answer. Recorded once per write.
    WriteEnded,
    /// The job was purged on request.
    Purge,
    /// Every job was purged.
    PurgeAll,
    /// Another sidecar or a third party changed the job in Redis.
    Changed,
    /// All keys left Redis at once.
    Flushed,
    /// The entry was evicted from the memory of this process.
    Evicted,
    /// A pending invalidation was confirmed.
    Confirmed,
    /// The store is up: the breaker closed.
    StoreUp,
    /// The store is down: the breaker opened.
    StoreDown,
    /// The tracking connection is up.
    TrackingUp,
    /// The tracking connection is down, so each hit asks the store.
    TrackingDown,
    /// The upstream answers.
    UpstreamUp,
    /// The upstream does not answer.
    UpstreamDown,
}

impl EventKind {
    /// Returns the name for `/events`, `/explain` and the status page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Pass => "pass",
            Self::Error => "error",
            Self::Fill => "fill",
            Self::FillRefused => "fill-refused",
            Self::Admitted => "admitted",
            Self::Replaced => "replaced",
            Self::Write => "write",
            Self::WriteEnded => "write-ended",
            Self::Purge => "purge",
            Self::PurgeAll => "purge-all",
            Self::Changed => "changed",
            Self::Flushed => "flushed",
            Self::Evicted => "evicted",
            Self::Confirmed => "confirmed",
            Self::StoreUp => "store-up",
            Self::StoreDown => "store-down",
            Self::TrackingUp => "tracking-up",
            Self::TrackingDown => "tracking-down",
            Self::UpstreamUp => "upstream-up",
            Self::UpstreamDown => "upstream-down",
        }
    }

    /// Whether the last event of this kind outlives the ring of recent events. These events show
    /// that a job was changed, and why its answers are not stored.
    pub(super) fn outlives_ring(self) -> bool {
        use EventKind::{Changed, FillRefused, Purge, Write, WriteEnded};
        matches!(self, Changed | FillRefused | Purge | Write | WriteEnded)
    }

    /// Whether the store reports this change, possibly after the event was recorded.
    pub(super) fn changes_the_key(self) -> bool {
        use EventKind::{Confirmed, Fill, Purge, Replaced, Write, WriteEnded};
        matches!(self, Confirmed | Fill | Purge | Replaced | Write | WriteEnded)
    }
}

/// The initiator of an event as text, such as the sender of a purge.
pub type Initiator = Option<Arc<str>>;
