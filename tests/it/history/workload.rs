//! The clients of a history: pollers, writers, purging pipelines, and clients that hang up.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use tokio::{
    net::TcpStream,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{
    record::{How, Kind, Outcome, Process, Read, Write},
    truth::{SLOW, WRITE},
    world::{self, Door, World},
};
use crate::support;

/// Number of jobs that get half of all traffic.
pub(super) const HOT: u16 = 4;
/// Timeout of a client, longer than every timeout of a sidecar.
const PATIENCE: Duration = Duration::from_secs(6);
/// Pause before a client tries again to connect to a sidecar that is gone.
const RECONNECT: Duration = Duration::from_millis(10);

/// The numbers of clients, and their rates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) putters: usize,
    pub(super) purgers: usize,
    pub(super) deleters: usize,
    /// Longest pause between two writes of a client.
    pub(super) pause_ms: u64,
    /// Percentage of GETs and PUTs that end in a hang-up by the client.
    pub(super) hang_ups: u32,
}

/// The observations of the clients.
#[derive(Default)]
pub(super) struct Observations {
    pub(super) reads: Vec<Read>,
    pub(super) writes: Vec<Write>,
    pub(super) failed_reads: usize,
    pub(super) dropped_reads: usize,
}

/// Runs all clients until the run is over.
pub(super) async fn run(world: &Arc<World>) -> Observations {
    let (plan, load) = (world.plan, world.plan.load);
    let mut clients = JoinSet::new();
    let mut seeds = fastrand::Rng::with_seed(plan.seed ^ 0xc11e);
    for _ in 0..plan.pollers {
        clients.spawn(poll(Arc::clone(world), seeds.fork()));
    }
    for _ in 0..load.putters {
        clients.spawn(write(Arc::clone(world), seeds.fork(), Kind::Put));
    }
    for _ in 0..load.purgers {
        clients.spawn(write(Arc::clone(world), seeds.fork(), Kind::Purge));
    }
    for _ in 0..load.deleters {
        clients.spawn(write(Arc::clone(world), seeds.fork(), Kind::Del));
    }
    let mut all = Observations::default();
    while let Some(told) = clients.join_next().await {
        let told = told.expect("no client panics");
        all.reads.extend(told.reads);
        all.writes.extend(told.writes);
        all.failed_reads += told.failed_reads;
        all.dropped_reads += told.dropped_reads;
    }
    all
}

async fn poll(world: Arc<World>, mut rng: fastrand::Rng) -> Observations {
    let mut told = Observations::default();
    let targets: Vec<Uri> = (0..world.plan.jobs).map(target).collect();
    let mut lines: Vec<Option<Line>> = (0..world.plan.sidecars).map(|_| None).collect();
    while !world.is_over() {
        if !world.plan.pause.is_zero() {
            sleep(world.plan.pause.mul_f64(rng.f64())).await;
        }
        let (job, sidecar) = (pick(&mut rng, world.plan.jobs), rng.usize(..lines.len()));
        let Some(mut line) = Line::ready(lines[sidecar].take(), &world, sidecar).await else {
            continue;
        };
        let target = targets[usize::from(job)].clone();
        let start = world.clock.now();
        let hangs_up = rng.u32(..100) < world.plan.load.hang_ups;
        let patience = if hangs_up { Duration::from_micros(rng.u64(..8000)) } else { PATIENCE };
        let answer = timeout(patience, line.exchange(Method::GET, target, &[])).await;
        let end = world.clock.now();
        match answer {
            Err(_) => told.dropped_reads += 1,
            Ok(Some(answer)) if answer.status == StatusCode::OK => {
                let took_us = u32::try_from(end.0 - start.0).expect("less than an hour");
                let (version, how) = (answer.version.expect("a version"), answer.how);
                told.reads.push(Read { start, took_us, version, job, process: line.process, how });
                lines[sidecar] = Some(line);
            }
            Ok(Some(_)) => {
                told.failed_reads += 1;
                lines[sidecar] = Some(line);
            }
            Ok(None) => told.failed_reads += 1,
        }
    }
    told
}

