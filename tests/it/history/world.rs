//! The world of a history: two Redis nodes behind one address, sidecars that are real processes,
//! and an upstream that holds the truth.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::Method;
use tempfile::NamedTempFile;

use super::{
    callers::Caller,
    faults::{Fault, Faults},
    guests::Guest,
    ids::Ids,
    link::{Link, Target},
    push::PushLoad,
    record::{Clock, Micros, Process},
    spelling::RULE,
    truth::{Server, Truth, UpstreamBehaviour},
};
use crate::support::{self, Cluster, RedisServer, SOON, eventually, sentinel::Deployment};

/// Short times, so that expiries happen within a short run. The upstream's late commits stay below
/// `linger` and its slow reads around `lease`.
const TIMES: [(&str, &str); 5] = [
    ("JOBCACHE_STORE_RECONNECT_GRACE", "400ms"),
    ("JOBCACHE_STORE_LEASE", "1s"),
    ("JOBCACHE_STORE_LINGER", "3s"),
    ("JOBCACHE_UPSTREAM_RESPONSE_TIMEOUT", "2s"),
    ("JOBCACHE_LOG", "warn"),
];

/// The Host is part of the key, so all clients send the same.
pub(super) const HOST: &str = "jobs.localhost";

/// The parameters of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) length: Duration,
    pub(super) sidecars: u8,
    pub(super) jobs: u16,
    pub(super) pollers: usize,
    /// Longest pause between two GETs of one poller.
    pub(super) pause: Duration,
    pub(super) load: super::workload::Load,
    pub(super) behaviour: UpstreamBehaviour,
    pub(super) faults: Faults,
    /// Largest age of the sidecars' notifications; zero in strict mode.
    pub(super) staleness_ms: u64,
    /// The value of the tracking setting.
    pub(super) tracking: &'static str,
    /// The clients that wait.
    pub(super) push: PushLoad,
    /// The store of the sidecars.
    pub(super) store: Store,
    /// How many of the [callers](super::callers::CALLERS) poll.
    pub(super) callers: Caller,
    /// Of so many pollers one is not anonymous: a job that all callers read has few hits.
    pub(super) named_one_in: usize,
    /// Time for which no hit is served after a restart of Redis.
    pub(super) grace_ms: u64,
    /// The deliberate fault of the sidecars.
    pub(super) flaw: Flaw,
}

/// The store of the sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    Redis,
    /// Redis, and no entries in the processes.
    RedisAlone,
    /// The process itself; there is only one.
    Memory,
}

