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

use std::{future, pin::pin, sync::Arc};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Either, select},
    stream::FuturesUnordered,
};
use hyper::{
    Request, Response, StatusCode,
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
    push::{self, PushedRead, Unpushed},
    repeat_hit::RepeatHit,
    verify::{self, ComparedBody},
};
use crate::{
    cache::{
        BeforeLookup, Comparison, ComparisonResult, LeaderRead, Lookup, LookupRequest,
        entry::Entry,
        flight::{Flight, FlightFailure},
    },
    config::CacheMode,
    limits::Permit,
    observe::{
        events::{EventKind, HitSample},
        spans,
    },
    semantics::{headers, identity::ReadJob, policy::Bypass},
    service::FastPathMiss,
    store::Budget,
    transport::Peer,
};

/// Number of reads of others without an answer after which a follower reads for itself.
const MAX_UNANSWERED: u32 = 3;

/// What a read has taken on its arrival.
#[derive(Clone, Copy)]
pub(super) struct Arrival<'a> {
    /// Whether this request becomes an event if it is a hit.
    pub(super) sample: Option<&'a HitSample>,
    /// The permit of the `server.max_requests` quota.
    pub(super) permit: &'a Permit,
}

/// Answers a read of a job, past the cache if it must. Everything except a hit in this process
/// is boxed, for the reason given at [`dispatch`](super::Proxy::dispatch).
pub(super) async fn serve(
    context: &Arc<ProxyContext>,
    job: &ReadJob<'_>,
    mut request: Request<Incoming>,
    requester: Requester,
    Arrival { sample, permit }: Arrival<'_>,
) -> Answer {
    if let Some(why) = bypass(context, job, &request, requester.client) {
        return Box::pin(pass::forward(context, request, requester, why)).await;
    }
    let cache = &context.cache;
    let method = request.method().clone();
    let pushed = context.push.admit(&method, request.headers_mut());
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
    let near = async {
        // A topic looks the job up in the store.
        if pushed.is_some() {
            return None;
        }
        let near = cache.reader.lookup_near(&lookup, &mut budget);
        near.instrument(spans::lookup("near")).await
    };
    let found = match near.await {
        Some(found) if !context.is_shadow() => {
            cache.record_answer(&lookup, EventKind::Hit, "", sample);
            return near_hit(context, found, lookup, request, requester.client);
        }
        near => near.map(|(entry, _)| Lookup::Hit(entry)),
    };
    let read = UnansweredRead { context, head: request.into_parts().0, requester, budget };
    let answer = match pushed {
        Some(pushed) => Box::pin(read.answer_pushed(&lookup, pushed, permit)).await,
        None => Box::pin(read.answer(&lookup, found)).await,
    };
    let (kind, why) = answer.verdict.event();
    cache.record_answer(&lookup, kind, why, sample);
    answer
}

