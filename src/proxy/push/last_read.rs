//! The read of a topic's last version, and which responses are later than it.
//!
//! Versions are in the order in which the upstream gave them. A read of the driver begins after the last one
//! has ended, so its response is later. Another reader's response, as an entry or from a joined flight, may
//! have been read at the same time as the last version, and may be older. Such a response is not published;
//! the driver reads the upstream itself.

use tokio::time::Instant;

use super::{
    topic::Version,
    topic_read::{Began, FoundEntry},
};
use crate::cache::{ChangeId, entry::CLOCK_MARGIN_MS};

/// The read of the last version of a topic.
#[derive(Default)]
pub(super) struct LastRead {
    /// End of the read, by the clock of this process and in ms since 1970 by the store's clock.
    until: Option<(Instant, i64)>,
    /// The change since which it was read.
    change: Option<ChangeId>,
    /// Whether a response came since then that may have been older.
    is_doubtful: bool,
}

impl LastRead {
    /// Records the read of a new version, which ends now.
    pub(super) fn replace(&mut self, change: Option<ChangeId>, (now, now_ms): (Instant, i64)) {
        *self = Self { until: Some((now, now_ms)), change, is_doubtful: false };
    }

    /// Forgets the change, so that the next lookup counts as news.
    pub(super) fn forget_change(&mut self) {
        self.change = None;
    }

    /// Whether the version was read since this change.
    pub(super) fn is_since(&self, change: Option<&ChangeId>) -> bool {
        change.is_some() && change == self.change.as_ref()
    }

    /// Records a response that may be older.
    pub(super) fn doubt(&mut self) {
        self.is_doubtful = true;
    }

    /// Records that the version is the current one.
    pub(super) fn confirm(&mut self) {
        self.is_doubtful = false;
    }

    /// Whether only the upstream can say which version is the current one.
    pub(super) fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// Whether a response may have been read before the end of this read, and differs from `last`, its
    /// version.
    pub(super) fn may_be_older(
        &self,
        last: Option<&Version>,
        found: &FoundEntry,
        began: Began,
    ) -> bool {
        let Some((until, until_ms)) = self.until else { return false };
        let is_later = if found.is_own {
            began.at >= until
        } else {
            found.entry.asked_at_ms() > until_ms + CLOCK_MARGIN_MS
        };
        !is_later && last.is_some_and(|last| !last.has_body_of(&found.entry))
    }
}
