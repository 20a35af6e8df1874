//! Results of shared reads, and their words for metrics, events and spans.

use hyper::StatusCode;

use crate::semantics::policy::NoStore;

/// The result of a shared read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillResult {
    /// The response is in the store.
    Stored,
    /// The job changed during the read. The client of this read asked before the write was answered,
    /// so it may have this response. No later reader may.
    Revoked,
    /// The store did not take the response.
    Failed,
    /// The response was shared but not stored, because the lookup was not confirmed.
    Unconfirmed,
    /// The response is not stored, and was shared at most with the readers that waited for it.
    Abandoned(AbandonReason),
}

/// Why a flight has ended without a response that may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbandonReason {
    /// The response, with this status, may not be stored.
    Unstorable(NoStore, StatusCode),
    /// The upstream gave no response or an incomplete one.
    Unanswered,
    /// The upstream was not asked, because other routes or rules have come into force.
    Superseded,
}

impl FillResult {
    /// Returns the word for metrics, events and spans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Revoked => "revoked",
            Self::Failed => "failed",
            Self::Unconfirmed => "not-stored",
            Self::Abandoned(AbandonReason::Unstorable(why, _)) => why.as_str(),
            Self::Abandoned(AbandonReason::Unanswered) => "no-answer",
            Self::Abandoned(AbandonReason::Superseded) => "superseded",
        }
    }
}
