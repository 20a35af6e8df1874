//! The measured loads: kinds of work, body sizes, numbers of connections.

use std::fmt;

/// The work that a request causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Work {
    /// Answered from the cache.
    Hit,
    /// A job without earlier requests: read from the upstream and stored.
    Miss,
    /// A path that is not cached.
    Pass,
    /// A POST below a job: jobcache invalidates the job, the other peers only forward.
    Write,
}

/// Size of a response body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Small,
    Large,
}

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) work: Work,
    pub(crate) size: Size,
    pub(crate) connections: u32,
}

/// The measured loads: few connections show latency, many show cost.
pub(crate) const CELLS: [Cell; 10] = [
    Cell { work: Work::Hit, size: Size::Small, connections: 64 },
    Cell { work: Work::Hit, size: Size::Large, connections: 64 },
    Cell { work: Work::Hit, size: Size::Small, connections: 8 },
    Cell { work: Work::Hit, size: Size::Large, connections: 8 },
    Cell { work: Work::Miss, size: Size::Small, connections: 64 },
    Cell { work: Work::Miss, size: Size::Large, connections: 64 },
    Cell { work: Work::Miss, size: Size::Small, connections: 8 },
    Cell { work: Work::Pass, size: Size::Small, connections: 64 },
    Cell { work: Work::Pass, size: Size::Large, connections: 64 },
    Cell { work: Work::Write, size: Size::Small, connections: 8 },
];

impl Work {
    /// Returns the name in `requests.lua`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Pass => "pass",
            Self::Write => "write",
        }
    }
}

impl Size {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Small => 600,
            Self::Large => 16 * 1024,
        }
    }

    /// Returns the prefix of the ids of jobs with this size.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Small => "00",
            Self::Large => "f0",
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "600 B",
            Self::Large => "16 KiB",
        })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {} connections", self.work.as_str(), self.size, self.connections)
    }
}
