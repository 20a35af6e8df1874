//! Reads in shadow mode: the cache does everything that it does in service, but answers nothing.
//!
//! The cache is looked up, filled and invalidated, so that the response it would have served can be
//! compared with the upstream's response to the same client. Each client has an upstream read of
//! its own: none waits for another's, and jobcache makes no response. A read that is compared or
//! stored is requested whole and uncompressed, as in service. Every other read passes through as if
//! there were no cache.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::{
    Method, Response,
    body::{Body as HttpBody, Frame},
    http::request::Parts,
};
use tracing::Instrument as _;

use super::{
    Proxy,
    answer::{Answer, Verdict, upstream_failure},
    body::Body,
    exchange::{ProtocolSwitch, prepare_response, relay_informational},
};
use crate::{
    cache::{Comparison, ComparisonResult, Lookup, LookupRequest},
    informational::Informational,
    observe::spans,
    semantics::policy::Bypass,
    store::Budget,
    transport::Peer,
    upstream::{BodyError, ResponseBody, RetryPolicy},
};

impl Proxy {
    /// Answers a cacheable read from the upstream. `lookup` is solo: it never waits for another
    /// read.
    pub(super) async fn shadow(
        self: &Arc<Self>,
        lookup: &LookupRequest,
        head: Parts,
        (client, informational): (Peer, Informational),
        mut budget: Budget,
    ) -> Answer {
        let near = self.cache.lookup_near(lookup, &mut budget).instrument(spans::lookup("near"));
        let found = if let Some((entry, _)) = near.await {
            Lookup::Hit(entry)
        } else {
            self.cache.lookup(lookup, &mut budget).instrument(spans::lookup("store")).await
        };
        match found {
            Lookup::Hit(_) if head.method != Method::GET => {
                // Many upstreams answer HEAD and GET differently, and a HEAD has no body to
                // compare.
                self.metrics.comparisons.count_shadow(ComparisonResult::Unchecked);
                self.pass_read(head, client, informational, Bypass::ShadowHit).await
            }
            Lookup::Hit(entry) => {
                self.compare(Comparison::new(lookup, entry), &head, (client, informational)).await
            }
            Lookup::Lead(lead) => self.lead(*lead, head, (client, informational), budget).await,
            Lookup::Join(..) => self.pass_read(head, client, informational, Bypass::Shadow).await,
            Lookup::Pass(why) => self.pass_read(head, client, informational, why).await,
        }
    }

    /// Answers a read that would have been a hit, and compares the response on its way.
    async fn compare(
        self: &Arc<Self>,
        mut comparison: Comparison,
        head: &Parts,
        (client, informational): (Peer, Informational),
    ) -> Answer {
        let mut request = self.fill_request(head, client);
        relay_informational(&mut request, &informational);
        let sent = self.send(request, RetryPolicy::OnceIfSafe).await;
        match sent.and_then(|response| prepare_response(response, ProtocolSwitch::NotRequested)) {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let matters = comparison.compare_head(&head, &self.cache);
                let body = if matters && !body.is_end_stream() {
                    let proxy = Arc::clone(self);
                    Body::Compared(Box::new(ComparedBody {
                        body,
                        comparison: Some(comparison),
                        proxy,
                    }))
                } else {
                    self.conclude_shadow(comparison);
                    Body::Upstream(body)
                };
                let response = Response::from_parts(head, body);
                Answer { response, verdict: Verdict::Pass(Bypass::ShadowHit) }
            }
            Err(error) => {
                self.metrics.comparisons.count_shadow(ComparisonResult::Failed);
                upstream_failure(&error)
            }
        }
    }

    /// Concludes a comparison when the response has ended. A result that needs the store is found
    /// in the background while the client goes on.
    fn conclude_shadow(self: &Arc<Self>, comparison: Comparison) {
        if let Some(outcome) = comparison.immediate_result() {
            return self.metrics.comparisons.count_shadow(outcome);
        }
        let Some(permit) = self.comparisons.take(1) else {
            return self.metrics.comparisons.count_shadow(ComparisonResult::Skipped);
        };
        let proxy = Arc::clone(self);
        self.spawn_until_drain(async move {
            let outcome = proxy.cache.conclude_comparison(&comparison).await;
            proxy.metrics.comparisons.count_shadow(outcome);
            drop(permit);
        });
    }
}

/// An upstream body that is compared with an entry while it streams.
pub struct ComparedBody {
    body: ResponseBody,
    /// The comparison, until the body has ended.
    comparison: Option<Comparison>,
    proxy: Arc<Proxy>,
}

impl ComparedBody {
    /// Returns the upstream body, of which the rest is still to come.
    pub(super) fn inner(&self) -> &ResponseBody {
        &self.body
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(comparison), Some(data)) = (&mut self.comparison, frame.data_ref()) {
                    comparison.compare_body_part(data);
                }
                // hyper may not poll again after the last frame.
                if self.body.is_end_stream() {
                    self.conclude();
                }
            }
            None => self.conclude(),
            Some(Err(_)) => self.give_up(ComparisonResult::Failed),
        }
        Poll::Ready(frame)
    }

    fn conclude(&mut self) {
        if let Some(comparison) = self.comparison.take() {
            self.proxy.conclude_shadow(comparison);
        }
    }

    fn give_up(&mut self, outcome: ComparisonResult) {
        if self.comparison.take().is_some() {
            self.proxy.metrics.comparisons.count_shadow(outcome);
        }
    }
}

impl Drop for ComparedBody {
    /// Dropped before its end, because the client has hung up: the comparison is incomplete.
    fn drop(&mut self) {
        self.give_up(ComparisonResult::Unchecked);
    }
}

impl fmt::Debug for ComparedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComparedBody").field("comparison", &self.comparison).finish_non_exhaustive()
    }
}
