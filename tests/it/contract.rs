//! The store contract: every scenario runs on every store.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use jobcache::{
    config::{Config, StoreUrl},
    observe::metrics::Registry,
    store::{
        Budget, Ended, EntryChange, Epoch, Fill, Grant, Key, KeyReceipt, Lease, ReaderHash, Seen,
        Store, StoredValue,
    },
};

use crate::support::{Cluster, RedisServer, SOON, eventually, steady_clock};

const TTL: Duration = Duration::from_mins(5);
/// Longer than any scenario takes, even on a slow machine.
const LEASE: Duration = Duration::from_mins(10);
const FENCE: Duration = Duration::from_mins(10);
/// Length of a lease, a fence or a linger that expires during a scenario.
const SHORT: Duration = Duration::from_millis(150);
/// Largest rounding error of a duration: stores round its beginning and its end to whole
/// milliseconds.
const ROUNDING: Duration = Duration::from_millis(2);
const META: &str = r#"{"v":0"#;

/// Runs a scenario on a Redis, on a cluster of one master and on the embedded store.
async fn on_each<F: Future<Output = ()>>(scenario: impl Fn(Arc<Store>) -> F) {
    on_each_leasing(LEASE, scenario).await;
}

/// Like [`on_each`], with this lease time.
async fn on_each_leasing<F: Future<Output = ()>>(
    lease: Duration,
    scenario: impl Fn(Arc<Store>) -> F,
) {
    let (redis, cluster) = tokio::join!(RedisServer::start(), Cluster::of_one(&[]));
    let seed = format!("redis-cluster://127.0.0.1:{}", cluster.port());
    let seed = seed.parse().expect("a seed");
    for url in [StoreUrl::Redis(redis.url()), seed, StoreUrl::Memory] {
        scenario(open(url, lease).await).await;
    }
}

async fn open(url: StoreUrl, lease: Duration) -> Arc<Store> {
    steady_clock();
    let mut config = Config::default();
    config.store.reconnect_grace = Duration::ZERO;
    config.store.url = url;
    config.store.lease = lease;
    let store = Store::open(&config, &mut Registry::default(), Arc::default(), None).unwrap();
    eventually(SOON, async || store.is_up()).await;
    Arc::new(store)
}

fn key(id: &str) -> Key {
    Key::new("job_status:", id)
}

fn budget() -> Budget {
    Budget::new(SOON)
}

async fn seen(store: &Store, key: &Key) -> Seen {
    store.read(key, &mut budget()).await.unwrap()
}

async fn read(store: &Store, key: &Key) -> Option<StoredValue> {
    seen(store, key).await.stored
}

async fn ask(store: &Store, key: &Key) -> Grant {
    store.lease(key, ReaderHash::default(), None, &mut budget()).await.unwrap()
}

/// Returns a meta without its closing brace, of the form that the scripts look for.
fn meta(epoch: &Epoch) -> String {
    format!("{META},\"epoch\":\"{}\"", epoch.as_str())
}

async fn granted(store: &Store, key: &Key) -> Lease {
    match ask(store, key).await {
        Grant::Lease(lease) => lease,
        other => panic!("no lease: {other:?}"),
    }
}

async fn fill(store: &Store, lease: Lease, body: &'static str) -> Fill {
    let meta = meta(&lease.epoch);
    store.fill(lease, &Bytes::from_static(body.as_bytes()), &meta, TTL).await.unwrap()
}

async fn filled(store: &Store, key: &Key, body: &'static str) {
    let lease = granted(store, key).await;
    assert_eq!(fill(store, lease, body).await, Fill::Stored);
}

/// Waits until a key can be leased again. The block on it began after `since` and lasts for
/// [`SHORT`].
async fn leased_after(store: &Store, key: &Key, since: Instant) {
    eventually(SOON, async || matches!(ask(store, key).await, Grant::Lease(_))).await;
    assert!(since.elapsed() + ROUNDING >= SHORT, "leased after {:?}", since.elapsed());
}

async fn purge(store: &Store, key: &Key) -> Ended {
    store.purge(vec![key.clone()], SOON).await.ended
}

