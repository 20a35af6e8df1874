//! The purge webhook.
//!
//! The answer is 200 only when the store has confirmed that the jobs are gone. Otherwise it is
//! 503 with `Retry-After`; the purge is queued, and this sidecar bypasses the cache for those jobs
//! until it is confirmed. The answer does not wait for a refresh.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::{HeaderMap, Request, StatusCode, body::Incoming};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tracing::{Instrument as _, info, warn};

use super::{
    Admin,
    admin_state::WebhookRefusal,
    authorize::{AdminCaller, AuthState},
    caller_limits::{BODY_TIMEOUT, BodySender, EventRate, MAX_BODY, PurgeBodyError},
    purge_request::{PurgeRequest, job_ids, jobs_at},
    reply::{Reply, error_reply, json_reply, retry_later},
};
use crate::{
    cache::{PurgeAllOutcome, PurgeOutcome, PurgeReceipt},
    limits::Limit,
    observe::spans,
    semantics::job_id::JobId,
    store::Ended,
    transport::Peer,
};

/// `Retry-After` for a purge that is queued or was not read.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const BUSY_TEXT: &str = "too many purges are being read (max_inspected); nothing was purged or queued, send \
                    it again";
const ADDRESS_BUSY_TEXT: &str = "too many purges are being read from this address, which may use a quarter of \
                         max_inspected; nothing was purged or queued, send it again";

/// The step after a confirmed purge.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AfterPurge {
    Nothing,
    Refresh,
}

impl Admin {
    /// `POST /purge` with a JSON body, which a signature may cover: so the body is read first.
    pub(super) async fn purge_listed(
        &self,
        request: Request<Incoming>,
        caller: AdminCaller,
    ) -> Reply {
        let (head, body) = request.into_parts();
        let body = match self.authorized_body(&head.headers, body, caller.peer).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let purge = PurgeRequest::parse(&body, &self.routes);
        // Releases the budget for bodies before the wait for the store.
        drop(body);
        match purge {
            Ok(PurgeRequest::Jobs(ids)) => self.purge_jobs(ids, caller, AfterPurge::Nothing).await,
            Ok(PurgeRequest::JobsWithRefresh(ids)) => {
                self.purge_jobs(ids, caller, AfterPurge::Refresh).await
            }
            Ok(PurgeRequest::All) => self.purge_all(caller).await,
            Err(reason) => self.reject_purge(WebhookRefusal::Malformed, &reason),
        }
    }

    /// Reads the body of a call and checks that the call may purge.
    async fn authorized_body(
        &self,
        headers: &HeaderMap,
        body: Incoming,
        client: Peer,
    ) -> Result<Bytes, Reply> {
        let claim = self.authorizer.check_head(headers, client).map_err(|refusal| *refusal)?;
        let sender = match &claim {
            AuthState::ValidToken => BodySender::ValidToken,
            AuthState::Open => BodySender::NotAuthorized,
            AuthState::Signed(_) => self
                .authorizer
                .failure_wait(client)
                .map_or(BodySender::NotAuthorized, BodySender::RateLimited),
        };
        let read = self.body_reader.read(body, client.ip, sender).await;
        let body = read.map_err(|unread| {
            let is_cut_off = matches!(unread, PurgeBodyError::TimedOut | PurgeBodyError::Broken(_));
            if is_cut_off && matches!(claim, AuthState::Signed(_)) {
                // The answer is the same whether or not the address is over its limit.
                let _ = self.authorizer.count_failure(client);
            }
            self.body_rejected(unread)
        })?;
        match claim {
            AuthState::Signed(signed) => {
                match self.authorizer.reject_bad_signature(signed, &body, client).await {
                    Some(refusal) => Err(refusal),
                    None => Ok(body),
                }
            }
            AuthState::Open | AuthState::ValidToken => Ok(body),
        }
    }

    fn body_rejected(&self, unread: PurgeBodyError) -> Reply {
        let (refused, reason) = match unread {
            PurgeBodyError::TooLarge => (
                WebhookRefusal::TooLarge,
                format!("the body is larger than {MAX_BODY} bytes; split the purge"),
            ),
            PurgeBodyError::TimedOut => (
                WebhookRefusal::Slow,
                format!(
                    "the body did not arrive within {BODY_TIMEOUT:?}, or stalled; send it again"
                ),
            ),
            PurgeBodyError::Broken(error) => {
                (WebhookRefusal::Malformed, format!("cannot read the body: {error}"))
            }
            PurgeBodyError::QuotaFull => (WebhookRefusal::Busy, BUSY_TEXT.to_owned()),
            PurgeBodyError::ShareFull => {
                self.state.metrics.limits.count(Limit::Inspected);
                (WebhookRefusal::Busy, ADDRESS_BUSY_TEXT.to_owned())
            }
            PurgeBodyError::RateLimited(wait) => return self.authorizer.reject_large_body(wait),
        };
        self.reject_purge(refused, &reason)
    }

    /// `POST /purge/<id>` of a caller with the token.
    pub(super) async fn purge_one(&self, id: &str, caller: AdminCaller) -> Reply {
        match job_ids(&percent_decode_str(id).decode_utf8_lossy(), &self.routes) {
            Ok(ids) => self.purge_jobs(ids, caller, AfterPurge::Nothing).await,
            Err(reason) => self.reject_purge(WebhookRefusal::Malformed, &reason),
        }
    }

