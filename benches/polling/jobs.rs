//! The API: an ordinary application with a database, which does not know about a cache.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde_json::json;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    Result,
    scenario::{JOBS, QUERY},
    staging,
};

/// Text before the number in a job id.
const ID_PREFIX: &str = "job-";
/// Number of stages: queued, converting from 10 to 90 percent, completed.
const STAGES: u64 = 11;

/// The jobs, and the number of reads and changes.
#[derive(Debug)]
pub(crate) struct Jobs {
    /// Number of changes of each job, which also determines its stage.
    versions: [AtomicU64; JOBS],
    /// For each job, the newest version with a purge that was answered 200.
    acknowledged: [AtomicU64; JOBS],
    reads: AtomicU64,
    changes: AtomicU64,
}

impl Jobs {
    /// Creates the jobs in random stages.
    pub(crate) fn new() -> Self {
        Self {
            versions: std::array::from_fn(|_| AtomicU64::new(1 + fastrand::u64(..STAGES))),
            acknowledged: std::array::from_fn(|_| AtomicU64::new(0)),
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

    /// Records that a purge of this version was answered 200.
    pub(crate) fn acknowledge(&self, job: usize, version: u64) {
        self.acknowledged[job].fetch_max(version, Ordering::SeqCst);
    }

    /// Returns the oldest version that a poll started after this call may show.
    pub(crate) fn acknowledged(&self, job: usize) -> u64 {
        self.acknowledged[job].load(Ordering::SeqCst)
    }

    /// Answers a read with the version at the start of the query, so that a change and its purge
    /// can overtake the answer.
    async fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let Some(job) = number(path).filter(|job| *job < JOBS) else {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        };
        self.reads.fetch_add(1, Ordering::Relaxed);
        let version = self.versions[job].load(Ordering::SeqCst);
        sleep(QUERY).await;
        let (status, progress) = stage(version);
        let row = json!({
            "id": id(job), "status": status, "progress": progress, "version": version,
            "kind": "render", "input": "s3://uploads/original.mov", "output": "s3://renders/final.mp4",
        });
        let mut response = Response::new(Full::from(row.to_string()));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }
}

/// Serves the jobs until `tasks` is dropped, and returns the address.
pub(crate) async fn serve(tasks: &mut JoinSet<()>, jobs: &Arc<Jobs>) -> Result<SocketAddr> {
    let jobs = Arc::clone(jobs);
    staging::serve(tasks, move |request| {
        let jobs = Arc::clone(&jobs);
        async move { jobs.answer(request.uri().path()).await }
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

fn stage(version: u64) -> (&'static str, u64) {
    match version % STAGES {
        0 => ("queued", 0),
        step if step == STAGES - 1 => ("completed", 100),
        step => ("converting", step * 10),
    }
}
