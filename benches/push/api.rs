//! The API: an ordinary application with a database. Behind Pushpin it also tells when to hold a request.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue, IF_NONE_MATCH},
};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    Result,
    play::{Front, JOBS},
    staging,
};

/// Duration of a query in the API's database.
const QUERY: Duration = Duration::from_millis(5);
/// Bytes of a body.
const BODY: usize = 600;

/// The jobs, and the number of their reads.
#[derive(Debug)]
pub(crate) struct Jobs {
    versions: Vec<AtomicU64>,
    reads: AtomicU64,
}

impl Jobs {
    pub(crate) fn new() -> Self {
        Self { versions: (0..JOBS).map(|_| AtomicU64::new(1)).collect(), reads: AtomicU64::new(0) }
    }

    /// Returns the number of queries.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Changes a job, and returns its new version.
    pub(crate) fn advance(&self, job: usize) -> u64 {
        self.versions[job].fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn version(&self, job: usize) -> u64 {
        self.versions[job].load(Ordering::SeqCst)
    }

    async fn answer(&self, request: Request<Incoming>, front: Front) -> Response<Full<Bytes>> {
        let number = request.uri().path().strip_prefix("/jobs/job-").map(str::parse);
        let Some(Ok(job)) = number.filter(|job| job.as_ref().is_ok_and(|job| *job < JOBS)) else {
            return status(StatusCode::NOT_FOUND);
        };
        self.reads.fetch_add(1, Ordering::Relaxed);
        let version = self.version(job);
        sleep(QUERY).await;
        match front {
            Front::Jobcache => json(body(job, version)),
            Front::Pushpin => hold(request.headers(), job, version),
        }
    }
}

/// Serves the jobs until `tasks` is dropped, and returns the address.
pub(crate) async fn serve(
    tasks: &mut JoinSet<()>,
    jobs: &Arc<Jobs>,
    front: Front,
) -> Result<SocketAddr> {
    let jobs = Arc::clone(jobs);
    staging::serve(tasks, move |request| {
        let jobs = Arc::clone(&jobs);
        async move { jobs.answer(request, front).await }
    })
    .await
}

/// Returns the body of a job: one line of JSON.
pub(crate) fn body(job: usize, version: u64) -> String {
    let head = format!(
        r#"{{"id":"job-{job}","status":"CONVERTING","version":{version},"kind":"render","log":""#
    );
    format!("{head}{}\"}}", "x".repeat(BODY.saturating_sub(head.len() + 2)))
}

/// Returns the event of a version.
pub(crate) fn event(job: usize, version: u64) -> String {
    format!("id: {}\ndata: {}\n\n", etag(version), body(job, version))
}

pub(crate) fn etag(version: u64) -> String {
    format!("\"v{version}\"")
}

/// Returns Pushpin's name for a job.
pub(crate) fn channel(job: usize) -> String {
    format!("job-{job}")
}

/// Answers Pushpin: with instructions to hold the request, unless the client lacks the current version.
fn hold(headers: &HeaderMap, job: usize, version: u64) -> Response<Full<Bytes>> {
    let is =
        |name, value: &str| headers.get(name).is_some_and(|field: &HeaderValue| field == value);
    let (form, mut response) = if is(ACCEPT, "text/event-stream") {
        ("stream", Response::new(event(job, version).into()))
    } else if is(IF_NONE_MATCH, &etag(version)) {
        ("response", status(StatusCode::NOT_MODIFIED))
    } else {
        ("", json(body(job, version)))
    };
    let fields = response.headers_mut();
    insert(fields, "etag", &etag(version));
    if !form.is_empty() {
        insert(fields, "grip-hold", form);
        insert(fields, "grip-channel", &format!("{}; prev-id={version}", channel(job)));
    }
    match form {
        "stream" => insert(fields, "content-type", "text/event-stream"),
        "response" => insert(fields, "grip-timeout", "60"),
        _ => {}
    }
    response
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn json(body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