#[tokio::test]
async fn a_fill_is_read_back_with_body_meta_and_an_expiry_that_counts_from_the_lease() {
    on_each(async |store| {
        let key = key("x");
        let lease = granted(&store, &key).await;
        let asked_at_ms = lease.granted_at_ms;
        assert_eq!(read(&store, &key).await, None, "a placeholder is not an entry");
        assert_eq!(fill(&store, lease, "body").await, Fill::Stored);
        let stored = read(&store, &key).await.unwrap();
        assert_eq!(&stored.body[..], b"body");
        let meta: serde_json::Value = serde_json::from_slice(&stored.meta).unwrap();
        assert_eq!(meta["expires_at_ms"].as_i64(), Some(stored.expires_at_ms));
        let counted = stored.expires_at_ms - asked_at_ms;
        assert!((299_000..=301_000).contains(&counted), "{counted} ms from the lease");
    })
    .await;
}

#[tokio::test]
async fn one_lease_at_a_time_and_the_others_learn_whose() {
    on_each(async |store| {
        let key = key("x");
        let lease = granted(&store, &key).await;
        match ask(&store, &key).await {
            Grant::Leased(token, _) => assert_eq!(token, lease.token),
            other => panic!("{other:?}"),
        }
        // Handed back in the background.
        drop(lease);
        eventually(SOON, async || matches!(ask(&store, &key).await, Grant::Lease(_))).await;
    })
    .await;
}

