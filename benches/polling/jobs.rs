//! The API: an ordinary application with a database, which does not know about a cache.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use fastrand::Rng;
use http_body_util::Full;
use hyper::{
    Method, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde_json::json;
use tokio::{task::JoinSet, time::sleep};

use crate::{Result, scenario::QUERY, staging};

/// Text before the number in a job id.
const ID_PREFIX: &str = "job-";
/// Number of stages: queued, converting from 10 to 90 percent, completed.
const STAGES: u64 = 11;

/// The jobs, and the number of reads and changes.
#[derive(Debug)]
pub(crate) struct Jobs {
    /// Number of changes of each job, which also determines its stage.
    versions: Vec<AtomicU64>,
    /// For each job, the newest version with an acknowledged change.
    acknowledged: Vec<AtomicU64>,
    reads: AtomicU64,
    changes: AtomicU64,
}

impl Jobs {
    /// Creates this many jobs in random stages.
    pub(crate) fn new(count: usize, rng: &mut Rng) -> Self {
        Self {
            versions: (0..count).map(|_| AtomicU64::new(1 + rng.u64(..STAGES))).collect(),
            acknowledged: (0..count).map(|_| AtomicU64::new(0)).collect(),
            reads: AtomicU64::new(0),
            changes: AtomicU64::new(0),
        }
    }

    /// Returns the number of queries.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Returns the number of changes.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Moves a job to its next stage, or from the last to the first, and returns its new version.
    pub(crate) fn advance(&self, job: usize) -> u64 {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.versions[job].fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Records that the change to this version was acknowledged to the pipeline.
    pub(crate) fn acknowledge(&self, job: usize, version: u64) {
        self.acknowledged[job].fetch_max(version, Ordering::SeqCst);
    }

    /// Returns the oldest version that a poll started after this call may show.
    pub(crate) fn acknowledged(&self, job: usize) -> u64 {
        self.acknowledged[job].load(Ordering::SeqCst)
    }

    async fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let Some(job) = number(path).filter(|job| *job < self.versions.len()) else {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        };
        let version = if *method == Method::PUT {
            sleep(QUERY).await;
            self.advance(job)
        } else {
            self.read(job).await
        };
        let mut response = Response::new(Full::from(row(job, version)));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }

    /// Returns the version at the start of the query, so that a change and its report can overtake
    /// the answer.
    async fn read(&self, job: usize) -> u64 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let version = self.versions[job].load(Ordering::SeqCst);
        sleep(QUERY).await;
        version
    }
}

/// Serves the jobs until `tasks` is dropped, and returns the address.
pub(crate) async fn serve(tasks: &mut JoinSet<()>, jobs: &Arc<Jobs>) -> Result<SocketAddr> {
    let jobs = Arc::clone(jobs);
    staging::serve(tasks, move |request| {
        let jobs = Arc::clone(&jobs);
        async move { jobs.answer(request.method(), request.uri().path()).await }
    })
    .await
}

/// Returns the id of a job as it appears in paths.
pub(crate) fn id(job: usize) -> String {
    format!("{ID_PREFIX}{}", job + 1)
}

fn number(path: &str) -> Option<usize> {
    let number: usize = path.strip_prefix("/jobs/")?.strip_prefix(ID_PREFIX)?.parse().ok()?;
    number.checked_sub(1)
}

fn row(job: usize, version: u64) -> String {
    let (status, progress) = stage(version);
    let row = json!({
        "id": id(job), "status": status, "progress": progress, "version": version,
        "kind": "render", "input": "s3://uploads/original.mov", "output": "s3://renders/final.mp4",
    });
    row.to_string()
}

fn stage(version: u64) -> (&'static str, u64) {
    match version % STAGES {
        0 => ("queued", 0),
        step if step == STAGES - 1 => ("completed", 100),
        step => ("converting", step * 10),
    }
}
