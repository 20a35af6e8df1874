//! Checks the checker: with each deliberate fault of the protocol it must find a violation, and
//! with the same schedule and no fault none.

use std::{
    sync::{Arc, atomic::AtomicU16},
    time::Duration,
};

use hyper::Method;
use jobcache::mutants::Mutant;

use super::{
    explain,
    faults::{Fault, Faults},
    judge::Verdict,
    link::Link,
    push::PushLoad,
    push_judge::{Bounds, PushVerdict, judge_push},
    run,
    spelling::Spelling,
    truth::UpstreamBehaviour,
    workload::Load,
    world::{Flaw, Plan, Store},
};
use crate::support::{
    Cluster, Process, RedisServer, SOON, Upstream, eventually, redis::key, upstream::version,
};

/// Seeds that are tried in turn. The length of a run is multiplied by its seed, because a busy
/// machine has fewer races in the same time. Nearly always the first one is enough.
const SEEDS: std::ops::RangeInclusive<u32> = 1..=9;

/// A few jobs, many writes, and a slow upstream: races only.
pub(super) const RACES: Plan = Plan {
    seed: 0,
    length: Duration::from_millis(2500),
    sidecars: 2,
    jobs: 4,
    pollers: 16,
    pause: Duration::from_millis(2),
    load: Load {
        putters: 3,
        purgers: 2,
        all_one_in: 0,
        deleters: 3,
        pause_ms: 60,
        hang_ups: 5,
        spellings: &[Spelling::Plain],
        bypass: false,
    },
    behaviour: UpstreamBehaviour {
        slow: 35,
        very_slow: 3,
        pieces: 20,
        commit_in_body: 10,
        broken: 5,
    },
    faults: Faults { kinds: &[], peace_ms: (100, 200), hang_ms: 1500 },
    staleness_ms: 0,
    tracking: "broadcast",
    push: PushLoad::NONE,
    store: Store::Redis,
    callers: 1,
    named_one_in: 1,
    grace_ms: 0,
    flaw: Flaw::None,
};

/// Returns a load of plain writes by so many clients.
const fn load(
    putters: usize,
    purgers: usize,
    deleters: usize,
    pause_ms: u64,
    hang_ups: u32,
) -> Load {
    Load { putters, purgers, deleters, pause_ms, hang_ups, ..RACES.load }
}

/// Changes that bypass the sidecars, which learn of them by tracking.
const BEHIND: Plan = Plan {
    length: Duration::from_secs(4),
    jobs: 4,
    pause: Duration::from_millis(1),
    load: load(0, 0, 8, 30, 0),
    behaviour: UpstreamBehaviour { slow: 0, very_slow: 0, pieces: 0, commit_in_body: 0, broken: 0 },
    ..RACES
};

/// The same with tracking by keys.
const BY_KEYS: Plan = Plan { tracking: "keys", ..BEHIND };

/// Writes without an answer.
const GONE: Plan = Plan {
    jobs: 8,
    load: load(4, 0, 0, 60, 60),
    behaviour: UpstreamBehaviour { commit_in_body: 0, broken: 0, ..RACES.behaviour },
    ..RACES
};

/// Many simultaneous writes to the same jobs, all acknowledged.
const CROWD: Plan = Plan {
    jobs: 2,
    load: load(8, 0, 0, 30, 0),
    behaviour: UpstreamBehaviour { broken: 0, ..RACES.behaviour },
    ..RACES
};

/// Writes that commit while their answers stream, and nothing else that would invalidate after
/// them.
const STREAMS: Plan = Plan {
    jobs: 6,
    load: load(5, 0, 0, 60, 0),
    behaviour: UpstreamBehaviour {
        slow: 60,
        very_slow: 0,
        commit_in_body: 80,
        broken: 0,
        ..RACES.behaviour
    },
    ..RACES
};

/// Few writes, so that entries exist that can go wrong while Redis is in trouble.
const fn trouble(kinds: &'static [Fault]) -> Plan {
    Plan {
        length: Duration::from_secs(4),
        jobs: 12,
        load: load(3, 1, 2, 80, 0),
        behaviour: UpstreamBehaviour { slow: 10, very_slow: 0, ..RACES.behaviour },
        faults: Faults { kinds, peace_ms: (250, 500), ..RACES.faults },
        ..RACES
    }
}

