//! When the map is learned, and who waits for that.
//!
//! Lessons are shared as rounds of the read barrier are: who wants one while one is under way waits for
//! the next, so that what it brings was asked for after he came.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{Notify, watch};

use super::Address;

/// Lessons, one after the other.
#[derive(Debug)]
pub(in crate::store) struct Lessons {
    wanted: Notify,
    /// How many have begun.
    begun: AtomicU64,
    learned: watch::Sender<Lesson>,
}

/// What was learned, but for the map itself.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Lesson {
    number: u64,
    /// Who answered.
    witnesses: Arc<[Address]>,
    /// Whether there is anybody else who could have.
    is_alone: bool,
}

impl Default for Lessons {
    fn default() -> Self {
        let learned = watch::Sender::new(Lesson::default());
        Self { wanted: Notify::new(), begun: AtomicU64::new(0), learned }
    }
}

impl Lessons {
    /// Asks for one, and does not wait.
    pub(in crate::store) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Waits for one that begins after now. By then the map is as it says.
    pub(in crate::store) async fn next(&self) -> Lesson {
        let mut learned = self.learned.subscribe();
        let next = self.begun.load(Ordering::SeqCst) + 1;
        self.want();
        let lesson = learned.wait_for(|lesson| lesson.number >= next).await;
        // The sender is ours, so that it is there.
        lesson.map(|lesson| lesson.clone()).unwrap_or_default()
    }

    /// Waits until one is wanted.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// One begins.
    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// It has come to its end, and the map is drawn. One that nobody answered is none.
    pub(super) fn end(&self, number: u64, witnesses: Arc<[Address]>, is_alone: bool) {
        self.learned.send_replace(Lesson { number, witnesses, is_alone });
    }
}

impl Lesson {
    /// Whether somebody else than this node has answered, if there is somebody else.
    pub(in crate::store) fn bears_witness(&self, of: &Address) -> bool {
        self.witnesses.iter().any(|witness| witness != of)
            || self.is_alone && self.witnesses.contains(of)
    }
}
