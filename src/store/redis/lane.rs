//! A lane: a connection of a session, and the order of its answers.
//!
//! Redis answers in the order of the commands, so a small answer waits behind a large one that is still
//! coming in (head-of-line blocking). An operation that is late for that reason says nothing bad about
//! the server, and may be sent again over another connection (`bulk_lane.rs`).
//!
//! The client does not show how much of an answer has arrived. So a lane numbers its operations, and
//! compares the bytes that have arrived (`traffic.rs`) with those at the last answer: they belong to the
//! operation with the next number.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::dial::RedisConnection;
use crate::store::errors::Result;

/// Bytes of an answer that is not complete yet, above which it counts as large.
const LARGE: u64 = 4 << 10;

/// A connection, and the numbers of its operations.
pub(super) struct Lane {
    pub(super) connection: RedisConnection,
    /// Number of operations that were sent.
    asked: AtomicU64,
    /// The last operation that was answered, when that was, in us since `origin`, and the bytes that
    /// had arrived until then.
    answered: AtomicU64,
    answered_us: AtomicU64,
    answered_bytes: AtomicU64,
    origin: Instant,
}

/// The place of an operation in the order of the answers.
pub(super) struct Turn<'l> {
    lane: &'l Lane,
    number: u64,
    began: Instant,
    bytes_before: u64,
}

impl Lane {
    pub(super) fn new(connection: RedisConnection) -> Self {
        Self {
            connection,
            asked: AtomicU64::default(),
            answered: AtomicU64::default(),
            answered_us: AtomicU64::default(),
            answered_bytes: AtomicU64::default(),
            origin: Instant::now(),
        }
    }

    /// Takes the place of an operation that is about to be sent.
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn {
            lane: self,
            number: self.asked.fetch_add(1, Ordering::Relaxed) + 1,
            began: Instant::now(),
            bytes_before: self.connection.traffic.bytes(),
        }
    }

    /// Runs an operation in its turn.
    pub(super) async fn ask<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let turn = self.turn();
        let result = operation.await;
        turn.end();
        result
    }
}

impl Turn<'_> {
    /// Records the answer. An operation that is given up stays unanswered until a later one is
    /// answered.
    pub(super) fn end(&self) {
        let lane = self.lane;
        lane.answered.fetch_max(self.number, Ordering::Relaxed);
        lane.answered_bytes.store(lane.connection.traffic.bytes(), Ordering::Relaxed);
        let micros = u64::try_from(lane.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
        lane.answered_us.store(micros, Ordering::Relaxed);
    }

    /// When the operation was sent.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    fn is_next(&self) -> bool {
        self.lane.answered.load(Ordering::Relaxed) + 1 >= self.number
    }

    /// How long the operation has been next: the time that it takes by itself.
    pub(super) fn next_for(&self) -> Duration {
        if !self.is_next() {
            return Duration::ZERO;
        }
        let answered_us = self.lane.answered_us.load(Ordering::Relaxed);
        let since = self.began.max(self.lane.origin + Duration::from_micros(answered_us));
        Instant::now().saturating_duration_since(since)
    }

    /// Whether a large answer is coming in, or came in for an operation that was given up. What
    /// arrived before `from` does not count.
    fn has_large_arrived(&self, from: u64) -> bool {
        let from = from.max(self.lane.answered_bytes.load(Ordering::Relaxed));
        self.lane.connection.traffic.bytes().saturating_sub(from) > LARGE
    }

    /// Whether the answer itself is large and is coming in.
    pub(super) fn has_large_answer(&self) -> bool {
        self.is_next() && self.has_large_arrived(self.bytes_before)
    }

    /// Whether the answer waits behind a large one.
    pub(super) fn is_behind_large_answer(&self) -> bool {
        !self.is_next() && self.has_large_arrived(0)
    }
}
