//! The history checker: promise 1 under many simultaneous operations and faults.
//!
//! Pollers, writers, purging pipelines and other clients of Redis that `DEL` work on a few jobs
//! through two or three sidecars (real processes, a real Redis with a replica). Meanwhile Redis
//! hangs, dies, comes back with old data or fails over, links are cut, and sidecars are killed.
//! Every operation is recorded with one clock, and the [`judge`] then
//! checks every GET. A second judge, a linearizability checker that others wrote, must agree.
//!
//! Writers name their jobs in every [`spelling`] that a sidecar has to understand. Pollers are
//! several [`callers`], most of them known by headers that no sidecar knows. After restarts of Redis
//! further sidecars [join](guests) and leave again.
//!
//! A short run is part of the suite. A long run:
//!
//! ```text
//! HISTORY_SECONDS=600 HISTORY_SIDECARS=3 \
//!     cargo test --release --all-features --test it history::over -- --nocapture
//! ```
//!
//! `HISTORY_SEED` repeats the choices of a run, but not the scheduling of its processes.
//! `HISTORY_SIDECARS` sets the number of sidecars: 2 by default in the first test, more in the
//! other. `HISTORY_GRACE_MS` sets `store.reconnect_grace`, which is 0 otherwise. The `mutants` module
//! checks the checker: each deliberate fault of the protocol must be caught.

#![allow(clippy::large_types_passed_by_value, reason = "a plan is made once for each history")]

mod callers;
mod counts;
mod faults;
#[cfg(feature = "mutants")]
mod flaws;
mod floors;
mod guests;
mod ids;
mod judge;
mod line;
pub(crate) mod link;
#[cfg(feature = "mutants")]
mod mutants;
mod push;
mod push_judge;
mod record;
mod second_judge;
mod shards;
mod spelling;
mod truth;
mod workload;
mod world;

use std::{str::FromStr, sync::atomic::Ordering, time::Duration};

use self::{
    callers::EVERYONE,
    counts::Counts,
    faults::{Fault, Faults},
    judge::{Verdict, judge},
    push::PushLoad,
    push_judge::{Bounds, judge_push},
    record::History,
    spelling::Spelling,
    truth::UpstreamBehaviour,
    workload::Load,
    world::{Flaw, Plan, Store},
};

/// Length of a short run, for each number of sidecars.
const SHORT: Duration = Duration::from_secs(15);

/// Bound in bounded mode; long compared with the delays of a busy machine.
const BOUND_MS: u64 = 200;

/// Returns the plan with all kinds of load and faults.
fn plan(sidecars: u8, seed: u64, length: Duration) -> Plan {
    Plan {
        seed,
        length,
        sidecars,
        jobs: 32,
        pollers: 24,
        pause: Duration::from_millis(4),
        load: Load {
            putters: 3,
            purgers: 1,
            all_one_in: 8,
            deleters: 2,
            pause_ms: 60,
            hang_ups: 3,
            spellings: Spelling::ALL,
            bypass: false,
        },
        behaviour: UpstreamBehaviour {
            slow: 10,
            very_slow: 1,
            pieces: 20,
            commit_in_body: 15,
            broken: 3,
        },
        faults: Faults { kinds: &Fault::ALL, peace_ms: (450, 850), hang_ms: 1400 },
        staleness_ms: 0,
        tracking: "broadcast",
        push: PushLoad { polls: 4, streams: 4, recheck: Duration::from_secs(3) },
        store: Store::Redis,
        callers: EVERYONE,
        named_one_in: 3,
        grace_ms: from_env("HISTORY_GRACE_MS").unwrap_or(0),
        flaw: Flaw::None,
    }
}

/// Removes pauses between polls, leaves time between faults for entries to age, and lengthens
/// hangs.
fn at_length(plan: Plan) -> Plan {
    let faults = Faults { peace_ms: (300, 4000), hang_ms: 3000, ..plan.faults };
    Plan { jobs: 64, pollers: 128, pause: Duration::ZERO, faults, ..plan }
}

async fn run(plan: Plan) -> (History, Verdict) {
    let (world, mut machinery) = world::create(plan).await;
    let faults = faults::run_faults(&world, &mut machinery);
    let clients = workload::run(&world);
    let clock = async {
        tokio::time::sleep(plan.length).await;
        world.over.store(true, Ordering::Relaxed);
    };
    let (told, (), (troubles, writes_during_kill)) = tokio::join!(clients, clock, faults);
    let (commits, served) = world.truth.observed();
    let mut history = History {
        reads: told.reads,
        writes: told.writes,
        commits,
        served,
        troubles,
        subscriptions: told.subscriptions,
        residents: plan.sidecars,
        failed_reads: told.failed_reads,
        dropped_reads: told.dropped_reads,
    };
    history.writes.extend(writes_during_kill);
    let verdict = judge_twice(&history, plan.staleness_ms);
    (history, verdict)
}

/// Judges a run, and checks that both judges agree.
fn judge_twice(history: &History, staleness_ms: u64) -> Verdict {
    let verdict = judge(history, staleness_ms);
    let second = second_judge::unexplained(history, staleness_ms);
    assert_eq!(verdict.groups, second, "the judges disagree");
    verdict
}

