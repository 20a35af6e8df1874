//! Answers, and the one place that says what happened to a request: `Cache-Status`, the metrics and
//! the access log all derive from the same [`Verdict`].

use std::time::Instant;

use bytes::Bytes;
use hyper::{
    Request, Response, StatusCode, Version,
    body::Incoming,
    http::{
        HeaderMap, HeaderValue, Method,
        header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER},
        request::Parts,
    },
};
use tracing::{debug, info};

use super::{
    body::Body, framing::Refusal, metrics::RequestMetrics, proxy_context::Requester,
    repeat_hit::RepeatHit,
};
use crate::{
    cache::{FillResult, entry::Entry},
    observe::{events::EventKind, spans},
    semantics::{
        headers::{self, CacheStatus, Forward},
        policy::{Bypass, NoStore},
    },
    service::Answered,
    upstream::UpstreamError,
};

/// The word for answers that were held.
const HELD: &str = "held";

/// A response and its verdict.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    pub(super) verdict: Verdict,
    /// Set if the next request with the same header fields can reuse what was derived from these.
    pub(super) repeat: Option<RepeatHit>,
}

/// The outcome of a request.
pub(super) enum Verdict {
    /// Answered from the cache. The response already carries its `Cache-Status`.
    Hit,
    /// Answered from an upstream read that all waiting clients share. `filled` says what became of
    /// the response, if that was known when the head was sent. `why` says why the cache was not
    /// asked, if it was not.
    Miss { filled: Option<FillResult>, collapsed: bool, why: Option<Bypass> },
    /// Answered after a wait for the job to change, or with a stream of its changes. The first version
    /// that was sent is from the cache, or else from an upstream read that all waiting clients share.
    Held { is_hit: bool },
    /// Answered from the upstream, past the cache. With the `setting`, it would be cached.
    Pass { why: Bypass, setting: Option<&'static str> },
    /// Forwarded because it may change a job. Pending while its invalidation is unconfirmed.
    Write { pending: bool },
    /// Answered by jobcache because the upstream gave no response.
    Failed(&'static str),
    /// Answered by jobcache without asking the upstream.
    Refused(&'static str),
}

impl Answer {
    pub(super) fn new(response: Response<Body>, verdict: Verdict) -> Self {
        Self { response, verdict, repeat: None }
    }

    /// Answers a request from an entry.
    pub(super) fn hit(entry: &Entry, method: &Method, headers: &HeaderMap, now_ms: i64) -> Self {
        Self::new(entry.hit(method, headers, now_ms).map(Body::from), Verdict::Hit)
    }

    /// Completes the response, and counts and logs it.
    pub(super) fn report(
        mut self,
        metrics: &RequestMetrics,
        access_line: Option<AccessLine>,
    ) -> Answered<Body, RepeatHit> {
        let (kind, reason) = self.verdict.event();
        metrics.count(kind, reason);
        let outcome = kind.as_str();
        let status = self.response.status();
        if let Some(cache_status) = self.verdict.cache_status(status) {
            headers::cache_status(self.response.headers_mut(), cache_status);
        }
        if let Some(access_line) = access_line {
            access_line.log(status, outcome, reason);
        }
        spans::record_outcome(status, outcome, reason);
        Answered { response: self.response, repeat: self.repeat }
    }
}

impl Verdict {
    /// Returns what happened, and why, as events, metrics and log name it.
    pub(super) fn event(&self) -> (EventKind, &'static str) {
        match self {
            Self::Hit => (EventKind::Hit, ""),
            Self::Held { is_hit: true } => (EventKind::Hit, HELD),
            Self::Held { is_hit: false } => (EventKind::Miss, HELD),
            Self::Miss { filled: Some(result @ FillResult::Abandoned(_)), .. } => {
                (EventKind::Miss, result.as_str())
            }
            Self::Miss { why, .. } => (EventKind::Miss, why.map_or("", Bypass::as_str)),
            Self::Pass { why, .. } => (EventKind::Pass, why.as_str()),
            Self::Write { pending: false } => (EventKind::Write, ""),
            Self::Write { pending: true } => (EventKind::Write, "invalidation-pending"),
            Self::Failed(reason) | Self::Refused(reason) => (EventKind::Error, reason),
        }
    }

    fn cache_status(&self, status: StatusCode) -> Option<CacheStatus> {
        let setting = if let Self::Pass { setting, .. } = self { *setting } else { None };
        let (mut why, collapsed, stored) = match self {
            Self::Hit => return None,
            Self::Held { is_hit: true } => return Some(CacheStatus::Hit { detail: HELD }),
            Self::Held { is_hit: false } => (Forward::Miss, true, false),
            Self::Refused(detail) => return Some(CacheStatus::Refused { detail }),
            Self::Miss { filled, collapsed, why } => {
                let stored = why.is_none() && *filled == Some(FillResult::Stored);
                (why.map_or(Forward::Miss, Forward::from), *collapsed, stored)
            }
            Self::Pass { why, .. } => (Forward::from(*why), false, false),
            Self::Write { .. } => (Forward::Method, false, false),
            Self::Failed(_) => (Forward::Bypass, false, false),
        };
        let mut reason = self.event().1;
        if !status.is_success() && self.reveals_others() {
            (why, reason) = (Forward::Miss, NoStore::Status.as_str());
        }
        let detail = (!reason.is_empty()).then_some(reason);
        Some(CacheStatus::Forwarded { why, collapsed, stored, detail, setting })
    }

    /// Whether the reason depends on what other clients have read. A client that is refused a job,
    /// or sent to a login page, must not learn from the reason whether there is an entry, or a read
    /// under way. Metrics and log keep the reason.
    fn reveals_others(&self) -> bool {
        match self {
            Self::Pass { why, .. } | Self::Miss { why: Some(why), .. } => why.reveals_others(),
            Self::Miss { why: None, .. }
            | Self::Hit
            | Self::Held { .. }
            | Self::Write { .. }
            | Self::Failed(_)
            | Self::Refused(_) => false,
        }
    }
}

/// Turns an upstream error into an answer. This is the only place that does.
pub(super) fn upstream_failure(error: &UpstreamError) -> Answer {
    debug!(%error, "no answer from the upstream");
    let status = match error {
        UpstreamError::ClientStalled { .. } | UpstreamError::ClientSlow { .. } => {
            StatusCode::REQUEST_TIMEOUT
        }
        UpstreamError::ClientGone(_) => StatusCode::BAD_REQUEST,
        UpstreamError::Busy { .. } | UpstreamError::TooManyStreams { .. } => {
            return refuse_retryable(error.as_str());
        }
        _ if error.is_timeout() => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    let mut answer = refuse_with(status, error.as_str());
    answer.verdict = Verdict::Failed(error.as_str());
    answer
}

/// Returns a 503 for a request that there is no capacity for now, with `Retry-After`.
pub(super) fn refuse_retryable(reason: &'static str) -> Answer {
    let mut answer = refuse_with(StatusCode::SERVICE_UNAVAILABLE, reason);
    answer.response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

/// Returns an answer of jobcache itself. It contains no address; the log does.
pub(super) fn refuse_with(status: StatusCode, reason: &'static str) -> Answer {
    let phrase = status.canonical_reason().unwrap_or("Error");
    let body =
        format!("{{\"error\":\"{phrase}\",\"reason\":\"{reason}\",\"from\":\"jobcache\"}}\n");
    let mut response = Response::new(Body::from(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Answer::new(response, Verdict::Refused(reason))
}

/// Returns an answer after which the connection ends, because what follows on it cannot be trusted
/// or is not HTTP.
pub(super) fn refuse_and_close(why: Refusal, version: Version) -> Answer {
    let mut answer = refuse_with(why.status(), why.as_str());
    let headers = answer.response.headers_mut();
    if version < Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if why == Refusal::Connect {
        // "The origin server MUST generate an Allow header field in a 405 response" RFC 9110 15.5.6
        let allowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE";
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    answer
}

/// A line of the access log. It never contains a query string.
pub(super) struct AccessLine {
    started: Instant,
    method: String,
    path: String,
}

impl AccessLine {
    /// Takes from a request what its access log line needs.
    pub(super) fn of(request: &Request<Incoming>) -> Self {
        Self {
            started: Instant::now(),
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
        }
    }

    fn log(self, status: StatusCode, outcome: &str, reason: &str) {
        let Self { started, method, path } = self;
        let took_ms = started.elapsed().as_secs_f64() * 1e3;
        let (status, trace_id) = (status.as_u16(), spans::trace_id());
        info!(method, path, status, outcome, reason, took_ms, trace_id, "request");
    }
}

/// Answers from an entry that was just read for this request, with 304 if the client already has
/// it.
pub(super) fn entry_response(entry: &Entry, head: &Parts, now_ms: i64) -> Response<Body> {
    let mut response = entry.respond(&head.method, &head.headers, now_ms).map(Body::from);
    headers::via(response.headers_mut(), Version::HTTP_11);
    response
}

/// Closes the client connection after this response if no request can follow it.
pub(super) fn close_if_spent(response: &mut Response<Body>, from: &Requester) {
    let Some(body) = response.body().upstream() else { return };
    // The response came before the upload was asked for, and the client may or may not send it.
    // HTTP/2 has no such field and ends only the stream.
    let is_unread = body.upload_unrequested && from.informational.is_accepted();
    // The client has lost the connection that its login belongs to, and logs in again over its next.
    if is_unread || body.ends_client {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}
