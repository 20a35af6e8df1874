//! Single histories that no schedule reaches: restarts, promotions, a full memory, a frozen server.

use std::{sync::Arc, time::Duration};

use hyper::Request;
use jobcache::{
    cache::entry::{Entry, EntryVersion, Reject},
    config::{Config, StoreUrl},
    observe::metrics::Registry,
    semantics::identity::Identity,
    store::{Budget, Ended, Fill, Grant, Key, Lease, ReaderHash, Seen, Store, StoreError},
};
use redis::cmd;
use tempfile::TempDir;

use super::{
    Flaw,
    server::{FENCE, LEASE, MAIN, META, PURGE_TOKEN, entry, pair, script},
};
use crate::support::{RedisServer, SOON, eventually};

pub(super) const TTL: Duration = Duration::from_mins(5);
/// Longer than a restart.
const LEASE_TIME: Duration = Duration::from_mins(1);
/// Shorter than a freeze of the server.
const SHORT: Duration = Duration::from_millis(20);
const FENCE_MS: i64 = 150;
pub(super) const OLD: &str = "old";

pub(super) async fn open(redis: &RedisServer) -> Store {
    let mut config = Config::default();
    config.store.reconnect_grace = Duration::ZERO;
    config.store.url = StoreUrl::Redis(redis.url());
    config.store.lease = LEASE_TIME;
    let store = Store::open(&config, &mut Registry::default(), Arc::default(), None).unwrap();
    eventually(SOON, async || store.is_up()).await;
    store
}

pub(super) fn key() -> Key {
    Key::new("job_status:", "x")
}

pub(super) fn budget() -> Budget {
    Budget::new(SOON)
}

async fn ask(store: &Store) -> Grant {
    store.lease(&key(), ReaderHash::default(), None, &mut budget()).await.unwrap()
}

pub(super) async fn granted(store: &Store) -> Lease {
    match ask(store).await {
        Grant::Lease(lease) => lease,
        other => panic!("no lease: {other:?}"),
    }
}

/// Returns the metadata of the entry that this lease fills.
pub(super) fn meta(lease: &Lease) -> String {
    let (head, ()) = Request::new(()).into_parts();
    let entry = entry(OLD, pair(&head));
    let version = EntryVersion { generation: &lease.token, epoch: &lease.epoch, change: None };
    entry.meta(&entry.audience().members, &Identity::default(), version, None)
}

pub(super) async fn fill(store: &Store, lease: Lease) -> Result<Fill, StoreError> {
    let meta = meta(&lease);
    store.fill(lease, &OLD.into(), &meta, TTL).await
}

pub(super) async fn filled(store: &Store) {
    let lease = granted(store).await;
    assert_eq!(fill(store, lease).await.unwrap(), Fill::Stored);
    assert_eq!(believed(store).await, Some(Ok(())));
}

/// Returns whether there is a value, and whether it is a hit.
pub(super) async fn believed(store: &Store) -> Option<Result<(), Reject>> {
    let seen = store.read(&key(), &mut budget()).await.unwrap();
    Entry::decode(&seen).map(|decoded| decoded.map(drop))
}

/// Returns the contents and expiries of the four keys.
pub(super) async fn state(redis: &RedisServer) -> Vec<(Option<Vec<u8>>, i64)> {
    let mut pipeline = redis::pipe();
    let mut connection = redis.connection().await;
    let mut state = Vec::new();
    for key in [MAIN, META, LEASE, FENCE] {
        pipeline.clear();
        pipeline.cmd("DUMP").arg(key).cmd("PEXPIRETIME").arg(key);
        state.push(pipeline.query_async(&mut connection).await.unwrap());
    }
    state
}

async fn configure(redis: &RedisServer, name: &str, value: &str) {
    let () = redis.run(cmd("CONFIG").arg("SET").arg(name).arg(value)).await;
}

pub(super) async fn info(redis: &RedisServer, field: &str) -> String {
    let info: String = redis.run(&cmd("INFO")).await;
    let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap_or_default().trim().to_owned()
}