fn explain(history: &History, verdict: &Verdict) -> String {
    let slices = verdict.violations.iter().map(|violation| violation.explain(history));
    slices.collect::<Vec<_>>().join("\n\n")
}

/// Factors by which the runs are longer than planned. They are tried in turn until a run did enough
/// to be worth judging: a busy machine does a fraction of the work of an idle one in the same time.
const LONGER: [u32; 3] = [1, 2, 4];

/// Runs a plan and asserts that no read is stale and none is leaked. The run is repeated for longer while `lacks` names
/// something that happened too rarely.
async fn check_run(
    plan: Plan,
    name: &str,
    staleness_ms: u64,
    lacks: impl Fn(&Counts) -> Option<String>,
) {
    for times in LONGER {
        let plan = Plan { length: plan.length * times, ..plan };
        let (history, _) = run(plan).await;
        let verdict = judge_twice(&history, staleness_ms);
        let run = format!(
            "history {name}, {} sidecars, {:?}, HISTORY_SEED={}",
            plan.sidecars, plan.length, plan.seed
        );
        let Verdict { stale, leaked, counts, .. } = &verdict;
        let push = judge_push(&history, Bounds::of(&plan));
        let summary = format!("both judges: {stale} stale reads, {leaked} leaked reads");
        eprintln!("{run}\n{counts}\n{push}\n  {summary}");
        let slices = explain(&history, &verdict);
        assert_eq!((*stale, *leaked), (0, 0), "stale or leaked reads in the {run}\n{slices}");
        let wrong = push.violations.join("\n");
        assert_eq!(push.wrong, 0, "held polls or streams in the {run}\n{wrong}");
        let Some(lack) = lacks(&verdict.counts) else { return };
        eprintln!("{lack} in the {run}");
    }
    panic!("too little happened to be judged");
}

/// Returns a description of something that happened too rarely in a run of this length. An idle
/// machine does five times as much as the minimum.
fn lack(counts: &Counts, length: Duration) -> Option<String> {
    let seconds = usize::try_from(length.as_secs()).expect("a shorter run");
    let least = [
        ("reads", counts.reads, 30 * seconds),
        ("hits", counts.hits, 3 * seconds),
        ("collapsed", counts.collapsed, seconds / 3),
        ("stored", counts.stored, 2 * seconds),
        ("PUTs", counts.puts, seconds),
        ("PUTs committed in their bodies", counts.puts_in_body, seconds / 30),
        ("purges", counts.purges, seconds / 2),
        ("DELs", counts.dels, seconds),
        // These need a hang-up or a fault during a write, and are too rare to be certain in a short
        // run.
        ("writes without an answer", counts.gone, seconds / 30),
        ("hang-ups", counts.dropped_reads, seconds / 2),
        // Every write draws another spelling, but a write of one of them is rare.
        ("spellings", counts.spelled.len(), Spelling::ALL.len() * 2 / 3),
        ("callers with hits", counts.callers.len(), 2),
        ("hits of a body that names its caller", counts.personal_hits, seconds / 5),
        ("reads through who joined", counts.guests_reads, seconds / 2),
        ("writes through who joined", counts.guests_writes, seconds / 15),
    ];
    let rounds = seconds / 15;
    let faults = Fault::ALL.iter().map(|fault| {
        let count = counts.faults.get(fault).copied().unwrap_or(0);
        (format!("{fault:?}"), count, rounds / 2 + rounds % 2)
    });
    let named = least.into_iter().map(|(what, count, least)| (what.to_owned(), count, least));
    let too_few = named.chain(faults).find(|(_, count, least)| count < least);
    too_few.map(|(what, count, least)| format!("only {count} {what}, expected {least}"))
}

