//! The record of a run, as the one test process saw it: every operation with its start and end by
//! one monotonic clock.

use std::{collections::HashMap, fmt, time::Instant};

use super::{callers::Caller, push_judge::Subscription, spelling::Spelling};

/// Microseconds since the run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Micros(pub(super) u64);

/// The clock of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> Micros {
        Micros(u64::try_from(self.0.elapsed().as_micros()).expect("a short run"))
    }
}

impl Micros {
    pub(super) fn plus_ms(self, ms: u64) -> Self {
        Self(self.0 + ms * 1000)
    }

    pub(super) fn minus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms * 1000))
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>4}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// A sidecar and the number of its restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Process {
    pub(super) sidecar: u8,
    pub(super) life: u8,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", char::from(b'A' + self.sidecar), self.life)
    }
}

/// How a GET with 200 was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Hit,
    Collapsed,
    Stored,
    Miss,
    Pass,
    /// By a held poll or a stream.
    Held,
}

/// A GET that was answered with 200. There are millions, so it is small.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub(super) start: Micros,
    pub(super) took_us: u32,
    pub(super) version: u32,
    pub(super) job: u16,
    pub(super) process: Process,
    pub(super) how: How,
    pub(super) caller: Caller,
    /// The caller that the body names.
    pub(super) view: Option<Caller>,
}

impl Read {
    pub(super) fn end(&self) -> Micros {
        Micros(self.start.0 + u64::from(self.took_us))
    }
}

/// How a job was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// A write through a sidecar.
    Put(Spelling),
    /// A commit at the upstream, then the purge webhook.
    Purge,
    /// A commit at the upstream, then another client's plain DEL.
    Del,
}

/// The answer to a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Success.
    Acknowledged,
    /// Success with `invalidation-pending`, or 503.
    Unconfirmed,
    /// No answer, or an error.
    Unknown,
    /// No answer, because the writer hung up.
    HungUp,
}

/// A change of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) start: Micros,
    pub(super) end: Micros,
    pub(super) job: u16,
    pub(super) process: Process,
    pub(super) outcome: Outcome,
}

/// The moment from which reads at the upstream show a version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commit {
    /// The number of its write.
    pub(super) number: u64,
    pub(super) job: u16,
    pub(super) version: u32,
    pub(super) at: Micros,
    /// Whether the head of the write's answer had been sent before.
    pub(super) in_body: bool,
    /// When the rest of that answer was sent.
    pub(super) sent: Option<Micros>,
}

/// When the upstream first read a version of a job for a caller.
pub(super) type Served = HashMap<(u16, u32, Caller), Micros>;

/// A fault, and how long it lasted.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) fault: super::faults::Fault,
    pub(super) start: Micros,
    pub(super) end: Micros,
}

/// A whole run.
#[derive(Default)]
pub(super) struct History {
    pub(super) reads: Vec<Read>,
    pub(super) writes: Vec<Write>,
    pub(super) commits: Vec<Commit>,
    pub(super) served: Served,
    pub(super) troubles: Vec<Trouble>,
    /// Clients that waited for changes.
    pub(super) subscriptions: Vec<Subscription>,
    /// GETs that were not answered with 200.
    pub(super) failed_reads: usize,
    /// GETs that ended in a hang-up by the client.
    pub(super) dropped_reads: usize,
    /// Sidecars from the beginning. Others have joined.
    pub(super) residents: u8,
}
