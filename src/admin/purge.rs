//! The purge webhook: what it takes, and what it answers.
//!
//! It answers 200 only when the store has confirmed that the jobs are gone. Otherwise 503 with
//! Retry-After; the purge is queued all the same, and this sidecar bypasses those jobs meanwhile. Who
//! asks for a refresh does not wait for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{HeaderMap, Request, StatusCode, body::Incoming};
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{Instrument as _, info, warn};

use super::{
    Lasting,
    guard::{Caller, Guard, Watch},
    pace::Pace,
    page::{Reply, later, reply},
    wanted::{Wanted, readings},
};
use crate::{
    cache::{Cache, Purge, PurgeAll, Receipt, key::JobId},
    limits::{Kept, Room},
    metrics::{Limit, Metrics, Refused},
    proxy::route::Routes,
    spans,
    store::Ended,
    warm::Warmer,
};

/// Largest body of a purge, in bytes: room for [`MAX_IDS`](super::wanted::MAX_IDS) of the longest ids.
const MAX_BODY: usize = 2 << 20;
/// For all of it to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What a caller whose purge is queued is told to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const BUSY: &str = "too many purges are being read (max_inspected); nothing was purged or queued";

/// The purge webhook.
#[derive(Debug)]
pub struct Webhook {
    cache: Arc<Cache>,
    routes: Arc<Routes>,
    /// What the bodies take that are being read.
    room: Arc<Room>,
    warmer: Warmer,
    guard: Arc<Guard>,
    watch: Arc<Watch>,
    /// Purges a second.
    max_purges: usize,
    metrics: Arc<Metrics>,
}

/// What follows a purge that is confirmed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    Refresh,
}

impl Webhook {
    /// Takes the calls that the guard lets in.
    pub(super) fn new(
        (cache, routes): (Arc<Cache>, Arc<Routes>),
        lasting: &Lasting,
        guard: Arc<Guard>,
        max_purges: usize,
    ) -> Self {
        let Lasting { room, warmer, watch, metrics, .. } = lasting.clone();
        Self { cache, routes, room, warmer, guard, watch, max_purges, metrics }
    }

    /// `POST /purge` with a JSON body.
    pub async fn purge_listed(&self, request: Request<Incoming>, caller: Caller) -> Reply {
        let (head, body) = request.into_parts();
        let body = match timeout(BODY_TIMEOUT, self.whole(&head.headers, body)).await {
            Ok(Ok(body)) => body,
            Ok(Err(refusal)) => return refusal,
            Err(_) => return self.refuse(Refused::Slow, &slow()),
        };
        if let Some(refusal) = self.guard.refuses(&head.headers, &body, caller.client) {
            return refusal;
        }
        match Wanted::parse(&body) {
            Ok(Wanted::Jobs(ids)) => self.purge(ids, caller, Then::Nothing).await,
            Ok(Wanted::Refreshed(ids)) => self.purge(ids, caller, Then::Refresh).await,
            Ok(Wanted::All) => self.purge_all(caller).await,
            Err(reason) => self.refuse(Refused::Malformed, &reason),
        }
    }

    /// A signature needs all of the body. So who may call is known too late for most: strangers are
    /// given what room there is, and who shows the secret itself is not kept out by them.
    async fn whole(&self, headers: &HeaderMap, mut body: Incoming) -> Result<Bytes, Reply> {
        let trusted = self.guard.shows_secret(headers);
        let mut read = Kept::new(&self.room);
        let mut left = MAX_BODY;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                self.refuse(Refused::Malformed, &format!("the body broke off: {error}"))
            })?;
            let size = frame.data_ref().map_or(0, Bytes::len);
            let fits = left.checked_sub(size);
            left = fits.ok_or_else(|| self.refuse(Refused::TooLarge, &too_large()))?;
            if !read.push(frame) && !trusted {
                return Err(self.refuse(Refused::Busy, BUSY));
            }
        }
        Ok(read.join())
    }

    /// `POST /purge/<id>`.
    pub async fn purge_one(&self, request: Request<Incoming>, id: &str, caller: Caller) -> Reply {
        if let Some(refusal) = self.guard.refuses(request.headers(), &[], caller.client) {
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
        if let Some(refusal) = self.guard.refuses(request.headers(), &[], caller.client) {
            return refusal;
        }
        let ids = self.routes.jobs(path);
        if ids.is_empty() {
            let reason =
                format!("{path:?} names no job; PURGE takes the path of one, such as /jobs/<id>");
            return self.refuse(Refused::Malformed, &reason);
        }
        self.purge(ids, caller, Then::Nothing).await
    }

    /// The route that a path is told by.
    pub fn route(&self, path: &str) -> Option<&str> {
        self.routes.template(path)
    }

    /// Nothing was purged or queued.
    fn refuse(&self, refused: Refused, reason: &str) -> Reply {
        self.metrics.webhook.refused(refused);
        let error = json!({ "error": reason });
        match refused {
            Refused::Busy => later(status(refused), &error, RETRY_AFTER),
            _ => reply(status(refused), &error),
        }
    }

    /// What is answered past so many purges a second. It says so before anything is done, for what is
    /// answered with an error must not seem to have been acknowledged; sent again, it is applied.
    fn paced(&self) -> Option<Reply> {
        let pace = Pace::new(self.max_purges, Duration::from_secs(1));
        let wait = self.watch.purges.take(pace, Instant::now()).err()?;
        self.metrics.limits.hit(Limit::WebhookPurges);
        self.metrics.webhook.refused(Refused::Rate);
        let error = format!(
            "there were more than {} purges in a second (webhook_max_purges); nothing was purged or \
             queued: send it again, or put more ids into one",
            self.max_purges
        );
        Some(later(status(Refused::Rate), &json!({ "error": error }), wait))
    }

    /// What is not confirmed is not read anew: the caller has to ask again in any case.
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
                            warn!(
                                suppressed,
                                missing, "jobs are read anew as no client may ask for them"
                            );
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

/// What there was of a job and what was voided.
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
    format!("the body did not come within {BODY_TIMEOUT:?}")
}

/// The status that goes with each reason of ours. Those of the guard have their own answers.
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
    let error = "the purge died, which is a fault of jobcache (see its log): nothing is known to be \
                 purged or queued; purge again";
    reply(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": error }))
}

fn pending(mut body: Value) -> Reply {
    let error = "the store has not confirmed the purge; it is queued, and this sidecar bypasses \
                 the cache for these jobs until it is confirmed";
    body["error"] = error.into();
    later(StatusCode::SERVICE_UNAVAILABLE, &body, RETRY_AFTER)
}
