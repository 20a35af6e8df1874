//! Limit on how often news makes a topic read the upstream.
//!
//! A read itself may lead to news: an API that stores a value under the key whenever it is read, a reader
//! that replaces an entry, a server that evicts it. Such a circle costs the upstream no more than one read
//! every [`INTERVAL`], and a change in the meantime waits no longer than that.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::cache::NewsListener;

/// Least time between two reads for news, on average.
const INTERVAL: Duration = Duration::from_millis(200);
/// Time in which a topic saves up reads: so many changes may follow one another at once.
const SAVED: Duration = INTERVAL.saturating_mul(16);

/// The reads for news of one topic, as a leaky bucket.
pub(super) struct Pace {
    /// When the bucket is empty.
    empty_at: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { empty_at: now }
    }

    /// Counts a read.
    pub(super) fn count(&mut self, now: Instant) {
        self.empty_at = self.empty_at.max(now) + INTERVAL;
    }

    /// Waits for news that may be read for.
    pub(super) async fn delay(&self, news: &mut NewsListener) {
        // The clock may have begun a moment ago.
        if let Some(next) = self.empty_at.checked_sub(SAVED) {
            sleep_until(next).await;
        }
        news.changed().await;
    }
}
