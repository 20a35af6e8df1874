//! A Redis that is shared with other applications and short of memory: what jobcache asks of it,
//! and what happens when it is full.

use std::time::Duration;

use hyper::{Method, StatusCode};
use jobcache::config::NearMode;

use crate::support::{
    Process, RedisServer, SOON, Setup, Upstream, eventually, redis::key, upstream::version,
};

const X: &str = "/jobs/x1";

/// Number of foreign keys.
const FOREIGN: usize = 200_000;
/// Longest average time of one step of `SCAN`, by the statistics of Redis.
const STEP: Duration = Duration::from_millis(20);

async fn calls(redis: &RedisServer, command: &str) -> u64 {
    let info: String = redis.run(redis::cmd("INFO").arg("commandstats")).await;
    let prefix = format!("cmdstat_{command}:calls=");
    let line = info.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or("0,");
    line.split(',').next().and_then(|calls| calls.parse().ok()).unwrap_or(0)
}

/// Returns the average time that a command takes in Redis.
async fn busy(redis: &RedisServer, command: &str) -> Duration {
    let info: String = redis.run(redis::cmd("INFO").arg("commandstats")).await;
    let prefix = format!("cmdstat_{command}:");
    let line = info.lines().find_map(|line| line.strip_prefix(&prefix)).expect("it was called");
    let each = line.split(',').find_map(|field| field.strip_prefix("usec_per_call="));
    let micros: f64 = each.and_then(|us| us.parse().ok()).expect("a number");
    Duration::from_secs_f64(micros / 1e6)
}

async fn config_set(redis: &RedisServer, name: &str, value: &str) {
    let () = redis.run(redis::cmd("CONFIG").arg("SET").arg(name).arg(value)).await;
}

