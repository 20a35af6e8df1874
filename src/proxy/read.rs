//! Cacheable reads: answered from this process, from the store, or by one upstream read that all
//! waiting clients share.
//!
//! `cache` decides where the answer may come from. `lead` runs the shared upstream read.
//!
//! In shadow mode the cache does everything that it does in service, but answers nothing. It is
//! looked up, filled and invalidated, so that the response it would have served can be compared with
//! the upstream's response to the same client. Each client has an upstream read of its own: none
//! waits for another's, and jobcache makes no response. A read that is compared or stored is
//! requested whole and uncompressed, as in service. Every other read passes through as if there were
//! no cache.

use std::sync::Arc;

use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    http::{Method, request::Parts},
};
use tracing::Instrument as _;

use super::{
    answer::{Answer, Verdict, entry_response, refuse_with, upstream_failure},
    body::Body,
    lead::LeadTask,
    pass,
    proxy_context::{ProxyContext, Requester, relay_informational},
    repeat_hit::RepeatHit,
    verify::{self, ComparedBody},
};
use crate::{
    cache::{
        BeforeLookup, Comparison, ComparisonResult, LeaderRead, Lookup, LookupRequest, entry::Entry,
    },
    config::CacheMode,
    observe::{
        events::{EventKind, HitSample},
        spans,
    },
    semantics::{headers, identity::ReadJob, policy::Bypass},
    service::FastPathMiss,
    store::Budget,
    transport::Peer,
};

/// Answers a read of a job, past the cache if it must. Everything except a hit in this process
/// is boxed, for the reason given at [`dispatch`](super::Proxy::dispatch).
pub(super) async fn serve(
    context: &Arc<ProxyContext>,
    job: &ReadJob<'_>,
    mut request: Request<Incoming>,
    requester: Requester,
    sample: Option<&HitSample>,
) -> Answer {
    if let Some(why) = bypass(context, &request, requester.client) {
        return Box::pin(pass::forward(context, request, requester, why)).await;
    }
    let cache = &context.cache;
    headers::strip_listed(request.headers_mut(), cache.fingerprinter().covered_headers());
    let mut lookup = cache.lookup_request(job, request.method(), request.uri(), request.headers());
    if context.is_shadow() {
        lookup = lookup.solo();
    }
    let mut budget = cache.budget();
    // Time that the request already spent in the repeat fast path, which did not answer it.
    if let Some(FastPathMiss { waited, .. }) = request.extensions().get() {
        budget.charge(*waited);
    }
    let near = cache.reader.lookup_near(&lookup, &mut budget).instrument(spans::lookup("near"));
    let found = match near.await {
        Some(found) if !context.is_shadow() => {
            cache.record_answer(&lookup, EventKind::Hit, "", sample);
            return near_hit(context, found, lookup, request, requester.client);
        }
        near => near.map(|(entry, _)| Lookup::Hit(entry)),
    };
    let read = UnansweredRead { context, head: request.into_parts().0, requester, budget };
    let answer = Box::pin(read.answer(&lookup, found)).await;
    let (kind, why) = answer.verdict.event();
    cache.record_answer(&lookup, kind, why, sample);
    answer
}

/// Returns why a read of a job bypasses the cache, if it does.
fn bypass(context: &ProxyContext, request: &Request<Incoming>, client: Peer) -> Option<Bypass> {
    let facts = BeforeLookup {
        // An HTTP/2 request can have a body without a header that announces it.
        has_body: !request.body().is_end_stream(),
        has_barred_credential: context.cache.fingerprinter().must_bypass(request.headers()),
        is_bound: context.upstream.bound.is_bound(client.connection),
        is_off: context.config.mode == CacheMode::Off,
    };
    facts.bypass()
}

/// Answers from an entry in this process.
fn near_hit(
    context: &Arc<ProxyContext>,
    (entry, now_ms): (Arc<Entry>, i64),
    lookup: LookupRequest,
    request: Request<Incoming>,
    client: Peer,
) -> Answer {
    let mut answer = hit(&entry, request.method(), request.headers(), now_ms);
    let sampled = verify::is_sampled(context.config.verify, request.method(), request.extensions());
    let comparison = sampled.then(|| Comparison::new(&lookup, entry));
    answer.repeat = RepeatHit::of(context, &request, lookup, client);
    if let Some(comparison) = comparison {
        verify::verify(context, comparison, &request.into_parts().0, client);
    }
    answer
}

fn hit(entry: &Entry, method: &Method, headers: &HeaderMap, now_ms: i64) -> Answer {
    Answer::new(entry.hit(method, headers, now_ms).map(Body::from), Verdict::Hit)
}

/// A cacheable read that no entry in this process has answered.
struct UnansweredRead<'c> {
    context: &'c Arc<ProxyContext>,
    head: Parts,
    requester: Requester,
    budget: Budget,
}

