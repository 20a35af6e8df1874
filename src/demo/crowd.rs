//! The clients of the demo: the frontends that poll, and the pipeline that works on the jobs.
//!
//! Pollers check that no answer is older than a purge that was acknowledged before the poll was sent.
//! The pipeline changes a job directly in the database, where the sidecar does not see it, and then
//! calls the purge webhook until that answers 200.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    http::{
        HeaderMap, HeaderValue,
        header::{ACCEPT, AUTHORIZATION, CACHE_STATUS, CONTENT_TYPE, HOST},
    },
};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tracing::debug;

use super::{
    api::{self, SampleJobs},
    client::{Client, JobStatus},
    figures::{AnswerSource, DemoGroup, Figures, PollOutcome},
    follower::Follower,
    seen_changes::SeenChanges,
    show::DemoSetup,
};
use crate::config::Secret;

/// Shortest and longest time that a job stays in one stage, in seconds.
const STAGE_SECONDS: (f64, f64) = (10.0, 30.0);
/// Pause before an unacknowledged purge is sent again; the `Retry-After` of the webhook.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Number and interval of checks for Redis to come up. After the last one the demo gives up.
const STORE_CHECKS: u32 = 20;
const STORE_CHECK_EVERY: Duration = Duration::from_millis(100);

/// Client of the sidecar's purge webhook.
#[derive(Clone)]
pub(super) struct PurgeClient {
    admin: SocketAddr,
    secret: Option<Secret>,
}

/// Starts the work on every job. The database is new, so entries that an earlier demo may have left
/// in the same Redis are purged first.
pub(super) async fn start_pipeline(
    crowd: &mut JoinSet<()>,
    jobs: &Arc<SampleJobs>,
    figures: &Arc<Figures>,
    webhook: &PurgeClient,
) {
    let ids: Vec<String> = (0..jobs.count()).map(api::id).collect();
    if !webhook.purge(&mut Client::new(webhook.admin), &json!({ "job_ids": ids })).await {
        // The purge is queued anyway, and these jobs are bypassed until it is confirmed.
        figures.purge_refused();
    }
    for job in 0..jobs.count() {
        crowd.spawn(work(job, Arc::clone(jobs), Arc::clone(figures), webhook.clone()));
    }
}

async fn work(job: usize, jobs: Arc<SampleJobs>, figures: Arc<Figures>, webhook: PurgeClient) {
    let mut client = Client::new(webhook.admin);
    let (shortest, longest) = STAGE_SECONDS;
    // The current stage began some time ago.
    let mut wait_seconds = fastrand::f64() * longest;
    loop {
        sleep(Duration::from_secs_f64(wait_seconds)).await;
        let version = jobs.advance(job);
        let body = json!({ "job_id": api::id(job) });
        while !webhook.purge(&mut client, &body).await {
            figures.purge_refused();
            sleep(RETRY_AFTER).await;
        }
        jobs.acknowledge(job, version);
        figures.purge_acknowledged();
        wait_seconds = shortest + fastrand::f64() * (longest - shortest);
    }
}

impl PurgeClient {
    pub(super) fn new(admin: SocketAddr, secret: Option<Secret>) -> Self {
        Self { admin, secret }
    }

    /// Sends a purge. Returns whether the jobs are confirmed to be gone from the cache.
    async fn purge(&self, client: &mut Client, body: &Value) -> bool {
        let Some(request) = self.request(body) else { return false };
        match client.send(request).await {
            Ok(response) => response.status() == StatusCode::OK,
            Err(error) => {
                debug!(%error, "purge failed");
                false
            }
        }
    }

    /// `None` if a header cannot carry the secret.
    fn request(&self, body: &Value) -> Option<Request<Full<Bytes>>> {
        let mut request = Request::post("/purge")
            .header(HOST, self.admin.to_string())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(secret) = &self.secret {
            request = request.header(AUTHORIZATION, format!("Bearer {}", secret.expose()));
        }
        request.body(Full::from(body.to_string())).ok()
    }
}

/// Asks the sidecar until the store is up, as a readiness probe would. Returns whether it is.
pub(super) async fn is_store_up(setup: &DemoSetup) -> bool {
    let mut client = Client::new(setup.admin);
    for _ in 0..STORE_CHECKS {
        let request = Request::get("/readyz").header(HOST, setup.admin.to_string());
        let Ok(request) = request.body(Full::<Bytes>::default()) else { break };
        if let Ok(response) = client.send(request).await
            && let Ok(body) = serde_json::from_slice::<Value>(response.body())
            && body["store"] == "up"
        {
            return true;
        }
        sleep(STORE_CHECK_EVERY).await;
    }
    false
}