/// Returns why a read of a job bypasses the cache, if it does.
fn bypass(
    context: &ProxyContext,
    job: &ReadJob<'_>,
    request: &Request<Incoming>,
    client: Peer,
) -> Option<Bypass> {
    let facts = BeforeLookup {
        // An HTTP/2 request can have a body without a header that announces it.
        has_body: !request.body().is_end_stream(),
        has_barred_credential: context.cache.fingerprinter().must_bypass(request.headers()),
        is_bound: context.upstream.bound.is_bound(client.connection),
        is_off: context.config.mode == CacheMode::Off,
        is_aside: context.cache.is_aside(job.prefix),
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
    let mut answer = Answer::hit(&entry, request.method(), request.headers(), now_ms);
    let sampled = verify::is_sampled(context.config.verify, request.method(), request.extensions());
    let comparison = sampled.then(|| Comparison::new(&lookup, entry));
    answer.repeat = RepeatHit::of(context, &request, lookup, client);
    if let Some(comparison) = comparison {
        verify::verify(context, comparison, &request.into_parts().0, client);
    }
    answer
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

    /// Answers a read that asks for push, or like any other if no version of the job can be shared.
    async fn answer_pushed(
        self,
        lookup: &LookupRequest,
        pushed: PushedRead,
        permit: &Permit,
    ) -> Answer {
        let from = (&self.head, self.requester.client);
        let unpushed = match push::answer(self.context, lookup, from, pushed, permit).await {
            Ok(answer) => return answer,
            Err(unpushed) => unpushed,
        };
        // A topic that ends sends all its waiters here.
        let _turn = self.context.push.turn().await;
        // Boxed: its future is large, and clients that are held should not pay for it.
        match unpushed {
            Unpushed::Ordinary => Box::pin(self.answer(lookup, None)).await,
            Unpushed::Refused => Box::pin(self.pass(Bypass::Alone)).await,
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
        match found {
            Lookup::Join(flight, why) => self.follow(lookup, flight, why).await,
            found => self.answer_alone(lookup, found).await,
        }
    }

    /// Answers with the response to a read that another reader leads. If that read is late or fails, looks
    /// the job up again, so that one of its followers leads the next read and the others share that.
    /// Takes the first answer.
    async fn follow(
        mut self,
        lookup: &LookupRequest,
        mut flight: Flight,
        mut why: Option<Bypass>,
    ) -> Answer {
        let mut joined = JoinedFlights::default();
        let found = loop {
            match joined.join(flight).await {
                FollowerNews::Response(entry) => {
                    return shared_answer(self.context, &self.head, &entry, why);
                }
                FollowerNews::Unshared => return self.pass(Bypass::Alone).await,
                FollowerNews::Unanswered if joined.unanswered == MAX_UNANSWERED => {
                    break Lookup::Pass(Bypass::Alone);
                }
                FollowerNews::Unanswered | FollowerNews::Late => {}
            }
            self.budget = self.context.cache.budget();
            match self.look_up(lookup).await {
                Lookup::Join(next, reason) => (flight, why) = (next, reason),
                found => break found,
            }
        };
        let (context, head) = (self.context, self.head.clone());
        let shared = pin!(joined.waits.filter_map(|(_, shared)| future::ready(shared.ok())));
        match select(pin!(self.answer_alone(lookup, found)), shared.into_future()).await {
            Either::Left((answer, _)) => answer,
            Either::Right(((Some(entry), _), _)) => shared_answer(context, &head, &entry, why),
            Either::Right(((None, _), alone)) => alone.await,
        }
    }

    /// Answers a read that has joined no other one.
    async fn answer_alone(self, lookup: &LookupRequest, found: Lookup) -> Answer {
        let Self { context, ref head, ref requester, .. } = self;
        match found {
            Lookup::Hit(entry) => {
                let now_ms = context.cache.store().now_ms();
                let answer = Answer::hit(&entry, &head.method, &head.headers, now_ms);
                if verify::is_sampled(context.config.verify, &head.method, &head.extensions) {
                    let comparison = Comparison::new(lookup, entry);
                    verify::verify(context, comparison, head, requester.client);
                }
                answer
            }
            Lookup::Lead(lead) => self.lead(*lead).await,
            Lookup::Join(..) => self.pass(Bypass::Alone).await,
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
        let read =
            LeadTask::spawn(context, lead, (head.clone(), requester.client), request, budget);
        let read = read.await;
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

type FlightResult = Result<Arc<Entry>, FlightFailure>;

/// The flights that a follower has joined, one after the other.
#[derive(Default)]
struct JoinedFlights {
    /// Each waits for a result, and names the turn in which the flight was joined.
    waits: FuturesUnordered<BoxFuture<'static, (u32, FlightResult)>>,
    turn: u32,
    /// Number of flights without an answer that were the latest one.
    unanswered: u32,
}

/// What a follower learns of the flights that it has joined.
enum FollowerNews {
    Response(Arc<Entry>),
    /// The response is not shared.
    Unshared,
    /// The upstream has not answered the latest flight.
    Unanswered,
    /// The latest flight is late.
    Late,
}

impl JoinedFlights {
    /// Joins a flight, and waits until there is news of it or a response of an earlier one.
    async fn join(&mut self, flight: Flight) -> FollowerNews {
        self.turn += 1;
        let (turn, wait) = (self.turn, flight.clone().wait());
        self.waits.push(async move { (turn, wait.await) }.boxed());
        let mut late = pin!(flight.late());
        loop {
            tokio::select! {
                biased;
                Some((of, result)) = self.waits.next() => match result {
                    Ok(entry) => return FollowerNews::Response(entry),
                    Err(FlightFailure::Unshared) => return FollowerNews::Unshared,
                    // That one was late, and a later one is under way.
                    Err(_) if of < turn => {}
                    Err(FlightFailure::ServerError) => return FollowerNews::Unshared,
                    Err(FlightFailure::Unanswered) => {
                        self.unanswered += 1;
                        return FollowerNews::Unanswered;
                    }
                },
                () = &mut late => return FollowerNews::Late,
            }
        }
    }
}

/// Answers a read with the response that another one got.
fn shared_answer(
    context: &ProxyContext,
    head: &Parts,
    entry: &Entry,
    why: Option<Bypass>,
) -> Answer {
    context.metrics.requests.joined.inc();
    let response = entry_response(entry, head, context.cache.store().now_ms());
    Answer::new(response, Verdict::Miss { filled: None, collapsed: true, why })
}