/// Returns a lease that was live when the snapshot was taken. Another client's DEL has voided it
/// since, and the restart has undone the DEL. The upstream was read before the DEL.
async fn restarted_with_a_live_lease() -> (RedisServer, Store, Lease) {
    let mut redis = RedisServer::start().await;
    let store = open(&redis).await;
    let lease = granted(&store).await;
    redis.save().await;
    redis.del(MAIN).await;

    redis.restart_from_rdb().await;

    assert_eq!(
        redis.get(MAIN).await.as_deref(),
        Some(&b""[..]),
        "the placeholder was not restored"
    );
    let held = redis.get(LEASE).await.unwrap();
    assert!(held.starts_with(lease.token.as_str().as_bytes()), "{held:?}");
    let read = async || store.read(&key(), &mut budget()).await;
    let is_new = |seen: Seen| seen.epoch != lease.epoch;
    eventually(SOON, async || read().await.is_ok_and(is_new)).await;
    (redis, store, lease)
}

#[tokio::test]
async fn a_lease_from_an_old_snapshot_fills_nothing_after_the_restart() {
    let (redis, store, lease) = restarted_with_a_live_lease().await;

    assert_eq!(fill(&store, lease).await.unwrap(), Fill::Revoked);

    assert!(!redis.holds(MAIN).await);
}

#[tokio::test]
async fn what_a_lease_from_an_old_snapshot_does_fill_is_not_believed() {
    let (redis, store, lease) = restarted_with_a_live_lease().await;
    let fill = script("fill", Flaw::Nothing);
    let mut call = fill.key(MAIN);
    call.key(META).key(LEASE).key(PURGE_TOKEN);
    call.arg(lease.token.as_str()).arg(OLD).arg(meta(&lease));
    call.arg(300_000).arg(60_000);

    let stored: bool = call.invoke_async(&mut redis.connection().await).await.unwrap();

    assert!(stored, "the script checks epochs");
    assert_eq!(believed(&store).await, Some(Err(Reject::Epoch)));
}

pub(super) async fn replicate(replica: &RedisServer, master: &RedisServer) {
    let url = master.url();
    let (_, port) = url.rsplit_once(':').unwrap();
    let () = replica.run(cmd("REPLICAOF").arg("127.0.0.1").arg(port)).await;
    eventually(SOON, async || info(replica, "master_link_status").await == "up").await;
}

pub(super) async fn promote(replica: &RedisServer) {
    let () = replica.run(cmd("REPLICAOF").arg("NO").arg("ONE")).await;
}

#[tokio::test]
async fn a_master_that_was_promoted_again_without_a_restart_is_not_believed() {
    let quick = ["--repl-diskless-sync-delay", "0"];
    let mut first = RedisServer::start_with(&quick).await;
    let second = RedisServer::start_with(&quick).await;
    filled(&open(&second).await).await;
    let before = (info(&second, "run_id").await, info(&second, "master_replid").await);
    replicate(&first, &second).await;
    promote(&first).await;
    replicate(&second, &first).await;

    // The second server misses the DEL and becomes the master again.
    second.stop();
    let _: i64 = first.run(cmd("CLIENT").arg("KILL").arg("TYPE").arg("replica")).await;
    first.del(MAIN).await;
    first.kill();
    second.cont();
    promote(&second).await;

    assert_eq!(second.get(MAIN).await.as_deref(), Some(OLD.as_bytes()));
    assert_eq!(info(&second, "run_id").await, before.0, "the run id has changed");
    assert_ne!(info(&second, "master_replid").await, before.1);
    assert_eq!(believed(&open(&second).await).await, Some(Err(Reject::Epoch)));
}

/// Puts the server at its memory limit without eviction.
pub(super) async fn fill_memory(redis: &RedisServer) {
    configure(redis, "maxmemory-policy", "noeviction").await;
    configure(redis, "maxmemory", "1").await;
}

