//! One read of a topic, from its lookup to what it has found.

use std::sync::Arc;

use hyper::StatusCode;
use tokio::{sync::oneshot, time::Instant};

use super::topic::{Accepts, VersionSource};
use crate::{
    cache::{AbandonReason, ChangeId, FillResult, entry::Entry, flight::Flight},
    proxy::answer::{Answer, Verdict},
    semantics::policy::{Bypass, NoStore},
};

/// Result of a read.
pub(super) enum ReadResult {
    Entry(FoundEntry),
    /// No change since the last version was read.
    Unchanged,
    /// The store has not said whether the last version is the current one.
    Unconfirmed,
    /// A write is under way, or was just answered.
    Fenced,
    /// The upstream no longer gives the job to this identity.
    Refused(StatusCode),
    /// A success that is for its own reader only.
    Unshareable(StatusCode),
    /// No answer, or one that says nothing about the job.
    Failed,
}

/// A response, and where it comes from.
pub(super) struct FoundEntry {
    pub(super) entry: Arc<Entry>,
    pub(super) source: VersionSource,
    /// The change since which it was read.
    pub(super) change: Option<ChangeId>,
    /// Whether this driver has read it from the upstream.
    pub(super) is_own: bool,
}

/// Beginning of a read, by which its result is judged.
#[derive(Clone, Copy)]
pub(super) struct Began {
    pub(super) at: Instant,
    /// The last look that was asked for before it.
    pub(super) asked: Option<u64>,
    /// Versions that all clients accept that have asked for a look.
    pub(super) accepts: Accepts,
    /// Whether the read goes past a fence, or may do so.
    pub(super) is_past_fence: bool,
}

/// A read of the upstream that is under way.
pub(super) struct PendingRead {
    pub(super) began: Began,
    /// The change since which it reads.
    pub(super) change: Option<ChangeId>,
    pub(super) flight: Flight,
    /// The answer, if the driver leads the flight.
    pub(super) answer: Option<oneshot::Receiver<Answer>>,
}

/// The result of a lookup.
pub(super) enum ReadStep {
    Done(ReadResult),
    Pending(PendingRead),
}

impl PendingRead {
    /// Waits for the end of the read.
    pub(super) async fn end(self, number: usize) -> (usize, Began, ReadResult) {
        let Self { began, change, flight, answer } = self;
        let is_own = answer.is_some();
        let found = match (flight.wait().await, answer) {
            (Ok(entry), _) => ReadResult::Entry(FoundEntry {
                entry,
                source: VersionSource::Upstream,
                change,
                is_own,
            }),
            (Err(_), Some(answer)) => match answer.await {
                Ok(answer) => ReadResult::of_answer(&answer),
                Err(_) => ReadResult::Failed,
            },
            (Err(_), None) => ReadResult::Failed,
        };
        (number, began, found)
    }
}

impl ReadResult {
    /// Judges an answer that cannot be shared. A server that fails or is overloaded says nothing
    /// about the job, and neither does a success that came too late to be shared.
    fn of_answer(Answer { response, verdict, .. }: &Answer) -> Self {
        let status = response.status();
        let is_from_upstream = !matches!(verdict, Verdict::Failed(_) | Verdict::Refused(_));
        let is_transient = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
        match verdict {
            Verdict::Miss { filled: Some(FillResult::Abandoned(why)), .. }
                if status.is_success() && is_of_response(*why) =>
            {
                Self::Unshareable(status)
            }
            Verdict::Miss { why: Some(Bypass::Uncacheable), .. } if status.is_success() => {
                Self::Unshareable(status)
            }
            _ if !is_from_upstream || status.is_success() || status.is_server_error() => {
                Self::Failed
            }
            _ if is_transient.contains(&status) => Self::Failed,
            _ => Self::Refused(status),
        }
    }
}

/// Whether a read was given up because of its response. Memory may be free the next time.
fn is_of_response(why: AbandonReason) -> bool {
    matches!(why, AbandonReason::Unstorable(why, _) if why != NoStore::Memory)
}
