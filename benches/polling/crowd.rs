//! The users, and the pipeline that works on their jobs.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fastrand::Rng;
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
    client::Client,
    figures::{Figures, Source},
    jobs::{Jobs, id},
    scenario::{Callers, Front, Notice, POLL_EVERY, Play, STAGE_SECONDS},
};

/// Largest deviation of a poll from its time, as a part of the interval.
const JITTER: f64 = 0.1;
/// Pause before a refused purge or write is sent again.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Time limit for the first hit of a sidecar, and the interval between two attempts.
const WARM: Duration = Duration::from_secs(20);
const WARM_STEP: Duration = Duration::from_millis(20);
/// Host name under which frontends address the API, on every sidecar.
const API: &str = "api.internal";

/// State shared by all users and pipelines.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) play: Play,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) figures: Figures,
    /// Addresses for users: sidecars, nginx, or the API.
    pub(crate) fronts: Vec<SocketAddr>,
    /// Purge webhooks; empty without a sidecar.
    pub(crate) webhooks: Vec<SocketAddr>,
}

impl Stage {
    /// Starts users and pipeline; they stop when `crowd` is dropped. Plays that start with the same
    /// `rng` have the same polls and the same changes.
    pub(crate) fn start(self: &Arc<Self>, crowd: &mut JoinSet<()>, rng: &mut Rng) {
        for job in 0..self.play.jobs {
            crowd.spawn(Arc::clone(self).work(job, rng.fork()));
        }
        for user in 0..self.play.users {
            crowd.spawn(User::new(self, user).run(rng.fork()));
        }
    }

    /// Polls through every sidecar until it answers from the cache.
    pub(crate) async fn warm(self: &Arc<Self>) -> Result<()> {
        if !matches!(self.play.front, Front::Sidecars(_)) {
            return Ok(());
        }
        for front in &self.fronts {
            let deadline = Instant::now() + WARM;
            let mut user = User { client: Client::new(*front), ..User::new(self, 0) };
            while user.poll().await != Some(Source::Cache) {
                if Instant::now() > deadline {
                    return Err(format!("{front} serves no hits").into());
                }
                sleep(WARM_STEP).await;
            }
        }
        Ok(())
    }

    /// Moves a job through its stages.
    async fn work(self: Arc<Self>, job: usize, mut rng: Rng) {
        let (shortest, longest) = STAGE_SECONDS;
        let factor = f64::from(self.play.factor);
        // The current stage has already begun some time ago.
        let mut stays = rng.f64() * longest;
        loop {
            sleep(Duration::from_secs_f64(stays / factor)).await;
            let version = match self.play.notice {
                Notice::Purge => self.change_and_purge(job).await,
                Notice::Write => self.write(job).await,
                Notice::Nothing => self.jobs.advance(job),
            };
            self.jobs.acknowledge(job, version);
            stays = shortest + rng.f64() * (longest - shortest);
        }
    }

    /// Changes a job directly in the database, unseen by the sidecars, and purges it through random
    /// webhooks until one confirms.
    async fn change_and_purge(&self, job: usize) -> u64 {
        let version = self.jobs.advance(job);
        while !self.purge(job).await {
            self.figures.purge_refused();
            sleep(RETRY_AFTER).await;
        }
        version
    }

    async fn purge(&self, job: usize) -> bool {
        let Some(webhook) = fastrand::choice(&self.webhooks) else { return true };
        let request = Request::post("/purge")
            .header(HOST, webhook.to_string())
            .body(Full::from(json!({ "job_id": id(job) }).to_string()));
        let Ok(request) = request else { return false };
        let started = Instant::now();
        let answer = Client::new(*webhook).send(request).await;
        let confirmed = answer.is_ok_and(|response| response.status() == StatusCode::OK);
        if confirmed {
            self.figures.purged(started.elapsed());
        }
        confirmed
    }

    /// Changes a job with a `PUT` through random fronts until one has answered it.
    async fn write(&self, job: usize) -> u64 {
        loop {
            if let Some(version) = self.put(job).await {
                return version;
            }
            sleep(RETRY_AFTER).await;
        }
    }

    async fn put(&self, job: usize) -> Option<u64> {
        let request = Request::put(path(job)).header(HOST, API).body(Full::default()).ok()?;
        let front = fastrand::choice(&self.fronts)?;
        let response = Client::new(*front).send(request).await.ok()?;
        Some(judge(&response)?.0)
    }
}

/// One frontend.
struct User {
    stage: Arc<Stage>,
    number: u32,
    job: usize,
    client: Client,
}

/// The part of an answer that a frontend reads.
#[derive(Deserialize)]
struct Seen {
    version: u64,
}

impl User {
    /// Users are spread evenly over jobs and sidecars.
    fn new(stage: &Arc<Stage>, number: u32) -> Self {
        let place = usize::try_from(number).unwrap_or_default();
        let jobs = stage.play.jobs;
        let front = stage.fronts[place / jobs % stage.fronts.len()];
        let client = Client::new(front);
        Self { stage: Arc::clone(stage), number, job: place % jobs, client }
    }

    async fn run(mut self, mut rng: Rng) {
        let every = self.stage.play.compressed(POLL_EVERY);
        sleep(every.mul_f64(rng.f64())).await;
        loop {
            let jitter = 1.0 + JITTER * (2.0 * rng.f64() - 1.0);
            let next = tokio::time::Instant::now() + every.mul_f64(jitter);
            self.poll().await;
            sleep_until(next).await;
        }
    }

    /// Polls once and returns the source of the answer, or `None` if there is no usable answer.
    async fn poll(&mut self) -> Option<Source> {
        let acknowledged = self.stage.jobs.acknowledged(self.job);
        let request = self.request()?;
        let started = Instant::now();
        let answer = self.client.send(request).await;
        let took = started.elapsed();
        let result = answer.ok().and_then(|response| judge(&response));
        let Some((version, source)) = result else {
            self.stage.figures.failed();
            return None;
        };
        self.stage.figures.answered(source, took, version < acknowledged);
        Some(source)
    }

    fn request(&self) -> Option<Request<Full<Bytes>>> {
        let mut request =
            Request::get(path(self.job)).header(HOST, API).header(ACCEPT, "application/json");
        if self.stage.play.callers != Callers::Anonymous {
            request =
                request.header(AUTHORIZATION, format!("Bearer token-of-user-{}", self.number));
        }
        request.body(Full::default()).ok()
    }
}

fn path(job: usize) -> String {
    format!("/jobs/{}", id(job))
}

/// Returns the version in an answer and the source of the answer.
fn judge(response: &Response<Bytes>) -> Option<(u64, Source)> {
    let seen: Seen = serde_json::from_slice(response.body()).ok()?;
    let status = response.headers().get(CACHE_STATUS).and_then(|status| status.to_str().ok());
    Some((seen.version, Source::of(status.unwrap_or_default())))
}
