//! Redis absent, killed, frozen and restarted: never an error, never an old body, hardly a delay.

use std::time::Duration;

use hyper::{Method, StatusCode};
use tokio::time::Instant;

use crate::support::{
    Process, RedisServer, Reply, SOON, Setup, Upstream, eventually, redis::key, upstream::version,
};

const X: &str = "/jobs/x1";

/// The default of the product, which these tests are about.
const BUDGET: Duration = Duration::from_millis(50);

/// Time limit for a read while Redis hangs, by the `steady_clock`: the budget and the exchange with
/// the upstream. A write may take twice as long, because it waits at its beginning and at its end.
const PATIENCE: Duration = Duration::from_millis(150);

/// Time limit for the return of hits after Redis is back.
const RECOVERY: Duration = Duration::from_secs(5);

/// Time limit for a read once the breaker is open: far below the budget.
const NOTHING: Duration = Duration::from_millis(25);

/// Requests that a breaker may need to open.
const PROBES: usize = 20;

async fn filled() -> Setup {
    let setup = Setup::with(|config| config.store.budget = BUDGET).await;
    setup.get(X).await;
    setup.hit(X).await;
    setup
}

/// Sends a GET and returns its duration.
async fn timed(setup: &Setup, path: &str) -> (Reply, Duration) {
    let start = Instant::now();
    let reply = setup.get(path).await;
    (reply, start.elapsed())
}

#[tokio::test]
async fn a_sidecar_starts_without_redis_and_comes_to_life_with_it() {
    let mut setup = Setup::cold(RedisServer::absent(), |config| config.store.budget = BUDGET).await;
    for _ in 0..3 {
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 0));
        assert!(reply.is_uncached(), "{reply:?}");
    }
    assert_eq!(setup.sidecar.put(X).await.status, StatusCode::OK);

    setup.redis.restart_empty().await;

    eventually(RECOVERY, async || setup.get(X).await.is_hit()).await;
    setup.get(X).await.assert(200, &version("x1", 1));
}

/// Polls while Redis is in trouble and afterwards: no error, no old body, no long wait; then hits
/// again.
async fn poll_through(setup: &Setup, looks: usize) {
    for _ in 0..looks {
        let (reply, took) = timed(setup, X).await;
        reply.assert(200, &version("x1", 0));
        assert!(took < PATIENCE, "{took:?}: {reply:?}");
    }
}

#[tokio::test]
async fn a_killed_redis_is_no_error_and_hits_come_back_by_themselves() {
    let mut setup = filled().await;
    for _ in 0..2 {
        setup.redis.kill();
        poll_through(&setup, PROBES).await;

        setup.redis.restart_empty().await;

        eventually(RECOVERY, async || setup.get(X).await.is_hit()).await;
    }
}

#[tokio::test]
async fn a_frozen_redis_costs_the_budget_at_most_and_hits_come_back_by_themselves() {
    let setup = filled().await;
    for _ in 0..2 {
        setup.redis.stop();
        poll_through(&setup, PROBES).await;

        setup.redis.cont();

        eventually(RECOVERY, async || setup.get(X).await.is_hit()).await;
    }
}

#[tokio::test]
async fn a_restart_under_a_polling_client_goes_unnoticed() {
    let mut setup = filled().await;
    let client = crate::support::Client::new(setup.sidecar.client.address());
    let stop = std::sync::Arc::new(tokio::sync::Notify::new());
    let told = std::sync::Arc::clone(&stop);
    let poller = tokio::spawn(async move {
        let mut polls = 0;
        let mut end = std::pin::pin!(told.notified());
        loop {
            tokio::select! {
                () = &mut end => return polls,
                reply = client.get(X) => reply.assert(200, &version("x1", 0)),
            }
            polls += 1;
        }
    });

    setup.redis.restart_empty().await;
    eventually(RECOVERY, async || setup.get(X).await.is_hit()).await;
    setup.redis.save().await;
    setup.redis.restart_from_rdb().await;
    eventually(RECOVERY, async || setup.get(X).await.is_hit()).await;

    stop.notify_one();
    assert!(poller.await.expect("no error during the restarts") > 0);
}

#[tokio::test]
async fn an_open_breaker_costs_nothing() {
    let setup = filled().await;
    setup.redis.stop();
    poll_through(&setup, PROBES).await;

    let mut took = Vec::new();
    for _ in 0..PROBES {
        took.push(timed(&setup, X).await.1);
    }

    // The median, because a probe for the return of Redis may cost one of them the budget.
    took.sort_unstable();
    assert!(took[PROBES / 2] < NOTHING, "{took:?}");
}

#[tokio::test]
async fn writes_pass_while_redis_is_gone() {
    let mut setup = filled().await;
    for fault in ["frozen", "killed"] {
        if fault == "frozen" {
            setup.redis.stop();
        } else {
            setup.redis.kill();
        }
        let start = Instant::now();
        let write = setup.sidecar.put(X).await;
        assert_eq!(write.status, StatusCode::OK, "{fault}");
        assert!(start.elapsed() < 2 * PATIENCE, "{fault}: {:?}", start.elapsed());
        assert_eq!(setup.get(X).await.text(), write.text(), "{fault}");
    }
}

