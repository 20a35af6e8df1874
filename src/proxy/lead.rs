//! The upstream read that all waiting clients of a job share.
//!
//! The read is a task of its own, so the client that began it may hang up. Every way out of the
//! task publishes the response or abandons the flight. A panic drops the [`LeaderRead`], which
//! sends the waiting clients to the upstream on their own.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{
    Request, Response, StatusCode,
    body::Body as _,
    http::{
        header::{CONTENT_LENGTH, ETAG, TRANSFER_ENCODING},
        request::Parts,
        response,
    },
};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tracing::Instrument as _;

use super::{
    answer::{Answer, Verdict, entry_response, upstream_failure},
    body::{Body, Captured, Tee, TeeCapture, capture, capture_tee},
    proxy_context::{ProxyContext, prepare_response},
};
use crate::{
    cache::{AbandonReason, FillResult, LeaderRead, PublishedRead, entry::Entry},
    observe::spans,
    semantics::policy::{Freshness, NoStore},
    store::Budget,
    transport::Peer,
    upstream::{RequestBody, ResponseBody, RetryPolicy, UpstreamError},
};

/// How long the clients that joined wait for a streaming body.
const STREAM_WAIT: Duration = Duration::from_millis(250);

/// A read that fails because of the placeholder fails soon. One that fails later is not repeated: the
/// upstream has trouble of its own.
const REPEAT_WITHIN: Duration = Duration::from_millis(500);

/// One shared read.
pub(super) struct LeadTask {
    context: Arc<ProxyContext>,
    lead: LeaderRead,
    /// The request head of the client that began the read, and the client.
    client_head: Parts,
    client: Peer,
    budget: Budget,
    answer: oneshot::Sender<Answer>,
}

impl LeadTask {
    /// Starts the read of `request` in a task of its own. Returns the task, and the receiver on
    /// which the client of `client_head` gets the answer.
    ///
    /// Returns `None`, and gives the flight up, if the read would be shared under rules that no
    /// longer hold. If the rules change after this check, the lease of the read is older than the
    /// purge that comes with the new rules, so nothing is stored.
    pub(super) async fn spawn(
        context: &Arc<ProxyContext>,
        lead: LeaderRead,
        (client_head, client): (Parts, Peer),
        request: Request<RequestBody>,
        budget: Budget,
    ) -> Option<(JoinHandle<FillResult>, oneshot::Receiver<Answer>)> {
        if context.superseded.is_cancelled() {
            let abandoned = context.cache.filler.abandon(lead, AbandonReason::Superseded);
            let _ = timeout(budget.left(), abandoned).await;
            return None;
        }
        let flight = spans::flight();
        lead.leader.set_span(&flight);
        let (sender, answer) = oneshot::channel();
        let context_of_task = Arc::clone(context);
        let task =
            Self { context: context_of_task, lead, client_head, client, budget, answer: sender };
        Some((context.tasks.spawn(task.run(request).instrument(flight)), answer))
    }

    /// Reads the upstream, answers the clients that wait, and stores the response if it may be
    /// stored.
    async fn run(mut self, request: Request<RequestBody>) -> FillResult {
        self.lead.leader.start().await;
        let sent = match self.ask(request).await {
            Ok(sent) => sent,
            Err(entry) => return self.answer_from_store(&entry),
        };
        let framed = sent.as_ref().is_ok_and(is_framed);
        let response = match sent.and_then(prepare_response) {
            Ok(response) => response,
            Err(error) => return self.fail(upstream_failure(&error)).await,
        };
        let (head, body) = response.into_parts();
        let freshness = self.context.cache.filler.freshness(&head, self.lead.route());
        // RFC 9112 6.3: "Since there is no way to distinguish a successfully completed,
        // close-delimited response message from a partially received message interrupted by
        // network failure".
        match freshness.and_then(|found| if framed { Ok(found) } else { Err(NoStore::Unframed) }) {
            Err(why) if is_sized(&body) && self.may_be_shared(&head, why) => {
                self.share_unstored(head, body, why).await
            }
            Err(why) => self.share_nothing(head, Body::Upstream(body), why).await,
            Ok(freshness) if is_sized(&body) => self.take_whole(head, body, freshness).await,
            Ok(freshness) => self.take_streaming(head, body, freshness).await,
        }
    }

