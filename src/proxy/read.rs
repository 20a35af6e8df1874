//! Cacheable reads: answered from this process, from the store, or by one upstream read that all
//! waiting clients share.
//!
//! `cache` decides where the answer may come from. `lead` runs the shared upstream read. `shadow`
//! answers the same reads in shadow mode.

use std::sync::Arc;

use hyper::{
    HeaderMap, Request, StatusCode,
    body::{Body as _, Incoming},
    http::{Method, request::Parts},
};
use tracing::Instrument as _;

use super::{
    answer::{Answer, Verdict, entry_response, refuse_with},
    body::Body,
    exchange::relay_informational,
    lead::LeadTask,
    pass::Passes,
    proxy_context::{ProxyContext, Requester},
    repeat_hit::RepeatHits,
    verify::Comparisons,
};
use crate::{
    cache::{Comparison, LeaderRead, Lookup, LookupRequest, entry::Entry},
    config::CacheMode,
    observe::{
        events::{EventKind, HitSample},
        spans,
    },
    semantics::{headers, identity::RouteIndex, job_id::JobId, policy::Bypass},
    service::FastPathMiss,
    store::Budget,
    transport::Peer,
};

/// Answers cacheable reads.
#[derive(Debug)]
pub(super) struct Reads {
    pub(super) context: Arc<ProxyContext>,
    pub(super) comparisons: Arc<Comparisons>,
    pub(super) repeat_hits: Arc<RepeatHits>,
    pub(super) passes: Arc<Passes>,
}

impl Reads {
    /// Answers a read of a job, past the cache if it must. Everything except a hit in this process
    /// is boxed, for the reason given at [`answer`](super::Proxy::answer).
    pub(super) async fn answer(
        &self,
        job: (&JobId, RouteIndex),
        mut request: Request<Incoming>,
        requester: Requester,
        sample: Option<&HitSample>,
    ) -> Answer {
        if let Some(why) = self.bypass(&request, requester.client) {
            return Box::pin(self.passes.forward(request, requester, why)).await;
        }
        headers::strip_listed(
            request.headers_mut(),
            self.context.cache.fingerprinter().covered_headers(),
        );
        let (lookup, mut budget) = self.lookup_request(job, &request);
        if self.context.mode == CacheMode::Shadow {
            let lookup = lookup.solo();
            let head = request.into_parts().0;
            let answer = Box::pin(self.shadow(&lookup, head, requester, budget)).await;
            return self.record_answer(&lookup, answer, sample);
        }
        let near = self.context.cache.reader.lookup_near(&lookup, &mut budget);
        if let Some(found) = near.instrument(spans::lookup("near")).await {
            self.context.cache.record_answer(&lookup, EventKind::Hit, "", sample);
            return self.near_hit(found, lookup, request, requester.client);
        }
        let head = request.into_parts().0;
        let answer = Box::pin(self.read(&lookup, head, requester, budget)).await;
        self.record_answer(&lookup, answer, sample)
    }

    /// Returns why a read of a job bypasses the cache, if it does.
    fn bypass(&self, request: &Request<Incoming>, client: Peer) -> Option<Bypass> {
        // An HTTP/2 request can have a body without a header that announces it.
        if !request.body().is_end_stream() {
            return Some(Bypass::RequestBody);
        }
        if self.context.cache.fingerprinter().must_bypass(request.headers()) {
            return Some(Bypass::Credentials);
        }
        // The upstream knows the user by the connection, so the fields do not say who is asking.
        if self.context.upstream.is_bound(client.connection) {
            return Some(Bypass::BoundConnection);
        }
        (self.context.mode == CacheMode::Off).then_some(Bypass::Off)
    }

    /// Records an answer in the events of the job.
    fn record_answer(
        &self,
        lookup: &LookupRequest,
        answer: Answer,
        sample: Option<&HitSample>,
    ) -> Answer {
        let (kind, why) = answer.verdict.event();
        self.context.cache.record_answer(lookup, kind, why, sample);
        answer
    }

