//! Redis far away, or behind a link that swallows everything: reads and writes wait for it no longer
//! than they may, nothing is old, and the log says so.

use std::time::Duration;

use hyper::{Method, StatusCode};
use jobcache::config::{Config, InvalidateRule, StoreUrl};
use tokio::time::Instant;

use crate::support::{
    Process, RedisServer, Reply, SOON, Setup, Upstream, eventually, redis::key, relay::Relay,
    sidecar::Sidecar, upstream::version,
};

const X: &str = "/jobs/x1";
/// The default of the product, which these tests are about.
const BUDGET: Duration = Duration::from_millis(50);
/// Time for an exchange with the upstream in addition, by the `steady_clock`.
const EXCHANGE: Duration = Duration::from_millis(25);
/// Polls that show that nothing changes any more.
const POLLS: usize = 200;

/// A sidecar with a relay between it and Redis.
async fn relayed(change: impl FnOnce(&mut Config)) -> (Setup, Relay) {
    let redis = RedisServer::start().await;
    let relay = Relay::start(redis.port()).await;
    let setup = Setup::cold(redis, |config| {
        config.store.budget = BUDGET;
        config.store.url = StoreUrl::Redis(relay.redis_url());
        change(config);
    })
    .await;
    (setup, relay)
}

async fn timed(setup: &Setup, method: Method) -> (Reply, Duration) {
    let start = Instant::now();
    let reply = match method {
        Method::GET => setup.get(X).await,
        _ => setup.sidecar.put(X).await,
    };
    (reply, start.elapsed())
}

async fn openings(sidecar: &Sidecar) -> u64 {
    let metrics = sidecar.admin.get("/metrics").await;
    let lines = metrics.text().lines().map(str::to_owned);
    lines
        .filter(|line| line.starts_with("jobcache_breaker_openings_total"))
        .map(|line| line.rsplit_once(' ').expect("a value").1.parse::<u64>().expect("a number"))
        .sum()
}

#[tokio::test]
async fn a_redis_whose_round_trip_fits_into_the_budget_gives_hits() {
    let (setup, relay) = relayed(|_| {}).await;
    setup.hit(X).await;
    relay.round_trip(Duration::from_millis(16));

    for _ in 0..POLLS {
        let (reply, took) = timed(&setup, Method::GET).await;
        assert!(reply.is_hit() && took <= BUDGET, "{took:?}: {reply:?}");
    }

    assert_eq!(openings(&setup.sidecar).await, 0);
}