#[tokio::test]
async fn a_write_acknowledged_while_redis_is_frozen_is_never_followed_by_an_old_body() {
    let setup = filled().await;
    setup.redis.stop();

    assert_eq!(setup.sidecar.put(X).await.status, StatusCode::OK);

    for _ in 0..PROBES {
        setup.get(X).await.assert(200, &version("x1", 1));
    }
    // Redis resumes with the old entry: it must be gone before a hit is possible.
    setup.redis.cont();
    eventually(RECOVERY, async || {
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 1));
        reply.is_hit()
    })
    .await;
    assert_eq!(setup.redis.get(&key("x1")).await, Some(version("x1", 1).into_bytes()));
}

#[tokio::test]
async fn a_write_acknowledged_while_redis_is_dead_reaches_the_entry_of_a_snapshot() {
    let mut setup = filled().await;
    setup.redis.save().await;
    setup.redis.kill();

    assert_eq!(setup.sidecar.put(X).await.status, StatusCode::OK);

    brings_back_nothing_old(&mut setup).await;
}

/// Restarts Redis from its snapshot: hits come back, and have the newest version from the first one
/// on.
async fn brings_back_nothing_old(setup: &mut Setup) {
    setup.redis.restart_from_rdb().await;
    eventually(RECOVERY, async || {
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 1));
        reply.is_hit()
    })
    .await;
}

#[tokio::test]
async fn a_write_confirmed_before_a_crash_is_not_undone_by_the_snapshot_before_it() {
    let mut setup = filled().await;
    setup.redis.save().await;
    setup.sidecar.put(X).await;
    setup.get(X).await.assert(200, &version("x1", 1));

    brings_back_nothing_old(&mut setup).await;
}

#[tokio::test]
async fn a_fill_whose_redis_dies_under_it_answers_its_reader() {
    for is_frozen in [true, false] {
        let mut setup = Setup::with(|config| config.store.budget = BUDGET).await;
        let gate = setup.upstream.hold_after_read(Method::GET, X);
        let reader = setup.sidecar.client.start(Method::GET, X, "").await;
        gate.arrived(1).await;
        if is_frozen {
            setup.redis.stop();
        } else {
            setup.redis.kill();
        }

        gate.release();

        assert_eq!(reader.answer().await, (200, version("x1", 0)), "frozen: {is_frozen}");
    }
}

#[tokio::test]
async fn a_redis_that_refuses_writes_is_no_error_and_never_leaves_an_old_body() {
    let setup = filled().await;
    let full = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1").to_owned();
    let () = setup.redis.run(&full).await;
    for round in 1..=3 {
        assert_eq!(setup.sidecar.put(X).await.status, StatusCode::OK);
        setup.get(X).await.assert(200, &version("x1", round));
    }

    let () = setup.redis.run(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("0")).await;

    setup.hit(X).await.assert(200, &version("x1", 3));
}

#[tokio::test]
async fn a_herd_without_redis_costs_four_upstream_reads_at_a_time() {
    let setup = Setup::cold(RedisServer::absent(), |config| config.store.budget = BUDGET).await;
    let gate = setup.upstream.hold(Method::GET, X);
    let mut readers = Vec::new();
    for _ in 0..100 {
        readers.push(setup.sidecar.client.start(Method::GET, X, "").await);
    }
    gate.arrived(1).await;
    setup.exchange().await;

    gate.release();

    for reader in readers {
        assert_eq!(reader.answer().await, (200, version("x1", 0)));
    }
    let peak = setup.upstream.peak_reads(X);
    assert!(peak <= 4, "{peak} simultaneous reads");
}

#[tokio::test]
async fn a_reader_without_redis_never_joins_a_read_that_began_before_him() {
    let setup = Setup::cold(RedisServer::absent(), |config| config.store.budget = BUDGET).await;
    let gate = setup.upstream.hold_after_read(Method::GET, X);
    let early = setup.sidecar.client.start(Method::GET, X, "").await;
    gate.arrived(1).await;
    // Through another sidecar, so that this sidecar does not detach the read in progress.
    setup.upstream.commit("x1");

    let late = setup.sidecar.client.start(Method::GET, X, "").await;
    setup.exchange().await;
    gate.release_one();

    assert_eq!(early.answer().await, (200, version("x1", 0)));
    gate.arrived(2).await;
    gate.release();
    assert_eq!(late.answer().await, (200, version("x1", 1)));
}

#[tokio::test]
async fn a_client_that_hangs_up_while_its_lease_is_asked_for_leaves_none() {
    let setup = Setup::new().await;
    let () = setup.redis.run(redis::cmd("CLIENT").arg("PAUSE").arg(600_000).arg("WRITE")).await;
    let reader = setup.sidecar.client.start(Method::GET, X, "").await;
    eventually(RECOVERY, async || {
        let clients: String = setup.redis.run(redis::cmd("CLIENT").arg("LIST")).await;
        if clients.contains("cmd=evalsha") { Ok(()) } else { Err(clients) }
    })
    .await;

    drop(reader);
    setup.exchange().await;
    let () = setup.redis.run(redis::cmd("CLIENT").arg("UNPAUSE")).await;

    eventually(RECOVERY, async || {
        let lease = setup.redis.get("{job_status:x1}:lease").await;
        if lease.is_none() { Ok(()) } else { Err(lease) }
    })
    .await;
    setup.hit(X).await;
}