    /// Returns what a read looks up, and how long it may wait for the store.
    fn lookup_request(
        &self,
        job: (&JobId, RouteIndex),
        request: &Request<Incoming>,
    ) -> (LookupRequest, Budget) {
        let (method, uri) = (request.method(), request.uri());
        let lookup = self.context.cache.lookup_request(job, method, uri, request.headers());
        let mut budget = self.context.cache.budget();
        // Time that the request already spent in the repeat fast path, which did not answer it.
        if let Some(FastPathMiss { waited, .. }) = request.extensions().get() {
            budget.charge(*waited);
        }
        (lookup, budget)
    }

    /// Answers from an entry in this process.
    fn near_hit(
        &self,
        (entry, now_ms): (Arc<Entry>, i64),
        lookup: LookupRequest,
        request: Request<Incoming>,
        client: Peer,
    ) -> Answer {
        let mut answer = hit(&entry, request.method(), request.headers(), now_ms);
        let sampled = self.comparisons.is_sampled(request.method(), request.extensions());
        let comparison = sampled.then(|| Comparison::new(&lookup, entry));
        answer.repeat = self.repeat_hits.of(&request, lookup, client);
        if let Some(comparison) = comparison {
            self.comparisons.verify(comparison, &request.into_parts().0, client);
        }
        answer
    }

    /// Answers a cacheable read that is not a hit in this process.
    ///
    /// A store that is down or slow costs the client at most the store budget and a trip to the
    /// upstream, never an error.
    async fn read(
        &self,
        lookup: &LookupRequest,
        head: Parts,
        requester: Requester,
        mut budget: Budget,
    ) -> Answer {
        let span = spans::lookup("store");
        let found =
            self.context.cache.reader.lookup(lookup, &mut budget).instrument(span.clone()).await;
        spans::record_result(&span, found.as_str());
        drop(span);
        match found {
            Lookup::Hit(entry) => {
                let now_ms = self.context.cache.store().now_ms();
                let answer = hit(&entry, &head.method, &head.headers, now_ms);
                if self.comparisons.is_sampled(&head.method, &head.extensions) {
                    self.comparisons.verify(
                        Comparison::new(lookup, entry),
                        &head,
                        requester.client,
                    );
                }
                answer
            }
            Lookup::Lead(lead) => self.lead(*lead, head, requester, budget).await,
            Lookup::Join(flight, why) => match flight.wait().await {
                Some(entry) => {
                    let verdict = Verdict::Miss { filled: None, collapsed: true, why };
                    self.context.metrics.requests.joined.inc();
                    let now_ms = self.context.cache.store().now_ms();
                    Answer::new(entry_response(&entry, &head, now_ms), verdict)
                }
                None => self.passes.forward_read(head, requester, Bypass::Alone).await,
            },
            Lookup::Pass(Bypass::OnlyIfCached) => {
                refuse_with(StatusCode::GATEWAY_TIMEOUT, Bypass::OnlyIfCached.as_str())
            }
            Lookup::Pass(why) => self.passes.forward_read(head, requester, why).await,
        }
    }

    /// Reads the upstream for every client that waits for this job. The read is a task of its own:
    /// the client that began it may hang up, and the others still get their answer.
    pub(super) async fn lead(
        &self,
        lead: LeaderRead,
        head: Parts,
        requester: Requester,
        budget: Budget,
    ) -> Answer {
        let why = lead.why().unwrap_or(Bypass::Alone);
        let mut request = self.context.fill_request(&head, requester.client);
        relay_informational(&mut request, &requester);
        let read = LeadTask::spawn(&self.context, lead, head.clone(), request, budget).await;
        if let Some((_, answer)) = read
            && let Ok(answer) = answer.await
        {
            return answer;
        }
        // Not started, or the leader died. A second read is safe.
        self.passes.forward_read(head, requester, why).await
    }
}

fn hit(entry: &Entry, method: &Method, headers: &HeaderMap, now_ms: i64) -> Answer {
    let response = entry.hit(method, headers, now_ms).map(Body::from);
    Answer::new(response, Verdict::Hit)
}
