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
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{Instrument as _, info};

use super::{
    Shared,
    guard::{Caller, Guard, Watch},
    pace::Pace,
    page::{Reply, later, reply},
};
use crate::{
    cache::{
        Cache, Purge, PurgeAll, Receipt,
        key::{self, JobId},
    },
    limits::{Kept, Room},
    metrics::{Limit, Metrics, Refused},
    proxy::route::Routes,
    spans,
    store::Ended,
    warm::Warmer,
};

/// Largest body of a purge, in bytes: room for [`MAX_IDS`] of the longest ids.
const MAX_BODY: usize = 2 << 20;
/// Ids in one purge, and jobs that all of their readings name.
const MAX_IDS: usize = 10_000;
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

/// `{"job_id": "x"}`, `{"job_ids": ["x", "y"]}` or `{"all": true}`; the first two with
/// `"refresh": true` if the jobs are to be read anew.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    job_id: Option<Id>,
    job_ids: Option<Vec<Id>>,
    all: Option<bool>,
    refresh: Option<bool>,
}

/// Ids come as strings, and from databases as numbers.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "an id is a string or a whole number")]
enum Id {
    Text(String),
    Number(u64),
}

/// What is to be purged.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// These jobs, in order, without repeats.
    Jobs(Vec<JobId>),
    /// These jobs likewise, which are then to be read anew.
    Refreshed(Vec<JobId>),
    /// Every job.
    All,
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
        shared: &Shared,
        guard: Arc<Guard>,
        max_purges: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        let Shared { room, warmer, watch, .. } = shared.clone();
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
        let Purge { ended, receipts } = purge.await;
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
        let PurgeAll { ended, flights, near } = purge.await;
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
            "size": entry.size,
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

impl Wanted {
    /// Reads the body of a purge; the error says what would be right.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let payload: Payload = serde_json::from_slice(body).map_err(|error| {
            format!(
                "{error}; a purge is {{\"job_id\": \"x\"}}, {{\"job_ids\": [\"x\", \"y\"]}} or \
                 {{\"all\": true}}"
            )
        })?;
        let refresh = payload.refresh == Some(true);
        let ids = match payload {
            Payload { job_id: Some(id), job_ids: None, all: None, .. } => vec![id],
            Payload { job_id: None, job_ids: Some(ids), all: None, .. } => ids,
            Payload { all: Some(true), .. } if refresh => {
                return Err("refresh goes with job_id or job_ids, not with all".into());
            }
            Payload { job_id: None, job_ids: None, all: Some(true), .. } => return Ok(Self::All),
            _ => return Err("give exactly one of job_id, job_ids and \"all\": true".into()),
        };
        if ids.is_empty() || ids.len() > MAX_IDS {
            return Err(format!("job_ids holds {} ids; give 1 to {MAX_IDS}", ids.len()));
        }
        let mut jobs = Vec::with_capacity(ids.len());
        for id in ids {
            jobs.extend(match id {
                Id::Text(id) => readings(&id)?,
                Id::Number(id) => readings(&id.to_string())?,
            });
        }
        jobs.sort_unstable();
        jobs.dedup();
        if jobs.len() > MAX_IDS {
            let count = jobs.len();
            return Err(format!(
                "job_ids can be read as {count} jobs, of at most {MAX_IDS}; split the purge"
            ));
        }
        Ok(if refresh { Self::Refreshed(jobs) } else { Self::Jobs(jobs) })
    }
}

fn readings(id: &str) -> Result<Vec<JobId>, String> {
    let ids = key::readings(id);
    if ids.is_empty() {
        let shown: String = id.chars().take(200).collect();
        return Err(format!(
            "{shown:?} is no job id: ids are 1 to 128 of A-Z a-z 0-9 . _ ~ -, and not . or .."
        ));
    }
    Ok(ids)
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

fn pending(mut body: Value) -> Reply {
    let error = "the store has not confirmed the purge; it is queued, and this sidecar bypasses \
                 the cache for these jobs until it is confirmed";
    body["error"] = error.into();
    later(StatusCode::SERVICE_UNAVAILABLE, &body, RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn accepts(body: &str, expected: &[&str]) {
        match Wanted::parse(body.as_bytes()) {
            Ok(Wanted::Jobs(jobs)) => {
                assert_eq!(jobs.iter().map(JobId::as_str).collect::<Vec<_>>(), expected, "{body}");
            }
            other => panic!("{body}: {other:?}"),
        }
    }

    #[track_caller]
    fn refuses(body: &str, part: &str) {
        let error = Wanted::parse(body.as_bytes()).unwrap_err();
        assert!(error.contains(part), "{body}: {error:?} lacks {part:?}");
    }

    #[test]
    fn a_purge_takes_one_id_several_or_all() {
        accepts(r#"{"job_id":"x"}"#, &["x"]);
        accepts(r#"{"job_id":42}"#, &["42"]);
        accepts(r#"{"job_ids":["b","a","b"]}"#, &["a", "b"]);
        accepts(
            r#"{"job_id":"9F86D081-884C-4D65-9A2F-EAA0C55AD015"}"#,
            &["9f86d081-884c-4d65-9a2f-eaa0c55ad015"],
        );
        assert_eq!(Wanted::parse(br#"{"all":true}"#).unwrap(), Wanted::All);
        assert_eq!(Wanted::parse(br#"{"all":true,"refresh":false}"#).unwrap(), Wanted::All);
    }

    #[test]
    fn jobs_may_be_read_anew_and_all_of_them_may_not() {
        let x = || vec![JobId::canonical("x").unwrap()];
        let parse = |body: &str| Wanted::parse(body.as_bytes()).unwrap();
        assert_eq!(parse(r#"{"job_id":"x","refresh":true}"#), Wanted::Refreshed(x()));
        assert_eq!(parse(r#"{"job_ids":["x"],"refresh":true}"#), Wanted::Refreshed(x()));
        assert_eq!(parse(r#"{"job_id":"x","refresh":false}"#), Wanted::Jobs(x()));
        refuses(r#"{"all":true,"refresh":true}"#, "not with all");
        refuses(r#"{"job_id":"x","refresh":1}"#, "a purge is");
        refuses(r#"{"refresh":true}"#, "exactly one");
    }

    /// Digits may be a number and a UUID. The limit is on what the store is asked to delete.
    #[test]
    fn a_purge_of_more_jobs_than_it_has_ids_is_refused_past_the_limit() {
        let ids = |count: usize| {
            let ids: Vec<_> =
                (0..count).map(|id| format!("0{:031}", 10_usize.pow(18) + id)).collect();
            json!({ "job_ids": ids }).to_string()
        };
        assert!(
            matches!(Wanted::parse(ids(5_000).as_bytes()), Ok(Wanted::Jobs(jobs)) if jobs.len() == MAX_IDS)
        );
        refuses(&ids(5_001), "10002 jobs");
    }

    #[test]
    fn a_malformed_purge_is_told_what_is_wrong() {
        refuses("", "a purge is");
        refuses("[]", "a purge is");
        refuses(r#"{"job":"x"}"#, "unknown field `job`");
        refuses(r#"{"job_id":1.5}"#, "an id is a string or a whole number");
        refuses(r#"{"job_id":"x","all":true}"#, "exactly one");
        refuses(r#"{"all":false}"#, "exactly one");
        refuses("{}", "exactly one");
        refuses(r#"{"job_ids":[]}"#, "0 ids");
        refuses(r#"{"job_id":"a b"}"#, "\"a b\" is no job id");
        refuses(r#"{"job_id":".."}"#, "is no job id");
    }
}
