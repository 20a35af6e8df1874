//! One play: servers, clients, and the pipeline that changes jobs and reports each change.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::{Request, StatusCode, header::HOST};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    Args, Result,
    api::{self, Jobs},
    client::Client,
    cost::{cpu_seconds, memory_mib},
    crowd::{POLL_EVERY, now_us},
    crowds::Crowds,
    delays::Sightings,
    interrupt::Interrupt,
    outcome::{Outcome, Usage},
    play::{Form, Front, JOBS, Play},
    pushpin::{self, Pushpin},
    servers::{self, Redis, Sidecar},
    staging::wait,
};

/// Time limit for each step of a play: all clients are there, all have a version.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Interval between two looks at a step, and pause before a measurement.
const STEP: Duration = Duration::from_millis(20);
const SETTLE: Duration = Duration::from_millis(500);
/// Pause before a refused report is sent again.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Connections of a server other than those of the clients.
const CONNECTIONS: usize = 1_000;

/// A change of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) job: usize,
    pub(crate) version: u64,
    pub(crate) acknowledged_us: u64,
}

/// Performs a play. Must run on the main thread, because the servers end with it.
pub(crate) async fn perform(args: &Args, play: Play, interrupt: &Interrupt) -> Result<Outcome> {
    let mut tasks = JoinSet::new();
    let jobs = Arc::new(Jobs::new());
    let upstream = api::serve(&mut tasks, &jobs, play.front).await?;
    let binary = servers::binary(args.jobcache.as_ref());
    let servers = Servers::start(&binary, play, upstream)?;
    let stage = Stage { play, jobs, reports: servers.reports() };
    sleep(SETTLE).await;
    let idle_mib = memory_mib(&servers.front_pids());
    let mut crowds = Crowds::start(&play, servers.address()).await?;
    stage.gather(&mut crowds, &servers, interrupt).await?;
    let held_mib = memory_mib(&servers.front_pids());
    let (before, reads) = (crowds.totals().await?, stage.jobs.reads());
    let (front_cpu, redis_cpu) = (servers.front_cpu(), servers.redis_cpu());
    let started = Instant::now();
    let steady = stage.change_one_by_one(args.seconds(), interrupt).await?;
    let mut usage = Usage {
        minutes: started.elapsed().as_secs_f64() / 60.0,
        front_cpu: servers.front_cpu() - front_cpu,
        redis_cpu: servers.redis_cpu() - redis_cpu,
        requests: crowds.totals().await?.requests - before.requests,
        reads: stage.jobs.reads() - reads,
        changes: steady.len() as u64,
        idle_mib,
        held_mib,
        ..Usage::default()
    };
    sleep(SETTLE).await;
    let burst = stage.change_all().await;
    stage.await_all(&mut crowds, interrupt).await?;
    usage.peak_mib = memory_mib(&servers.front_pids());
    usage.failed = crowds.totals().await?.failed;
    let sightings = Sightings::new(play.clients, crowds.sightings().await?);
    let [steady, burst] = [steady, burst].map(|changes| sightings.delays(&changes));
    Ok(Outcome { play, usage, steady, burst })
}

/// The jobs of a play, and where changes are reported.
struct Stage {
    play: Play,
    jobs: Arc<Jobs>,
    reports: SocketAddr,
}

impl Stage {
    /// Waits until every client has its first version, and is held if its form says so.
    async fn gather(
        &self,
        crowds: &mut Crowds,
        servers: &Servers,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let clients = self.play.clients as u64;
        loop {
            interrupt.check()?;
            let ready = crowds.totals().await?.ready;
            let held = servers.held().await?.unwrap_or(clients);
            if ready == clients && held == clients {
                break;
            }
            if Instant::now() > deadline {
                let totals = crowds.totals().await?;
                return Err(format!("{held} of {clients} clients are held: {totals:?}").into());
            }
            sleep(STEP * 10).await;
        }
        // Pushpin has no such count. Long polls are on their way to it.
        wait(SETTLE * 2, interrupt).await
    }

    /// Changes a job each second, each job in its turn.
    async fn change_one_by_one(&self, seconds: u64, interrupt: &Interrupt) -> Result<Vec<Change>> {
        let started = Instant::now();
        let mut changes = Vec::new();
        for second in 0..seconds {
            changes.push(self.change(usize::try_from(second)? % JOBS).await);
            let next = started + Duration::from_secs(second + 1);
            wait(next.saturating_duration_since(Instant::now()), interrupt).await?;
        }
        Ok(changes)
    }