async fn check(mutant: Mutant, plan: Plan) {
    check_flaw(Plan { flaw: Flaw::Mutant(mutant.as_str()), ..plan }, plan).await;
}

/// Runs a plan with a flaw, which must be caught, and without, which must pass.
pub(super) async fn check_flaw(faulty: Plan, plan: Plan) {
    let flaw = faulty.flaw;
    for seed in SEEDS {
        let of_seed =
            |plan: Plan| Plan { seed: u64::from(seed), length: plan.length * seed, ..plan };
        let (history, verdict) = run(of_seed(faulty)).await;
        let Some(first) = verdict.violations.first() else {
            eprintln!("{flaw:?}: not caught with seed {seed}\n{}", verdict.counts);
            continue;
        };
        let Verdict { stale, leaked, missed, .. } = &verdict;
        eprintln!("{flaw:?}: seed {seed}, {stale} stale, {leaked} leaked, {missed:?}; {first}");
        assert!(first.explain(&history).contains("<=="));
        let (history, verdict) = run(of_seed(plan)).await;
        let slices = explain(&history, &verdict);
        assert_eq!((verdict.stale, verdict.leaked), (0, 0), "without {flaw:?}, {seed}:\n{slices}");
        return;
    }
    panic!("{flaw:?} was not caught");
}

/// Streams of a few jobs that change all the time, and nothing that reads a job but they.
const WATCHED: Plan = Plan {
    length: Duration::from_secs(4),
    sidecars: 1,
    jobs: 4,
    pollers: 0,
    load: load(0, 4, 0, 60, 0),
    behaviour: UpstreamBehaviour { slow: 60, very_slow: 0, broken: 0, ..RACES.behaviour },
    push: PushLoad { polls: 0, streams: 8, recheck: Duration::from_mins(1) },
    ..RACES
};

/// The same with clients that come again and again.
const VISITED: Plan = Plan { push: PushLoad { polls: 8, ..WATCHED.push }, ..WATCHED };