/// Starts the frontends.
pub(super) fn start_frontends(
    crowd: &mut JoinSet<()>,
    setup: &DemoSetup,
    jobs: &Arc<SampleJobs>,
    figures: &Arc<Figures>,
) {
    Poller::start(crowd, setup, jobs, figures);
    if setup.has_push {
        Follower::start(crowd, setup, jobs, figures);
    }
}

/// Largest random change of the polling interval, as a fraction of it.
const JITTER: f64 = 0.1;

/// One simulated frontend.
struct Poller {
    job: usize,
    proxy: SocketAddr,
    every: Duration,
    client: Client,
    changes: SeenChanges,
    jobs: Arc<SampleJobs>,
    figures: Arc<Figures>,
}

impl Poller {
    /// Starts the crowd, spread over the jobs and over the first interval.
    fn start(
        crowd: &mut JoinSet<()>,
        setup: &DemoSetup,
        jobs: &Arc<SampleJobs>,
        figures: &Arc<Figures>,
    ) {
        for n in 0..usize::from(setup.pollers) {
            let job = n % setup.jobs;
            let poller = Self {
                job,
                proxy: setup.proxy,
                every: setup.every,
                client: Client::new(setup.proxy),
                changes: SeenChanges::new(DemoGroup::Polling, job, jobs, figures),
                jobs: Arc::clone(jobs),
                figures: Arc::clone(figures),
            };
            crowd.spawn(poller.run());
        }
    }

    async fn run(mut self) {
        sleep(self.every.mul_f64(fastrand::f64())).await;
        loop {
            let jitter = 1.0 + JITTER * (2.0 * fastrand::f64() - 1.0);
            let next = Instant::now() + self.every.mul_f64(jitter);
            let poll = self.poll().await;
            self.figures.record_poll(poll);
            if let PollOutcome::Answered { version, .. } = poll {
                self.changes.see(version);
            }
            sleep_until(next).await;
        }
    }

    async fn poll(&mut self) -> PollOutcome {
        let request = Request::get(format!("/jobs/{}", api::id(self.job)))
            // The headers of curl, so that a user who tries the same URL gets the same entry.
            .header(HOST, self.proxy.to_string())
            .header(ACCEPT, "*/*")
            .body(Full::default());
        let Ok(request) = request else { return PollOutcome::Failed };
        let acknowledged = self.jobs.acknowledged(self.job);
        let sent_at = Instant::now();
        match self.client.send(request).await {
            Ok(response) => classify_answer(&response, acknowledged, sent_at.elapsed()),
            Err(error) => {
                debug!(%error, "poll failed");
                PollOutcome::Failed
            }
        }
    }
}

fn classify_answer(response: &Response<Bytes>, acknowledged: u64, took: Duration) -> PollOutcome {
    if response.status() != StatusCode::OK {
        return PollOutcome::Failed;
    }
    match serde_json::from_slice::<JobStatus>(response.body()) {
        Ok(JobStatus { version }) => {
            let source = source(response.headers());
            PollOutcome::Answered { source, took, version, stale: version < acknowledged }
        }
        Err(_) => PollOutcome::Failed,
    }
}

/// `Cache-Status: jobcache; hit; ttl=213` is a hit.
fn source(headers: &HeaderMap) -> AnswerSource {
    let status = headers.get(CACHE_STATUS).and_then(|status| status.to_str().ok()).unwrap_or("");
    let hit = status.split(';').any(|part| part.trim() == "hit");
    if hit { AnswerSource::Cache } else { AnswerSource::Upstream }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: StatusCode, cache_status: &str, body: &'static str, expected: &PollOutcome) {
        let response = Response::builder()
            .status(status)
            .header(CACHE_STATUS, cache_status)
            .body(Bytes::from_static(body.as_bytes()))
            .unwrap();
        assert_eq!(&classify_answer(&response, 5, Duration::ZERO), expected);
    }

    #[test]
    fn an_answer_older_than_an_acknowledged_purge_is_stale() {
        let poll = |source, version, stale| PollOutcome::Answered {
            source,
            took: Duration::ZERO,
            version,
            stale,
        };
        let ok = StatusCode::OK;
        let cache = "jobcache; hit; ttl=213";
        check(ok, cache, r#"{"id":"demo-1","version":5}"#, &poll(AnswerSource::Cache, 5, false));
        check(ok, cache, r#"{"id":"demo-1","version":4}"#, &poll(AnswerSource::Cache, 4, true));
        check(
            ok,
            "jobcache; fwd=miss; stored",
            r#"{"version":6}"#,
            &poll(AnswerSource::Upstream, 6, false),
        );
        check(ok, cache, "not JSON", &PollOutcome::Failed);
        check(StatusCode::BAD_GATEWAY, "", r#"{"version":6}"#, &PollOutcome::Failed);
    }
}
