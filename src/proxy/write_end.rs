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

use std::{sync::Arc, time::Instant};

use hyper::{Request, Response, StatusCode, body::Body as _};
use tracing::{Instrument as _, Span};

use super::{
    answer::{Answer, Verdict, upstream_failure},
    body::{Body, BodyEnd, BodyEndFuture, InvalidatingBody},
    body_rules::is_event_stream,
    proxy_context::ProxyContext,
};
use crate::{
    cache::{Cache, EndStage, FenceEnd, WriteOutcome},
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
    /// Whether the status says that nothing was done.
    refused: bool,
    /// Outcome of the write as far as the response shows it.
    outcome: WriteOutcome,
    /// Decided once, with the fence: a body over HTTP/2 may end at any time.
    response_body: ResponseBodyState,
    /// The end of the upload, if it may still be under way.
    upload: Option<UploadEnd>,
    /// Whether the upload ended early. The upstream may act on the part that has arrived.
    upload_truncated: bool,
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
            refused: false,
            outcome: WriteOutcome::Known,
            response_body: ResponseBodyState::Ended,
            upload,
            upload_truncated: false,
        }
    }

    /// Invalidates what a write has changed, then answers it. Must run in a task that nothing
    /// cancels.
    pub(super) async fn conclude(
        mut self,
        context: Arc<ProxyContext>,
        outcome: WriteOutcome,
        result: Result<Response<Body>, UpstreamError>,
    ) -> Answer {
        let fence = if let Ok(response) = &result {
            self.fence_at_head(response)
        } else {
            self.upload = None;
            FenceEnd::Now(outcome)
        };
        let span = spans::invalidate(&spans::current(), "write");
        let ended = self.run(&context.cache, fence).instrument(span.clone()).await;
        spans::record_result(&span, ended.as_str());
        let pending = ended == Ended::Pending;
        match result {
            Ok(response) => {
                let response = response.map(|body| self.invalidate_at_ends(context, body, fence));
                Answer { response, verdict: Verdict::Write { pending } }
            }
            Err(error) => upstream_failure(&error),
        }
    }

    /// Invalidates again when the bodies have ended, and before the client sees the end of the
    /// response.
    fn invalidate_at_ends(
        mut self,
        context: Arc<ProxyContext>,
        body: Body,
        fence: FenceEnd,
    ) -> Body {
        let parent = spans::current();
        if self.response_body == ResponseBodyState::Ended {
            if let Some(upload) = self.upload.take() {
                let tasks = context.tasks.clone();
                tasks.spawn(self.end_after_upload(context, upload, parent));
            }
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
        self.outcome = match finishing.await {
            BodyEnd::Complete => WriteOutcome::Known,
            BodyEnd::Truncated => WriteOutcome::Unknown,
        };
        self.response_body = ResponseBodyState::Ended;
        self.note_upload();
        let kept = self.upload.is_some().then_some(fence);
        self.end_again(&context, kept, &parent).await;
        if let Some(upload) = self.upload.take() {
            let tasks = context.tasks.clone();
            tasks.spawn(self.end_after_upload(context, upload, parent));
        }
    }

    /// Invalidates when the upload has ended, which is after the response.
    async fn end_after_upload(
        mut self,
        context: Arc<ProxyContext>,
        upload: UploadEnd,
        parent: Span,
    ) {
        self.upload_truncated = upload.outcome().await == UploadOutcome::Truncated;
        self.end_again(&context, None, &parent).await;
    }

    /// Invalidates again, and lifts the fence unless it is kept.
    async fn end_again(&mut self, context: &ProxyContext, kept: Option<FenceEnd>, parent: &Span) {
        self.all |= context.stale_config.is_stale();
        let fence = kept.unwrap_or_else(|| FenceEnd::Now(self.final_outcome()));
        let span = spans::invalidate(parent, "write-body");
        let ended = self.run_again(&context.cache, fence).instrument(span.clone()).await;
        spans::record_result(&span, ended.as_str());
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
        self.refused = refusals.contains(&status);
        self.all &= !self.refused;
    }

    /// Forgets an upload that has ended, and notes how.
    fn note_upload(&mut self) {
        if let Some(outcome) = self.upload.as_mut().and_then(UploadEnd::try_outcome) {
            self.upload_truncated = outcome == UploadOutcome::Truncated;
            self.upload = None;
        }
    }

    fn final_outcome(&self) -> WriteOutcome {
        match self.outcome {
            _ if self.refused => WriteOutcome::Refused,
            _ if self.upload_truncated => WriteOutcome::Unknown,
            outcome => outcome,
        }
    }

    /// Decides when the fence falls, and which ends are still to come.
    fn fence_at_head(&mut self, response: &Response<Body>) -> FenceEnd {
        if response.body().leaves_upload() || mutants::is(Mutant::EndOnce) {
            self.upload = None;
        }
        self.note_upload();
        let is_over = response.body().is_end_stream() || mutants::is(Mutant::EndOnce);
        self.response_body =
            if is_over { ResponseBodyState::Ended } else { ResponseBodyState::Open };
        let ends_with_head = self.refused
            || is_event_stream(response.headers())
            || response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if self.stage() == EndStage::Last || ends_with_head {
            FenceEnd::Now(self.final_outcome())
        } else {
            FenceEnd::WithBodies(Instant::now())
        }
    }

    /// Whether another end follows.
    fn stage(&self) -> EndStage {
        let is_over = self.response_body == ResponseBodyState::Ended && self.upload.is_none();
        if is_over { EndStage::Last } else { EndStage::Early }
    }

    /// Invalidates before the write is answered.
    async fn run(&self, cache: &Arc<Cache>, fence: FenceEnd) -> Ended {
        let ended = cache.invalidator.end(&self.write, fence, self.stage()).await;
        self.run_all(cache, fence, ended).await
    }

    /// Invalidates again, when a body has ended.
    async fn run_again(&self, cache: &Arc<Cache>, fence: FenceEnd) -> Ended {
        let ended = cache.invalidator.end_after_body(&self.write, fence, self.stage()).await;
        self.run_all(cache, fence, ended).await
    }

    async fn run_all(&self, cache: &Arc<Cache>, fence: FenceEnd, ended: Ended) -> Ended {
        if !self.all {
            return ended;
        }
        let outcome = match fence {
            FenceEnd::Now(outcome) => outcome,
            FenceEnd::WithBodies(_) => WriteOutcome::Known,
        };
        match cache.invalidator.end_all(outcome).await {
            Ended::Confirmed { .. } => ended,
            Ended::Pending => Ended::Pending,
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
