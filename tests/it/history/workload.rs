//! The clients of a history: pollers, writers, purging pipelines, and clients that hang up.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use hyper::{Method, StatusCode, Uri};
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    callers::{CALLERS, CallerPicker},
    line::{Line, Outgoing},
    push::{hold_polls, read_streams},
    push_judge::Subscription,
    record::{Kind, Outcome, Process, Read, Write},
    spelling::{Deck, Spelling},
    truth::{EARLY, SLOW, WRITE},
    world::{Door, World},
};
use crate::support;

/// Number of jobs that get half of all traffic.
pub(super) const HOT: u16 = 4;
/// Timeout of a client, longer than every timeout of a sidecar.
const PATIENCE: Duration = Duration::from_secs(6);
/// The numbers of clients, and their rates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) putters: usize,
    pub(super) purgers: usize,
    /// One in so many purges is a purge of all; none if 0.
    pub(super) all_one_in: u64,
    pub(super) deleters: usize,
    /// Longest pause between two writes of a client.
    pub(super) pause_ms: u64,
    /// Percentage of GETs and PUTs that end in a hang-up by the client.
    pub(super) hang_ups: u32,
    /// The spellings of the putters.
    pub(super) spellings: &'static [Spelling],
    /// Whether putters write past the sidecars, which must be found out.
    pub(super) bypass: bool,
}

/// The observations of the clients.
#[derive(Default)]
pub(super) struct Observations {
    pub(super) reads: Vec<Read>,
    pub(super) writes: Vec<Write>,
    pub(super) failed_reads: usize,
    pub(super) dropped_reads: usize,
    pub(super) subscriptions: Vec<Subscription>,
}

/// Runs all clients until the run is over.
pub(super) async fn run(world: &Arc<World>) -> Observations {
    let (plan, load) = (world.plan, world.plan.load);
    let mut clients = JoinSet::new();
    let mut seeds = fastrand::Rng::with_seed(plan.seed ^ 0xc11e);
    for poller in 0..plan.pollers {
        let callers = CallerPicker::new(poller, plan.named_one_in, plan.callers);
        clients.spawn(poll(Arc::clone(world), seeds.fork(), callers));
    }
    let mut writers = JoinSet::new();
    for _ in 0..load.putters {
        writers.spawn(put_all(Arc::clone(world), seeds.fork()));
    }
    for _ in 0..load.purgers {
        writers.spawn(change(Arc::clone(world), seeds.fork(), Kind::Purge));
    }
    for _ in 0..load.deleters {
        writers.spawn(change(Arc::clone(world), seeds.fork(), Kind::Del));
    }
    for poller in 0..plan.push.polls {
        let callers = CallerPicker::new(poller, plan.named_one_in, plan.callers);
        clients.spawn(hold_polls(Arc::clone(world), seeds.fork(), callers));
    }
    for reader in 0..plan.push.streams {
        let callers = CallerPicker::new(reader, plan.named_one_in, plan.callers);
        clients.spawn(read_streams(Arc::clone(world), seeds.fork(), callers));
    }
    let mut all = Observations::default();
    all.add_all(&mut writers).await;
    let _ = world.writers_done.set(world.clock.now());
    all.add_all(&mut clients).await;
    all
}

impl Observations {
    async fn add_all(&mut self, clients: &mut JoinSet<Self>) {
        while let Some(told) = clients.join_next().await {
            let told = told.expect("no client panics");
            self.reads.extend(told.reads);
            self.writes.extend(told.writes);
            self.failed_reads += told.failed_reads;
            self.dropped_reads += told.dropped_reads;
            self.subscriptions.extend(told.subscriptions);
        }
    }
}

