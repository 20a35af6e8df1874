//! Unclaimed writes: successful writes at the jobs that name none of them and match no rule.
//!
//! Such a write (`POST /jobs/cancel-all`) may change jobs, and their entries are served until the TTL
//! ends. So each is counted, and the log proposes the rule to add.

use hyper::Method;
use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use crate::{
    observe::{metrics::Registry, throttle::HourlyPerName},
    semantics::route::{Routes, WriteTarget},
};

/// Longest method that is shown. Clients may invent others.
const MAX_METHOD: usize = 16;

/// Counts and reports unclaimed writes.
#[derive(Debug)]
pub(super) struct UnclaimedWrites {
    warnings: HourlyPerName,
    total: Counter,
}

impl UnclaimedWrites {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let total = registry.counter(
            "unclaimed_writes",
            "Successful writes at the jobs that named no job and matched no rule",
        );
        Self { warnings: HourlyPerName::default(), total }
    }

    /// Counts a write that matched no rule, if its target is at the jobs and names none.
    pub(super) fn count(&self, routes: &Routes, method: &Method, target: &WriteTarget) {
        let Some(shape) = routes.unclaimed_shape(target.path_and_query()) else { return };
        self.total.inc();
        if !self.warnings.admits(&shape) {
            return;
        }
        let methods = match method.as_str() {
            name if name.len() <= MAX_METHOD => format!("methods = [\"{name}\"]\n"),
            _ => String::new(),
        };
        // A write at the collection usually creates a job, and must not drop the others.
        let jobs = if routes.is_collection(&shape) {
            "response = [\"/id\"]\non_miss = \"ignore\""
        } else {
            "all = true"
        };
        let rule = format!("[[invalidate]]\n{methods}path = \"{shape}\"\n{jobs}");
        warn!(
            path = shape,
            rule,
            "a write at the jobs named no job and matched no [[invalidate]] rule; if it changes jobs, \
             they are served from the cache until their TTL ends; add this rule, or one that says with \
             request, response or query where the ids are"
        );
    }
}
