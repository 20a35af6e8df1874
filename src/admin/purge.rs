//! The purge webhook.
//!
//! The answer is 200 only when the store has confirmed that the jobs are gone. Otherwise it is
//! 503 with `Retry-After`; the purge is queued, and this sidecar bypasses the cache for those jobs
//! until it is confirmed. The answer does not wait for a refresh.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{HeaderMap, Request, StatusCode, body::Incoming};
use serde_json::{Value, json};
use tracing::{Instrument as _, info, warn};

use super::{
    Lasting,
    guard::{Caller, Claim, Guard, Watch},
    pace::Pace,
    page::{Reply, later, reply},
    upload::{BODY_TIMEOUT, MAX_BODY, Sender, Unread, Uploads},
    wanted::{Wanted, readings},
};
use crate::{
    cache::{Cache, Purge, PurgeAll, Receipt, key::JobId},
    config::Config,
    metrics::{Limit, Metrics, Refused},
    proxy::route::Routes,
    spans,
    store::Ended,
    transport::Peer,
    warm::Warmer,
};

/// `Retry-After` for a purge that is queued or was not read.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const BUSY: &str = "too many purges are being read (max_inspected); nothing was purged or queued, send \
                    it again";
const BUSY_HERE: &str = "too many purges are being read from this address, which may use a quarter of \
                         max_inspected; nothing was purged or queued, send it again";

/// The purge webhook.
pub struct Webhook {
    cache: Arc<Cache>,
    routes: Arc<Routes>,
    uploads: Uploads,
    warmer: Warmer,
    guard: Arc<Guard>,
    watch: Arc<Watch>,
    /// Purges per second.
    max_purges: usize,
    metrics: Arc<Metrics>,
}

/// The step after a confirmed purge.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    Refresh,
}

impl Webhook {
    /// Creates the webhook.
    pub(super) fn new(
        (cache, routes): (Arc<Cache>, Arc<Routes>),
        lasting: &Lasting,
        guard: Arc<Guard>,
        config: &Config,
    ) -> Self {
        let Lasting { room, warmer, watch, metrics, .. } = lasting.clone();
        let uploads = Uploads::new(room, config.max_inspected, Arc::clone(&watch.shares));
        let max_purges = config.webhook_max_purges;
        Self { cache, routes, uploads, warmer, guard, watch, max_purges, metrics }
    }

    /// `POST /purge` with a JSON body.
    pub async fn purge_listed(&self, request: Request<Incoming>, caller: Caller) -> Reply {
        let (head, body) = request.into_parts();
        let body = match self.proven(&head.headers, body, caller.client).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let wanted = Wanted::parse(&body);
        // Releases the budget for bodies before the wait for the store.
        drop(body);
        match wanted {
            Ok(Wanted::Jobs(ids)) => self.purge(ids, caller, Then::Nothing).await,
            Ok(Wanted::Refreshed(ids)) => self.purge(ids, caller, Then::Refresh).await,
            Ok(Wanted::All) => self.purge_all(caller).await,
            Err(reason) => self.refuse(Refused::Malformed, &reason),
        }
    }

    /// Reads the body of a call and checks that the call may purge.
    async fn proven(
        &self,
        headers: &HeaderMap,
        body: Incoming,
        client: Peer,
    ) -> Result<Bytes, Reply> {
        let claim = self.guard.claim(headers, client).map_err(|refusal| *refusal)?;
        let sender = match &claim {
            Claim::Known => Sender::Known,
            Claim::Anybody => Sender::Stranger,
            Claim::Signed(_) => self.guard.waits(client).map_or(Sender::Stranger, Sender::Waiting),
        };
        let read = self.uploads.read(body, client.ip, sender).await;
        let body = read.map_err(|unread| {
            let is_cut_off = matches!(unread, Unread::Slow | Unread::Broken(_));
            if is_cut_off && matches!(claim, Claim::Signed(_)) {
                // The answer is the same whether or not the address is over its limit.
                let _ = self.guard.failed(client);
            }
            self.unread(unread)
        })?;
        match claim {
            Claim::Signed(signed) => match self.guard.disproves(signed, &body, client).await {
                Some(refusal) => Err(refusal),
                None => Ok(body),
            },
            Claim::Anybody | Claim::Known => Ok(body),
        }
    }

    fn unread(&self, unread: Unread) -> Reply {
        match unread {
            Unread::TooLarge => self.refuse(Refused::TooLarge, &too_large()),
            Unread::Slow => self.refuse(Refused::Slow, &slow()),
            Unread::Broken(error) => {
                self.refuse(Refused::Malformed, &format!("cannot read the body: {error}"))
            }
            Unread::Full => self.refuse(Refused::Busy, BUSY),
            Unread::Share => {
                self.metrics.limits.hit(Limit::Inspected);
                self.refuse(Refused::Busy, BUSY_HERE)
            }
            Unread::Waiting(wait) => self.guard.puts_off(wait),
        }
    }

    /// `POST /purge/<id>`.
    pub async fn purge_one(&self, request: Request<Incoming>, id: &str, caller: Caller) -> Reply {
        if let Some(refusal) = self.guard.refuses(request.headers(), caller.client) {
            return refusal;
        }
        match readings(id) {
            Ok(ids) => self.purge(ids, caller, Then::Nothing).await,
            Err(reason) => self.refuse(Refused::Malformed, &reason),
        }
    }

