//! The API of the benchmark. It counts the reads of each version by each credential.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use tokio::{task::JoinSet, time::sleep};

use crate::{Result, staging};

/// Number of watched jobs.
pub(crate) const JOBS: usize = 25;
/// Duration of a database query.
pub(crate) const QUERY: Duration = Duration::from_millis(5);
/// Length of a body in bytes; bodies are padded to it.
const BODY: usize = 600;
/// Text before the number in a job id.
const ID_PREFIX: &str = "job-";

/// Reads by job, version and credential.
type Reads = HashMap<(usize, u64, Vec<u8>), u64>;

/// The jobs, and the reads of them.
#[derive(Debug)]
pub(crate) struct Jobs {
    versions: [AtomicU64; JOBS],
    /// For each job, the newest version with a purge that was answered 200.
    acknowledged: [AtomicU64; JOBS],
    changes: AtomicU64,
    reads: Mutex<Reads>,
}

impl Jobs {
    pub(crate) fn new() -> Self {
        Self {
            versions: std::array::from_fn(|_| AtomicU64::new(1)),
            acknowledged: std::array::from_fn(|_| AtomicU64::new(0)),
            changes: AtomicU64::new(0),
            reads: Mutex::default(),
        }
    }

    /// Moves a job to its next version and returns it.
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

    /// Resets the counters.
    pub(crate) fn reset(&self) {
        self.changes.store(0, Ordering::Relaxed);
        self.lock().clear();
    }

    /// Returns the number of changes since the last reset.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Returns four counts since the last reset: all reads, distinct reads of a version by a
    /// credential, versions that were read, and the most reads of one version by one credential.
    pub(crate) fn reads(&self) -> (u64, u64, u64, u64) {
        let reads = self.lock();
        let mut versions: Vec<_> = reads.keys().map(|(job, version, _)| (job, version)).collect();
        versions.sort_unstable();
        versions.dedup();
        let most = reads.values().copied().max().unwrap_or(0);
        (reads.values().sum(), reads.len() as u64, versions.len() as u64, most)
    }

    fn lock(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a read with the version at the start of the query.
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let Some(job) = number(request.uri().path()).filter(|job| *job < JOBS) else {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        };
        let credential = request.headers().get(AUTHORIZATION);
        let credential = credential.map(|value| value.as_bytes().to_vec()).unwrap_or_default();
        let version = self.versions[job].load(Ordering::SeqCst);
        *self.lock().entry((job, version, credential)).or_default() += 1;
        sleep(QUERY).await;
        let start = format!("{{\"id\":\"{}\",\"version\":{version},\"log\":\"", id(job));
        let body = format!("{start}{}\"}}", "x".repeat(BODY.saturating_sub(start.len() + 2)));
        let mut response = Response::new(Full::from(body));
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
        async move { jobs.answer(&request).await }
    })
    .await
}

/// Returns the id of a job as it appears in paths.
pub(crate) fn id(job: usize) -> String {
    format!("{ID_PREFIX}{job}")
}

fn number(path: &str) -> Option<usize> {
    path.strip_prefix("/jobs/")?.strip_prefix(ID_PREFIX)?.parse().ok()
}
