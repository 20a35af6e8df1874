//! The reads of one job and coalesce key without a confirmed lookup.
//!
//! Some run, and one is next. No reader may join one that runs, because it began before the reader
//! arrived. So readers share the next one until it starts. It starts [`NEXT_PAUSE`] after the last
//! start, so that no reader waits for long. At most [`MAX_RUNNING`] run at a time, so that a crowd does
//! not cost the upstream one read each. Those that run may never end, so one more starts every
//! [`RELIEF_PAUSE`].

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, time::Instant};

/// Pause between the starts of two reads.
const NEXT_PAUSE: Duration = Duration::from_millis(50);
/// Least time that a read is next, so that readers that are answered together, and come back together,
/// share a read again.
const GATHER_TIME: Duration = Duration::from_millis(10);
/// Number of reads that may run when another one starts within [`RELIEF_PAUSE`] of the last one.
const MAX_RUNNING: usize = 4;
/// Pause before one more read than [`MAX_RUNNING`].
const RELIEF_PAUSE: Duration = Duration::from_secs(1);

/// The reads, by the numbers of their leaders. `F` is the handle of a flight.
pub(super) struct ReadQueue<F> {
    running: Vec<(u64, F)>,
    last_start: Instant,
    next: Option<QueuedRead<F>>,
    /// Wakes the next read when one has ended.
    ended: Arc<Notify>,
}

struct QueuedRead<F> {
    read: (u64, F),
    /// When its first reader arrived.
    since: Instant,
}

impl<F> ReadQueue<F> {
    /// Starts a read while no other runs.
    pub(super) fn starting(read: (u64, F), now: Instant) -> Self {
        Self { running: vec![read], last_start: now, next: None, ended: Arc::default() }
    }

    /// Returns the read that is next. A reader may join it.
    pub(super) fn next(&self) -> Option<&F> {
        self.next.as_ref().map(|next| &next.read.1)
    }

    /// Returns the read that has started last. Joining it is wrong: only a mutant does so.
    pub(super) fn latest_running(&self) -> Option<&F> {
        self.running.last().map(|(_, flight)| flight)
    }

    /// Adds the next read.
    pub(super) fn add_next(&mut self, read: (u64, F), now: Instant) {
        self.next = Some(QueuedRead { read, since: now });
    }

    /// Starts the read with this number, if it is next and may start now. Returns until when it has to
    /// wait, unless another read ends before that.
    pub(super) fn start(&mut self, number: u64, now: Instant) -> Option<(Instant, Arc<Notify>)> {
        let next = self.next.take_if(|next| next.read.0 == number)?;
        let due = match self.running.len() {
            0 => now,
            1..MAX_RUNNING => (self.last_start + NEXT_PAUSE).max(next.since + GATHER_TIME),
            _ => self.last_start + RELIEF_PAUSE,
        };
        if now < due {
            self.next = Some(next);
            return Some((due, Arc::clone(&self.ended)));
        }
        self.running.push(next.read);
        self.last_start = now;
        None
    }

    /// Removes a leader that is done or was dropped. Returns whether the queue is still in use.
    pub(super) fn leave(&mut self, number: u64) -> bool {
        self.next.take_if(|next| next.read.0 == number);
        self.running.retain(|(running, _)| *running != number);
        self.ended.notify_one();
        self.next.is_some() || !self.running.is_empty()
    }
}