    /// `PURGE /jobs/<id>`.
    pub async fn purge_path(
        &self,
        request: Request<Incoming>,
        path: &str,
        caller: Caller,
    ) -> Reply {
        if let Some(refusal) = self.guard.refuses(request.headers(), caller.client) {
            return refusal;
        }
        let ids = self.routes.jobs(path);
        if ids.is_empty() {
            let reason = format!(
                "{path:?} names no job; use PURGE with the path of a job, such as /jobs/<id>"
            );
            return self.refuse(Refused::Malformed, &reason);
        }
        self.purge(ids, caller, Then::Nothing).await
    }

    /// Returns the route template of a path, which names it in spans without the id.
    pub fn route(&self, path: &str) -> Option<&str> {
        self.routes.template(path)
    }

    /// Refuses a call. Nothing is purged or queued.
    fn refuse(&self, refused: Refused, reason: &str) -> Reply {
        self.metrics.webhook.refused(refused);
        let error = json!({ "error": reason });
        match refused {
            Refused::Busy => later(status(refused), &error, RETRY_AFTER),
            _ => reply(status(refused), &error),
        }
    }

    /// Answers 429 above `webhook_max_purges` per second. The check comes first, so that a purge
    /// that is answered with an error has not been applied. The sender has to repeat it.
    fn paced(&self) -> Option<Reply> {
        let pace = Pace::new(self.max_purges, Duration::from_secs(1));
        let wait = self.watch.purges.take(pace, Instant::now()).err()?;
        self.metrics.limits.hit(Limit::WebhookPurges);
        self.metrics.webhook.refused(Refused::Rate);
        let error = format!(
            "more than {} purges in one second (webhook_max_purges); nothing was purged or queued: \
             send it again, or put more ids into one purge",
            self.max_purges
        );
        Some(later(status(Refused::Rate), &json!({ "error": error }), wait))
    }

    /// Purges these jobs. A refresh follows only a confirmed purge; otherwise the caller has to
    /// retry anyway.
    async fn purge(&self, ids: Vec<JobId>, caller: Caller, then: Then) -> Reply {
        if let Some(refusal) = self.paced() {
            return refusal;
        }
        let span = spans::invalidate(&spans::current(), "purge");
        let purge = self.cache.purge(&ids, caller.by()).instrument(span.clone());
        let Ok(Purge { ended, receipts }) = purge.await else { return died() };
        spans::result(&span, ended.as_str());
        let names: Value = ids.iter().map(JobId::as_str).collect();
        let receipts: Value =
            ids.iter().zip(&receipts).map(|(id, receipt)| told(id, receipt)).collect();
        match ended {
            Ended::Confirmed { entries } => {
                info!(ids = ids.len(), entries, "purged");
                let mut body = json!({ "purged": names, "entries": entries, "receipts": receipts });
                if then == Then::Refresh {
                    body["refreshing"] = self.warmer.refresh(&ids).into();
                    if let Some(missing) = self.warmer.missing() {
                        body["warning"] = missing.into();
                        if let Some(suppressed) = self.watch.bare_refreshes.admit("") {
                            warn!(suppressed, missing, "refreshed entries may match no client");
                        }
                    }
                }
                reply(StatusCode::OK, &body)
            }
            Ended::Pending => pending(json!({ "pending": names, "receipts": receipts })),
        }
    }

    async fn purge_all(&self, caller: Caller) -> Reply {
        if let Some(refusal) = self.paced() {
            return refusal;
        }
        let span = spans::invalidate(&spans::current(), "purge-all");
        let purge = self.cache.purge_all(caller.by()).instrument(span.clone());
        let Ok(PurgeAll { ended, flights, near }) = purge.await else { return died() };
        spans::result(&span, ended.as_str());
        let local = |mut body: Value| {
            body["flights_detached"] = flights.into();
            body["near_dropped"] = near.into();
            body
        };
        match ended {
            Ended::Confirmed { entries } => {
                info!(entries, "purged all");
                reply(StatusCode::OK, &local(json!({ "purged": "all", "entries": entries })))
            }
            Ended::Pending => pending(local(json!({ "pending": "all" }))),
        }
    }
}

/// The receipt of a purged job: what was stored, and what was voided.
fn told(id: &JobId, Receipt { was, flights, near }: &Receipt) -> Value {
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

fn too_large() -> String {
    format!("the body is larger than {MAX_BODY} bytes; split the purge")
}

fn slow() -> String {
    format!("the body did not arrive within {BODY_TIMEOUT:?}, or stalled; send it again")
}

/// The status for each reason that is used here. Authorization failures have their own answers.
fn status(refused: Refused) -> StatusCode {
    match refused {
        Refused::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Refused::Slow => StatusCode::REQUEST_TIMEOUT,
        Refused::Busy => StatusCode::SERVICE_UNAVAILABLE,
        Refused::Rate => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::BAD_REQUEST,
    }
}

fn died() -> Reply {
    let error = "the purge task failed, which is a bug in jobcache (see its log): the jobs may not be \
                 purged or queued; purge again";
    reply(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": error }))
}

fn pending(mut body: Value) -> Reply {
    let error = "the store has not confirmed the purge; it is queued, and this sidecar bypasses \
                 the cache for the jobs that are not confirmed until they are";
    body["error"] = error.into();
    later(StatusCode::SERVICE_UNAVAILABLE, &body, RETRY_AFTER)
}
