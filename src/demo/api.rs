//! The sample jobs API: an ordinary API that knows nothing about the cache.
//!
//! `GET /jobs/<id>` costs a database query; `POST /jobs/<id>/restart` is the write of a client.
//! Each change increments the job's `version`, by which the pollers recognise an outdated answer.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    http::{HeaderValue, header::CONTENT_TYPE},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::clock;

/// Duration of a query in the simulated database.
const QUERY_TIME: Duration = Duration::from_millis(5);
/// Stages of a job, each with its progress in percent.
const STAGES: [(&str, u8); 5] = [
    ("ANALYZING", 10),
    ("EXTRACTING", 35),
    ("RENDERING", 60),
    ("VERIFYING", 90),
    ("COMPLETED", 100),
];
/// Prefix of job ids: job 1 is `demo-1`. It avoids the keys of other users of the same Redis.
const ID_PREFIX: &str = "demo-";

/// The jobs table.
pub(super) struct SampleJobs {
    jobs: Vec<Job>,
}

struct Job {
    row: Mutex<Row>,
    /// Queries that GETs have caused.
    reads: AtomicU64,
    /// Version of the last change with an acknowledged purge.
    acknowledged: AtomicU64,
}

#[derive(Clone, Copy)]
struct Row {
    stage: usize,
    version: u64,
    updated_at: SystemTime,
    changed_at: Instant,
}

impl SampleJobs {
    /// Creates `count` jobs in different stages.
    pub(super) fn new(count: usize) -> Self {
        let job = |n: usize| Job {
            row: Mutex::new(Row::new(n % STAGES.len())),
            reads: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
        };
        Self { jobs: (0..count).map(job).collect() }
    }

    /// Number of jobs.
    pub(super) fn count(&self) -> usize {
        self.jobs.len()
    }

    /// Number of queries that GETs of these jobs have caused so far.
    pub(super) fn reads(&self, jobs: Range<usize>) -> u64 {
        self.jobs[jobs].iter().map(|job| job.reads.load(Ordering::Relaxed)).sum()
    }

    /// Time since a job has changed to this version; `None` if it has another one by now.
    pub(super) fn age(&self, job: usize, version: u64) -> Option<Duration> {
        let row = *self.row(job);
        (row.version == version).then(|| row.changed_at.elapsed())
    }

    /// Moves a job to its next stage, and from the last to the first. Returns the new version.
    pub(super) fn advance(&self, job: usize) -> u64 {
        self.change(job, |stage| (stage + 1) % STAGES.len()).version
    }

    /// Records that the purge after this version was answered with 200.
    pub(super) fn acknowledge(&self, job: usize, version: u64) {
        self.jobs[job].acknowledged.fetch_max(version, Ordering::SeqCst);
    }

    /// The lowest version that an answer to a GET may have, if the GET starts after this call.
    pub(super) fn acknowledged(&self, job: usize) -> u64 {
        self.jobs[job].acknowledged.load(Ordering::SeqCst)
    }

    /// Answers one request.
    pub(super) async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let Some((job, action)) = self.find(request.uri().path()) else {
            return reply(StatusCode::NOT_FOUND, &json!({ "detail": "no such job" }));
        };
        match (request.method(), action) {
            (&Method::GET | &Method::HEAD, "") => {
                self.jobs[job].reads.fetch_add(1, Ordering::Relaxed);
                // A query sees the row as it was when it began. A change and its purge may overtake
                // the answer; a cache must handle that.
                let row = *self.row(job);
                sleep(QUERY_TIME).await;
                reply(StatusCode::OK, &row.to_json(job))
            }
            (&Method::POST, "restart") => {
                sleep(QUERY_TIME).await;
                reply(StatusCode::OK, &self.change(job, |_| 0).to_json(job))
            }
            _ => reply(StatusCode::METHOD_NOT_ALLOWED, &json!({ "detail": "no such method" })),
        }
    }

    /// Index of the job that a path names, and the rest of the path.
    fn find<'p>(&self, path: &'p str) -> Option<(usize, &'p str)> {
        let path = path.strip_prefix("/jobs/")?;
        let (id, action) = path.split_once('/').unwrap_or((path, ""));
        let number: usize = id.strip_prefix(ID_PREFIX)?.parse().ok()?;
        let job = number.checked_sub(1)?;
        (job < self.count()).then_some((job, action))
    }

    fn change(&self, job: usize, next: impl FnOnce(usize) -> usize) -> Row {
        let mut row = self.row(job);
        row.stage = next(row.stage);
        row.version += 1;
        row.updated_at = clock::now();
        row.changed_at = Instant::now();
        *row
    }

    fn row(&self, job: usize) -> MutexGuard<'_, Row> {
        self.jobs[job].row.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn new(stage: usize) -> Self {
        Self { stage, version: 1, updated_at: clock::now(), changed_at: Instant::now() }
    }

    fn to_json(self, job: usize) -> Value {
        let (status, progress) = STAGES[self.stage];
        json!({
            "id": id(job),
            "status": status,
            "progress": progress,
            "version": self.version,
            "updated_at": humantime::format_rfc3339_millis(self.updated_at).to_string(),
        })
    }
}

/// Id of a job, as used in paths.
pub(super) fn id(job: usize) -> String {
    format!("{ID_PREFIX}{}", job + 1)
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_jobs_from_one_to_the_last() {
        let jobs = SampleJobs::new(2);
        assert_eq!(jobs.find("/jobs/demo-1"), Some((0, "")));
        assert_eq!(jobs.find("/jobs/demo-2/restart"), Some((1, "restart")));
        for path in ["/jobs/demo-0", "/jobs/demo-3", "/jobs/1", "/job/demo-1", "/"] {
            assert_eq!(jobs.find(path), None, "{path}");
        }
    }

    #[test]
    fn a_job_passes_its_stages_and_starts_over_under_ever_higher_versions() {
        let jobs = SampleJobs::new(1);
        let versions: Vec<u64> = STAGES.iter().map(|_| jobs.advance(0)).collect();
        assert_eq!(versions, [2, 3, 4, 5, 6]);
        assert_eq!(jobs.row(0).stage, 0);
    }
}
