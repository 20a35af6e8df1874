//! Who polls what, through how many sidecars.

use crate::Tracking;

/// One size. Times are seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) sidecars: f64,
    pub(crate) pollers: f64,
    /// Pollers of one job.
    pub(crate) watchers: f64,
    pub(crate) balance: Balance,
    pub(crate) near: Near,
    pub(crate) tracking: Tracking,
    /// What every time but the next two is divided by.
    pub(crate) speed: f64,
    /// From the lookup that misses to the fill.
    pub(crate) fill_takes: f64,
    /// Of the read barrier: a round trip to Redis and back.
    pub(crate) round_takes: f64,
}

/// Where a poller's next poll goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balance {
    /// To any sidecar.
    Random,
    /// To the one that all of his went to.
    Sticky,
}

/// The setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Near {
    Strict,
    Bounded,
    Off,
}

/// Between two polls of one poller.
const POLL_EVERY: f64 = crate::crowd::POLL_EVERY;
/// Of `near = "bounded"`: it asks when the last answer is half as old as may be, which is 1 s.
const NUDGE_EVERY: f64 = 0.5;

impl Scenario {
    /// The scenario of `polling`, so large, on a network.
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

    /// The shortest and the longest life of a version.
    pub(crate) fn stage(&self) -> (f64, f64) {
        let (shortest, longest) = crate::crowd::STAGE;
        (shortest / self.speed, longest / self.speed)
    }

    /// Changes in a second, of all jobs.
    pub(crate) fn changes(&self) -> f64 {
        let (shortest, longest) = self.stage();
        self.jobs() / f64::midpoint(shortest, longest)
    }

    pub(crate) fn poll_every(&self) -> f64 {
        POLL_EVERY / self.speed
    }

    /// Polls of one job in a second.
    pub(crate) fn poll_rate(&self) -> f64 {
        self.watchers / self.poll_every()
    }

    /// Rounds of the barrier in a second, for so many waits in a second of all sidecars. While one is
    /// under way all who come wait for the next, which follows at once if there are any.
    pub(crate) fn rounds(&self, waits: f64) -> f64 {
        let each = waits / self.sidecars;
        if each <= 0.0 {
            return 0.0;
        }
        let quiet = (-each * self.round_takes).exp() / each;
        self.sidecars / (self.round_takes + quiet)
    }

    /// The same of what nobody waits for, in bounded mode.
    pub(crate) fn nudges(&self, waits: f64) -> f64 {
        (self.sidecars / NUDGE_EVERY).min(waits)
    }
}
