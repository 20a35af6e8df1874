//! An API whose jobs change, for the promises: each answer says which version it is and for whom.
//!
//! A read takes what the job is when it arrives, as a query does, and may then be held back, so that
//! a change can be made to overtake it.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response,
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::Notify};

use crate::Result;

/// How long a read may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(5);

/// The API, served by threads of its own until the process ends.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    jobs: Arc<Mutex<HashMap<String, Job>>>,
    released: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Job {
    version: u64,
    reads: u64,
    /// Reads that have seen this version wait.
    held: Option<u64>,
}

impl Api {
    pub(crate) fn start() -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let (address, jobs, released) = (listener.local_addr()?, Arc::default(), Arc::default());
        let api = Self { address, jobs, released };
        let server = api.clone();
        thread::spawn(move || runtime.block_on(server.accept(listener)));
        Ok(api)
    }

    /// Reads of a job that have arrived so far.
    pub(crate) fn reads(&self, id: &str) -> u64 {
        self.lock().get(id).copied().unwrap_or_default().reads
    }

    /// Changes a job past every cache.
    pub(crate) fn change(&self, id: &str) {
        self.lock().entry(id.to_owned()).or_default().version += 1;
    }

    /// Holds back the answers to reads of a job as it is now.
    pub(crate) fn hold(&self, id: &str) {
        let mut jobs = self.lock();
        let job = jobs.entry(id.to_owned()).or_default();
        job.held = Some(job.version);
    }

    /// Lets them go.
    pub(crate) fn release(&self, id: &str) {
        self.lock().entry(id.to_owned()).or_default().held = None;
        self.released.notify_waiters();
    }

    /// Waits until a job has been read so often.
    pub(crate) fn wait_for_reads(&self, id: &str, reads: u64) -> Result<()> {
        let deadline = Instant::now() + ARRIVAL;
        while self.reads(id) < reads {
            if Instant::now() > deadline {
                return Err(format!("a read of {id} has not arrived after {ARRIVAL:?}").into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    async fn accept(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let api = self.clone();
            tokio::spawn(async move {
                let answer = service_fn(|request| {
                    let api = api.clone();
                    async move { Ok::<_, Infallible>(api.answer(&request).await) }
                });
                // A client that goes away is not this server's concern.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let id = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        if request.method() != Method::GET {
            self.change(&id);
            return Response::new(Bytes::from_static(b"{}").into());
        }
        let version = {
            let mut jobs = self.lock();
            let job = jobs.entry(id.clone()).or_default();
            job.reads += 1;
            job.version
        };
        self.wait_until_released(&id, version).await;
        let user = request.headers().get(AUTHORIZATION).and_then(|user| user.to_str().ok());
        let body =
            format!(r#"{{"id":"{id}","version":{version},"user":"{}"}}"#, user.unwrap_or(""));
        let mut response = Response::new(Full::from(body));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        // What Bloom is told to forget by; to the others it says nothing.
        if let Ok(bucket) = HeaderValue::from_str(&id) {
            response.headers_mut().insert("bloom-response-buckets", bucket);
        }
        response
    }

    async fn wait_until_released(&self, id: &str, version: u64) {
        loop {
            let released = self.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            if self.lock().get(id).copied().unwrap_or_default().held != Some(version) {
                return;
            }
            released.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
