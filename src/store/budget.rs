//! Budgets: how long a request waits for the store, and whether a server is near enough for that.
//!
//! A read has one budget for all its operations, and a write has two ([`WriteBudget`]). Whether a
//! timeout says something about the server is decided here too ([`Budget::timeout_error`]);
//! `redis/session.rs` draws the conclusions, and `redis/distance.rs` measures round trips.

use std::{fmt, future::Future, time::Duration};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{StoreError, errors::Result};

/// The time that one request may still spend on the store, over all its operations.
#[derive(Debug)]
pub struct Budget {
    whole: Duration,
    left: Duration,
}

impl Budget {
    /// Makes a budget of this much waiting.
    pub fn new(left: Duration) -> Self {
        Self { whole: left, left }
    }

    /// Returns the time that is left.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// Deducts time that was spent elsewhere.
    pub fn charge(&mut self, spent: Duration) {
        self.left = self.left.saturating_sub(spent);
    }

    /// Waits for `operation` while the budget lasts, and deducts the time it took.
    pub(super) async fn spend<T>(
        &mut self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let given = self.left;
        let result = tokio::time::timeout(given, operation).await;
        self.left = self.left.saturating_sub(started.elapsed());
        result.unwrap_or_else(|_| Err(self.timeout_error(given)))
    }

    /// Returns the error of an operation that did not finish within `given`. If that was less than
    /// half of the budget, the timeout says little about the store.
    pub(super) fn timeout_error(&self, given: Duration) -> StoreError {
        if given * 2 < self.whole { StoreError::Spent } else { StoreError::Timeout }
    }

    /// As [`Budget::spend`], for several operations at once; each has its own result.
    pub(super) async fn spend_each<T>(
        &mut self,
        operations: impl Iterator<Item = impl Future<Output = Result<T, StoreError>>>,
    ) -> Vec<Result<T, StoreError>> {
        let started = Instant::now();
        let given = self.left;
        let results = operations.map(|operation| tokio::time::timeout(given, operation));
        let results = join_all(results).await;
        self.left = self.left.saturating_sub(started.elapsed());
        let result =
            |result: Result<_, _>| result.unwrap_or_else(|_| Err(self.timeout_error(given)));
        results.into_iter().map(result).collect()
    }
}

/// The time that one write may still spend on the store: two budgets, over its begin and all its
/// ends, and at most one for each of them.
#[derive(Debug)]
pub struct WriteBudget {
    step: Duration,
    left: Duration,
}

impl WriteBudget {
    /// Makes two budgets of this much waiting each.
    pub fn new(step: Duration) -> Self {
        Self { step, left: 2 * step }
    }

    /// Returns the budget of the next step. A step that has no time left is sent all the same, and
    /// counts as unconfirmed.
    pub fn next_step(&self) -> Budget {
        Budget { whole: self.step, left: self.step.min(self.left) }
    }

    /// Deducts the time of a step.
    pub fn charge(&mut self, spent: Duration) {
        self.left = self.left.saturating_sub(spent);
    }
}

/// A server that is too far away for the budget of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FarStore {
    /// The smallest of several round trips.
    pub round_trip: Duration,
    /// `store.budget`.
    pub budget: Duration,
}

impl FarStore {
    /// Round trips of a read that misses, or that waits for two rounds of the read barrier.
    const TRIPS_OF_READ: u32 = 2;
    /// The same, with one more for the fill.
    const TRIPS_OF_MISS: u32 = 3;

    /// Returns `None` if the round trip fits into the budget.
    pub(super) fn of(round_trip: Duration, budget: Duration) -> Option<Self> {
        (round_trip * Self::TRIPS_OF_READ > budget).then_some(Self { round_trip, budget })
    }

    /// The setting with which the round trip fits, with time to spare.
    pub(super) fn remedy(&self) -> String {
        let millis = (self.round_trip * Self::TRIPS_OF_MISS).as_millis();
        format!("set store.budget to {}ms", (millis / 10 + 1) * 10)
    }
}

impl fmt::Display for FarStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { round_trip, budget } = self;
        write!(
            f,
            "Redis is too far away: a round trip takes {}ms, and a read needs {} of them within \
             store.budget ({}ms), so reads go to the API; {}",
            round_trip.as_millis(),
            Self::TRIPS_OF_READ,
            budget.as_millis(),
            self.remedy()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_server_is_told_with_the_time_the_budget_and_the_value_to_set() {
        let far = |millis| {
            let round_trip = Duration::from_millis(millis);
            FarStore::of(round_trip, Duration::from_millis(50)).map(|far| far.to_string())
        };
        assert_eq!([far(0), far(16), far(25)], [None, None, None]);
        let told = far(40).unwrap();
        for word in ["40ms", "within store.budget (50ms)", "set store.budget to 130ms"] {
            assert!(told.contains(word), "{word}: {told}");
        }
    }

    #[test]
    fn a_write_has_two_budgets_for_its_begin_and_all_its_ends() {
        let (step, short) = (Duration::from_millis(50), Duration::from_millis(1));
        let mut hung = WriteBudget::new(step);
        for left in [step, step, Duration::ZERO] {
            assert_eq!(hung.next_step().left(), left);
            hung.charge(left);
        }
        let mut well = WriteBudget::new(step);
        for _ in 0..3 {
            assert_eq!(well.next_step().left(), step);
            well.charge(short);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_counts_against_the_store_only_if_it_had_most_of_the_budget() {
        let mut budget = Budget::new(Duration::from_millis(20));
        let never = || std::future::pending::<Result<(), StoreError>>();
        assert!(matches!(budget.spend(never()).await, Err(StoreError::Timeout)));
        assert!(matches!(budget.spend(never()).await, Err(StoreError::Spent)));
        let each = budget.spend_each([never()].into_iter()).await;
        assert!(matches!(each[..], [Err(StoreError::Spent)]));
    }
}
