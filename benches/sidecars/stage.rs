//! One size of the benchmark: a Redis, its sidecars, and their pollers.

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    Args, Result, Tracking,
    api::{self, Jobs},
    cost::{cpu_seconds, memory_mib},
    crowd::{POLL_EVERY, SPEED, Stage},
    interrupt::Interrupt,
    observe::{Reading, thread_seconds},
    outcome::Sample,
    servers::{self, Redis, Sidecar},
    staging::wait,
    stats::real,
};

/// Limit of open connections per sidecar.
const CONNECTIONS: usize = 4_096;

/// The dimensions of a size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size {
    pub(crate) sidecars: usize,
    pub(crate) credentials: usize,
    pub(crate) tracking: Tracking,
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sidecars, credentials, tracking } = self;
        let tracking = tracking.as_str();
        write!(f, "{sidecars} sidecars, credentials: {credentials}, tracking: {tracking}")
    }
}

/// Measures one size once. Must run on the main thread, because the servers end with it.
pub(crate) async fn perform(args: &Args, size: Size, interrupt: &Interrupt) -> Result<Sample> {
    let (mut api, mut crowd) = (JoinSet::new(), JoinSet::new());
    let jobs = Arc::new(Jobs::new());
    let upstream = api::serve(&mut api, &jobs).await?;
    let upstream = format!("http://{upstream}");
    let servers = Servers::start(&servers::binary(args.jobcache.as_ref()), size, &upstream)?;
    let doors = servers.sidecars.iter().map(|sidecar| (sidecar.listen, sidecar.admin));
    let stage = Arc::new(Stage::new(&jobs, size.credentials, doors));
    stage.warm().await?;
    stage.start(&mut crowd);
    // Afterwards everyone has polled, and each job changes at its own pace.
    wait(Duration::from_secs_f64(4.0 * POLL_EVERY / SPEED), interrupt).await?;
    stage.figures.reset();
    jobs.reset();
    let before = servers.read().await?;
    let started = Instant::now();
    wait(Duration::from_secs(args.seconds), interrupt).await?;
    let after = servers.read().await?;
    Ok(sample(size, &stage, &before, &after, started.elapsed().as_secs_f64()))
}

/// Redis and its sidecars.
struct Servers {
    redis: Redis,
    sidecars: Vec<Sidecar>,
}

/// Totals of all servers at one moment.
struct Totals {
    redis: Reading,
    sidecars: Vec<Reading>,
    redis_cpu: f64,
    sidecars_cpu: f64,
    sidecars_mib: f64,
}

impl Servers {
    fn start(binary: &Path, size: Size, upstream: &str) -> Result<Self> {
        let redis = Redis::start()?;
        let flags = [format!("--upstream={upstream}"), format!("--redis-url={}", redis.url())];
        let server = format!("[server]\nmax_connections = {CONNECTIONS}\n");
        let settings = match size.tracking {
            // No setting: broadcast is the default, and older builds do not know the setting.
            Tracking::Broadcast => server,
            Tracking::Keys => format!("near_tracking = \"keys\"\n{server}"),
        };
        let sidecars = (0..size.sidecars).map(|_| Sidecar::start(binary, &flags, &settings));
        Ok(Self { sidecars: sidecars.collect::<Result<_>>()?, redis })
    }

    async fn read(&self) -> Result<Totals> {
        let url = self.redis.url();
        let mut connection = redis::Client::open(url)?.get_connection()?;
        let mut sidecars = Vec::new();
        for sidecar in &self.sidecars {
            sidecars.push(Reading::of_sidecar(sidecar.admin).await?);
        }
        let pids: Vec<u32> = self.sidecars.iter().map(|sidecar| sidecar.process.pid()).collect();
        Ok(Totals {
            redis: Reading::of_redis(&mut connection, self.redis.address.port())?,
            sidecars,
            redis_cpu: thread_seconds(self.redis.process.pid())?,
            sidecars_cpu: cpu_seconds(&pids),
            sidecars_mib: memory_mib(&pids),
        })
    }
}

impl Totals {
    fn sidecars_since(&self, before: &Self, prefix: &str) -> f64 {
        let each = self.sidecars.iter().zip(&before.sidecars);
        each.map(|(after, before)| after.all_since(before, prefix)).sum()
    }
}

fn sample(size: Size, stage: &Stage, before: &Totals, after: &Totals, seconds: f64) -> Sample {
    let mut sample = client_counts(stage, seconds);
    add_redis_counts(&mut sample, before, after);
    sample.put("redis_cpu", after.redis_cpu - before.redis_cpu);
    sample.put("sidecars_cpu", after.sidecars_cpu - before.sidecars_cpu);
    sample.put("sidecar_mib", after.sidecars_mib / real(size.sidecars as u64));
    sample
}

/// Collects what clients and the API saw.
fn client_counts(stage: &Stage, seconds: f64) -> Sample {
    let counts = stage.figures.counts();
    let (reads, by_credential, versions, most) = stage.jobs.reads();
    let [(hit, hit99), (purge, purge99)] =
        [&counts.hit, &counts.purge].map(|times| times.quantiles().unwrap_or_default());
    let mut sample = Sample::new(seconds, real(counts.polls), real(stage.jobs.changes()));
    sample.put("reads_a_version", real(reads) / real(versions.max(1)));
    sample.put("reads_a_version_and_credential", real(reads) / real(by_credential.max(1)));
    sample.put("most_reads", real(most));
    for (name, count) in [
        ("stale", counts.stale),
        ("failed", counts.failed),
        ("late", counts.late),
        ("refused", counts.purges_refused),
        ("hits", counts.hit.count() as u64),
    ] {
        sample.put(name, real(count));
    }
    for (name, ms) in
        [("hit_ms", hit), ("hit99_ms", hit99), ("purge_ms", purge), ("purge99_ms", purge99)]
    {
        sample.put(name, ms);
    }
    sample
}

/// Collects the requests that Redis received, and its notifications.
fn add_redis_counts(sample: &mut Sample, before: &Totals, after: &Totals) {
    let redis = |name: &str| after.redis.since(&before.redis, name);
    sample.put("commands", after.redis.all_since(&before.redis, "calls_"));
    for command in ["mget", "ping", "evalsha"] {
        sample.put(command, redis(&format!("calls_{command}")));
    }
    for (name, counter) in [
        ("near_hits", "jobcache_near_lookups_total{outcome=\"hit\"}"),
        ("rounds", "jobcache_barrier_rounds_total"),
        ("waits", "jobcache_barrier_waits_total"),
        ("news", "jobcache_tracking_news_total"),
        ("leases", "jobcache_store_operation_seconds_count{op=\"lease\"}"),
        ("fills", "jobcache_store_operation_seconds_count{op=\"fill\"}"),
        ("lookups", "jobcache_store_operation_seconds_count{op=\"read\"}"),
    ] {
        sample.put(name, after.sidecars_since(before, counter));
    }
    sample.put("tracking_bytes", redis("tracking_sent_bytes"));
    sample.put("tracking_segments", redis("tracking_sent_segments"));
    sample.put("tracking_items", after.redis.of("tracking_total_items"));
    sample.put("tracking_connection_bytes", after.redis.of("tracking_connection_bytes"));
    sample.put("clients_bytes", after.redis.of("mem_clients_normal"));
    sample.put("used_bytes", after.redis.of("used_memory"));
}
