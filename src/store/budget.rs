//! The time that a request may spend on the store.

use std::{future::Future, time::Duration};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::errors::StoreError;

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

#[cfg(test)]
mod tests {
    use super::*;

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