async fn write(world: Arc<World>, mut rng: fastrand::Rng, kind: Kind) -> Observations {
    let mut told = Observations::default();
    let mut lines: Vec<Option<Line>> = (0..world.plan.sidecars).map(|_| None).collect();
    let mut third_party = None;
    while !world.is_over() {
        sleep(Duration::from_millis(rng.u64(..=world.plan.load.pause_ms))).await;
        let (job, sidecar) = (pick(&mut rng, world.plan.jobs), rng.usize(..lines.len()));
        let number = world.writes.fetch_add(1, Ordering::Relaxed);
        let start = world.clock.now();
        let (process, outcome) = match kind {
            Kind::Put => {
                let Some(line) = Line::ready(lines[sidecar].take(), &world, sidecar).await else {
                    continue;
                };
                let hangs_up = rng.u32(..100) < world.plan.load.hang_ups;
                let patience =
                    if hangs_up { Duration::from_micros(rng.u64(..8000)) } else { PATIENCE };
                let process = line.process;
                let (outcome, line) = put(line, job, number, None, patience).await;
                lines[sidecar] = line;
                (process, outcome)
            }
            Kind::Purge => {
                world.truth.commit(job, number, false);
                purge(&world.door(sidecar), job).await
            }
            Kind::Del => {
                world.truth.commit(job, number, false);
                let outcome = if world.cluster.is_empty() {
                    delete(&mut third_party, &world.master_url, job).await
                } else {
                    delete_in(&world, job).await
                };
                (Process { sidecar: 0, life: 0 }, outcome)
            }
        };
        let end = world.clock.now();
        told.writes.push(Write { number, kind, start, end, job, process, outcome });
    }
    told
}

/// Sends a slow PUT through a sidecar that is killed before the PUT ends.
pub(super) async fn put_once(
    world: Arc<World>,
    sidecar: usize,
    job: u16,
    slow_ms: u64,
) -> Option<Write> {
    let number = world.writes.fetch_add(1, Ordering::Relaxed);
    let start = world.clock.now();
    let line = Line::ready(None, &world, sidecar).await?;
    let process = line.process;
    let (outcome, _) = put(line, job, number, Some(slow_ms), PATIENCE).await;
    let end = world.clock.now();
    Some(Write { number, kind: Kind::Put, start, end, job, process, outcome })
}

async fn put(
    mut line: Line,
    job: u16,
    number: u64,
    slow_ms: Option<u64>,
    patience: Duration,
) -> (Outcome, Option<Line>) {
    let mut headers = vec![(WRITE, number)];
    headers.extend(slow_ms.map(|ms| (SLOW, ms)));
    let exchange = line.exchange(Method::PUT, target(job), &headers);
    let hung_up = patience < PATIENCE;
    match timeout(patience, exchange).await {
        Err(_) if hung_up => (Outcome::HungUp, None),
        Err(_) | Ok(None) => (Outcome::Unknown, None),
        Ok(Some(answer)) => match answer.status {
            StatusCode::OK if answer.pending => (Outcome::Unconfirmed, Some(line)),
            StatusCode::OK => (Outcome::Acknowledged, Some(line)),
            _ => (Outcome::Unknown, Some(line)),
        },
    }
}

/// Purges over a new connection, as webhooks do.
async fn purge(door: &Door, job: u16) -> (Process, Outcome) {
    let exchange = async {
        let mut line = Line::open(door.process, door.admin).await?;
        line.exchange(Method::POST, format!("/purge/j{job}").parse().ok()?, &[]).await
    };
    let outcome = match timeout(PATIENCE, exchange).await {
        Ok(Some(answer)) if answer.status == StatusCode::OK => Outcome::Acknowledged,
        Ok(Some(answer)) if answer.status == StatusCode::SERVICE_UNAVAILABLE => {
            Outcome::Unconfirmed
        }
        _ => Outcome::Unknown,
    };
    (door.process, outcome)
}

