//! The pollers, and the sidecars between them and the API.

use crate::Tracking;

/// One size. Times are in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) sidecars: f64,
    pub(crate) pollers: f64,
    /// Pollers of one job.
    pub(crate) watchers: f64,
    pub(crate) balance: Balance,
    pub(crate) near: Near,
    pub(crate) tracking: Tracking,
    /// Divisor of every time except the next two.
    pub(crate) speed: f64,
    /// Time from the lookup that misses to the fill.
    pub(crate) fill_takes: f64,
    /// Duration of a round of the read barrier: a round trip to Redis.
    pub(crate) round_takes: f64,
}

/// Destination of a poller's next poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balance {
    /// Any sidecar.
    Random,
    /// The sidecar of the poller's earlier polls.
    Sticky,
}

/// The setting `near`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Near {
    Strict,
    Bounded,
    Off,
}

/// Interval between two polls of a poller.
const POLL_EVERY: f64 = crate::crowd::POLL_EVERY;
/// Interval between the barrier rounds of `near = "bounded"`: half of the allowed age of an answer,
/// which is 1 s.
const NUDGE_EVERY: f64 = 0.5;

impl Scenario {
    /// Returns the scenario of `polling` at this size, on a network.
    pub(crate) fn new(sidecars: u32, pollers: u32) -> Self {
        Self {
            sidecars: sidecars.into(),
            pollers: pollers.into(),
            watchers: crate::outcome::count(crate::crowd::WATCHERS),
            balance: Balance::Random,
            near: Near::Strict,
            tracking: Tracking::Broadcast,
            speed: 1.0,
            fill_takes: 0.008,
            round_takes: 0.000_3,
        }
    }

    pub(crate) fn jobs(&self) -> f64 {
        self.pollers / self.watchers
    }

    /// Returns the shortest and the longest life of a version.
    pub(crate) fn stage(&self) -> (f64, f64) {
        let (shortest, longest) = crate::crowd::STAGE;
        (shortest / self.speed, longest / self.speed)
    }

    /// Returns the changes of all jobs per second.
    pub(crate) fn changes(&self) -> f64 {
        let (shortest, longest) = self.stage();
        self.jobs() / f64::midpoint(shortest, longest)
    }

    pub(crate) fn poll_every(&self) -> f64 {
        POLL_EVERY / self.speed
    }

    /// Returns the polls of one job per second.
    pub(crate) fn poll_rate(&self) -> f64 {
        self.watchers / self.poll_every()
    }

    /// Returns the barrier rounds per second for this many waits per second in all sidecars. Waits
    /// that arrive during a round share the next one, which starts as soon as the first ends.
    pub(crate) fn rounds(&self, waits: f64) -> f64 {
        let each = waits / self.sidecars;
        if each <= 0.0 {
            return 0.0;
        }
        let quiet = (-each * self.round_takes).exp() / each;
        self.sidecars / (self.round_takes + quiet)
    }

    /// Returns the rounds per second in bounded mode, in which hits do not wait for a round.
    pub(crate) fn nudges(&self, waits: f64) -> f64 {
        (self.sidecars / NUDGE_EVERY).min(waits)
    }
}