async fn check(sidecars: u8, staleness_ms: u64, tracking: &'static str) {
    let seed = from_env("HISTORY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let length = from_env("HISTORY_SECONDS").map_or(SHORT, Duration::from_secs);
    let mut plan = Plan { staleness_ms, tracking, ..plan(sidecars, seed, length) };
    if length > SHORT {
        plan = at_length(plan);
    }
    let name = format!("by {tracking}, at most {staleness_ms} ms old");
    check_run(plan, &name, staleness_ms, |counts| lack(counts, length)).await;
}

fn from_env<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_two_sidecars_no_read_is_older_than_an_acknowledged_write() {
    if matches!(from_env("HISTORY_SIDECARS"), None | Some(2_u8)) {
        check(2, 0, "broadcast").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_three_sidecars_no_read_is_older_than_an_acknowledged_write() {
    match from_env("HISTORY_SIDECARS") {
        Some(2) => {}
        Some(few @ ..2) => panic!("HISTORY_SIDECARS={few}: must be at least 2"),
        more => check(more.unwrap_or(3), 0, "broadcast").await,
    }
}

/// A client that writes through a sidecar sees its write there at once in this mode as well, but
/// the judge only demands the bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_bounded_sidecars_no_read_is_older_than_the_bound() {
    check(from_env("HISTORY_SIDECARS").unwrap_or(2), BOUND_MS, "broadcast").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_sidecars_told_by_keys_no_read_is_older_than_an_acknowledged_write() {
    check(from_env("HISTORY_SIDECARS").unwrap_or(2), 0, "keys").await;
}

/// Length of the run on a cluster.
const SHARDS: Duration = Duration::from_secs(40);

/// Slots move under load; masters are killed, hang past the timeout, are cut off and hand over;
/// sidecars die.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_cluster_no_read_is_older_than_an_acknowledged_write() {
    let seed = from_env("HISTORY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let length = from_env("HISTORY_SECONDS").map_or(SHARDS, Duration::from_secs);
    let faults = Faults { kinds: &Fault::CLUSTER, peace_ms: (200, 900), hang_ms: 0 };
    let plan = Plan { faults, ..plan(from_env("HISTORY_SIDECARS").unwrap_or(2), seed, length) };
    check_run(plan, "of a cluster", 0, |counts| {
        let moves = counts.faults.get(&Fault::SlotsMoved).copied().unwrap_or(0);
        let ways =
            [Fault::ShardKilled, Fault::ShardHung, Fault::ShardCutOff, Fault::ShardHandedOver];
        let failovers: usize = ways.iter().filter_map(|fault| counts.faults.get(fault)).sum();
        let writes = counts.puts > 30 && counts.purges > 10 && counts.dels > 20;
        let is_enough = moves > 0 && failovers > 0 && counts.hits > 200 && writes;
        (!is_enough).then(|| "too few moves, failovers, hits or writes".to_owned())
    })
    .await;
}

/// Length of the runs with sentinels; a failover and its aftermath take several seconds.
const FAILOVERS: Duration = Duration::from_secs(25);

async fn fail_over(kinds: &'static [Fault], staleness_ms: u64) {
    let seed = from_env("HISTORY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let length = from_env("HISTORY_SECONDS").map_or(FAILOVERS, Duration::from_secs);
    let faults = Faults { kinds, peace_ms: (300, 1500), hang_ms: 0 };
    let plan = Plan { faults, ..plan(from_env("HISTORY_SIDECARS").unwrap_or(3), seed, length) };
    // The run itself uses strict mode. The judge allows `staleness_ms` for what a sidecar cannot
    // know yet, which is exactly the documented limit.
    check_run(plan, "of sentinel failovers", staleness_ms, |counts| {
        let failovers: usize = counts.faults.values().sum();
        let is_enough = failovers >= 1 && counts.hits > 200 && counts.puts > 50;
        (!is_enough).then(|| "too few failovers, hits or PUTs".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinel_failover_of_a_dead_or_hung_master_leaves_no_old_body() {
    fail_over(&Fault::FAILOVERS, 0).await;
}

/// A documented limit (docs/guarantee.md, promise 1): a master that was replaced and still answers
/// is believed for at most a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinel_failover_of_a_master_that_is_well_leaves_no_old_body_for_long() {
    fail_over(&[Fault::MasterDeposed], 1000).await;
}

/// Length of the runs without faults, and how rarely their jobs are read again without news: a client
/// that was not told waits for longer than the judge allows.
const CALM: Duration = Duration::from_secs(8);
const RARELY: Duration = Duration::from_secs(30);

/// Runs clients that wait, without any fault, so that every delivery has the short bound.
async fn wait_calmly(name: &str, change: impl FnOnce(Plan) -> Plan) {
    let seed = from_env("HISTORY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let length = from_env("HISTORY_SECONDS").map_or(CALM, Duration::from_secs);
    let all = plan(2, seed, length);
    let plan = Plan {
        jobs: 8,
        pollers: 4,
        load: Load { putters: 2, purgers: 2, pause_ms: 150, hang_ups: 0, ..all.load },
        behaviour: UpstreamBehaviour { very_slow: 0, broken: 0, ..all.behaviour },
        faults: Faults { kinds: &[], ..all.faults },
        push: PushLoad { polls: 16, streams: 16, recheck: RARELY },
        ..all
    };
    check_run(change(plan), name, 0, |counts| {
        let is_enough = counts.held > 200 && counts.puts + counts.purges + counts.dels > 50;
        (!is_enough).then(|| "too few versions for held clients, or writes".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_wait_are_given_every_change_in_time() {
    wait_calmly("without faults", |plan| plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_wait_are_given_every_change_in_time_told_by_keys() {
    wait_calmly("without faults, by keys", |plan| Plan { tracking: "keys", ..plan }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_wait_are_given_every_change_in_time_without_near_entries() {
    let alone = |plan| Plan { store: Store::RedisAlone, ..plan };
    wait_calmly("without faults and near entries", alone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_wait_are_given_every_change_in_time_without_redis() {
    let memory = |plan: Plan| {
        let load = Load { deleters: 0, ..plan.load };
        Plan { store: Store::Memory, sidecars: 1, load, ..plan }
    };
    wait_calmly("in memory", memory).await;
}
