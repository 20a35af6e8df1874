//! Labels of the metric families, and the label sets that exist from the start.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use super::counters::{Counters, zeros};

/// Labels of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `hit`, `miss`, `pass`, `write`, `error`.
    pub outcome: &'static str,
    /// Why it was not a hit; empty if there is nothing to add.
    pub reason: &'static str,
}

/// Labels of families with one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// The outcome.
    pub outcome: &'static str,
}

/// Labels of [`Metrics::invalidations`](super::Metrics::invalidations).
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct InvalidationLabels {
    /// `write`, `write-body` (the second invalidation of a write, at the end of its response body),
    /// `write-all` (by a rule, or because routes or rules have changed), `purge`, `purge-all` or
    /// `evidence` (the entry differed from the response of the upstream).
    pub source: &'static str,
    /// `confirmed` or `pending`.
    pub outcome: &'static str,
}

/// Labels of [`Metrics::rule_misses`](super::Metrics::rule_misses).
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MissLabels {
    /// `request` or `response`.
    pub body: &'static str,
    /// `too-large`, `encoded`, `slow`, `not-json`, `content-type`, `ambiguous`, `event-stream`,
    /// `not-found`, `not-id` or `too-many`.
    pub reason: &'static str,
}

/// Labels of [`Metrics::connection_errors`](super::Metrics::connection_errors).
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    /// `malformed` and `head-too-large` (answered with a bare 400, 414 or 431), `timeout`, `unread`
    /// (the client read nothing of its response for too long), `flood` (HTTP/2 resets,
    /// continuations and the like), `incomplete` (the client hung up within a message), `tls` and
    /// `proxy-protocol` (the handshake or the header is missing or malformed) or `broken`.
    pub kind: &'static str,
}

/// Spans by outcome: `exported`, `failed` (the collector did not accept them) or `dropped` (the
/// queue was full). The exporter counts them before the other metrics exist.
pub type SpanCounts = Family<OutcomeLabels, Counter>;

pub(super) fn requests() -> Counters<RequestLabels> {
    let label = |outcome| RequestLabels { outcome, reason: "" };
    Counters::with_zeros(["miss", "write", "hit"].map(label))
}

/// Counters of outcomes: these at zero, and others once they occur.
pub(super) fn outcomes<const N: usize>(outcomes: [&'static str; N]) -> Counters<OutcomeLabels> {
    Counters::with_zeros(outcomes.map(|outcome| OutcomeLabels { outcome }))
}

pub(super) fn invalidations() -> Family<InvalidationLabels, Counter> {
    let sources = ["write", "write-body", "write-all", "purge", "purge-all", "evidence"];
    zeros(sources.into_iter().flat_map(|source| {
        ["confirmed", "pending"].map(|outcome| InvalidationLabels { source, outcome })
    }))
}

pub(super) fn rule_misses() -> Family<MissLabels, Counter> {
    let reasons = [
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
    zeros(
        reasons
            .into_iter()
            .flat_map(|reason| ["request", "response"].map(|body| MissLabels { body, reason })),
    )
}

pub(super) fn connection_errors() -> Family<KindLabels, Counter> {
    let with_response = ["malformed", "head-too-large"];
    let without_response =
        ["timeout", "unread", "flood", "incomplete", "tls", "proxy-protocol", "broken"];
    zeros(with_response.into_iter().chain(without_response).map(|kind| KindLabels { kind }))
}
