//! Reads in shadow mode: the cache does everything that it does in service, but answers nothing.
//!
//! The cache is looked up, filled and invalidated, so that the response it would have served can be
//! compared with the upstream's response to the same client. Each client has an upstream read of
//! its own: none waits for another's, and jobcache makes no response. A read that is compared or
//! stored is requested whole and uncompressed, as in service. Every other read passes through as if
//! there were no cache.

use hyper::{Method, Response, body::Body as _, http::request::Parts};
use tracing::Instrument as _;

use super::{
    answer::{Answer, Verdict, upstream_failure},
    body::Body,
    compared_body::ComparedBody,
    exchange::relay_informational,
    proxy_context::Requester,
    read::Reads,
};
use crate::{
    cache::{Comparison, ComparisonResult, Lookup, LookupRequest},
    observe::spans,
    semantics::policy::Bypass,
    store::Budget,
};

impl Reads {
    /// Answers a cacheable read from the upstream. `lookup` is solo: it never waits for another
    /// read.
    pub(super) async fn shadow(
        &self,
        lookup: &LookupRequest,
        head: Parts,
        requester: Requester,
        mut budget: Budget,
    ) -> Answer {
        let near = self
            .context
            .cache
            .reader
            .lookup_near(lookup, &mut budget)
            .instrument(spans::lookup("near"));
        let found = if let Some((entry, _)) = near.await {
            Lookup::Hit(entry)
        } else {
            self.context
                .cache
                .reader
                .lookup(lookup, &mut budget)
                .instrument(spans::lookup("store"))
                .await
        };
        match found {
            Lookup::Hit(_) if head.method != Method::GET => {
                // Many upstreams answer HEAD and GET differently, and a HEAD has no body to
                // compare.
                self.context.metrics.comparisons.count_shadow(ComparisonResult::Unchecked);
                self.passes.forward_read(head, requester, Bypass::ShadowHit).await
            }
            Lookup::Hit(entry) => {
                self.compare(Comparison::new(lookup, entry), &head, requester).await
            }
            Lookup::Lead(lead) => self.lead(*lead, head, requester, budget).await,
            Lookup::Join(..) => self.passes.forward_read(head, requester, Bypass::Shadow).await,
            Lookup::Pass(why) => self.passes.forward_read(head, requester, why).await,
        }
    }

    /// Answers a read that would have been a hit, and compares the response on its way.
    async fn compare(
        &self,
        mut comparison: Comparison,
        head: &Parts,
        requester: Requester,
    ) -> Answer {
        let mut request = self.context.fill_request(head, requester.client);
        relay_informational(&mut request, &requester);
        match self.context.exchange(request).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let matters = comparison.compare_head(&head, &self.context.cache.comparer);
                let body = if matters && !body.is_end_stream() {
                    let compared = ComparedBody::new(body, comparison, &self.comparisons);
                    Body::Compared(Box::new(compared))
                } else {
                    self.comparisons.conclude_shadow(comparison);
                    Body::Upstream(body)
                };
                let response = Response::from_parts(head, body);
                Answer::new(response, Verdict::Pass(Bypass::ShadowHit))
            }
            Err(error) => {
                self.context.metrics.comparisons.count_shadow(ComparisonResult::Failed);
                upstream_failure(&error)
            }
        }
    }
}
