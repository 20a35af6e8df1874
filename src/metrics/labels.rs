//! Labels of the families, and those that there are from the beginning.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use super::counters::{Counters, zeros};

/// Labels of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `hit`, `miss`, `pass`, `write`, `error`.
    pub outcome: &'static str,
    /// Why it was not a hit; empty where there is nothing to add.
    pub reason: &'static str,
}

/// Labels of families with one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// What it came to.
    pub outcome: &'static str,
}

/// Labels of [`Metrics::invalidations`](super::Metrics::invalidations).
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct InvalidationLabels {
    /// `write`, `write-body` (the second end of a write, when its answer has come to its end),
    /// `write-all` (by a rule, or because routes or rules have changed), `purge`, `purge-all` or
    /// `evidence` (the entry was not what the upstream answers).
    pub source: &'static str,
    /// `confirmed` or `pending`.
    pub outcome: &'static str,
}

/// Labels of [`Metrics::rule_misses`](super::Metrics::rule_misses).
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MissLabels {
    /// `request` or `response`.
    pub body: &'static str,
    /// `too-large`, `encoded`, `slow`, `not-json`, `not-found` or `too-many`.
    pub reason: &'static str,
}

/// Labels of [`Metrics::connection_errors`](super::Metrics::connection_errors).
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    /// `malformed` and `head-too-large` (which were answered with a bare 400, 414 or 431),
    /// `timeout`, `unread` (took nothing of its answer for too long), `flood` (HTTP/2 resets,
    /// continuations and the like), `incomplete` (hung up in the middle), `tls` and `proxy-protocol`
    /// (not spoken, or not as it must be) or `broken`.
    pub kind: &'static str,
}

/// Spans by what became of them: `exported`, `failed` (the collector did not take them) or `dropped`
/// (the queue was full). Whoever sends them counts, before there are other metrics.
pub type SpanCounts = Family<OutcomeLabels, Counter>;

/// Counters of what comes to one of these, and maybe to others.
pub(super) fn outcomes<const N: usize>(outcomes: [&'static str; N]) -> Counters<OutcomeLabels> {
    Counters::beginning_with(outcomes.map(|outcome| OutcomeLabels { outcome }))
}

pub(super) fn invalidations() -> Family<InvalidationLabels, Counter> {
    let sources = ["write", "write-body", "write-all", "purge", "purge-all", "evidence"];
    zeros(sources.into_iter().flat_map(|source| {
        ["confirmed", "pending"].map(|outcome| InvalidationLabels { source, outcome })
    }))
}

pub(super) fn rule_misses() -> Family<MissLabels, Counter> {
    let reasons = ["too-large", "encoded", "slow", "not-json", "not-found", "too-many"];
    zeros(
        reasons
            .into_iter()
            .flat_map(|reason| ["request", "response"].map(|body| MissLabels { body, reason })),
    )
}

pub(super) fn connection_errors() -> Family<KindLabels, Counter> {
    let answered = ["malformed", "head-too-large"];
    let closed = ["timeout", "unread", "flood", "incomplete", "tls", "proxy-protocol", "broken"];
    zeros(answered.into_iter().chain(closed).map(|kind| KindLabels { kind }))
}
