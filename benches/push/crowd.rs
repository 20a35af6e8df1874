//! A process of clients. The benchmark starts itself once more for each.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use jobcache::clock;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    Result,
    play::{Form, Identities, JOBS},
    staging::raise_file_limit,
    wire::{self, Wire},
};

/// Time between two polls, and the largest deviation from it.
pub(crate) const POLL_EVERY: Duration = Duration::from_secs(5);
const JITTER: f64 = 0.1;
/// Clients of a process that connect at a time.
const RAMP: usize = 32;
/// Pause of a client after a failure.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Duties of a process of clients, as an argument of its command line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Assignment {
    /// Where the benchmark waits for the process.
    pub(crate) control: SocketAddr,
    pub(crate) server: SocketAddr,
    pub(crate) form: Form,
    pub(crate) identities: Identities,
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// Totals of a process since its start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Clients that have their first version.
    pub(crate) ready: u64,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// Sum of the newest version of each client.
    pub(crate) versions: u64,
}

/// A version that a client has seen for the first time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Sighting {
    pub(crate) client: usize,
    pub(crate) version: u64,
    pub(crate) at_us: u64,
}

/// State shared by the clients of a process.
struct Crowd {
    assignment: Assignment,
    ready: AtomicU64,
    requests: AtomicU64,
    failed: AtomicU64,
    versions: AtomicU64,
    sightings: Mutex<Vec<Sighting>>,
    ramp: Semaphore,
}

/// Runs the clients of this process until the benchmark closes the control connection.
pub(crate) fn run(assignment: &str) -> Result<()> {
    raise_file_limit();
    let assignment: Assignment = serde_json::from_str(assignment)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let control = TcpStream::connect(assignment.control).await?;
        let crowd = Arc::new(Crowd::new(assignment));
        for client in 0..crowd.assignment.count {
            tokio::spawn(Arc::clone(&crowd).stay(crowd.assignment.first + client));
        }
        crowd.obey(control).await
    })
}

/// Returns the time in microseconds, by a clock that all processes share.
pub(crate) fn now_us() -> u64 {
    let time = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Crowd {
    fn new(assignment: Assignment) -> Self {
        Self {
            assignment,
            ready: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            versions: AtomicU64::new(0),
            sightings: Mutex::default(),
            ramp: Semaphore::new(RAMP),
        }
    }

    /// Answers the questions of the benchmark, one a line.
    async fn obey(&self, control: TcpStream) -> Result<()> {
        let mut lines = BufReader::new(control).lines();
        while let Some(question) = lines.next_line().await? {
            let answer = match question.as_str() {
                "totals" => serde_json::to_string(&self.totals())?,
                _ => serde_json::to_string(&*self.lock())?,
            };
            lines.get_mut().write_all(format!("{answer}\n").as_bytes()).await?;
        }
        Ok(())
    }

    fn totals(&self) -> Totals {
        Totals {
            ready: self.ready.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            versions: self.versions.load(Ordering::Relaxed),
        }
    }

    /// Watches a job, over one connection after another if connections fail.
    async fn stay(self: Arc<Self>, client: usize) {
        let mut view = View { client, newest: 0, etag: None };
        if self.assignment.form == Form::Poll {
            sleep(POLL_EVERY.mul_f64(fastrand::f64())).await;
        }
        loop {
            if let Err(error) = self.watch(&mut view).await
                && self.failed.fetch_add(1, Ordering::Relaxed) < 3
            {
                eprintln!("client {client}: {error}");
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Watches a job over one connection.
    async fn watch(&self, view: &mut View) -> Result<()> {
        let mut turn = Some(self.ramp.acquire().await?);
        let mut wire = Wire::connect(self.assignment.server).await?;
        if self.assignment.form == Form::Stream {
            self.ask(&mut wire, view, "Accept: text/event-stream\r\n").await?;
            let head = wire.head().await?;
            if head.status != 200 {
                return Err(format!("a stream is answered with {}", head.status).into());
            }
            loop {
                let event = wire.event().await?;
                self.see(view, &event);
                turn = turn.filter(|_| view.newest == 0);
            }
        }
        loop {
            let next = Instant::now() + self.pause();
            self.poll(&mut wire, view).await?;
            drop(turn.take());
            sleep_until(next).await;
        }
    }

    fn pause(&self) -> Duration {
        match self.assignment.form {
            Form::Poll => POLL_EVERY.mul_f64(1.0 + JITTER * (2.0 * fastrand::f64() - 1.0)),
            Form::LongPoll | Form::Stream => Duration::ZERO,
        }
    }

    /// Asks for the job once. A long poll waits for another version than the one that is known.
    async fn poll(&self, wire: &mut Wire, view: &mut View) -> Result<()> {
        let fields = match (&view.etag, self.assignment.form) {
            (Some(etag), Form::LongPoll) => {
                format!("Accept: application/json\r\nPrefer: wait=60\r\nIf-None-Match: {etag}\r\n")
            }
            _ => "Accept: application/json\r\n".to_owned(),
        };
        self.ask(wire, view, &fields).await?;
        let head = wire.head().await?;
        let body = wire.body(&head).await?;
        match head.status {
            200 => {
                self.see(view, &body);
                view.etag = head.etag;
                Ok(())
            }
            304 => Ok(()),
            status => Err(format!("a poll is answered with {status}").into()),
        }
    }

    async fn ask(&self, wire: &mut Wire, view: &View, fields: &str) -> Result<()> {
        let (job, user) = (
            view.client % JOBS,
            match self.assignment.identities {
                Identities::Shared => 0,
                Identities::Own => view.client,
            },
        );
        let request = format!(
            "GET /jobs/job-{job} HTTP/1.1\r\nHost: api.internal\r\n\
             Authorization: Bearer token-of-user-{user:05}\r\n{fields}\r\n"
        );
        self.requests.fetch_add(1, Ordering::Relaxed);
        wire.send(request.as_bytes()).await
    }

    /// Notes the version in a body or an event.
    fn see(&self, view: &mut View, bytes: &[u8]) {
        let Some(version) = wire::version(bytes).filter(|version| *version > view.newest) else {
            return;
        };
        let sighting = Sighting { client: view.client, version, at_us: now_us() };
        self.lock().push(sighting);
        self.versions.fetch_add(version - view.newest, Ordering::Relaxed);
        if view.newest == 0 {
            self.ready.fetch_add(1, Ordering::Relaxed);
        }
        view.newest = version;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Sighting>> {
        self.sightings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Knowledge of a client about its job.
struct View {
    client: usize,
    /// Newest version; zero at first.
    newest: u64,
    etag: Option<String>,
}