    /// `PURGE /jobs/<id>` of a caller with the token.
    pub(super) async fn purge_path(&self, path: &str, caller: AdminCaller) -> Reply {
        match jobs_at(path, &self.routes) {
            Ok(Some(jobs)) => self.purge_jobs(jobs, caller, AfterPurge::Nothing).await,
            Ok(None) => self.purge_all(caller).await,
            Err(reason) => self.reject_purge(WebhookRefusal::Malformed, &reason),
        }
    }

    /// Refuses a call. Nothing is purged or queued.
    fn reject_purge(&self, refused: WebhookRefusal, reason: &str) -> Reply {
        self.state.metrics.count_refused(refused);
        match refused {
            WebhookRefusal::Busy => {
                retry_later(refused_status(refused), &json!({ "error": reason }), RETRY_AFTER)
            }
            _ => error_reply(refused_status(refused), reason),
        }
    }

    /// Answers 429 above `webhook_max_purges` per second. The check comes first, so that a purge
    /// that is answered with an error has not been applied. The sender has to repeat it.
    fn reject_over_rate(&self) -> Option<Reply> {
        let rate = EventRate::new(self.max_purges, Duration::from_secs(1));
        let wait = self.state.caller_limits.purges.try_acquire(rate, Instant::now()).err()?;
        self.state.metrics.limits.count(Limit::WebhookPurges);
        self.state.metrics.count_refused(WebhookRefusal::Rate);
        let error = format!(
            "more than {} purges in one second (webhook_max_purges); nothing was purged or queued: \
             send it again, or put more ids into one purge",
            self.max_purges
        );
        Some(retry_later(refused_status(WebhookRefusal::Rate), &json!({ "error": error }), wait))
    }

    /// Purges these jobs. A refresh follows only a confirmed purge; otherwise the caller has to
    /// retry anyway.
    async fn purge_jobs(&self, ids: Vec<JobId>, caller: AdminCaller, then: AfterPurge) -> Reply {
        if let Some(refusal) = self.reject_over_rate() {
            return refusal;
        }
        let span = spans::invalidate(&spans::current(), "purge");
        let purge = self.cache.invalidator.purge(&ids, caller.by()).instrument(span.clone());
        let Some(PurgeOutcome { ended, receipts }) = purge.await else { return purge_failed() };
        spans::record_result(&span, ended.as_str());
        let names: Value = ids.iter().map(JobId::as_str).collect();
        let receipts: Value =
            ids.iter().zip(&receipts).map(|(id, receipt)| receipt_json(id, receipt)).collect();
        match ended {
            Ended::Confirmed { entries } => {
                info!(ids = ids.len(), entries, "purged");
                let mut body = json!({ "purged": names, "entries": entries, "receipts": receipts });
                if then == AfterPurge::Refresh {
                    body["refreshing"] = self.state.warmer.refresh(&ids).into();
                    if let Some(missing) = self.state.warmer.headers_warning() {
                        body["warning"] = missing.into();
                        if let Some(suppressed) =
                            self.state.caller_limits.refresh_warnings.admit("")
                        {
                            warn!(suppressed, missing, "refreshed entries may match no client");
                        }
                    }
                }
                json_reply(StatusCode::OK, &body)
            }
            Ended::Pending => purge_pending(json!({ "pending": names, "receipts": receipts })),
        }
    }

    async fn purge_all(&self, caller: AdminCaller) -> Reply {
        if let Some(refusal) = self.reject_over_rate() {
            return refusal;
        }
        let span = spans::invalidate(&spans::current(), "purge-all");
        let purge = self.cache.invalidator.purge_all(caller.by()).instrument(span.clone());
        let Some(PurgeAllOutcome { ended, flights, near }) = purge.await else {
            return purge_failed();
        };
        spans::record_result(&span, ended.as_str());
        let local = |mut body: Value| {
            body["flights_detached"] = flights.into();
            body["near_dropped"] = near.into();
            body
        };
        match ended {
            Ended::Confirmed { .. } => {
                info!("purged all");
                json_reply(StatusCode::OK, &local(json!({ "purged": "all" })))
            }
            Ended::Pending => purge_pending(local(json!({ "pending": "all" }))),
        }
    }
}

/// The receipt of a purged job: what was stored, and what was voided.
fn receipt_json(id: &JobId, PurgeReceipt { found: was, flights, near }: &PurgeReceipt) -> Value {
    let entry = was.as_ref().and_then(|was| was.entry.as_ref()).map(|entry| {
        json!({
            "stored_size": entry.size,
            "age_ms": entry.age_ms,
            "generation": entry.generation,
        })
    });
    json!({
        "job": id.as_str(),
        "confirmed": was.is_some(),
        "entry": entry,
        "fill_voided": was.as_ref().is_some_and(|was| was.filling),
        "flights_detached": flights,
        "near_dropped": near,
    })
}

/// The status for each reason that is used here. Authorization failures have their own answers.
fn refused_status(refused: WebhookRefusal) -> StatusCode {
    match refused {
        WebhookRefusal::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        WebhookRefusal::Slow => StatusCode::REQUEST_TIMEOUT,
        WebhookRefusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
        WebhookRefusal::Rate => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::BAD_REQUEST,
    }
}

fn purge_failed() -> Reply {
    let error = "the purge task failed, which is a bug in jobcache (see its log): the jobs may not be \
                 purged or queued; purge again";
    error_reply(StatusCode::INTERNAL_SERVER_ERROR, error)
}

fn purge_pending(mut body: Value) -> Reply {
    let error = "the store has not confirmed the purge; it is queued, and this sidecar bypasses \
                 the cache for the jobs that are not confirmed until they are";
    body["error"] = error.into();
    retry_later(StatusCode::SERVICE_UNAVAILABLE, &body, RETRY_AFTER)
}
