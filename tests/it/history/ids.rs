//! The ids of the jobs of a history.

/// How ids are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    /// `j7`, which an API that ignores case also reads as `J7`.
    Letters,
    /// `1007`. In a cluster a letter in another case is a key in another slot, so a write would
    /// need two masters.
    Numbers,
}

/// The number of job 0.
const FIRST: u16 = 1000;

impl Ids {
    pub(super) fn id(self, job: u16) -> String {
        match self {
            Self::Letters => format!("j{job}"),
            Self::Numbers => (FIRST + job).to_string(),
        }
    }

    /// Returns the job with this id.
    pub(super) fn job(self, id: &str) -> Option<u16> {
        match self {
            Self::Letters => id.strip_prefix('j')?.parse().ok(),
            Self::Numbers => id.parse::<u16>().ok()?.checked_sub(FIRST),
        }
    }

    pub(super) fn path(self, job: u16) -> String {
        format!("/jobs/{}", self.id(job))
    }
}
