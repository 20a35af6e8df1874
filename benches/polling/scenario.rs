//! The scenario, and the sizes in which it is played.

use std::time::Duration;

/// Interval between two polls of a frontend.
pub(crate) const POLL_EVERY: Duration = Duration::from_secs(5);
/// Shortest and longest time that a job stays in one stage, in seconds.
pub(crate) const STAGE_SECONDS: (f64, f64) = (10.0, 30.0);
/// Lifetime of an entry if changes are reported.
const TTL: Duration = Duration::from_mins(5);
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
    /// nginx, with a TTL of one poll interval.
    Microcache,
}

/// How the pipeline reports a change of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// It writes to the database, then calls the purge webhook.
    Purge,
    /// It changes the job with a `PUT` through a sidecar.
    Write,
    /// It only writes to the database.
    Nothing,
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
    /// Number of watched jobs. It, rather than the number of users, bounds the savings, because
    /// each change must be read once.
    pub(crate) jobs: usize,
    pub(crate) callers: Callers,
    pub(crate) front: Front,
    /// Longest lifetime of an entry of jobcache.
    pub(crate) ttl: Duration,
    pub(crate) notice: Notice,
    /// Speed-up over real time.
    pub(crate) factor: u32,
}

/// The scenario itself; the other plays differ from it in what they name.
pub(crate) const SCENARIO: Play = Play {
    users: 100,
    jobs: 20,
    callers: Callers::Anonymous,
    front: Front::Sidecars(1),
    ttl: TTL,
    notice: Notice::Purge,
    factor: 10,
};

/// The sizes, from the 100 users of the scenario to a hundred times as many.
pub(crate) const PLAYS: [Play; 11] = [
    Play { front: Front::Nothing, notice: Notice::Nothing, ..SCENARIO },
    SCENARIO,
    Play { callers: Callers::Partitioned, ..SCENARIO },
    Play { callers: Callers::Shared, ..SCENARIO },
    // Each user polls a job of its own.
    Play { jobs: 100, ..SCENARIO },
    Play { jobs: 100, callers: Callers::Partitioned, ..SCENARIO },
    Play { users: 1_000, ..SCENARIO },
    Play { users: 1_000, front: Front::Sidecars(2), ..SCENARIO },
    Play { users: 1_000, front: Front::Sidecars(4), ..SCENARIO },
    // At a higher speed these would exceed a small machine.
    Play { users: 10_000, factor: 1, ..SCENARIO },
    Play { users: 10_000, front: Front::Sidecars(4), factor: 1, ..SCENARIO },
];

impl Play {
    /// Returns the duration of a time of the scenario in this play.
    pub(crate) fn compressed(&self, time: Duration) -> Duration {
        time / self.factor
    }

    /// Returns the number of users that poll one job.
    pub(crate) fn users_a_job(&self) -> usize {
        usize::try_from(self.users).unwrap_or(usize::MAX) / self.jobs
    }

    /// Returns the number of sidecars as tables show it.
    pub(crate) fn front(&self) -> String {
        match self.front {
            Front::Nothing => "none".to_owned(),
            Front::Sidecars(count) => count.to_string(),
            Front::Microcache => "nginx".to_owned(),
        }
    }

    /// Returns whether a change must cost one read, whatever the number of users.
    pub(crate) fn shares(&self) -> bool {
        let one_caller = self.callers != Callers::Partitioned || self.users_a_job() == 1;
        one_caller && self.notice == Notice::Purge
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

impl Notice {
    /// Returns the name in the JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Purge => "purge",
            Self::Write => "write",
            Self::Nothing => "nothing",
        }
    }
}