#[tokio::test]
async fn a_write_that_began_in_vain_is_confirmed_when_redis_is_back_before_it_ends() {
    let setup = filled().await;
    let gate = setup.upstream.hold(Method::PUT, X);
    setup.redis.stop();
    let recover = async {
        gate.arrived(1).await;
        setup.redis.cont();
        // The round trip shows that Redis is well again.
        setup.redis.get("any").await;
        gate.release();
    };

    let (reply, ()) = tokio::join!(setup.sidecar.put(X), recover);

    assert_eq!(reply.status, StatusCode::OK);
    let status = reply.header("cache-status");
    assert!(!status.contains("pending"), "{status}");
    setup.hit(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn past_the_limit_of_what_is_pending_a_job_is_bypassed_until_all_is_purged() {
    let setup = Setup::with(|config| {
        config.store.budget = BUDGET;
        config.pending.limit = 2;
    })
    .await;
    for id in ["a1", "b1", "c1", "x1"] {
        setup.hit(&format!("/jobs/{id}")).await;
    }
    setup.redis.stop();
    for id in ["a1", "b1", "c1"] {
        setup.sidecar.put(&format!("/jobs/{id}")).await;
    }

    let reply = setup.get("/jobs/c1").await;
    assert!(reply.header("cache-status").contains("pending"), "{reply:?}");
    let reply = setup.get(X).await;
    assert!(
        !reply.header("cache-status").contains("pending"),
        "a job of another slot is pending: {reply:?}"
    );
    let metrics = setup.sidecar.admin.get("/metrics").await;
    assert!(!metrics.text().contains("jobcache_pending_overflows_total 0"));

    // The reads after the purge show that the old entries are gone.
    setup.redis.cont();
    for id in ["a1", "b1", "c1"] {
        setup.hit(&format!("/jobs/{id}")).await.assert(200, &version(id, 1));
    }
}

#[tokio::test]
async fn a_redis_that_refuses_every_script_is_told_of_in_a_few_lines() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let forbid = ["SETUSER", "default", "-evalsha", "-eval"];
    let () = redis.run(redis::cmd("ACL").arg(&forbid)).await;
    let args = ["--upstream", &upstream.url(), "--redis-url", &redis.url()];
    let sidecar = Process::start(&args, &[]).await;
    eventually(SOON, async || sidecar.stderr().contains("store is up")).await;

    for _ in 0..100 {
        assert_eq!(sidecar.client.put(X).await.status, StatusCode::OK);
    }

    let log = sidecar.stderr();
    // The proxy's messages about each write are not counted.
    let lines: Vec<_> = log.lines().filter(|line| !line.contains("a write was answered")).collect();
    assert!(log.contains("unconfirmed") && lines.len() < 20, "{} lines: {lines:#?}", lines.len());
}

#[tokio::test]
async fn a_journal_keeps_what_is_unconfirmed_over_a_restart_of_the_sidecar() {
    for has_journal in [true, false] {
        let (mut redis, upstream) = (RedisServer::start().await, Upstream::start().await);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let journal = dir.path().join("pending.journal").display().to_string();
        let (upstream_url, redis_url) = (upstream.url(), redis.url());
        let args = ["--upstream", &upstream_url, "--redis-url", &redis_url];
        let envs = [("JOBCACHE_PENDING_JOURNAL", &*journal)];
        let envs = if has_journal { &envs[..] } else { &[] };
        let mut first = Process::start(&args, envs).await;
        redis.kill();

        let write = first.client.put(X).await;
        assert!(write.header("cache-status").contains("invalidation-pending"), "{write:?}");
        first.kill();
        let second = Process::start(&args, envs).await;

        let reply = second.client.get(X).await;
        let status = reply.header("cache-status");
        assert_eq!(status.contains("detail=pending"), has_journal, "{status}");
        redis.restart_empty().await;
        eventually(SOON, async || {
            let ready = second.admin.get("/readyz").await.json();
            if ready["store"] == "up" && ready["pending_invalidations"] == 0 {
                Ok(())
            } else {
                Err(ready)
            }
        })
        .await;
        eventually(SOON, async || second.client.get(X).await.is_hit()).await;
        if has_journal {
            assert_eq!(std::fs::read_to_string(&journal).expect("a journal"), "");
        }
    }
}

#[tokio::test]
async fn a_full_redis_is_connected_to_and_its_key_of_fingerprints_is_kept() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    let full = |bytes: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("maxmemory").arg(bytes);
        command
    };
    let () = setup.redis.run(&full("1")).await;
    // A sidecar that starts now cannot store anything, but still reads existing entries.
    let second = setup.second_cold().await;
    eventually(SOON, async || second.get(X).await.is_hit()).await;
    let () = setup.redis.run(&full("0")).await;
}
