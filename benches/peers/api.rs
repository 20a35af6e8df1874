//! An API with changing jobs, for the promises. Each answer names its version and its user.
//!
//! A read sees the job as it is on arrival, as a database query does. Its answer can be held back,
//! so that a change overtakes it.

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

/// Time limit for the arrival of a read.
const ARRIVAL: Duration = Duration::from_secs(5);

/// The API, served by its own threads until the process ends.
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
    /// Reads that have seen this version are held back.
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

    /// Returns the number of reads of a job that have arrived.
    pub(crate) fn reads(&self, id: &str) -> u64 {
        self.lock().get(id).copied().unwrap_or_default().reads
    }

    /// Changes a job without telling any cache.
    pub(crate) fn change(&self, id: &str) {
        self.lock().entry(id.to_owned()).or_default().version += 1;
    }

    /// Holds back the answers to reads of the job's current version.
    pub(crate) fn hold(&self, id: &str) {
        let mut jobs = self.lock();
        let job = jobs.entry(id.to_owned()).or_default();
        job.held = Some(job.version);
    }

    /// Releases the answers that are held back.
    pub(crate) fn release(&self, id: &str) {
        self.lock().entry(id.to_owned()).or_default().held = None;
        self.released.notify_waiters();
    }

    /// Waits until this many reads of a job have arrived.
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
                // A client that disconnects is not an error here.
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
        // Bloom purges by this header; the other peers ignore it.
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