impl UnansweredRead<'_> {
    /// Answers the read. `found` is the entry in this process, in shadow mode.
    async fn answer(mut self, lookup: &LookupRequest, found: Option<Lookup>) -> Answer {
        let found = match found {
            Some(found) => found,
            None => self.look_up(lookup).await,
        };
        if self.context.is_shadow() {
            self.shadow(lookup, found).await
        } else {
            self.serve(lookup, found).await
        }
    }

    /// A store that is down or slow costs the client at most the store budget and a trip to the
    /// upstream, never an error.
    async fn look_up(&mut self, lookup: &LookupRequest) -> Lookup {
        let span = spans::lookup("store");
        let found = self.context.cache.reader.lookup(lookup, &mut self.budget);
        let found = found.instrument(span.clone()).await;
        spans::record_result(&span, found.as_str());
        found
    }

    async fn serve(self, lookup: &LookupRequest, found: Lookup) -> Answer {
        let Self { context, ref head, ref requester, .. } = self;
        let now_ms = || context.cache.store().now_ms();
        match found {
            Lookup::Hit(entry) => {
                let answer = hit(&entry, &head.method, &head.headers, now_ms());
                if verify::is_sampled(context.config.verify, &head.method, &head.extensions) {
                    let comparison = Comparison::new(lookup, entry);
                    verify::verify(context, comparison, head, requester.client);
                }
                answer
            }
            Lookup::Lead(lead) => self.lead(*lead).await,
            Lookup::Join(flight, why) => match flight.wait().await {
                Some(entry) => {
                    let verdict = Verdict::Miss { filled: None, collapsed: true, why };
                    context.metrics.requests.joined.inc();
                    Answer::new(entry_response(&entry, head, now_ms()), verdict)
                }
                None => self.pass(Bypass::Alone).await,
            },
            Lookup::Pass(Bypass::OnlyIfCached) => {
                refuse_with(StatusCode::GATEWAY_TIMEOUT, Bypass::OnlyIfCached.as_str())
            }
            Lookup::Pass(why) => self.pass(why).await,
        }
    }

    /// Answers from the upstream, in shadow mode.
    async fn shadow(self, lookup: &LookupRequest, found: Lookup) -> Answer {
        match found {
            Lookup::Hit(_) if self.head.method != Method::GET => {
                // Many upstreams answer HEAD and GET differently, and a HEAD has no body to
                // compare.
                let unchecked = ComparisonResult::Unchecked.as_str();
                self.context.metrics.comparisons.shadow.inc([unchecked]);
                self.pass(Bypass::ShadowHit).await
            }
            Lookup::Hit(entry) => self.compare(Comparison::new(lookup, entry)).await,
            Lookup::Lead(lead) => self.lead(*lead).await,
            Lookup::Join(..) => self.pass(Bypass::Shadow).await,
            Lookup::Pass(why) => self.pass(why).await,
        }
    }

    async fn pass(self, why: Bypass) -> Answer {
        pass::forward_read(self.context, self.head, &self.requester, why).await
    }

    /// Reads the upstream for every client that waits for this job. The read is a task of its own:
    /// the client that began it may hang up, and the others still get their answer.
    async fn lead(self, lead: LeaderRead) -> Answer {
        let Self { context, head, requester, budget } = self;
        let why = lead.why.unwrap_or(Bypass::Alone);
        let request = context.fill_request(&head, requester.client);
        let request = relay_informational(request, &requester);
        let read = LeadTask::spawn(context, lead, head.clone(), request, budget).await;
        if let Some((_, answer)) = read
            && let Ok(answer) = answer.await
        {
            return answer;
        }
        // Not started, or the leader died. A second read is safe.
        pass::forward_read(context, head, &requester, why).await
    }

    /// Answers a read that would have been a hit, and compares the response on its way.
    async fn compare(self, mut comparison: Comparison) -> Answer {
        let context = self.context;
        let request = context.fill_request(&self.head, self.requester.client);
        match context.exchange(relay_informational(request, &self.requester)).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let matters = context.cache.compare_head(&mut comparison, &head);
                let body = if matters && !body.is_end_stream() {
                    let (comparison, context) = (Some(comparison), Arc::clone(context));
                    Body::watched(ComparedBody { body, comparison, context })
                } else {
                    verify::conclude_shadow(context, comparison);
                    Body::Upstream(body)
                };
                let response = Response::from_parts(head, body);
                let (why, setting) = (Bypass::ShadowHit, None);
                Answer::new(response, Verdict::Pass { why, setting })
            }
            Err(error) => {
                let failed = ComparisonResult::Failed.as_str();
                context.metrics.comparisons.shadow.inc([failed]);
                upstream_failure(&error)
            }
        }
    }
}
