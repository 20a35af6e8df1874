//! The scenario, and the sizes in which it is played.

use std::time::Duration;

/// Interval between two polls of a frontend.
pub(crate) const POLL_EVERY: Duration = Duration::from_secs(5);
/// Number of watched jobs. It, rather than the number of users, bounds the savings, because each
/// change must be read once.
pub(crate) const JOBS: usize = 20;
/// Shortest and longest time that a job stays in one stage, in seconds.
pub(crate) const STAGE_SECONDS: (f64, f64) = (10.0, 30.0);
/// Lifetime of an entry.
pub(crate) const TTL: Duration = Duration::from_mins(5);
/// Duration of a query in the API's database; not compressed.
pub(crate) const QUERY: Duration = Duration::from_millis(5);

/// Published figures of the in-application cache that jobcache replaces: reads per minute with 100
/// users, and the percentage saved.
pub(crate) const PUBLISHED_READS: f64 = 100.0;
pub(crate) const PUBLISHED_REDUCTION: f64 = 83.0;

/// The part between the users and the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    Nothing,
    /// This many sidecars with one Redis.
    Sidecars(u8),
}

/// The credentials in the users' requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callers {
    /// No credentials.
    Anonymous,
    /// Each user sends its own token, and gets only what the API has served to that token.
    Partitioned,
    /// Each user sends its own token, which a gateway has checked: all users share entries.
    Shared,
}

/// One size of the scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Play {
    pub(crate) users: u32,
    pub(crate) callers: Callers,
    pub(crate) front: Front,
    /// Speed-up over real time.
    pub(crate) factor: u32,
}

/// The sizes, from the 100 users of the scenario to a hundred times as many.
pub(crate) const PLAYS: [Play; 9] = [
    Play { users: 100, callers: Callers::Anonymous, front: Front::Nothing, factor: 10 },
    Play { users: 100, callers: Callers::Anonymous, front: Front::Sidecars(1), factor: 10 },
    Play { users: 100, callers: Callers::Partitioned, front: Front::Sidecars(1), factor: 10 },
    Play { users: 100, callers: Callers::Shared, front: Front::Sidecars(1), factor: 10 },
    Play { users: 1_000, callers: Callers::Anonymous, front: Front::Sidecars(1), factor: 10 },
    Play { users: 1_000, callers: Callers::Anonymous, front: Front::Sidecars(2), factor: 10 },
    Play { users: 1_000, callers: Callers::Anonymous, front: Front::Sidecars(4), factor: 10 },
    // At a higher speed these would exceed a small machine.
    Play { users: 10_000, callers: Callers::Anonymous, front: Front::Sidecars(1), factor: 1 },
    Play { users: 10_000, callers: Callers::Anonymous, front: Front::Sidecars(4), factor: 1 },
];

impl Play {
    /// Returns the duration of a time of the scenario in this play.
    pub(crate) fn compressed(&self, time: Duration) -> Duration {
        time / self.factor
    }

    /// Returns the number of sidecars as tables show it.
    pub(crate) fn front(&self) -> String {
        match self.front {
            Front::Nothing => "none".to_owned(),
            Front::Sidecars(count) => count.to_string(),
        }
    }

    /// Returns whether the number of reads must not depend on the number of users.
    pub(crate) fn shares(&self) -> bool {
        self.front != Front::Nothing && self.callers != Callers::Partitioned
    }
}

impl Callers {
    /// Returns the label in tables.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Partitioned => "own tokens",
            Self::Shared => "tokens, shared",
        }
    }

    /// Returns the value of `credentials.mode`.
    pub(crate) fn mode(self) -> &'static str {
        if self == Self::Shared { "shared" } else { "partition" }
    }
}
