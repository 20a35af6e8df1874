//! The pollers, which a load balancer spreads over all sidecars, and the pipeline that changes
//! jobs.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CACHE_STATUS, HOST},
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::{
    Result,
    api::{JOBS, Jobs, id},
    client::Client,
    figures::{Figures, Source},
};

/// Number of pollers that watch one job.
pub(crate) const WATCHERS: usize = 20;
/// Speed-up over real time; every time below is divided by it.
pub(crate) const SPEED: f64 = 10.0;
/// Seconds between two polls of a watcher.
pub(crate) const POLL_EVERY: f64 = 5.0;
/// Largest deviation of a poll from its time, as a part of the interval.
const JITTER: f64 = 0.1;
/// Shortest and longest time between two changes of a job, in seconds.
pub(crate) const STAGE: (f64, f64) = (10.0, 30.0);
/// Pause before a refused purge is sent again.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Time limit for the first hit of a sidecar, and the interval between two attempts.
const WARM: Duration = Duration::from_secs(20);
const WARM_STEP: Duration = Duration::from_millis(20);
/// Host name under which frontends address the API, on every sidecar.
const API: &str = "api.internal";

/// State shared by all pollers and pipelines.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) figures: Figures,
    pub(crate) credentials: usize,
    fronts: Vec<Front>,
}

/// A sidecar, and the connections that the load balancer keeps open to it.
#[derive(Debug)]
struct Front {
    listen: SocketAddr,
    admin: SocketAddr,
    idle: Mutex<Vec<Client>>,
}

/// The part of an answer that a frontend reads.
#[derive(Deserialize)]
struct Seen {
    version: u64,
}

impl Stage {
    pub(crate) fn new(
        jobs: &Arc<Jobs>,
        credentials: usize,
        sidecars: impl Iterator<Item = (SocketAddr, SocketAddr)>,
    ) -> Self {
        let front = |(listen, admin)| Front { listen, admin, idle: Mutex::default() };
        let fronts = sidecars.map(front).collect();
        Self { jobs: Arc::clone(jobs), figures: Figures::default(), credentials, fronts }
    }

    /// Starts pollers and pipelines; they stop when `crowd` is dropped.
    pub(crate) fn start(self: &Arc<Self>, crowd: &mut JoinSet<()>) {
        for job in 0..JOBS {
            crowd.spawn(Arc::clone(self).work(job));
            for watcher in 0..WATCHERS {
                crowd.spawn(Arc::clone(self).watch(job, watcher % self.credentials));
            }
        }
    }

    /// Polls through every sidecar until it answers from the cache.
    pub(crate) async fn warm(&self) -> Result<()> {
        for front in &self.fronts {
            let deadline = Instant::now() + WARM;
            while self.poll(front, 0, 0).await != Some(Source::Cache) {
                if Instant::now() > deadline {
                    return Err(format!("{} serves no hits", front.listen).into());
                }
                sleep(WARM_STEP).await;
            }
        }
        Ok(())
    }

    async fn watch(self: Arc<Self>, job: usize, credential: usize) {
        let every = Duration::from_secs_f64(POLL_EVERY / SPEED);
        sleep(every.mul_f64(fastrand::f64())).await;
        loop {
            let jitter = 1.0 + JITTER * (2.0 * fastrand::f64() - 1.0);
            let next = tokio::time::Instant::now() + every.mul_f64(jitter);
            if let Some(front) = fastrand::choice(&self.fronts) {
                self.poll(front, job, credential).await;
            }
            sleep_until(next).await;
        }
    }

    /// Polls once and returns the source of the answer, or `None` if there is no usable answer.
    async fn poll(&self, front: &Front, job: usize, credential: usize) -> Option<Source> {
        let acknowledged = self.jobs.acknowledged(job);
        let mut request = Request::get(format!("/jobs/{}", id(job)))
            .header(HOST, API)
            .header(ACCEPT, "application/json");
        if self.credentials > 1 {
            request = request.header(AUTHORIZATION, format!("Bearer token-{credential}"));
        }
        let request = request.body(Full::default()).ok()?;
        let mut client = front.take();
        let started = Instant::now();
        let answer = client.send(request).await;
        let took = started.elapsed();
        front.give_back(client);
        let Some((version, source)) = answer.ok().and_then(|response| judge(&response)) else {
            self.figures.failed();
            return None;
        };
        self.figures.answered(source, took, version < acknowledged);
        Some(source)
    }

    /// Changes a job directly in the database, unseen by the sidecars, and purges it through random
    /// webhooks until one confirms.
    async fn work(self: Arc<Self>, job: usize) {
        let (shortest, longest) = STAGE;
        // The current stage has already begun some time ago.
        let mut stays = fastrand::f64() * longest;
        loop {
            sleep(Duration::from_secs_f64(stays / SPEED)).await;
            let version = self.jobs.advance(job);
            while !self.purge(job).await {
                self.figures.purge_refused();
                sleep(RETRY_AFTER).await;
            }
            self.jobs.acknowledge(job, version);
            stays = shortest + fastrand::f64() * (longest - shortest);
        }
    }

    async fn purge(&self, job: usize) -> bool {
        let Some(front) = fastrand::choice(&self.fronts) else { return true };
        let request = Request::post("/purge")
            .header(HOST, front.admin.to_string())
            .body(Full::from(json!({ "job_id": id(job) }).to_string()));
        let Ok(request) = request else { return false };
        let started = Instant::now();
        let answer = Client::new(front.admin).send(request).await;
        let confirmed = answer.is_ok_and(|response| response.status() == StatusCode::OK);
        if confirmed {
            self.figures.purged(started.elapsed());
        }
        confirmed
    }
}

impl Front {
    fn take(&self) -> Client {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.pop().unwrap_or_else(|| Client::new(self.listen))
    }

    fn give_back(&self, client: Client) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
    }
}

/// Returns the version in an answer and the source of the answer.
fn judge(response: &Response<Bytes>) -> Option<(u64, Source)> {
    let seen: Seen = serde_json::from_slice(response.body()).ok()?;
    let status = response.headers().get(CACHE_STATUS).and_then(|status| status.to_str().ok());
    Some((seen.version, Source::of(status.unwrap_or_default())))
}