#[tokio::test]
async fn a_redis_that_is_too_far_away_is_told_of_once_and_costs_a_read_nothing() {
    for round_trip in [40, 60, 200] {
        let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
        let relay = Relay::start(redis.port()).await;
        relay.round_trip(Duration::from_millis(round_trip));
        let args = ["--upstream", &upstream.url(), "--redis-url", &relay.redis_url()];
        let sidecar = Process::start(&args, &[]).await;
        eventually(SOON, async || sidecar.stderr().contains("store is up")).await;

        let mut took = Vec::new();
        let begin = Instant::now();
        // Longer than the interval between two looks whether it is near again.
        while took.len() < POLLS || begin.elapsed() < Duration::from_secs(6) {
            let start = Instant::now();
            let reply = sidecar.client.get(X).await;
            took.push(start.elapsed());
            reply.assert(200, &version("x1", 0));
            assert!(reply.cache_status().ends_with("detail=store-slow"), "{reply:?}");
        }

        took.sort_unstable();
        assert!(took[took.len() / 2] < Duration::from_millis(25), "{round_trip}: {took:?}");
        let log = sidecar.stderr();
        let lines = |word: &str| log.lines().filter(|line| line.contains(word)).count();
        assert_eq!(lines("too far away"), 1, "{log}");
        assert_eq!((lines("store is up"), lines("store is down")), (1, 0), "{log}");
        for word in ["WARN", "round_trip_ms=", "budget_ms=50", "set store.budget to "] {
            assert!(log.contains(word), "{word}: {log}");
        }
        assert_eq!(sidecar.admin.metric("jobcache_breaker_open").await, 1);
        let status = sidecar.admin.get("/status").await.json();
        let (breaker, problem) = (&status["store"]["breaker"], &status["store"]["problem"]);
        assert_eq!((breaker, &problem["kind"]), (&"open".into(), &"far".into()), "{status}");
        let remedy = problem["remedy"].as_str().expect("a remedy");
        assert!(log.contains(remedy) && remedy.contains("set store.budget to "), "{remedy}");

        let (_, budget) = log.split_once("set store.budget to ").expect("a remedy");
        let budget = budget.split_once('"').expect("the end of the remedy").0;
        let remedied =
            Process::start(&[&args[..], &["--store-budget", budget]].concat(), &[]).await;
        eventually(SOON, async || remedied.client.get(X).await.is_hit()).await;
        assert!(!remedied.stderr().contains("too far away"), "{budget}: {}", remedied.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_that_redis_is_too_far_away_and_what_to_set() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let relay = Relay::start(redis.port()).await;
    let args = ["check", "--upstream", &upstream.url(), "--redis-url", &relay.redis_url()];
    let (_, near, _) = Process::output(&args, &[]);
    assert!(near.contains(": reachable") && !near.contains("too far"), "{near}");

    relay.round_trip(Duration::from_millis(60));
    let (code, far, _) = Process::output(&args, &[]);

    assert_eq!(code, 0, "{far}");
    for word in
        ["reachable, but too far away", "a round trip takes 6", "(50ms)", "set store.budget to "]
    {
        assert!(far.contains(word), "{word}: {far}");
    }
}

#[tokio::test]
async fn a_redis_that_moves_away_and_comes_back_is_never_lost() {
    for round_trip in [40, 60, 200] {
        let (setup, relay) = relayed(|_| {}).await;
        setup.hit(X).await;

        relay.round_trip(Duration::from_millis(round_trip));
        let mut slowest = Duration::ZERO;
        eventually(SOON, async || {
            let (reply, took) = timed(&setup, Method::GET).await;
            slowest = slowest.max(took);
            reply.cache_status().ends_with("store-slow")
        })
        .await;
        assert!(slowest <= BUDGET + EXCHANGE, "{round_trip}: {slowest:?}");
        for _ in 0..POLLS {
            let reply = setup.get(X).await;
            assert!(reply.cache_status().ends_with("store-slow"), "{reply:?}");
        }

        relay.round_trip(Duration::ZERO);
        setup.hit(X).await.assert(200, &version("x1", 0));
        assert_eq!(openings(&setup.sidecar).await, 0, "{round_trip}");
    }
}

#[tokio::test]
async fn a_write_through_a_sidecar_far_from_redis_invalidates_for_all() {
    let (setup, relay) = relayed(|_| {}).await;
    let near = {
        let mut config = setup.config().clone();
        config.store.url = StoreUrl::Redis(setup.redis.url());
        config.store.budget = Duration::from_secs(2);
        Sidecar::start(config).await
    };
    near.warm().await;
    relay.round_trip(Duration::from_millis(60));
    eventually(SOON, async || setup.get(X).await.cache_status().ends_with("store-slow")).await;
    eventually(SOON, async || near.get(X).await.is_hit()).await;

    let (write, took) = timed(&setup, Method::PUT).await;

    assert_eq!(write.status, StatusCode::OK);
    assert!(took <= 2 * BUDGET + EXCHANGE, "{took:?}");
    eventually(SOON, async || {
        let ready = setup.sidecar.admin.get("/readyz").await.json();
        if ready["pending_invalidations"] == 0 { Ok(()) } else { Err(ready) }
    })
    .await;
    assert_ne!(setup.redis.get(&key("x1")).await, Some(version("x1", 0).into_bytes()));
    near.get(X).await.assert(200, &version("x1", 1));

    let purge = setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;
    assert_eq!(purge.status, StatusCode::OK, "a purge has time for the round trip: {purge:?}");
    assert_eq!(openings(&setup.sidecar).await, 0);
}

/// Ways in which Redis does not answer.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Stopped,
    Swallowed,
    Late,
    Killed,
}

impl Fault {
    const ALL: [Self; 4] = [Self::Stopped, Self::Swallowed, Self::Late, Self::Killed];

    fn strike(self, setup: &mut Setup, relay: &Relay) {
        match self {
            Self::Stopped => setup.redis.stop(),
            Self::Swallowed => relay.swallow(),
            Self::Late => relay.round_trip(3 * BUDGET),
            Self::Killed => setup.redis.kill(),
        }
    }
}

#[tokio::test]
async fn a_write_waits_for_two_budgets_at_most_whatever_redis_does() {
    for fault in Fault::ALL {
        for changes_all in [false, true] {
            let (mut setup, relay) = relayed(|config| {
                let rule = InvalidateRule {
                    path: "/jobs/{id}".to_owned(),
                    all: true,
                    ..InvalidateRule::default()
                };
                config.api.invalidate.extend(changes_all.then_some(rule));
            })
            .await;
            setup.hit(X).await;
            fault.strike(&mut setup, &relay);
            let mut slowest = Duration::ZERO;
            for _ in 0..4 {
                let (reply, took) = timed(&setup, Method::PUT).await;
                assert_eq!(reply.status, StatusCode::OK, "{fault:?}");
                slowest = slowest.max(took);
            }
            println!("{fault:?}, all: {changes_all}: slowest write {slowest:?}");
            assert!(slowest <= 2 * BUDGET + EXCHANGE, "{fault:?}: {slowest:?}");
            setup.get(X).await.assert(200, &version("x1", 4));
        }
    }
}

#[tokio::test]
async fn a_read_waits_for_one_budget_at_most_whatever_redis_does() {
    for fault in Fault::ALL {
        let (mut setup, relay) = relayed(|_| {}).await;
        setup.hit(X).await;
        fault.strike(&mut setup, &relay);
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let (reply, took) = timed(&setup, Method::GET).await;
            reply.assert(200, &version("x1", 0));
            slowest = slowest.max(took);
        }
        println!("{fault:?}: slowest read {slowest:?}");
        assert!(slowest <= BUDGET + EXCHANGE, "{fault:?}: {slowest:?}");
    }
}