async fn poll(world: Arc<World>, mut rng: fastrand::Rng, callers: CallerPicker) -> Observations {
    let mut told = Observations::default();
    let targets: Vec<Uri> =
        (0..world.plan.jobs).map(|job| world.ids.path(job).parse().expect("a path")).collect();
    let mut lines: Vec<Option<Line>> = (0..world.places()).map(|_| None).collect();
    while !world.is_over() {
        if !world.plan.pause.is_zero() {
            sleep(world.plan.pause.mul_f64(rng.f64())).await;
        }
        let (job, sidecar) = (pick(&mut rng, world.plan.jobs), world.pick_sidecar(&mut rng));
        let door = world.door(sidecar);
        let Some(mut line) = Line::ready(lines[sidecar].take(), door).await else {
            continue;
        };
        let caller = callers.draw(&mut rng);
        let mut request = Outgoing::new(Method::GET, targets[usize::from(job)].clone());
        for (name, value) in CALLERS[usize::from(caller)] {
            request = request.header(name, value);
        }
        let start = world.clock.now();
        let answer = timeout(patience(&world, &mut rng), line.exchange(request)).await;
        let end = world.clock.now();
        match answer {
            Err(_) => told.dropped_reads += 1,
            Ok(Some(answer)) if answer.status == StatusCode::OK => {
                let took_us = u32::try_from(end.0 - start.0).expect("less than an hour");
                let (version, view) = (answer.version.expect("a version"), answer.view);
                let (process, how) = (line.process, answer.how);
                told.reads.push(Read { start, took_us, version, job, process, how, caller, view });
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

/// Returns the time that a client waits before it hangs up.
fn patience(world: &World, rng: &mut fastrand::Rng) -> Duration {
    let hangs_up = rng.u32(..100) < world.plan.load.hang_ups;
    if hangs_up { Duration::from_micros(rng.u64(..8000)) } else { PATIENCE }
}

/// Writes through the sidecars, in all spellings in turn.
async fn put_all(world: Arc<World>, mut rng: fastrand::Rng) -> Observations {
    let mut told = Observations::default();
    let mut deck = Deck::new(world.plan.load.spellings, &mut rng);
    let mut lines: Vec<Option<Line>> = (0..world.places()).map(|_| None).collect();
    while !world.is_over() {
        sleep(Duration::from_millis(rng.u64(..=world.plan.load.pause_ms))).await;
        let sidecar = world.pick_sidecar(&mut rng);
        let mut door = world.door(sidecar);
        if let Some(door) = &mut door
            && world.plan.load.bypass
        {
            door.proxy = world.upstream;
        }
        let Some(line) = Line::ready(lines[sidecar].take(), door).await else { continue };
        let put = Put::new(&world, pick(&mut rng, world.plan.jobs), deck.draw(&mut rng));
        let (writes, line) = put.send(&world, line, None, patience(&world, &mut rng)).await;
        told.writes.extend(writes);
        lines[sidecar] = line;
    }
    told
}

/// Changes jobs at the upstream, and then tells a sidecar or Redis.
async fn change(world: Arc<World>, mut rng: fastrand::Rng, kind: Kind) -> Observations {
    let mut told = Observations::default();
    let mut third_party = None;
    while !world.is_over() {
        sleep(Duration::from_millis(rng.u64(..=world.plan.load.pause_ms))).await;
        let job = pick(&mut rng, world.plan.jobs);
        let Some(door) = world.door(world.pick_sidecar(&mut rng)) else { continue };
        let number = world.writes.fetch_add(1, Ordering::Relaxed);
        let start = world.clock.now();
        world.truth.commit(job, number, false);
        let id = world.ids.id(job);
        let (process, outcome) = if kind == Kind::Purge {
            let one_in = world.plan.load.all_one_in;
            let names_all = one_in > 0 && number.is_multiple_of(one_in);
            purge(&door, (!names_all).then_some(&id)).await
        } else {
            let outcome = if world.cluster.is_empty() {
                delete(&mut third_party, &world.master_url, &id).await
            } else {
                delete_in(&world, &id).await
            };
            (Process { sidecar: 0, life: 0 }, outcome)
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
    let line = Line::ready(None, world.door(sidecar)).await?;
    let put = Put::new(&world, job, Spelling::Plain);
    let (writes, _) = put.send(&world, line, Some(slow_ms), PATIENCE).await;
    writes.into_iter().next()
}

/// A write through a sidecar.
struct Put {
    spelling: Spelling,
    jobs: Vec<u16>,
    /// The number of the write of the first job.
    number: u64,
}

impl Put {
    /// Writes a job. Where the spelling names two, the next job is the other one.
    fn new(world: &World, job: u16, spelling: Spelling) -> Self {
        let jobs: Vec<u16> = [job, (job + 1) % world.plan.jobs][..spelling.jobs()].to_vec();
        let number = world.writes.fetch_add(jobs.len() as u64, Ordering::Relaxed);
        Self { spelling, jobs, number }
    }

    /// Returns a record for each job, and the connection if it can be used again.
    async fn send(
        self,
        world: &World,
        mut line: Line,
        slow_ms: Option<u64>,
        patience: Duration,
    ) -> (Vec<Write>, Option<Line>) {
        let request = self.request(world, slow_ms);
        let start = world.clock.now();
        let answer = timeout(patience, line.exchange(request)).await;
        let end = world.clock.now();
        let process = line.process;
        let (outcome, line) = match answer {
            Err(_) if patience < PATIENCE => (Outcome::HungUp, None),
            Err(_) | Ok(None) => (Outcome::Unknown, None),
            Ok(Some(answer)) if !answer.status.is_success() => (Outcome::Unknown, Some(line)),
            Ok(Some(answer)) if answer.pending => (Outcome::Unconfirmed, Some(line)),
            Ok(Some(_)) => (Outcome::Acknowledged, Some(line)),
        };
        let kind = Kind::Put(self.spelling);
        let record = |(job, number)| Write { number, kind, start, end, job, process, outcome };
        (self.jobs.into_iter().zip(self.number..).map(record).collect(), line)
    }

    fn request(&self, world: &World, slow_ms: Option<u64>) -> Outgoing {
        let draft = self.spelling.draft(world.ids, &self.jobs);
        let mut request = Outgoing::new(draft.method, draft.target);
        request = request.header(WRITE, &self.number.to_string());
        if let Some(ms) = slow_ms {
            request = request.header(SLOW, &ms.to_string());
        }
        if self.spelling == Spelling::Upload {
            request.header(EARLY, "1").upload(draft.body)
        } else {
            request.body(draft.body)
        }
    }
}

/// Purges one job, or all, over a new connection, as webhooks do.
async fn purge(door: &Door, id: Option<&String>) -> (Process, Outcome) {
    let exchange = async {
        let mut line = Line::open(door.process, door.admin).await?;
        let request = if let Some(id) = id {
            Outgoing::new(Method::POST, format!("/purge/{id}").parse().ok()?)
        } else {
            Outgoing::new(Method::POST, "/purge".parse().ok()?).body(r#"{"all":true}"#.into())
        };
        line.exchange(request).await
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
async fn delete(connection: &mut Option<MultiplexedConnection>, url: &str, id: &str) -> Outcome {
    let del = async {
        let mut redis = if let Some(redis) = connection.take() {
            redis
        } else {
            let config = AsyncConnectionConfig::new().set_response_timeout(None);
            let client = redis::Client::open(url).ok()?;
            client.get_multiplexed_async_connection_with_config(&config).await.ok()?
        };
        let key = support::redis::key(id);
        let _: i64 = redis::cmd("DEL").arg(key).query_async(&mut redis).await.ok()?;
        Some(redis)
    };
    *connection = timeout(PATIENCE, del).await.unwrap_or(None);
    if connection.is_some() { Outcome::Acknowledged } else { Outcome::Unknown }
}

/// Does the same in a cluster, like `redis-cli -c`.
async fn delete_in(world: &World, id: &str) -> Outcome {
    if world.third_parties_paused.load(Ordering::SeqCst) {
        return Outcome::Unknown;
    }
    let mut ports = world.cluster.clone();
    fastrand::shuffle(&mut ports);
    let mut del = redis::cmd("DEL");
    del.arg(support::redis::key(id));
    match timeout(PATIENCE, support::cluster::follow::<i64>(&ports, &del)).await {
        Ok(Ok(_)) => Outcome::Acknowledged,
        _ => Outcome::Unknown,
    }
}

/// Returns a job; half of the traffic goes to the first few.
pub(super) fn pick(rng: &mut fastrand::Rng, jobs: u16) -> u16 {
    if rng.bool() { rng.u16(..HOT.min(jobs)) } else { rng.u16(..jobs) }
}