#[tokio::test]
async fn at_the_memory_limit_a_write_still_begins_and_ends() {
    let redis = RedisServer::start().await;
    let store = open(&redis).await;
    filled(&store).await;
    fill_memory(&redis).await;

    let write = store.begin(vec![key()], SOON, &mut budget()).await;

    assert!(!redis.holds(MAIN).await);
    assert!(redis.ttl_ms(FENCE).await > 0);
    let ended = store.end(&write, SOON, &mut budget()).await;
    assert_eq!(ended, Ended::Confirmed { entries: 0 });
    assert!(redis.ttl_ms(FENCE).await > 0, "it lingers");
    let ended = store.end(&write, Duration::ZERO, &mut budget()).await;
    assert_eq!(ended, Ended::Confirmed { entries: 0 });
    assert_eq!(redis.ttl_ms(FENCE).await, -2);
    assert_eq!(store.pending(), 0);
}

#[tokio::test]
async fn at_the_memory_limit_a_purge_still_drops_the_entry() {
    let redis = RedisServer::start().await;
    let store = open(&redis).await;
    filled(&store).await;
    fill_memory(&redis).await;

    let ended = store.purge(vec![key()], SOON).await.ended;

    assert_eq!(ended, Ended::Confirmed { entries: 1 });
    assert!(!redis.holds(MAIN).await);
}

#[tokio::test]
async fn at_the_memory_limit_a_lease_is_refused_and_changes_nothing() {
    let redis = RedisServer::start().await;
    let store = open(&redis).await;
    fill_memory(&redis).await;
    let before = state(&redis).await;

    let grant = store.lease(&key(), ReaderHash::default(), None, &mut budget()).await;

    assert!(matches!(&grant, Err(StoreError::Denied(_, why)) if why.contains("OOM")), "{grant:?}");
    assert_eq!(state(&redis).await, before);
    assert!(store.is_up());
}

#[tokio::test]
async fn at_the_memory_limit_a_fill_is_refused_and_changes_nothing() {
    let redis = RedisServer::start().await;
    let store = open(&redis).await;
    let lease = granted(&store).await;
    fill_memory(&redis).await;
    let before = state(&redis).await;
    let fill_script = script("fill", Flaw::Nothing);
    let mut call = fill_script.key(MAIN);
    call.key(META).key(LEASE).key(PURGE_TOKEN);
    call.arg(lease.token.as_str()).arg(OLD).arg(meta(&lease));
    call.arg(300_000).arg(60_000);

    let refused = call.invoke_async::<bool>(&mut redis.connection().await).await;

    assert!(refused.is_err_and(|error| error.to_string().contains("OOM")));
    assert_eq!(state(&redis).await, before);
    // The store then releases the lease, so that no reader waits for it.
    let refused = fill(&store, lease).await;
    assert!(matches!(&refused, Err(StoreError::Denied(_, why)) if why.contains("OOM")));
    eventually(SOON, async || (redis.get(MAIN).await, redis.get(LEASE).await) == (None, None))
        .await;
}

/// Asserts that an end is pending while the server rejects writes, and is executed afterwards.
async fn assert_an_end_is_unconfirmed(redis: &RedisServer, store: &Store, mend: (&str, &str)) {
    let write = store.begin(vec![key()], SOON, &mut budget()).await;

    let ended = store.end(&write, Duration::ZERO, &mut budget()).await;

    assert_eq!(ended, Ended::Pending);
    assert!(redis.holds(MAIN).await, "the end was executed");
    assert!(matches!(store.trust(&key()), Err(StoreError::Pending)));
    configure(redis, mend.0, mend.1).await;
    eventually(SOON, async || store.trust(&key())).await;
    assert!(!redis.holds(MAIN).await);
}

#[tokio::test]
async fn a_server_without_its_replicas_leaves_an_end_unconfirmed() {
    let redis = RedisServer::start().await;
    let store = open(&redis).await;
    filled(&store).await;
    configure(&redis, "min-replicas-to-write", "1").await;

    assert_an_end_is_unconfirmed(&redis, &store, ("min-replicas-to-write", "0")).await;
}