#[tokio::test]
async fn who_asks_for_a_lease_when_there_is_an_entry_is_given_the_entry() {
    on_each(async |store| {
        let key = key("x");
        filled(&store, &key, "body").await;
        match ask(&store, &key).await {
            Grant::Stored(seen) => assert_eq!(&seen.stored.unwrap().body[..], b"body"),
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn a_refused_value_is_deleted_and_leased_but_not_the_one_that_replaced_it() {
    on_each(async |store| {
        let key = key("x");
        filled(&store, &key, "old").await;
        let old = read(&store, &key).await.unwrap();
        let grant =
            store.lease(&key, ReaderHash::default(), Some(&old), &mut budget()).await.unwrap();
        let Grant::Lease(lease) = grant else { panic!("{grant:?}") };
        assert_eq!(read(&store, &key).await, None);
        // A refused value is named by its expiry, so the two entries must not have the same one.
        let ttl = TTL + Duration::from_secs(1);
        let body = Bytes::from_static(b"new");
        assert_eq!(store.fill(lease, &body, META, ttl).await.unwrap(), Fill::Stored);
        let grant =
            store.lease(&key, ReaderHash::default(), Some(&old), &mut budget()).await.unwrap();
        assert!(matches!(grant, Grant::Stored(_)), "{grant:?}");
    })
    .await;
}

#[tokio::test]
async fn a_purge_voids_the_fill_in_flight() {
    on_each(async |store| {
        let key = key("x");
        let lease = granted(&store, &key).await;
        assert_eq!(purge(&store, &key).await, Ended::Confirmed { entries: 0 });
        assert_eq!(fill(&store, lease, "old").await, Fill::Revoked);
        assert_eq!(read(&store, &key).await, None);
    })
    .await;
}

#[tokio::test]
async fn a_purge_drops_the_entry_and_says_so() {
    on_each(async |store| {
        let key = key("x");
        filled(&store, &key, "body").await;
        assert_eq!(purge(&store, &key).await, Ended::Confirmed { entries: 1 });
        assert_eq!(purge(&store, &key).await, Ended::Confirmed { entries: 0 });
        assert_eq!(read(&store, &key).await, None);
    })
    .await;
}

#[tokio::test]
async fn a_purge_tells_of_each_key_what_there_was() {
    on_each(async |store| {
        let keys = ["entry", "lease", "nothing"].map(key);
        let lease = granted(&store, &keys[0]).await;
        let stored_at_ms = store.now_ms() - 1_000;
        let meta = format!(
            r#"{{"headers":[["x","\"generation\":\"no\""]],"generation":"g","stored_at_ms":{stored_at_ms},"age_ms":500"#
        );
        let body = Bytes::from_static(b"body");
        assert_eq!(store.fill(lease, &body, &meta, TTL).await.unwrap(), Fill::Stored);
        let _lease = granted(&store, &keys[1]).await;

        let purged = store.purge(keys.to_vec(), SOON).await;

        assert_eq!(purged.ended, Ended::Confirmed { entries: 1 });
        let was: Vec<KeyReceipt> = purged.receipts.into_iter().map(Option::unwrap).collect();
        assert_eq!(was.iter().map(|was| was.filling).collect::<Vec<_>>(), [false, true, false]);
        let entry = was[0].entry.as_ref().unwrap();
        assert_eq!((entry.size, entry.generation.as_deref()), (4, Some("g")));
        assert!(entry.age_ms.is_some_and(|ms| (1_500..30_000).contains(&ms)), "{entry:?}");
        assert_eq!((&was[1].entry, &was[2].entry), (&None, &None));
    })
    .await;
}

#[tokio::test]
async fn an_inspection_shows_all_that_stands_and_changes_none_of_it() {
    on_each(async |store| {
        let [entry, lease, fence, nothing] = ["entry", "lease", "fence", "nothing"].map(key);
        filled(&store, &entry, "body").await;
        let granted = granted(&store, &lease).await;
        let _write = store.begin(vec![fence.clone()], FENCE, &mut budget()).await;
        // Twice, because the first inspection must not change anything.
        for _ in 0..2 {
            let inspect = async |key| store.inspect(key, &mut budget()).await.unwrap();
            let shown = inspect(&entry).await;
            assert_eq!(&shown.seen.stored.unwrap().body[..], b"body");
            assert!(shown.lease.is_none() && shown.fence_left_ms.is_none());
            let shown = inspect(&lease).await;
            let held = shown.lease.unwrap();
            assert!(shown.seen.is_leased && shown.seen.stored.is_none());
            assert_eq!(&held.token, &granted.token);
            assert!((1..=600_000).contains(&held.left_ms), "{} ms", held.left_ms);
            let shown = inspect(&fence).await;
            assert!(shown.fence_left_ms.is_some_and(|ms| (1..=600_000).contains(&ms)));
            let shown = inspect(&nothing).await;
            assert!(!shown.seen.is_leased && shown.lease.is_none());
            assert!(shown.seen.stored.is_none() && shown.fence_left_ms.is_none());
        }
    })
    .await;
}

#[tokio::test]
async fn an_old_lease_cannot_fill_under_its_successor() {
    on_each(async |store| {
        let key = key("x");
        let old = granted(&store, &key).await;
        purge(&store, &key).await;
        let new = granted(&store, &key).await;
        assert_eq!(fill(&store, old, "old").await, Fill::Revoked);
        assert_eq!(fill(&store, new, "new").await, Fill::Stored);
        assert_eq!(&read(&store, &key).await.unwrap().body[..], b"new");
    })
    .await;
}

#[tokio::test]
async fn a_write_in_flight_voids_the_fill_and_refuses_leases_until_it_ends() {
    on_each(async |store| {
        let key = key("x");
        let lease = granted(&store, &key).await;
        let write = store.begin(vec![key.clone()], FENCE, &mut budget()).await;
        assert_eq!(fill(&store, lease, "old").await, Fill::Revoked);
        assert!(matches!(ask(&store, &key).await, Grant::Fenced));
        store.end(&write, Duration::ZERO, &mut budget()).await;
        let _lease = granted(&store, &key).await;
    })
    .await;
}

#[tokio::test]
async fn a_write_drops_the_entry_when_it_begins_and_when_it_ends() {
    on_each(async |store| {
        let key = key("x");
        filled(&store, &key, "body").await;
        let write = store.begin(vec![key.clone()], FENCE, &mut budget()).await;
        assert_eq!(read(&store, &key).await, None);
        let ended = store.end(&write, Duration::ZERO, &mut budget()).await;
        assert_eq!(ended, Ended::Confirmed { entries: 0 });
    })
    .await;
}

#[tokio::test]
async fn the_fence_of_one_write_stands_while_another_ends() {
    on_each(async |store| {
        let key = key("x");
        let first = store.begin(vec![key.clone()], FENCE, &mut budget()).await;
        let second = store.begin(vec![key.clone()], FENCE, &mut budget()).await;
        store.end(&first, Duration::ZERO, &mut budget()).await;
        assert!(matches!(ask(&store, &key).await, Grant::Fenced));
        store.end(&second, Duration::ZERO, &mut budget()).await;
        let _lease = granted(&store, &key).await;
    })
    .await;
}

#[tokio::test]
async fn the_fence_of_a_sidecar_that_died_runs_out() {
    on_each(async |store| {
        let key = key("x");
        let begun = Instant::now();
        let _never_ended = store.begin(vec![key.clone()], SHORT, &mut budget()).await;
        leased_after(&store, &key, begun).await;
    })
    .await;
}

#[tokio::test]
async fn a_write_of_unknown_outcome_keeps_its_fence_for_a_while() {
    on_each(async |store| {
        let key = key("x");
        let write = store.begin(vec![key.clone()], FENCE, &mut budget()).await;
        let ended = Instant::now();
        store.end(&write, SHORT, &mut budget()).await;
        // The fence lasts for the linger instead of the ten minutes for which it was raised.
        leased_after(&store, &key, ended).await;
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_is_never_spent_runs_out() {
    on_each_leasing(SHORT, async |store| {
        let key = key("x");
        let asked = Instant::now();
        let lost = granted(&store, &key).await;
        leased_after(&store, &key, asked).await;
        assert_eq!(fill(&store, lost, "old").await, Fill::Revoked);
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_is_dropped_unspent_is_handed_back_at_once() {
    let redis = RedisServer::start().await;
    for url in [StoreUrl::Redis(redis.url()), StoreUrl::Memory] {
        let store = open(url, LEASE).await;
        let key = key("x");
        drop(granted(&store, &key).await);
        eventually(SOON, async || matches!(ask(&store, &key).await, Grant::Lease(_))).await;
    }
}

#[tokio::test]
async fn a_lease_whose_asker_is_dropped_while_redis_hangs_is_handed_back() {
    let redis = RedisServer::start().await;
    let store = open(StoreUrl::Redis(redis.url()), LEASE).await;
    let key = key("x");
    redis.stop();
    let mut patient = budget();
    let ask_and_leave = store.lease(&key, ReaderHash::default(), None, &mut patient);
    let left = tokio::time::timeout(Duration::from_millis(50), ask_and_leave).await;
    assert!(left.is_err(), "{left:?}");
    redis.cont();
    eventually(SOON, async || matches!(ask(&store, &key).await, Grant::Lease(_))).await;
}

#[tokio::test]
async fn a_ttl_that_the_read_of_the_upstream_has_used_up_stores_nothing() {
    on_each(async |store| {
        let key = key("x");
        let lease = granted(&store, &key).await;
        let ttl = Duration::from_millis(20);
        // Measured by the clock of this machine: the estimate of Redis' clock is off by the
        // delay of its answers.
        let since = Instant::now();
        eventually(SOON, async || since.elapsed() > ttl + ROUNDING).await;
        let body = Bytes::from_static(b"body");
        assert_eq!(store.fill(lease, &body, META, ttl).await.unwrap(), Fill::Revoked);
        assert_eq!(read(&store, &key).await, None);
        let _lease = granted(&store, &key).await;
    })
    .await;
}

#[tokio::test]
async fn a_purge_of_all_drops_entries_and_leases_and_leaves_fences() {
    on_each(async |store| {
        let (entry, leased, fenced) = (key("entry"), key("leased"), key("fenced"));
        filled(&store, &entry, "body").await;
        let lease = granted(&store, &leased).await;
        let write = store.begin(vec![fenced.clone()], FENCE, &mut budget()).await;
        let before = seen(&store, &entry).await;
        assert!(matches!(store.purge_all().await, Ended::Confirmed { .. }));
        // Redis may still hold the value for a moment, under an epoch that has ended.
        let after = seen(&store, &entry).await;
        assert!(after.stored.is_none() || after.epoch != before.epoch, "{after:?}");
        eventually(SOON, async || read(&store, &entry).await.is_none()).await;
        assert_eq!(fill(&store, lease, "old").await, Fill::Revoked);
        assert!(matches!(ask(&store, &fenced).await, Grant::Fenced));
        store.end(&write, Duration::ZERO, &mut budget()).await;
    })
    .await;
}

#[tokio::test]
async fn a_store_prints_what_it_is_and_not_what_it_holds() {
    on_each(async |store| {
        for id in 0..100 {
            filled(&store, &key(&id.to_string()), "body").await;
        }
        let grant = ask(&store, &key("x")).await;
        for text in [format!("{store:?}"), format!("{grant:?}")] {
            assert!(text.len() < 400, "{text}");
        }
    })
    .await;
}

#[tokio::test]
async fn keys_do_not_touch_each_other() {
    on_each(async |store| {
        let (a, b) = (key("a"), key("b"));
        filled(&store, &a, "a").await;
        filled(&store, &b, "b").await;
        purge(&store, &a).await;
        assert_eq!(read(&store, &a).await, None);
        assert_eq!(&read(&store, &b).await.unwrap().body[..], b"b");
    })
    .await;
}

/// Fills an entry with metadata that names its generation, as the cache does, and reads it.
async fn entry(store: &Store, key: &Key, body: &'static str) -> (Seen, String) {
    let lease = granted(store, key).await;
    let generation = lease.token.as_str().to_owned();
    let epoch = lease.epoch.as_str();
    let meta = format!(r#"{{"generation":"{generation}","epoch":"{epoch}","audience":["a@1"]"#);
    let body = Bytes::from_static(body.as_bytes());
    assert_eq!(store.fill(lease, &body, &meta, TTL).await.unwrap(), Fill::Stored);
    (store.read(key, &mut budget()).await.unwrap(), generation)
}

fn audience(stored: &StoredValue) -> serde_json::Value {
    serde_json::from_slice::<serde_json::Value>(&stored.meta).unwrap()["audience"].clone()
}

/// Returns a member of an audience with its time.
fn at(pair: &str, seen: &(Seen, String)) -> String {
    format!("{pair}@{}", seen.0.now_ms)
}

async fn admit(store: &Store, key: &Key, seen: &(Seen, String), pair: &str) -> Fill {
    store.change(key, &seen.0, &seen.1, EntryChange::Admit(pair)).await.unwrap()
}

async fn replace(store: &Store, key: &Key, seen: &(Seen, String), body: &'static str) -> Fill {
    let generation = store.token(ReaderHash::default()).as_str().to_owned();
    let epoch = seen.0.epoch.as_str();
    let meta = format!(r#"{{"generation":"{generation}","epoch":"{epoch}","audience":["b"]"#);
    let body = Bytes::from_static(body.as_bytes());
    let expires_at_ms = seen.0.now_ms + 300_000;
    let new = EntryChange::Replace { body: &body, meta: &meta, expires_at_ms };
    store.change(key, &seen.0, &seen.1, new).await.unwrap()
}

#[tokio::test]
async fn an_entry_is_changed_only_by_a_reader_that_has_seen_its_generation() {
    on_each(async |store| {
        // As of every response without a job: the body in the store is empty.
        let key = key("x");
        let seen = entry(&store, &key, "").await;
        let expires_at_ms = seen.0.stored.as_ref().expect("an entry").expires_at_ms;
        purge(&store, &key).await;
        let lease = granted(&store, &key).await;
        let left = u64::try_from(expires_at_ms - lease.granted_at_ms).expect("time is left");
        let meta = format!(r#"{{"generation":"{}","audience":["a@1"]"#, lease.token.as_str());
        let ttl = Duration::from_millis(left);
        assert_eq!(store.fill(lease, &Bytes::new(), &meta, ttl).await.unwrap(), Fill::Stored);

        assert_eq!(admit(&store, &key, &seen, "b").await, Fill::Revoked);
        assert_eq!(replace(&store, &key, &seen, "new").await, Fill::Revoked);
        assert_eq!(audience(&read(&store, &key).await.unwrap()), serde_json::json!(["a@1"]));
    })
    .await;
}

#[tokio::test]
async fn an_admission_widens_the_audience_and_nothing_else() {
    on_each(async |store| {
        let key = key("x");
        let seen = entry(&store, &key, "body").await;
        for pair in ["b", "c", "b"] {
            assert_eq!(admit(&store, &key, &seen, pair).await, Fill::Stored);
        }
        let after = read(&store, &key).await.unwrap();
        let before = seen.0.stored.clone().unwrap();
        assert_eq!((&after.body, after.expires_at_ms), (&before.body, before.expires_at_ms));
        assert_eq!(audience(&after), serde_json::json!([at("c", &seen), at("b", &seen), "a@1"]));
    })
    .await;
}

#[tokio::test]
async fn a_pair_that_is_admitted_again_keeps_its_one_place_with_a_new_time() {
    on_each(async |store| {
        let key = key("x");
        let first = entry(&store, &key, "body").await;
        for pair in ["b", "c", "ab"] {
            assert_eq!(admit(&store, &key, &first, pair).await, Fill::Stored);
        }
        let later = eventually(SOON, async || {
            let seen = store.read(&key, &mut budget()).await.unwrap();
            (seen.now_ms > first.0.now_ms).then_some(seen)
        });
        let later = (later.await, first.1.clone());
        for pair in ["a", "b", "ab"] {
            assert_eq!(admit(&store, &key, &later, pair).await, Fill::Stored);
        }
        let after = read(&store, &key).await.unwrap();
        let want = [at("ab", &later), at("c", &first), at("b", &later), at("a", &later)];
        assert_eq!(audience(&after), serde_json::json!(want));
        assert_eq!(after.expires_at_ms, first.0.stored.unwrap().expires_at_ms);
    })
    .await;
}

#[tokio::test]
async fn a_replacement_swaps_body_and_meta_under_a_new_generation() {
    on_each(async |store| {
        let key = key("x");
        let seen = entry(&store, &key, "old").await;
        assert_eq!(replace(&store, &key, &seen, "new").await, Fill::Stored);
        let after = read(&store, &key).await.unwrap();
        assert_eq!((&after.body[..], audience(&after)), (&b"new"[..], serde_json::json!(["b"])));
        assert_eq!(replace(&store, &key, &seen, "late").await, Fill::Revoked);
        assert_eq!(admit(&store, &key, &seen, "late").await, Fill::Revoked);
        assert_eq!(&read(&store, &key).await.unwrap().body[..], b"new");
    })
    .await;
}

/// An event after the entry was read.
#[derive(Clone, Copy, Debug)]
enum Since {
    Purged,
    AllPurged,
    FilledAgainWithTheSameBytes,
    WriteInFlight,
}

#[tokio::test]
async fn what_was_seen_before_an_invalidation_neither_admits_nor_replaces() {
    on_each(async |store| {
        let each = [
            Since::Purged,
            Since::AllPurged,
            Since::FilledAgainWithTheSameBytes,
            Since::WriteInFlight,
        ];
        for since in each {
            let key = key(&format!("{since:?}"));
            let seen = entry(&store, &key, "body").await;
            match since {
                Since::Purged => drop(purge(&store, &key).await),
                Since::AllPurged => drop(store.purge_all().await),
                Since::FilledAgainWithTheSameBytes => {
                    purge(&store, &key).await;
                    eventually(SOON, async || store.now_ms() > seen.0.now_ms + 1).await;
                    entry(&store, &key, "body").await;
                }
                Since::WriteInFlight => {
                    let _ = store.begin(vec![key.clone()], FENCE, &mut budget()).await;
                }
            }
            assert_eq!(admit(&store, &key, &seen, "late").await, Fill::Revoked, "{since:?}");
            assert_eq!(replace(&store, &key, &seen, "late").await, Fill::Revoked, "{since:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn after_a_third_partys_del_and_set_of_the_same_bytes_nobody_is_admitted() {
    let redis = RedisServer::start().await;
    let store = open(StoreUrl::Redis(redis.url()), LEASE).await;
    let key = key("x");
    let seen = entry(&store, &key, "body").await;
    redis.del(key.main()).await;
    assert_eq!(
        admit(&store, &key, &seen, "late").await,
        Fill::Revoked,
        "admitted by the metadata that the DEL has left"
    );
    redis.set(key.main(), b"body").await;
    assert_eq!(admit(&store, &key, &seen, "late").await, Fill::Revoked);
    assert_eq!(replace(&store, &key, &seen, "late").await, Fill::Revoked);
}