    /// Reads the upstream. Returns the entry of the reader that holds the lease if that comes first.
    async fn ask(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Result<Response<ResponseBody>, UpstreamError>, Arc<Entry>> {
        let context = Arc::clone(&self.context);
        let filler = &context.cache.filler;
        if let Some(entry) = filler.wait_for_holder(&mut self.lead).await {
            return Err(entry);
        }
        let asked = Instant::now();
        let sent = tokio::select! {
            sent = context.send(request, RetryPolicy::OnceIfSafe) => sent,
            entry = filler.entry_of_holder(&self.lead) => return Err(entry),
        };
        let has_failed =
            |sent: &Response<ResponseBody>| sent.status() == StatusCode::INTERNAL_SERVER_ERROR;
        if sent.as_ref().is_ok_and(has_failed)
            && asked.elapsed() < REPEAT_WITHIN
            && filler.give_up_placeholder(&mut self.lead).await
        {
            return Ok(self.repeat().await);
        }
        Ok(sent)
    }

    /// Repeats a read that has failed while the placeholder of its job stood.
    async fn repeat(&self) -> Result<Response<ResponseBody>, UpstreamError> {
        let request = self.context.fill_request(&self.client_head, self.client);
        let sent = self.context.send(request, RetryPolicy::OnceIfSafe).await;
        if sent.as_ref().is_ok_and(|response| response.status().is_success()) {
            self.context.cache.filler.note_repeated(&self.lead).await;
        }
        sent
    }

    /// Answers all that wait with the entry of the reader that holds the lease.
    fn answer_from_store(self, entry: &Arc<Entry>) -> FillResult {
        let Self { context, lead, client_head: Parts { method, headers, .. }, answer, .. } = self;
        lead.leader.publish(Arc::clone(entry));
        let now_ms = context.cache.store().now_ms();
        let _ = answer.send(Answer::hit(entry, &method, &headers, now_ms));
        FillResult::Stored
    }

    /// A body of known length arrives soon after its head. The client gets its answer once the
    /// response is stored or the store budget is spent.
    async fn take_whole(
        self,
        mut head: response::Parts,
        body: ResponseBody,
        freshness: Freshness,
    ) -> FillResult {
        let filler = &self.context.cache.filler;
        match capture(body, self.context.config.max_body, filler.capture_quota()).await {
            Captured::Whole(body) => {
                let Self { context, lead, client_head, budget, answer, .. } = self;
                let why = lead.why;
                // The client does not wait for the entry of another reader.
                let budget =
                    if lead.is_held_by_other() { Budget::new(Duration::ZERO) } else { budget };
                let published = context.cache.filler.publish(lead, &head, body, freshness);
                let entry = Arc::clone(&published.entry);
                store_then(&context, published, budget, |filled| {
                    let response = if context.is_shadow() {
                        upstream_response(head, &entry)
                    } else if entry.is_held_by(&client_head.headers) {
                        entry_response(&entry, &client_head, context.cache.store().now_ms())
                    } else {
                        // So that the client can revalidate with it.
                        if let Some(etag) = entry.etag() {
                            head.headers.entry(ETAG).or_insert(etag);
                        }
                        upstream_response(head, &entry)
                    };
                    let verdict = Verdict::Miss { filled, collapsed: false, why };
                    let _ = answer.send(Answer::new(response, verdict));
                })
                .await
            }
            Captured::Unstorable(body, why) => self.share_nothing(head, body, why).await,
            Captured::Broken(error) => self.fail(upstream_failure(&error.into())).await,
        }
    }

    /// A body of unknown length may take long. The client gets each part as it comes.
    async fn take_streaming(
        self,
        head: response::Parts,
        body: ResponseBody,
        freshness: Freshness,
    ) -> FillResult {
        let Self { context, lead, budget, answer, .. } = self;
        let filler = &context.cache.filler;
        let (tee, client_end) = Tee::new(filler.capture_quota());
        let response = Response::from_parts(head.clone(), Body::watched(client_end));
        let verdict = Verdict::Miss { filled: None, collapsed: false, why: lead.why };
        let _ = answer.send(Answer::new(response, verdict));
        let captured = {
            let mut capture = pin!(capture_tee(body, context.config.max_body, &tee));
            if let Ok(captured) = timeout(STREAM_WAIT, &mut capture).await {
                captured
            } else {
                lead.leader.detach_followers();
                capture.await
            }
        };
        let why = match captured {
            TeeCapture::Whole(body) if !body.is_empty() || head.status != StatusCode::OK => {
                let published = filler.publish(lead, &head, body, freshness);
                return store_then(&context, published, budget, |_| tee.finish()).await;
            }
            TeeCapture::Whole(_) => {
                tee.finish();
                AbandonReason::Unstorable(NoStore::Empty, head.status)
            }
            TeeCapture::Unstorable(why) => AbandonReason::Unstorable(why, head.status),
            TeeCapture::Broken => AbandonReason::Unanswered,
        };
        filler.abandon(lead, why).await
    }

    fn may_be_shared(&self, head: &response::Parts, why: NoStore) -> bool {
        self.context.cache.filler.may_be_shared(head, self.lead.route(), why)
    }

    /// Answers the client and those that wait with a response that is not stored.
    async fn share_unstored(
        self,
        head: response::Parts,
        body: ResponseBody,
        why: NoStore,
    ) -> FillResult {
        let filler = &self.context.cache.filler;
        match capture(body, self.context.config.max_body, filler.capture_quota()).await {
            Captured::Whole(body) => {
                let reason = AbandonReason::Unstorable(why, head.status);
                let result = Some(FillResult::Abandoned(reason));
                let verdict =
                    Verdict::Miss { filled: result, collapsed: false, why: self.lead.why };
                let response = Response::from_parts(head.clone(), Body::from(body.clone()));
                let _ = self.answer.send(Answer::new(response, verdict));
                filler.share(self.lead, &head, body, why).await
            }
            Captured::Unstorable(body, why) => self.share_nothing(head, body, why).await,
            Captured::Broken(error) => self.fail(upstream_failure(&error.into())).await,
        }
    }

    async fn share_nothing(self, head: response::Parts, body: Body, why: NoStore) -> FillResult {
        let reason = AbandonReason::Unstorable(why, head.status);
        let filled = Some(FillResult::Abandoned(reason));
        let verdict = Verdict::Miss { filled, collapsed: false, why: self.lead.why };
        let _ = self.answer.send(Answer::new(Response::from_parts(head, body), verdict));
        self.context.cache.filler.abandon(self.lead, reason).await
    }

    async fn fail(self, answer: Answer) -> FillResult {
        let _ = self.answer.send(answer);
        self.context.cache.filler.abandon(self.lead, AbandonReason::Unanswered).await
    }
}

/// Returns the upstream's response for the client that the read was made for, with every header,
/// including those that an entry does not keep.
fn upstream_response(head: response::Parts, entry: &Entry) -> Response<Body> {
    Response::from_parts(head, Body::from(entry.body().clone()))
}

/// Whether the response states where its body ends. Without that, the end of the connection looks
/// like the end of the body.
fn is_framed(response: &Response<ResponseBody>) -> bool {
    // "Any response with [..] a 1xx (Informational), 204 (No Content), or 304 (Not Modified) status code
    // is always terminated by the first empty line" RFC 9112 6.3
    response.status() == StatusCode::NO_CONTENT
        || [CONTENT_LENGTH, TRANSFER_ENCODING]
            .iter()
            .any(|name| response.headers().contains_key(name))
}

/// Whether the length of the body is known before it has arrived.
fn is_sized(body: &ResponseBody) -> bool {
    body.size_hint().exact().is_some()
}

/// Stores a published response. Calls `then` when that is done, or without a result when the budget
/// is spent.
async fn store_then(
    context: &ProxyContext,
    published: PublishedRead,
    budget: Budget,
    then: impl FnOnce(Option<FillResult>),
) -> FillResult {
    let span = spans::fill();
    let fill = async {
        let filled = context.cache.filler.fill(published).await;
        spans::record_result(&spans::current(), filled.as_str());
        filled
    };
    let mut fill = Box::pin(fill.instrument(span));
    if let Ok(filled) = timeout(budget.left(), &mut fill).await {
        then(Some(filled));
        filled
    } else {
        then(None);
        fill.await
    }
}
