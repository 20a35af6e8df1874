//! The invalidations of a write: before its response head is passed on, and after its bodies end.
//!
//! An upstream may answer before an upload ends and commit afterwards, or commit while it sends
//! its response. So the end before the head drops the entry and keeps the fence, and a last end
//! lifts it when request and response have ended. The client gets the head at once. It sees the end
//! of the response only after an end that has dropped the entry again.
//!
//! The fence stands for at most `upstream.response_timeout` after the head. The bodies of an event
//! stream may last for days, so its fence is lifted with the head, as it is if the status says
//! that nothing was done. Whenever the fence has fallen before the bodies ended, the last end still
//! drops what was stored meanwhile.

use std::{future::Future, sync::Arc, time::Instant};

use hyper::{Request, Response, StatusCode, body::Body as _};
use tracing::{Instrument as _, Span, error};

use super::{
    answer::{Answer, Verdict, refuse_with, upstream_failure},
    body::{Body, BodyEnd, BodyEndFuture, InvalidatingBody},
    body_rules::is_event_stream,
    proxy_context::ProxyContext,
};
use crate::{
    cache::{EndStage, FenceEnd, InvalidationSource, WriteOutcome},
    mutants::{self, Mutant},
    observe::spans,
    store::{Ended, Write},
    upstream::{RequestBody, UploadEnd, UploadOutcome, UpstreamError},
};

/// The invalidations still due for a write.
#[derive(Debug)]
pub(super) struct WriteInvalidation {
    pub(super) write: Write,
    /// Whether the write changes every job.
    pub(super) all: bool,
    /// Outcome of the write as far as it has shown itself.
    outcome: WriteOutcome,
    /// Decided once, with the fence: a body over HTTP/2 may end at any time.
    response_body: ResponseBodyState,
    /// The end of the upload, if it may still be under way.
    upload: Option<UploadEnd>,
}

/// Whether the response body may still be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResponseBodyState {
    Open,
    Ended,
}

impl WriteInvalidation {
    pub(super) fn new(write: Write, upload: Option<UploadEnd>) -> Self {
        Self {
            write,
            all: false,
            outcome: WriteOutcome::Known,
            response_body: ResponseBodyState::Ended,
            upload,
        }
    }

    /// Invalidates what a write has changed, then answers it. Must run in [`spawn_write`], so that
    /// nothing cancels it.
    pub(super) async fn conclude(
        mut self,
        context: Arc<ProxyContext>,
        result: Result<Response<Body>, UpstreamError>,
    ) -> Answer {
        let fence = if let Ok(response) = &result {
            self.fence_at_head(response)
        } else {
            self.upload = None;
            FenceEnd::Now(self.outcome)
        };
        let source = InvalidationSource::Write;
        let ended = self.invalidate(&context, fence, source, &spans::current()).await;
        let pending = ended == Ended::Pending;
        match result {
            Ok(response) => {
                let response = response.map(|body| self.invalidate_at_ends(context, body, fence));
                Answer::new(response, Verdict::Write { pending })
            }
            Err(error) => upstream_failure(&error),
        }
    }

    /// Invalidates again when the bodies have ended, and before the client sees the end of the
    /// response.
    fn invalidate_at_ends(self, context: Arc<ProxyContext>, body: Body, fence: FenceEnd) -> Body {
        let parent = spans::current();
        if self.response_body == ResponseBodyState::Ended {
            self.spawn_end_after_upload(context, parent);
            return body;
        }
        let end = move |finishing: BodyEndFuture| {
            let tasks = context.tasks.clone();
            tasks.spawn(self.end_after_response(context, finishing, fence, parent))
        };
        Body::Invalidating(Box::new(InvalidatingBody::new(body, Box::new(end))))
    }

    /// Invalidates when the response has ended. If the upload has not, the fence is kept.
    async fn end_after_response(
        mut self,
        context: Arc<ProxyContext>,
        finishing: BodyEndFuture,
        fence: FenceEnd,
        parent: Span,
    ) {
        if finishing.await == BodyEnd::Truncated {
            self.note_unknown();
        }
        self.response_body = ResponseBodyState::Ended;
        self.check_upload();
        let kept = self.upload.is_some().then_some(fence);
        self.end_again(&context, kept, &parent).await;
        self.spawn_end_after_upload(context, parent);
    }

    /// Invalidates when the upload has ended, if it is still under way after the response.
    fn spawn_end_after_upload(mut self, context: Arc<ProxyContext>, parent: Span) {
        let Some(upload) = self.upload.take() else { return };
        let tasks = context.tasks.clone();
        tasks.spawn(async move {
            self.note_upload(upload.outcome().await);
            self.end_again(&context, None, &parent).await;
        });
    }

