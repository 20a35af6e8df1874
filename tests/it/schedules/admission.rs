//! Rejections by `admit` and `replace`, for one history and one line of a script at a time.
//!
//! No schedule shows that an admission checks the value, the fence and the epoch. Without these
//! checks it would extend the metadata of a value that is not a hit: metadata outlives a DEL, but
//! not the lease, the begin or the end that precedes the next entry, and another expiry or epoch is
//! not a hit. The checks exist so that correctness does not depend on that argument alone.

use jobcache::store::{EntryChange, Fill, Key, Seen, Store, StoredValue};
use redis::cmd;

use super::{
    Flaw,
    directed::{OLD, TTL, believed, budget, fill, fill_memory, filled, granted, key, open, state},
    server::{FENCE, LEASE, MAIN, META, compare_and_set, script},
};
use crate::support::{RedisServer, SOON, eventually};

const NEW: &str = "new";
const PAIR: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// An entry that has been read.
struct Before {
    redis: RedisServer,
    store: Store,
    seen: Seen,
    generation: String,
}

impl Before {
    async fn new() -> Self {
        let redis = RedisServer::start().await;
        let store = open(&redis).await;
        let (seen, generation) = entry(&store).await;
        Self { redis, store, seen, generation }
    }

    fn stored(&self) -> &StoredValue {
        self.seen.stored.as_ref().unwrap()
    }

    /// Returns the results of an admission and of a replacement.
    async fn both(&self, store: &Store, key: &Key) -> [Fill; 2] {
        let body = NEW.into();
        let meta = r#"{"v":1,"audience":[]"#;
        let expires_at_ms = self.stored().expires_at_ms;
        let new = EntryChange::Replace { body: &body, meta, expires_at_ms };
        [
            store
                .change(key, &self.seen, &self.generation, EntryChange::Admit(PAIR))
                .await
                .unwrap(),
            store.change(key, &self.seen, &self.generation, new).await.unwrap(),
        ]
    }

    /// Asserts that both are rejected and change nothing.
    async fn assert_refused(&self, why: &str) {
        let before = state(&self.redis).await;
        assert_eq!(self.both(&self.store, &key()).await, [Fill::Revoked; 2], "{why}");
        assert_eq!(state(&self.redis).await, before, "{why}");
    }

    async fn set(&self, life: &[&str]) {
        let () = self.redis.run(cmd("SET").arg(MAIN).arg(OLD).arg(life)).await;
    }
}

/// Fills an entry and reads it.
async fn entry(store: &Store) -> (Seen, String) {
    let lease = granted(store).await;
    let generation = lease.token.as_str().to_owned();
    assert_eq!(fill(store, lease).await.unwrap(), Fill::Stored);
    (store.read(&key(), &mut budget()).await.unwrap(), generation)
}

#[tokio::test]
async fn what_was_seen_and_is_there_still_is_admitted_to_and_replaced() {
    let before = Before::new().await;
    assert_eq!(before.both(&before.store, &key()).await, [Fill::Stored; 2]);
    assert_eq!(before.redis.get(MAIN).await.unwrap(), NEW.as_bytes());
}

#[tokio::test]
async fn after_a_plain_del_nobody_is_let_in_whatever_is_set_then() {
    let before = Before::new().await;
    before.redis.del(MAIN).await;
    assert!(before.redis.holds(META).await, "the DEL has deleted the metadata");
    before.assert_refused("there is no value").await;
    for life in [&[][..], &["EX", "299"], &["EX", "300"], &["KEEPTTL"]] {
        before.redis.del(MAIN).await;
        before.set(life).await;
        before.assert_refused("the value has the same bytes and another expiry").await;
    }
    before.redis.del(MAIN).await;
    let lease = granted(&before.store).await;
    before.assert_refused("a fill is in progress").await;
    assert_eq!(fill(&before.store, lease).await.unwrap(), Fill::Stored);
    before.assert_refused("there is another entry").await;
    assert_eq!(believed(&before.store).await, Some(Ok(())));
}

#[tokio::test]
async fn an_entry_of_the_same_bytes_and_expiry_is_another_by_its_generation() {
    let before = Before::new().await;
    before.store.purge(vec![key()], SOON).await;
    filled(&before.store).await;
    let at = before.stored().expires_at_ms;
    for name in [MAIN, META] {
        let () = before.redis.run(cmd("PEXPIREAT").arg(name).arg(at)).await;
    }
    before.assert_refused("the generation differs").await;
}