    /// Changes all jobs at once.
    async fn change_all(&self) -> Vec<Change> {
        join_all((0..JOBS).map(|job| self.change(job))).await
    }

    /// Changes a job in the database, and reports that until it is acknowledged.
    async fn change(&self, job: usize) -> Change {
        let version = self.jobs.advance(job);
        while !self.report(job, version).await {
            sleep(RETRY_AFTER).await;
        }
        Change { job, version, acknowledged_us: now_us() }
    }

    async fn report(&self, job: usize, version: u64) -> bool {
        if self.play.front == Front::Pushpin {
            return pushpin::publish(self.reports, job, version).await;
        }
        let request = Request::post(format!("/purge/job-{job}"))
            .header(HOST, self.reports.to_string())
            .body(Full::<Bytes>::default());
        let Ok(request) = request else { return false };
        let answer = Client::new(self.reports).send(request).await;
        answer.is_ok_and(|response| response.status() == StatusCode::OK)
    }

    /// Waits until every client has the newest version of its job. Gives up after a while: the clients
    /// without it are counted later.
    async fn await_all(&self, crowds: &mut Crowds, interrupt: &Interrupt) -> Result<()> {
        let clients = 0..self.play.clients;
        let all: u64 = clients.map(|client| self.jobs.version(client % JOBS)).sum();
        let deadline = Instant::now() + PATIENCE.max(2 * POLL_EVERY);
        while crowds.totals().await?.versions < all {
            interrupt.check()?;
            if Instant::now() > deadline {
                return Ok(());
            }
            sleep(STEP).await;
        }
        Ok(())
    }
}

/// The servers of a play.
enum Servers {
    Jobcache { form: Form, redis: Redis, sidecar: Sidecar },
    Pushpin(Pushpin),
}

impl Servers {
    fn start(binary: &Path, play: Play, upstream: SocketAddr) -> Result<Self> {
        if play.front == Front::Pushpin {
            return Ok(Self::Pushpin(Pushpin::start(upstream)?));
        }
        let redis = Redis::start()?;
        let flags =
            [format!("--upstream=http://{upstream}"), format!("--redis-url={}", redis.url())];
        let connections = play.clients + CONNECTIONS;
        let settings = format!(
            "[server]\nmax_connections = {connections}\n\
             [push]\nmode = \"all\"\nmax_waiting = {connections}\n"
        );
        let sidecar = Sidecar::start(binary, &flags, &settings)?;
        Ok(Self::Jobcache { form: play.form, redis, sidecar })
    }

    /// Returns the address for clients.
    fn address(&self) -> SocketAddr {
        match self {
            Self::Jobcache { sidecar, .. } => sidecar.listen,
            Self::Pushpin(pushpin) => pushpin.listen,
        }
    }

    /// Returns the address for reports of changes.
    fn reports(&self) -> SocketAddr {
        match self {
            Self::Jobcache { sidecar, .. } => sidecar.admin,
            Self::Pushpin(pushpin) => pushpin.publish,
        }
    }

    /// Returns the number of held polls or open streams, or `None` where nothing counts them.
    async fn held(&self) -> Result<Option<u64>> {
        let Self::Jobcache { form, sidecar, .. } = self else { return Ok(None) };
        let name = match form {
            Form::Poll => return Ok(None),
            Form::LongPoll => "jobcache_push_held_polls ",
            Form::Stream => "jobcache_push_open_streams ",
        };
        let request = Request::get("/metrics").header(HOST, sidecar.admin.to_string());
        let response = Client::new(sidecar.admin).send(request.body(Full::default())?).await?;
        let text = std::str::from_utf8(response.body())?;
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(Some(value.ok_or("the build under test does not know push")?.parse()?))
    }

    fn front_pids(&self) -> Vec<u32> {
        match self {
            Self::Jobcache { sidecar, .. } => vec![sidecar.process.pid()],
            Self::Pushpin(pushpin) => pushpin.pids(),
        }
    }

    fn front_cpu(&self) -> f64 {
        cpu_seconds(&self.front_pids())
    }

    fn redis_cpu(&self) -> f64 {
        match self {
            Self::Jobcache { redis, .. } => cpu_seconds(&[redis.process.pid()]),
            Self::Pushpin(_) => 0.0,
        }
    }
}