#[tokio::test]
async fn a_server_that_cannot_save_leaves_an_end_unconfirmed() {
    let dir = TempDir::with_prefix("jobcache-unsaved-").unwrap();
    let path = dir.path().to_str().unwrap();
    let redis = RedisServer::start_with(&["--dir", path, "--save", "3600 1000"]).await;
    let store = open(&redis).await;
    filled(&store).await;
    std::fs::create_dir(dir.path().join("dump.rdb")).unwrap();
    let _: String = redis.run(&cmd("BGSAVE")).await;
    eventually(SOON, async || info(&redis, "rdb_last_bgsave_status").await == "err").await;

    assert_an_end_is_unconfirmed(&redis, &store, ("stop-writes-on-bgsave-error", "no")).await;
}

#[tokio::test]
async fn a_begin_that_comes_after_its_end_leaves_a_fence_that_runs_out() {
    let redis = RedisServer::start().await;
    let store = open(&redis).await;
    let call = async |name: &str, time_ms: i64| {
        let script = script(name, Flaw::Nothing);
        let mut call = script.key(MAIN);
        call.key(META).key(LEASE).key(FENCE).arg("w").arg(time_ms);
        // On a new connection each, as after the first one broke.
        call.invoke_async::<()>(&mut redis.connection().await).await.unwrap();
    };

    call("end", 0).await;
    call("begin", FENCE_MS).await;

    assert!(redis.ttl_ms(FENCE).await <= FENCE_MS);
    eventually(SOON, async || matches!(ask(&store).await, Grant::Lease(_))).await;
}

#[tokio::test]
async fn a_fence_lives_as_long_as_the_longest_of_its_writes() {
    let redis = RedisServer::start().await;
    let store = open(&redis).await;
    let long = store.begin(vec![key()], 2 * SOON, &mut budget()).await;
    let short = store.begin(vec![key()], SOON, &mut budget()).await;
    let soon_ms = i64::try_from(SOON.as_millis()).unwrap();
    assert!(redis.ttl_ms(FENCE).await > soon_ms);

    store.end(&long, Duration::ZERO, &mut budget()).await;

    assert!((1..=soon_ms).contains(&redis.ttl_ms(FENCE).await));
    store.end(&short, Duration::ZERO, &mut budget()).await;
    assert_eq!(redis.ttl_ms(FENCE).await, -2);
}

#[tokio::test]
async fn a_lease_that_comes_too_late_is_released_behind_it() {
    let redis = RedisServer::start().await;
    let store = open(&redis).await;
    redis.stop();

    let late = store.lease(&key(), ReaderHash::default(), None, &mut Budget::new(SHORT)).await;

    assert!(matches!(late, Err(StoreError::Timeout)), "{late:?}");
    redis.cont();
    // The read uses the same connection, so the lease has been granted when this is answered.
    assert_eq!(believed(&store).await, None);
    eventually(SOON, async || redis.get(LEASE).await.is_none()).await;
    assert_eq!(redis.get(MAIN).await, None);
}

#[tokio::test]
async fn a_key_of_another_type_is_not_leased_but_purged() {
    let redis = RedisServer::start().await;
    let store = open(&redis).await;
    let () = redis.run(cmd("HSET").arg(MAIN).arg("field").arg("value")).await;

    let grant = store.lease(&key(), ReaderHash::default(), None, &mut budget()).await;

    assert!(matches!(&grant, Err(StoreError::Refused(why)) if why.contains("WRONGTYPE")));
    assert_eq!(believed(&store).await, None);
    let ended = store.purge(vec![key()], SOON).await.ended;
    assert_eq!(ended, Ended::Confirmed { entries: 1 });
    assert!(store.is_up());
    drop(granted(&store).await);
}

#[tokio::test]
async fn the_same_bytes_set_by_somebody_else_are_not_our_entry() {
    let redis = RedisServer::start().await;
    let store = open(&redis).await;
    filled(&store).await;

    redis.set(MAIN, OLD.as_bytes()).await;
    assert_eq!(believed(&store).await, Some(Err(Reject::Foreign)));

    // The DEL leaves the metadata behind, and the next lease would delete it.
    redis.del(MAIN).await;
    let () = redis.run(cmd("SET").arg(MAIN).arg(OLD).arg("EX").arg(299)).await;
    assert_eq!(believed(&store).await, Some(Err(Reject::Foreign)));
}