#[tokio::test]
async fn while_a_fence_stands_nobody_is_let_in() {
    let before = Before::new().await;
    let () = before.redis.run(cmd("ZADD").arg(FENCE).arg(1).arg("w")).await;
    before.assert_refused("a write is in flight").await;
    let write = before.store.begin(vec![key()], TTL, &mut budget()).await;
    before.assert_refused("the write has dropped the entry").await;
    before.set(&["PXAT", &before.stored().expires_at_ms.to_string()]).await;
    before.assert_refused("a foreign value was set in the meantime").await;
    before.store.end(&write, SOON, &mut budget()).await;
    before.assert_refused("the fence lingers").await;
}

/// A client that SETs the same bytes with the same expiry in ms creates the same value, and nothing
/// in Redis distinguishes it from the deleted one: a documented limit. RENAME, RESTORE with ABSTTL
/// or a script that deletes and sets within one ms can do this; a SET with a TTL hits that ms only
/// by chance.
#[tokio::test]
async fn the_very_value_put_back_under_its_very_expiry_is_the_entry_again() {
    let before = Before::new().await;
    let at = before.stored().expires_at_ms.to_string();
    before.redis.del(MAIN).await;
    before.set(&["PXAT", &at]).await;
    assert_eq!(believed(&before.store).await, Some(Ok(())));

    // This does not hold after a write, a purge or a lease request, because they delete the
    // metadata.
    before.store.purge(vec![key()], SOON).await;
    before.set(&["PXAT", &at]).await;
    before.assert_refused("there is no metadata").await;
    assert!(believed(&before.store).await.is_some_and(|believed| believed.is_err()));
}

#[tokio::test]
async fn what_was_seen_before_a_restart_is_neither_admitted_to_nor_replaced() {
    let mut before = Before::new().await;
    before.redis.save().await;
    before.redis.del(MAIN).await;

    before.redis.restart_from_rdb().await;

    assert_eq!(
        before.redis.get(MAIN).await.as_deref(),
        Some(OLD.as_bytes()),
        "the entry was not restored"
    );
    let epoch = before.seen.epoch.clone();
    let read = async || before.store.read(&key(), &mut budget()).await;
    eventually(SOON, async || read().await.is_ok_and(|seen| seen.epoch != epoch)).await;
    before.assert_refused("the entry was read in another epoch").await;
    assert_eq!(
        compare_and_set(&script("admit", Flaw::Nothing), before.stored(), &before.generation)
            .arg(PAIR)
            .arg(0)
            .invoke_async::<bool>(&mut before.redis.connection().await)
            .await,
        Ok(true),
        "the script checks epochs"
    );
    assert!(believed(&before.store).await.is_some_and(|believed| believed.is_err()));
}

#[tokio::test]
async fn what_was_seen_on_another_master_is_neither_admitted_to_nor_replaced() {
    let before = Before::new().await;
    let replica = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    super::directed::replicate(&replica, &before.redis).await;
    super::directed::promote(&replica).await;
    let store = open(&replica).await;

    assert_eq!(replica.get(MAIN).await.as_deref(), Some(OLD.as_bytes()));
    assert_eq!(before.both(&store, &key()).await, [Fill::Revoked; 2]);
    assert_eq!(replica.get(MAIN).await.as_deref(), Some(OLD.as_bytes()));
}

#[tokio::test]
async fn at_the_memory_limit_nobody_is_let_in_and_nothing_changes() {
    let before = Before::new().await;
    fill_memory(&before.redis).await;
    let as_it_was = state(&before.redis).await;

    let change =
        async |change| before.store.change(&key(), &before.seen, &before.generation, change).await;
    let admitted = change(EntryChange::Admit(PAIR)).await;
    let body = NEW.into();
    let new = EntryChange::Replace {
        body: &body,
        meta: "{",
        expires_at_ms: before.stored().expires_at_ms,
    };
    let replaced = change(new).await;

    assert!(admitted.is_err() && replaced.is_err(), "{admitted:?}, {replaced:?}");
    assert_eq!(state(&before.redis).await, as_it_was);
    assert!(!before.redis.holds(LEASE).await);
}