/// Runs clients that wait with a fault of push, which must be caught, and without, which must pass.
async fn check_push(mutant: Mutant, plan: Plan, caught: fn(&Verdict, &PushVerdict) -> usize) {
    let bounds = Bounds::of(&plan);
    for seed in SEEDS {
        let length = plan.length * seed;
        let of_seed = |flaw| Plan { seed: u64::from(seed), length, flaw, ..plan };
        let (history, verdict) = run(of_seed(Flaw::Mutant(mutant.as_str()))).await;
        let push = judge_push(&history, bounds);
        let first = push.violations.first();
        eprintln!("{mutant:?}: seed {seed}, {} stale, {first:?}\n{push}", verdict.stale);
        if caught(&verdict, &push) == 0 {
            continue;
        }
        let (history, verdict) = run(of_seed(Flaw::None)).await;
        let push = judge_push(&history, bounds);
        let slices = explain(&history, &verdict) + &push.violations.join("\n");
        assert_eq!((verdict.stale, verdict.leaked, push.wrong), (0, 0, 0), "{push}\n{slices}");
        return;
    }
    panic!("{mutant:?} was not caught");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_missed_during_a_read_for_held_clients_is_caught() {
    check_push(Mutant::PushListenLate, WATCHED, |_, push| push.wrong).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_client_that_gets_a_read_from_before_it_came_is_caught() {
    check_push(Mutant::PushRunningRead, VISITED, |verdict, _| verdict.stale).await;
}

#[test]
fn every_mutant_is_named_by_a_test() {
    let tests = include_str!("mutants.rs");
    for mutant in Mutant::ALL {
        assert!(tests.contains(&format!("Mutant::{mutant:?}")), "{mutant:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_without_its_token_is_caught() {
    check(Mutant::FillWithoutToken, RACES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_without_its_placeholder_is_caught() {
    check(Mutant::FillWithoutPlaceholder, RACES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_under_a_fence_is_caught() {
    check(Mutant::LeaseWithoutFence, GONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_begins_without_a_del_is_caught() {
    check(Mutant::BeginWithoutDel, GONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_without_a_del_is_caught() {
    check(Mutant::EndWithoutDel, RACES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_lifts_every_fence_is_caught() {
    let load = Load { putters: 8, ..GONE.load };
    check(Mutant::EndLiftsEveryFence, Plan { jobs: 4, load, ..GONE }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_ends_once_is_caught() {
    check(Mutant::EndOnce, STREAMS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_by_id_is_caught() {
    check(Mutant::JoinById, RACES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_before_the_lookup_is_caught() {
    check(Mutant::JoinBeforeLookup, RACES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_of_a_running_read_is_caught() {
    check(Mutant::JoinRunning, CROWD).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_invalidation_is_caught() {
    check(Mutant::NoPending, trouble(&[Fault::Refused, Fault::Held])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_belief_in_old_epochs_is_caught() {
    // Many jobs with few writes: a snapshot has to hold an entry of a job that was written since.
    let plan = Plan { jobs: 24, load: load(3, 1, 1, 150, 0), ..trouble(&[Fault::RestartOld]) };
    check(Mutant::NoEpoch, plan).await;
}

const X: &str = "/jobs/x1";
/// The metric of lookups that have requested a lease and received an answer.
const LEASES: &str = "jobcache_store_operation_seconds_count{op=\"lease\"}";

/// A Redis, an upstream and a sidecar with or without a fault, for a forced race.
struct Forced {
    redis: RedisServer,
    upstream: Upstream,
    sidecar: Process,
}

impl Forced {
    async fn new(mutant: Option<Mutant>) -> Self {
        let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
        let (redis_url, upstream_url) = (redis.url(), upstream.url());
        let args = ["--redis-url", &redis_url, "--upstream", &upstream_url];
        let args = [&args[..], &["--settle", "0s", "--store-budget", "2s"]].concat();
        // Clients keep their identity after Redis has lost everything.
        let mut envs = vec![("JOBCACHE_CREDENTIALS_SECRET", "the-same-over-all-restarts")];
        envs.extend(mutant.map(|mutant| ("JOBCACHE_MUTANT", mutant.as_str())));
        let sidecar = Process::start(&args, &envs).await;
        let forced = Self { redis, upstream, sidecar };
        forced.hit("/jobs/warm-up1").await;
        forced
    }

    async fn hit(&self, path: &str) {
        eventually(SOON, async || {
            let reply = self.sidecar.client.get(path).await;
            if reply.is_hit() { Ok(()) } else { Err(reply) }
        })
        .await;
    }

    /// Waits until changes are tracked.
    async fn tracks(&self) {
        eventually(SOON, async || {
            let metrics = self.sidecar.admin.get("/metrics").await;
            let up = ["jobcache_store_up 1", "jobcache_tracking_up 1"];
            up.iter().all(|line| metrics.text().lines().any(|it| it == *line))
        })
        .await;
    }

    /// Returns the version that a GET returns.
    async fn sees(&self) -> u64 {
        let reply = self.sidecar.client.get(X).await;
        reply.json()["version"].as_u64().expect("a version")
    }
}

/// Runs a race with the mutant, which must return version 0, and without, which must return 1.
async fn check_forced(mutant: Mutant, race: impl AsyncFn(Forced) -> u64) {
    assert_eq!(race(Forced::new(Some(mutant)).await).await, 0, "{mutant:?} was not caught");
    assert_eq!(race(Forced::new(None).await).await, 1, "without {mutant:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_taken_at_the_fill_is_caught() {
    check_forced(Mutant::EpochAtFill, async |mut forced| {
        let gate = forced.upstream.hold_after_read(Method::GET, X);
        let first = forced.sidecar.client.start(Method::GET, X, "").await;
        gate.arrived(1).await;
        forced.redis.save().await;
        forced.upstream.commit("x1");
        forced.redis.del(&key("x1")).await;
        forced.redis.restart_from_rdb().await;
        forced.hit("/jobs/warm-up-again1").await;
        gate.release();
        first.answer().await;
        forced.sees().await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_across_epochs_is_caught() {
    check_forced(Mutant::JoinAcrossEpochs, async |mut forced| {
        let gate = forced.upstream.hold_after_read(Method::GET, X);
        let _first = forced.sidecar.client.start(Method::GET, X, "").await;
        gate.arrived(1).await;
        forced.redis.save().await;
        forced.upstream.commit("x1");
        forced.redis.del(&key("x1")).await;
        forced.redis.restart_from_rdb().await;
        forced.hit("/jobs/warm-up-again1").await;
        let leases = async || forced.sidecar.admin.metric(LEASES).await;
        let before = leases().await;
        let release = async {
            // A reader that joins does so as soon as its lookup is over, and does not arrive at the
            // gate.
            eventually(SOON, async || leases().await > before).await;
            gate.release();
        };
        tokio::join!(forced.sees(), release).0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_of_what_is_near_without_the_barrier_is_caught() {
    check(Mutant::NearWithoutBarrier, BEHIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_though_there_was_news_of_it_is_caught() {
    check(Mutant::NearWithoutGeneration, BEHIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_keys_what_is_kept_though_there_was_news_of_it_is_caught() {
    check(Mutant::NearWithoutGeneration, BY_KEYS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_though_no_news_of_it_would_come_is_caught() {
    check(Mutant::NearUntracked, BY_KEYS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_near_and_outlives_its_connection_is_caught() {
    check_forced(Mutant::NearWithoutFlush, async |mut forced| {
        forced.tracks().await;
        // The first read fills Redis; hits then come from the process.
        forced.hit(X).await;
        forced.redis.kill();
        forced.upstream.commit("x1");
        forced.redis.restart_empty().await;
        forced.tracks().await;
        forced.sees().await
    })
    .await;
}

/// An in-application cache that read before the commit and SETs after the DEL; its value must not
/// be a hit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_not_ours_is_caught() {
    check_forced(Mutant::NoExpiryCheck, async |forced| {
        forced.hit(X).await;
        forced.upstream.commit("x1");
        forced.redis.del(&key("x1")).await;
        forced.redis.set(&key("x1"), version("x1", 0).as_bytes()).await;
        forced.sees().await
    })
    .await;
}

/// Voided entries are soon deleted, so the user loses the right to `SCAN` for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_from_before_a_purge_of_all_is_caught() {
    check_forced(Mutant::NoPurgeToken, async |forced| {
        let mut acl = redis::cmd("ACL");
        let () = forced.redis.run(acl.arg("SETUSER").arg("default").arg("-scan")).await;
        forced.hit(X).await;
        forced.upstream.commit("x1");
        let all = forced.sidecar.admin.request(Method::POST, "/purge").body(r#"{"all":true}"#);
        assert_eq!(all.send().await.status, 200);
        forced.sees().await
    })
    .await;
}

/// Attempts to make a sidecar purge by an old slot map, which it refreshes every second.
const PURGES: usize = 40;

/// Moves a slot to another master. One sidecar has noticed the move and serves hits from the new
/// master. The other one then receives a purge. Returns the version that the first one serves after
/// each confirmed purge, until a version is old.
async fn purged_by_an_old_map(mutant: Option<Mutant>, purges: usize) -> Vec<u64> {
    let (cluster, upstream) = tokio::join!(Cluster::start(), Upstream::start());
    let (url, upstream_url) = (cluster.url(), upstream.url());
    let args = ["--redis-url", &url, "--upstream", &upstream_url];
    let args = [&args[..], &["--settle", "0s", "--store-budget", "2s"]].concat();
    let envs: Vec<_> = mutant.iter().map(|mutant| ("JOBCACHE_MUTANT", mutant.as_str())).collect();
    let (knows, behind) = tokio::join!(Process::start(&args, &envs), Process::start(&args, &envs));
    let is_hit = async |sidecar: &Process, path: &str| sidecar.client.get(path).await.is_hit();
    let mut seen = Vec::new();
    for n in 0..purges {
        let id = cluster.job_of(0, &format!("moved-{n}")).await;
        let (path, slot) = (format!("/jobs/{id}"), cluster.slot(&id).await);
        for sidecar in [&behind, &knows] {
            eventually(SOON, async || is_hit(sidecar, &path).await).await;
        }
        cluster.begin_move(slot, 0, 1).await;
        cluster.end_move(slot, 0, 1).await;
        // Repeated requests make this sidecar refresh its slot map. Only after that does a hit come
        // from the new owner.
        let before = knows.admin.metric(LESSONS).await;
        eventually(SOON, async || {
            let (reply, lessons) =
                (knows.client.get(&path).await, knows.admin.metric(LESSONS).await);
            if reply.is_hit() && lessons > before { Ok(()) } else { Err((reply, lessons)) }
        })
        .await;
        upstream.commit(&id);
        let purge = behind.admin.request(Method::POST, &format!("/purge/{id}")).send().await;
        if purge.status == 200 {
            let reply = knows.client.get(&path).await;
            seen.push(reply.json()["version"].as_u64().expect("a version"));
        }
        if seen.last() == Some(&0) {
            break;
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_that_a_cluster_did_not_serve_is_caught() {
    let mutant = Mutant::RedirectedIsDone;
    let seen = purged_by_an_old_map(Some(mutant), PURGES).await;
    assert_eq!(seen.last(), Some(&0), "{mutant:?} was not caught: {seen:?}");
    let seen = purged_by_an_old_map(None, seen.len() + 5).await;
    assert!(!seen.is_empty() && seen.iter().all(|version| *version == 1), "{seen:?}");
}

/// Attempts of the race below. The first may not count, because the new owner takes its first slot
/// and starts over.
const TRIES: usize = 4;
/// The metric of slot map refreshes.
const LESSONS: &str = "jobcache_store_topology_refreshes_total";

/// The notification of a deleted key is held back, its slot moves, and the new owner, which has
/// nothing to announce, answers the barrier. Returns the versions that reads return for jobs at
/// version 1.
async fn across_a_move(mutant: Option<Mutant>, name: &str) -> Vec<u64> {
    let (cluster, upstream) = tokio::join!(Cluster::start(), Upstream::start());
    let link = Link::open(Arc::new(AtomicU16::new(cluster.nodes[0].port()))).await;
    let mut announce = redis::cmd("CONFIG");
    announce.arg("SET").arg("cluster-announce-port").arg(link.port());
    let () = cluster.nodes[0].run(&announce).await;
    eventually(SOON, async || {
        let mut nodes = redis::cmd("CLUSTER");
        let told: String = cluster.nodes[1].run(nodes.arg("NODES")).await;
        told.contains(&format!(":{}@", link.port())).then_some(())
    })
    .await;
    let (seeds, upstream_url) = (cluster.url(), upstream.url());
    let seeds = seeds.replace(&format!("127.0.0.1:{},", cluster.nodes[0].port()), "");
    let args = ["--redis-url", &seeds, "--upstream", &upstream_url];
    let args = [&args[..], &["--settle", "0s", "--store-budget", "2s"]].concat();
    let envs: Vec<_> = mutant.iter().map(|mutant| ("JOBCACHE_MUTANT", mutant.as_str())).collect();
    let sidecar = Process::start(&args, &envs).await;
    let mut seen = Vec::new();
    for n in 0..TRIES {
        let id = cluster.job_of(0, &format!("{name}-{n}")).await;
        let (path, slot) = (format!("/jobs/{id}"), cluster.slot(&id).await);
        eventually(SOON, async || {
            let metrics = sidecar.admin.get("/metrics").await;
            let up = ["jobcache_store_up 1", "jobcache_tracking_up 1"];
            up.iter().all(|line| metrics.text().lines().any(|it| it == *line))
        })
        .await;
        for _ in 0..2 {
            eventually(SOON, async || sidecar.client.get(&path).await.is_hit()).await;
        }
        // A job without readers, in another slot that moves to the same master. A read of it at its
        // old owner makes the sidecar refresh its slot map.
        let other = cluster.job_of(2, &format!("{name}-other-{n}")).await;
        let others = cluster.slot(&other).await;
        link.hold();
        upstream.commit(&id);
        // All keys of the slot: what moves along is news of the new owner.
        let mut names = redis::cmd("CLUSTER");
        names.arg("GETKEYSINSLOT").arg(slot).arg(10);
        let names: Vec<String> = cluster.nodes[0].run(&names).await;
        let () = cluster.nodes[0].run(redis::cmd("DEL").arg(names)).await;
        for (slot, from) in [(slot, 0), (others, 2)] {
            cluster.begin_move(slot, from, 1).await;
            cluster.end_move(slot, from, 1).await;
        }
        let lessons = async || sidecar.admin.metric(LESSONS).await;
        let before = lessons().await;
        sidecar.client.get(&format!("/jobs/{other}")).await;
        eventually(SOON, async || lessons().await >= before + 2).await;
        let reply = sidecar.client.get(&path).await;
        seen.push(reply.json()["version"].as_u64().expect("a version"));
        link.heal();
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_near_of_a_slot_that_another_master_has_is_caught() {
    check_across(Mutant::NearAcrossMoves).await;
}

async fn check_across(mutant: Mutant) {
    let seen = across_a_move(Some(mutant), "faulty").await;
    assert!(seen.contains(&0), "{mutant:?} was not caught: {seen:?}");
    assert_eq!(across_a_move(None, "right").await, [1; TRIES], "without {mutant:?}");
}