/// Sends `DEL job_status:<id>` as a client that does not know jobcache.
async fn delete(connection: &mut Option<MultiplexedConnection>, url: &str, job: u16) -> Outcome {
    let del = async {
        let mut redis = if let Some(redis) = connection.take() {
            redis
        } else {
            let config = AsyncConnectionConfig::new().set_response_timeout(None);
            let client = redis::Client::open(url).ok()?;
            client.get_multiplexed_async_connection_with_config(&config).await.ok()?
        };
        let key = support::redis::key(&format!("j{job}"));
        let _: i64 = redis::cmd("DEL").arg(key).query_async(&mut redis).await.ok()?;
        Some(redis)
    };
    *connection = timeout(PATIENCE, del).await.unwrap_or(None);
    if connection.is_some() { Outcome::Acknowledged } else { Outcome::Unknown }
}

/// Does the same in a cluster, like `redis-cli -c`.
async fn delete_in(world: &World, job: u16) -> Outcome {
    if world.third_parties_paused.load(Ordering::SeqCst) {
        return Outcome::Unknown;
    }
    let mut ports = world.cluster.clone();
    fastrand::shuffle(&mut ports);
    let mut del = redis::cmd("DEL");
    del.arg(support::redis::key(&format!("j{job}")));
    match timeout(PATIENCE, support::cluster::follow::<i64>(&ports, &del)).await {
        Ok(Ok(_)) => Outcome::Acknowledged,
        _ => Outcome::Unknown,
    }
}

/// A kept connection to one process of a sidecar.
struct Line {
    process: Process,
    sender: http1::SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
}

struct Answer {
    status: StatusCode,
    version: Option<u32>,
    how: How,
    pending: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        // A client that hangs up closes the connection at once.
        self.connection.abort();
    }
}

impl Line {
    /// Returns the existing connection if it still works, or a new one; `None` while the sidecar is
    /// gone.
    async fn ready(line: Option<Self>, world: &World, sidecar: usize) -> Option<Self> {
        if let Some(mut line) = line
            && line.sender.ready().await.is_ok()
        {
            return Some(line);
        }
        let door = world.door(sidecar);
        let line = Self::open(door.process, door.proxy).await;
        if line.is_none() {
            sleep(RECONNECT).await;
        }
        line
    }

    async fn open(process: Process, address: std::net::SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        let connection = tokio::spawn(async move { drop(connection.await) });
        Some(Self { process, sender, connection })
    }

    async fn exchange(
        &mut self,
        method: Method,
        target: Uri,
        headers: &[(&'static str, u64)],
    ) -> Option<Answer> {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.method_mut() = method;
        *request.uri_mut() = target;
        request.headers_mut().insert(header::HOST, HeaderValue::from_static(world::HOST));
        for (name, value) in headers {
            request.headers_mut().insert(*name, (*value).into());
        }
        Answer::read(self.sender.send_request(request).await.ok()?).await
    }
}

impl Answer {
    async fn read(response: Response<Incoming>) -> Option<Self> {
        let (head, body) = response.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        let said = head.headers.get_all("cache-status").iter().next_back();
        let said = said.and_then(|said| said.to_str().ok()).unwrap_or_default();
        let how = match said {
            _ if said.contains("; hit") => How::Hit,
            _ if said.contains("; collapsed") => How::Collapsed,
            _ if said.contains("; stored") => How::Stored,
            _ if said.contains("fwd=miss") => How::Miss,
            _ => How::Pass,
        };
        let pending = said.contains("detail=invalidation-pending");
        Some(Self { status: head.status, version: version_in(&body), how, pending })
    }
}

/// Returns a job; half of the traffic goes to the first few.
fn pick(rng: &mut fastrand::Rng, jobs: u16) -> u16 {
    if rng.bool() { rng.u16(..HOT.min(jobs)) } else { rng.u16(..jobs) }
}

fn target(job: u16) -> Uri {
    format!("/jobs/j{job}").parse().expect("a path")
}

/// Returns the number after `"version":`, which is all that the judge needs of a body.
fn version_in(body: &[u8]) -> Option<u32> {
    const NAME: &[u8] = br#""version":"#;
    let at = body.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}
