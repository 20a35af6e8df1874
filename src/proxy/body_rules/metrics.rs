//! Metrics of the rules of `[[invalidate]]` that look into bodies.

use prometheus_client::metrics::counter::Counter;

use crate::observe::metrics::{Counters, Registry};

/// Why a rule may have missed jobs.
const REASONS: [&str; 10] = [
    "too-large",
    "encoded",
    "slow",
    "not-json",
    "content-type",
    "ambiguous",
    "event-stream",
    "not-found",
    "not-id",
    "too-many",
];

/// The metrics of rules.
#[derive(Debug)]
pub(super) struct RuleMetrics {
    /// By body, `request` or `response`, and reason.
    pub(super) misses: Counters<2>,
    /// Writes that dropped every job because a rule missed some.
    pub(super) fallbacks: Counter,
}

impl RuleMetrics {
    pub(super) fn register(r: &mut Registry) -> Self {
        let misses = REASONS.map(|reason| ["request", "response"].map(|body| [body, reason]));
        Self {
            misses: r.counters(
                "rule_misses",
                "Bodies in which a rule of [[invalidate]] did not find the ids it looked for",
                ["body", "reason"],
                misses.into_iter().flatten(),
            ),
            fallbacks: r.counter(
                "rule_fallbacks",
                "Writes that dropped every job because a rule of [[invalidate]] did not find all",
            ),
        }
    }
}