async fn purge_all(setup: &Setup) -> StatusCode {
    let purge = setup.sidecar.admin.request(Method::POST, "/purge").body(r#"{"all":true}"#);
    purge.send().await.status
}

#[tokio::test]
async fn only_a_purge_of_all_scans_and_nothing_lists_all_keys() {
    let setup = Setup::with(|config| config.store.prefix = "a*[b]?:".into()).await;
    setup.redis.set("a-stranger:x", b"1").await;
    setup.redis.set("ab:x", b"1").await;
    setup.hit(X).await;
    setup.sidecar.put(X).await;
    setup.hit(X).await;
    setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;
    setup.sidecar.admin.get("/explain/x1").await;
    setup.sidecar.admin.get("/status").await;
    setup.hit(X).await;
    assert_eq!(calls(&setup.redis, "scan").await, 0);

    assert_eq!(purge_all(&setup).await, StatusCode::OK);

    for command in ["keys", "flushall", "flushdb", "randomkey", "dbsize"] {
        assert_eq!(calls(&setup.redis, command).await, 0, "{command}");
    }
    eventually(SOON, async || calls(&setup.redis, "scan").await > 0).await;
    eventually(SOON, async || setup.redis.get("a*[b]?:x1").await.is_none()).await;
    assert!(setup.redis.get("a-stranger:x").await.is_some());
    assert!(setup.redis.get("ab:x").await.is_some());
}

#[tokio::test]
async fn a_purge_of_all_among_many_foreign_keys_keeps_nobody_waiting() {
    let setup = Setup::new().await;
    // Creates the keys with one script per thousand.
    let mut connection = setup.redis.connection().await;
    let many = "for i = ARGV[1], ARGV[1] + 999 do redis.call('SET', 'foreign:' .. i, 'x') end";
    for first in (0..FOREIGN).step_by(1000) {
        let mut eval = redis::cmd("EVAL");
        let () = eval.arg(many).arg(0).arg(first).query_async(&mut connection).await.unwrap();
    }
    setup.hit(X).await;
    assert_eq!(purge_all(&setup).await, StatusCode::OK);
    assert!(!setup.get(X).await.is_hit(), "before it is deleted, too");
    // Redis serves other clients between two steps. One PING may take several steps when the machine is
    // slow to wake its sender, so a busy machine has three attempts.
    let (mut pings, mut scans) = (0, 0);
    for _ in 0..3 {
        (pings, scans) = pings_during_sweep(&setup).await;
        if pings >= scans / 4 {
            break;
        }
    }
    let step = busy(&setup.redis, "scan").await;
    eprintln!("{pings} PINGs during {scans} SCANs of {step:?} each over {FOREIGN} keys");
    assert!(pings >= scans / 4, "{pings} PINGs during {scans} SCANs");
    assert!(step < STEP, "{step:?}");
    let left: usize = setup.redis.run(&redis::cmd("DBSIZE")).await;
    assert!(left >= FOREIGN, "{left}");
}

/// Purges all, and returns how often another client is answered until that has deleted a key, and in how
/// many steps.
async fn pings_during_sweep(setup: &Setup) -> (u64, u64) {
    let mut other = setup.redis.connection().await;
    setup.redis.set("job_status:swept", b"1").await;
    let before = calls(&setup.redis, "scan").await;
    assert_eq!(purge_all(setup).await, StatusCode::OK);
    let mut swept = std::pin::pin!(eventually(SOON, async || {
        setup.redis.get("job_status:swept").await.is_none()
    }));
    let mut pings = 0;
    loop {
        let ping = async {
            let () = redis::cmd("PING").query_async(&mut other).await.expect("a PONG");
        };
        tokio::select! {
            biased;
            () = &mut swept => break,
            () = ping => pings += 1,
        }
    }
    (pings, calls(&setup.redis, "scan").await - before)
}

#[tokio::test]
async fn entries_that_redis_evicts_are_misses_and_the_policy_is_warned_of() {
    let redis = RedisServer::start_with(&["--maxmemory", "4mb"]).await;
    config_set(&redis, "maxmemory-policy", "allkeys-lru").await;
    let upstream = Upstream::start().await;
    let body = "x".repeat(20_000);
    let args = ["--upstream", &upstream.url(), "--redis-url", &redis.url()];
    let args = [&args[..], &["--settle", "0s", "--store-budget", "2s", "--near", "off"]].concat();
    let sidecar = Process::start(&args, &[]).await;
    eventually(SOON, async || sidecar.client.get("/jobs/warm1").await.is_hit()).await;

    for id in 0..200 {
        upstream.set(&id.to_string(), 200, body.clone());
        sidecar.client.get(&format!("/jobs/{id}")).await.assert(200, &body);
    }
    let info: String = redis.run(redis::cmd("INFO").arg("stats")).await;
    assert!(!info.contains("evicted_keys:0\r\n"), "{info}");
    for id in 0..200 {
        sidecar.client.get(&format!("/jobs/{id}")).await.assert(200, &body);
    }
    sidecar.client.put("/jobs/w1").await.assert(200, &version("w1", 1));
    sidecar.client.get("/jobs/w1").await.assert(200, &version("w1", 1));
    assert!(sidecar.stderr().contains("this Redis may evict the fence of a write"));
}

#[tokio::test]
async fn a_full_redis_fails_fills_in_silence_and_takes_writes_and_purges() {
    let setup =
        Setup::with(|config| config.cache.near.mode = jobcache::config::NearMode::Off).await;
    setup.hit(X).await;
    // Redis is full between lease and fill, so it rejects the body.
    let gate = setup.upstream.hold(Method::GET, "/jobs/y1");
    let reader = setup.sidecar.client.start(Method::GET, "/jobs/y1", "").await;
    gate.arrived(1).await;
    config_set(&setup.redis, "maxmemory", "1").await;
    gate.release();
    assert_eq!(reader.answer().await, (200, version("y1", 0)));
    let failed = "jobcache_fills_total{outcome=\"failed\"}";
    eventually(SOON, async || setup.sidecar.admin.metric(failed).await > 0).await;

    // DEL comes first in the begin and the end of a write.
    setup.sidecar.put(X).await.assert(200, &version("x1", 1));
    assert!(!setup.redis.holds(&key("x1")).await);
    setup.get(X).await.assert(200, &version("x1", 1));
    let purge = setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;
    assert_eq!(purge.status, StatusCode::OK, "{purge:?}");
    assert_eq!(purge_all(&setup).await, StatusCode::OK);

    config_set(&setup.redis, "maxmemory", "0").await;
    setup.hit(X).await.assert(200, &version("x1", 1));
}

/// A Redis that evicts may take the meta of an entry and leave its body.
#[tokio::test]
async fn bodies_whose_meta_was_evicted_are_not_taken_for_the_cache_of_an_application() {
    // Only the main key is followed, so an entry in the process would hide the loss.
    let setup = Setup::with(|config| config.cache.near.mode = NearMode::Off).await;
    let has_evicted = async || -> bool {
        let info: String = setup.redis.run(redis::cmd("INFO").arg("stats")).await;
        info.lines().all(|line| line != "evicted_keys:0")
    };
    config_set(&setup.redis, "maxmemory-policy", "allkeys-lru").await;
    let info: String = setup.redis.run(redis::cmd("INFO").arg("memory")).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("it says");
    let limit = used.parse::<usize>().expect("a number") + 300_000;
    config_set(&setup.redis, "maxmemory", &limit.to_string()).await;
    for junk in 0..1_000 {
        setup.redis.set(&format!("junk:{junk}"), &[b'x'; 2_000]).await;
        if has_evicted().await {
            break;
        }
    }
    assert!(has_evicted().await);
    config_set(&setup.redis, "maxmemory", "0").await;
    for round in 0..4 {
        for job in ["x1", "y1", "z1", "x2"] {
            let path = format!("/jobs/{job}");
            setup.hit(&path).await;
            setup.redis.del(&format!("{{job_status:{job}}}:meta")).await;
            let reply = setup.get(&path).await;
            assert!(!reply.cache_status().contains("foreign"), "{round}: {reply:?}");
            assert!(reply.cache_status().contains("stored"), "{round}: {reply:?}");
        }
    }
}
