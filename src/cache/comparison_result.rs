//! The result of a comparison with the upstream.

/// The result of a comparison; a label of its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComparisonResult {
    /// The response of the upstream equals the entry.
    Same,
    /// The response differs, and no purge or write has reported a change of the job.
    Different,
    /// The upstream refuses the reader or has no such job, and no change was reported.
    Refused,
    /// The response differs, and the entry has been dropped meanwhile.
    Changed,
    /// The upstream gave no response or a server error, which proves nothing.
    Failed,
    /// The response was not complete or could not be compared, or the store could not be asked.
    Unchecked,
    /// Too many comparisons were under way.
    Skipped,
}

impl ComparisonResult {
    /// Every result, in the order of declaration.
    pub const ALL: [Self; 7] = [
        Self::Same,
        Self::Different,
        Self::Refused,
        Self::Changed,
        Self::Failed,
        Self::Unchecked,
        Self::Skipped,
    ];

    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Different => "different",
            Self::Refused => "refused",
            Self::Changed => "changed",
            Self::Failed => "failed",
            Self::Unchecked => "unchecked",
            Self::Skipped => "skipped",
        }
    }
}
