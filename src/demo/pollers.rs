//! The crowd: frontends that poll their jobs, and check that no answer is older than a purge that
//! was acknowledged before the poll was sent.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    http::{
        HeaderMap,
        header::{ACCEPT, CACHE_STATUS, HOST},
    },
};
use serde::Deserialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tracing::debug;

use super::{
    api::{self, SampleJobs},
    client::Client,
    figures::{AnswerSource, Figures, PollOutcome},
    show::DemoSetup,
};

/// Largest random change of the polling interval, as a fraction of it.
const JITTER: f64 = 0.1;

/// One simulated frontend.
pub(super) struct Poller {
    job: usize,
    proxy: SocketAddr,
    every: Duration,
    client: Client,
    jobs: Arc<SampleJobs>,
    figures: Arc<Figures>,
}

/// The part of an answer that a frontend reads.
#[derive(Deserialize)]
struct PolledJob {
    version: u64,
}

impl Poller {
    /// Starts the crowd, spread over the jobs and over the first interval.
    pub(super) fn start(
        crowd: &mut JoinSet<()>,
        setup: &DemoSetup,
        jobs: &Arc<SampleJobs>,
        figures: &Arc<Figures>,
    ) {
        for n in 0..usize::from(setup.pollers) {
            let poller = Self {
                job: n % jobs.count(),
                proxy: setup.proxy,
                every: setup.every,
                client: Client::new(setup.proxy),
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
    match serde_json::from_slice::<PolledJob>(response.body()) {
        Ok(PolledJob { version }) => {
            let source = source(response.headers());
            PollOutcome::Answered { source, took, stale: version < acknowledged }
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
        let poll = |source, stale| PollOutcome::Answered { source, took: Duration::ZERO, stale };
        let ok = StatusCode::OK;
        let cache = "jobcache; hit; ttl=213";
        check(ok, cache, r#"{"id":"demo-1","version":5}"#, &poll(AnswerSource::Cache, false));
        check(ok, cache, r#"{"id":"demo-1","version":4}"#, &poll(AnswerSource::Cache, true));
        check(
            ok,
            "jobcache; fwd=miss; stored",
            r#"{"version":6}"#,
            &poll(AnswerSource::Upstream, false),
        );
        check(ok, cache, "not JSON", &PollOutcome::Failed);
        check(StatusCode::BAD_GATEWAY, "", r#"{"version":6}"#, &PollOutcome::Failed);
    }
}