    /// Invalidates again, and lifts the fence unless it is kept.
    async fn end_again(&mut self, context: &ProxyContext, kept: Option<FenceEnd>, parent: &Span) {
        self.all |= context.stale_config.is_stale();
        let fence = kept.unwrap_or(FenceEnd::Now(self.outcome));
        self.invalidate(context, fence, InvalidationSource::WriteBody, parent).await;
    }

    /// Notes whether the status says that nothing was done. Then no other job is dropped, and the
    /// fence is lifted at once: a client without permission to write must be able neither to purge
    /// everything nor to keep a job uncached.
    pub(super) fn note_status(&mut self, status: StatusCode) {
        let refusals = [
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        if refusals.contains(&status) {
            self.outcome = WriteOutcome::Refused;
            self.all = false;
        }
    }

    /// Notes that the upstream may still commit the write, unless its status says that nothing was
    /// done.
    pub(super) fn note_unknown(&mut self) {
        if self.outcome == WriteOutcome::Known {
            self.outcome = WriteOutcome::Unknown;
        }
    }

    /// Notes how the upload ended. The upstream may act on the part of it that has arrived.
    fn note_upload(&mut self, outcome: UploadOutcome) {
        if outcome == UploadOutcome::Truncated {
            self.note_unknown();
        }
    }

    /// Forgets an upload that has ended, and notes how.
    fn check_upload(&mut self) {
        if let Some(outcome) = self.upload.as_mut().and_then(UploadEnd::try_outcome) {
            self.upload = None;
            self.note_upload(outcome);
        }
    }

    /// Decides when the fence falls, and which ends are still to come.
    fn fence_at_head(&mut self, response: &Response<Body>) -> FenceEnd {
        if response.body().leaves_upload() || mutants::is(Mutant::EndOnce) {
            self.upload = None;
        }
        self.check_upload();
        let is_over = response.body().is_end_stream() || mutants::is(Mutant::EndOnce);
        self.response_body =
            if is_over { ResponseBodyState::Ended } else { ResponseBodyState::Open };
        let ends_with_head = self.outcome == WriteOutcome::Refused
            || is_event_stream(response.headers())
            || response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if self.stage() == EndStage::Last || ends_with_head {
            FenceEnd::Now(self.outcome)
        } else {
            FenceEnd::WithBodies(Instant::now())
        }
    }

    /// Whether another end follows.
    fn stage(&self) -> EndStage {
        let is_over = self.response_body == ResponseBodyState::Ended && self.upload.is_none();
        if is_over { EndStage::Last } else { EndStage::Early }
    }

    /// Invalidates the jobs of the write, or every job, in a span under `parent`.
    async fn invalidate(
        &self,
        context: &ProxyContext,
        fence: FenceEnd,
        source: InvalidationSource,
        parent: &Span,
    ) -> Ended {
        let invalidator = &context.cache.invalidator;
        let span = spans::invalidate(parent, source.as_str());
        let end = async {
            let ended = invalidator.end(&self.write, fence, self.stage(), source).await;
            if !self.all {
                return ended;
            }
            let outcome = match fence {
                FenceEnd::Now(outcome) => outcome,
                FenceEnd::WithBodies(_) => WriteOutcome::Known,
            };
            match invalidator.end_all(outcome).await {
                Ended::Confirmed { .. } => ended,
                Ended::Pending => Ended::Pending,
            }
        };
        let ended = end.instrument(span.clone()).await;
        spans::record_result(&span, ended.as_str());
        ended
    }
}

/// Runs a write in a task of its own: a client that hangs up cancels neither the write nor the
/// invalidation that must follow it.
pub(super) async fn spawn_write(
    context: &ProxyContext,
    write: impl Future<Output = Answer> + Send + 'static,
) -> Answer {
    match context.tasks.spawn(write.instrument(spans::current())).await {
        Ok(answer) => answer,
        Err(error) => {
            error!(%error, "a write task died");
            refuse_with(StatusCode::INTERNAL_SERVER_ERROR, "internal")
        }
    }
}

/// Reports the end of the upload of a request that may change something.
pub(super) fn track_upload(
    request: Request<RequestBody>,
    may_change: bool,
) -> (Request<RequestBody>, Option<UploadEnd>) {
    if !may_change {
        return (request, None);
    }
    let (head, body) = request.into_parts();
    let (body, upload) = body.tracked();
    (Request::from_parts(head, body), upload)
}