/// A deliberate fault of the sidecars.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "mutants"), allow(dead_code, reason = "only mutants have faults"))]
pub(super) enum Flaw {
    None,
    /// A fault of the protocol, by its name.
    Mutant(&'static str),
    /// This header does not tell callers apart.
    Ignores(&'static str),
    /// Sidecars that join use another database of the same Redis.
    StrayGuests,
}

/// The part of the world that clients use.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) clock: Clock,
    pub(super) truth: Arc<Truth>,
    pub(super) over: AtomicBool,
    /// When the last writer had ended.
    pub(super) writers_done: OnceLock<Micros>,
    pub(super) writes: AtomicU64,
    pub(super) ids: Ids,
    /// One for each sidecar; the last is that of who joins. Nobody is behind an empty one.
    doors: Vec<Mutex<Option<Door>>>,
    /// Address of the upstream.
    pub(super) upstream: SocketAddr,
    /// Redis URL for other clients.
    pub(super) master_url: String,
    /// Ports of the nodes for other clients, in a cluster.
    pub(super) cluster: Vec<u16>,
    /// Whether other clients of Redis must pause, because no sidecar can learn what a deposed
    /// master confirms to somebody else.
    pub(super) third_parties_paused: AtomicBool,
}

/// The addresses of a sidecar's current process.
#[derive(Clone, Copy)]
pub(super) struct Door {
    pub(super) process: Process,
    pub(super) proxy: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// The parts that faults act on.
pub(super) struct Machinery {
    pub(super) nodes: [RedisServer; 2],
    pub(super) master: usize,
    target: Target,
    /// One for each sidecar, and one for those that join.
    pub(super) links: Vec<Link>,
    pub(super) third_party: Link,
    pub(super) replication: Link,
    pub(super) sidecars: Vec<support::Process>,
    /// The sidecar that has joined.
    pub(super) guest: Option<Guest>,
    /// The configuration file of the sidecars.
    file: NamedTempFile,
    upstream: Server,
    /// If set, the sentinels name the master, and `nodes` are not used.
    pub(super) sentinels: Option<Deployment>,
    /// If set, the cluster is the store, and `nodes` are not used.
    pub(super) cluster: Option<Cluster>,
}

impl World {
    /// Returns the way to a sidecar, unless it is gone.
    pub(super) fn door(&self, sidecar: usize) -> Option<Door> {
        *self.doors[sidecar].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of sidecars, also of those that may join.
    pub(super) fn places(&self) -> usize {
        self.doors.len()
    }

    /// Draws a sidecar that is there.
    pub(super) fn pick_sidecar(&self, rng: &mut fastrand::Rng) -> usize {
        let residents = usize::from(self.plan.sidecars);
        let is_joined = self.door(residents).is_some();
        rng.usize(..residents + usize::from(is_joined))
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Sends clients to this process from now on.
    pub(super) fn open(&self, sidecar: usize, life: u8, process: &support::Process) {
        let number = u8::try_from(sidecar).expect("few sidecars");
        self.set_door(sidecar, Some(Door::to(process, Process { sidecar: number, life })));
    }

    /// Sends no more clients to a sidecar.
    pub(super) fn close(&self, sidecar: usize) {
        self.set_door(sidecar, None);
    }

    fn set_door(&self, sidecar: usize, door: Option<Door>) {
        *self.doors[sidecar].lock().unwrap_or_else(PoisonError::into_inner) = door;
    }
}

impl Door {
    fn to(sidecar: &support::Process, process: Process) -> Self {
        Self { process, proxy: sidecar.client.address(), admin: sidecar.admin.address() }
    }
}

/// Starts everything and waits until every sidecar serves hits.
pub(super) async fn create(plan: Plan) -> (Arc<World>, Machinery) {
    let clock = Clock::start();
    let ids = if plan.needs_cluster() { Ids::Numbers } else { Ids::Letters };
    let truth = Arc::new(Truth::new(clock, plan.seed, (plan.jobs, ids), plan.behaviour));
    let mut machinery = Machinery::start(&plan, truth.serve().await).await;
    if plan.faults.kinds.contains(&Fault::Promotion) {
        machinery.follow(1).await;
    }
    let mut doors = Vec::new();
    for sidecar in 0..plan.sidecars {
        let process = machinery.spawn(&plan, usize::from(sidecar)).await;
        let door = Door::to(&process, Process { sidecar, life: 0 });
        doors.push(Mutex::new(Some(door)));
        machinery.sidecars.push(process);
    }
    doors.push(Mutex::new(None));
    for sidecar in &machinery.sidecars {
        eventually(SOON, async || {
            let request = sidecar.client.request(Method::GET, &ids.path(0));
            let reply = request.header("host", HOST).send().await;
            if reply.is_hit() { Ok(()) } else { Err(reply) }
        })
        .await;
    }
    let world = World {
        plan,
        clock,
        truth,
        over: AtomicBool::new(false),
        writers_done: OnceLock::new(),
        writes: AtomicU64::new(1),
        ids,
        doors,
        upstream: machinery.upstream.address,
        master_url: machinery.third_party.url(),
        cluster: machinery.cluster.as_ref().map(Cluster::ports).unwrap_or_default(),
        third_parties_paused: AtomicBool::new(false),
    };
    (Arc::new(world), machinery)
}

impl Plan {
    fn needs_cluster(&self) -> bool {
        self.faults.kinds.iter().any(|fault| fault.needs_cluster())
    }

    fn needs_sentinels(&self) -> bool {
        self.faults.kinds.iter().any(|fault| fault.needs_sentinels())
    }
}

impl Machinery {
    /// Starts everything but the sidecars.
    async fn start(plan: &Plan, upstream: Server) -> Self {
        // Makes replicas sync at once.
        let args = ["--repl-diskless-sync-delay", "0", "--repl-diskless-load", "disabled"];
        let (first, second) =
            tokio::join!(RedisServer::start_with(&args), RedisServer::start_with(&args));
        let sentinels = if plan.needs_sentinels() { Some(Deployment::start().await) } else { None };
        let cluster = if plan.needs_cluster() { Some(Cluster::start().await) } else { None };
        let master = sentinels.as_ref().map_or(&first, Deployment::master).port();
        let target: Target = Arc::new(AtomicU16::new(master));
        let third_party = Link::open(Arc::clone(&target)).await;
        let replication = Link::open(Arc::clone(&target)).await;
        let mut links = Vec::new();
        for _ in 0..=plan.sidecars {
            links.push(Link::open(Arc::clone(&target)).await);
        }
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(RULE.as_bytes()).expect("a written file");
        Self {
            nodes: [first, second],
            master: 0,
            target,
            links,
            third_party,
            replication,
            sidecars: Vec::new(),
            guest: None,
            file,
            upstream,
            sentinels,
            cluster,
        }
    }

    pub(super) async fn spawn(&self, plan: &Plan, sidecar: usize) -> support::Process {
        let upstream = format!("http://{}", self.upstream.address);
        let redis = self.redis_url(plan, sidecar);
        let file = self.file.path().to_str().expect("a readable path");
        let args = ["--config", file, "--redis-url", &redis, "--upstream", &upstream];
        let args = [&args[..], &["--settle", "0s", "--ttl", "5s", "--store-budget", "100ms"]];
        let staleness = format!("{}ms", plan.staleness_ms);
        let grace = format!("{}ms", plan.grace_ms);
        let mut envs = TIMES.to_vec();
        if plan.staleness_ms > 0 {
            envs.extend([
                ("JOBCACHE_NEAR", "bounded"),
                ("JOBCACHE_NEAR_MAX_STALENESS", &staleness),
            ]);
        }
        if plan.grace_ms > 0 {
            envs.push(("JOBCACHE_STORE_RECONNECT_GRACE", &grace));
        }
        envs.push(("JOBCACHE_NEAR_TRACKING", plan.tracking));
        if plan.store == Store::RedisAlone {
            envs.push(("JOBCACHE_NEAR", "off"));
        }
        let recheck = format!("{}ms", plan.push.recheck.as_millis());
        if plan.push.is_on() {
            envs.extend([("JOBCACHE_PUSH", "all"), ("JOBCACHE_PUSH_RECHECK", &recheck)]);
        }
        match plan.flaw {
            Flaw::Mutant(mutant) => envs.push(("JOBCACHE_MUTANT", mutant)),
            Flaw::Ignores(header) => envs.push(("JOBCACHE_CREDENTIALS_IGNORE", header)),
            Flaw::None | Flaw::StrayGuests => {}
        }
        support::Process::start(&args.concat(), &envs).await
    }

    fn redis_url(&self, plan: &Plan, sidecar: usize) -> String {
        if plan.store == Store::Memory {
            return "memory://".to_owned();
        }
        if let Some(cluster) = &self.cluster {
            return cluster.url();
        }
        if let Some(sentinels) = &self.sentinels {
            return sentinels.url();
        }
        let url = self.links[sidecar].url();
        let is_guest = sidecar == usize::from(plan.sidecars);
        let is_stray = is_guest && matches!(plan.flaw, Flaw::StrayGuests);
        if is_stray { format!("{url}/1") } else { url }
    }

    pub(super) fn master(&mut self) -> &mut RedisServer {
        &mut self.nodes[self.master]
    }

    /// Returns every link to Redis except the replica's.
    pub(super) fn redis_links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().chain([&self.third_party])
    }

    /// Makes a node the replica of the current master.
    pub(super) async fn follow(&self, node: usize) {
        let port = self.replication.port();
        let () = self.nodes[node].run(redis::cmd("REPLICAOF").arg("127.0.0.1").arg(port)).await;
    }

    pub(super) async fn is_in_sync(&self, node: usize) -> bool {
        let info: String = self.nodes[node].run(redis::cmd("INFO").arg("replication")).await;
        info.contains("master_link_status:up")
    }

    /// Promotes the replica and points every link to it. No client stays on the deposed master, as
    /// after a real failover; commands that it had not replicated are lost.
    pub(super) async fn promote(&mut self) {
        for link in self.redis_links() {
            link.refuse();
        }
        self.master = 1 - self.master;
        let () = self.nodes[self.master].run(redis::cmd("REPLICAOF").arg("NO").arg("ONE")).await;
        self.target.store(self.nodes[self.master].port(), Ordering::SeqCst);
        for link in self.redis_links() {
            link.heal();
        }
        self.replication.heal();
        self.follow(1 - self.master).await;
    }

    /// Makes the sentinels promote a replica, and no other until the next fault. Other clients of
    /// Redis pause from before the master goes until they know the new one, as careful clients do
    /// in a real failover, because no sidecar can learn what a deposed master confirms to somebody
    /// else.
    pub(super) async fn fail_over(&mut self, fault: Fault) {
        let Some(redis) = &mut self.sentinels else { return };
        let deposed = redis.master;
        if fault == Fault::MasterDeposed {
            self.third_party.refuse();
            redis.depose().await;
        } else {
            if fault == Fault::MasterHung {
                redis.nodes[deposed].stop();
            } else {
                redis.nodes[deposed].kill();
            }
            self.third_party.refuse();
            redis.find_it_down().await;
        }
        redis.failed_over().await;
        let promoted = redis.master;
        self.target.store(redis.master().port(), Ordering::SeqCst);
        self.third_party.heal();
        match fault {
            Fault::MasterHung => redis.nodes[deposed].cont(),
            Fault::MasterKilled => redis.nodes[deposed].restart_empty().await,
            _ => {}
        }
        // The deposed master continues for a while, because it does not know yet.
        tokio::time::sleep(Duration::from_millis(700)).await;
        redis.follow(deposed).await;
        redis.settle().await;
        assert_eq!(redis.master, promoted, "the sentinels deposed a healthy master");
    }

    /// Sends SIGKILL.
    pub(super) fn kill(&mut self, sidecar: usize) {
        self.sidecars[sidecar].kill();
    }

    /// Starts a new process of the sidecar.
    pub(super) async fn restart(&mut self, world: &World, sidecar: usize) {
        self.sidecars[sidecar] = self.spawn(&world.plan, sidecar).await;
        let life = world.door(sidecar).map_or(0, |door| door.process.life + 1);
        world.open(sidecar, life, &self.sidecars[sidecar]);
    }
}
