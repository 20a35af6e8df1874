//! The scenario, and the sizes in which it is played.

use std::time::Duration;

/// How often a frontend polls its job.
pub(crate) const POLL_EVERY: Duration = Duration::from_secs(5);
/// Jobs that are watched. Their number and not that of the users bounds what can be saved: each
/// change has to be read once.
pub(crate) const JOBS: usize = 20;
/// Shortest and longest time that a job stays in one stage, in seconds.
pub(crate) const STAGE_SECONDS: (f64, f64) = (10.0, 30.0);
/// The life of an entry.
pub(crate) const TTL: Duration = Duration::from_mins(5);
/// What a query takes in the database of the API; not compressed.
pub(crate) const QUERY: Duration = Duration::from_millis(5);

/// What is published of the cache inside the application that jobcache replaces: about so many
/// reads a minute with 100 users, and so much less than without.
pub(crate) const PUBLISHED_READS: f64 = 100.0;
pub(crate) const PUBLISHED_REDUCTION: f64 = 83.0;

/// Who stands between users and API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// Nobody.
    Nothing,
    /// So many sidecars with one Redis.
    Sidecars(u8),
}

/// What the users' requests say of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callers {
    /// Nothing.
    Anonymous,
    /// Each sends a token of its own, and is given only what the API has served to it.
    Partitioned,
    /// Each sends a token of its own, which a gateway has judged: all are given the same.
    Shared,
}

/// One size of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Play {
    pub(crate) users: u32,
    pub(crate) callers: Callers,
    pub(crate) front: Front,
    /// So much faster than life: what takes a minute takes a `factor`th of it.
    pub(crate) factor: u32,
}

/// From the 100 users of the scenario to a hundred times as many.
pub(crate) const PLAYS: [Play; 9] = [
    Play { users: 100, callers: Callers::Anonymous, front: Front::Nothing, factor: 10 },
    Play { users: 100, callers: Callers::Anonymous, front: Front::Sidecars(1), factor: 10 },
    Play { users: 100, callers: Callers::Partitioned, front: Front::Sidecars(1), factor: 10 },
    Play { users: 100, callers: Callers::Shared, front: Front::Sidecars(1), factor: 10 },
    Play { users: 1_000, callers: Callers::Anonymous, front: Front::Sidecars(1), factor: 10 },
    Play { users: 1_000, callers: Callers::Anonymous, front: Front::Sidecars(2), factor: 10 },
    Play { users: 1_000, callers: Callers::Anonymous, front: Front::Sidecars(4), factor: 10 },
    // Faster than life they would be more than a small machine can play.
    Play { users: 10_000, callers: Callers::Anonymous, front: Front::Sidecars(1), factor: 1 },
    Play { users: 10_000, callers: Callers::Anonymous, front: Front::Sidecars(4), factor: 1 },
];

impl Play {
    /// What a time of the scenario takes here.
    pub(crate) fn compressed(&self, time: Duration) -> Duration {
        time / self.factor
    }

    /// Sidecars, as tables call them.
    pub(crate) fn front(&self) -> String {
        match self.front {
            Front::Nothing => "none".to_owned(),
            Front::Sidecars(count) => count.to_string(),
        }
    }

    /// Whether the reads that it costs may not depend on the number of users.
    pub(crate) fn shares(&self) -> bool {
        self.front != Front::Nothing && self.callers != Callers::Partitioned
    }
}

impl Callers {
    /// As tables call them.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Partitioned => "own tokens",
            Self::Shared => "tokens, shared",
        }
    }

    /// The value of `credentials.mode`.
    pub(crate) fn mode(self) -> &'static str {
        if self == Self::Shared { "shared" } else { "partition" }
    }
}
