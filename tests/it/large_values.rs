//! Values that take longer to transfer than a read may wait for Redis: they are left alone, and no
//! other job notices.

use std::time::Duration;

use futures_util::future::join_all;
use jobcache::config::{Config, NearMode, StoreUrl};
use tokio::time::Instant;

use crate::support::{
    RedisServer, Reply, SOON, Setup, eventually, redis::key, relay::Relay, sidecar::Sidecar,
};

const BIG: &str = "/jobs/big1";
/// 72 ms at 100 Mbit/s.
const SIZE: usize = 900_000;
/// The default of the product.
const BUDGET: Duration = Duration::from_millis(50);
/// Time for an exchange with the upstream in addition, by the `steady_clock`.
const EXCHANGE: Duration = Duration::from_millis(30);
/// How long such a value is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(10);
const NEIGHBOURS: usize = 8;

fn big() -> String {
    let mut random = fastrand::Rng::with_seed(7);
    (0..SIZE).map(|_| random.alphanumeric()).collect()
}

fn neighbour(number: usize) -> String {
    format!("/jobs/small{number}")
}

/// A sidecar with a relay between it and Redis, and its neighbours in the cache.
async fn relayed(near: NearMode) -> (Setup, Relay) {
    let redis = RedisServer::start().await;
    let relay = Relay::start(redis.port()).await;
    let setup = Setup::cold(redis, |config: &mut Config| {
        config.cache.limits.max_body = 1 << 20;
        config.cache.near.mode = near;
        config.store.budget = BUDGET;
        config.store.url = StoreUrl::Redis(relay.redis_url());
    })
    .await;
    setup.upstream.set("big1", 200, big());
    for number in 0..NEIGHBOURS {
        setup.hit(&neighbour(number)).await;
    }
    (setup, relay)
}

async fn timed(setup: &Setup, path: &str) -> (Reply, Duration) {
    let start = Instant::now();
    let reply = setup.get(path).await;
    (reply, start.elapsed())
}

/// Polls of the large job and its neighbours.
struct Polls {
    /// The statuses of the large job, and the times of its polls.
    big: Vec<(String, Duration)>,
    /// The longest poll of a neighbour.
    slowest: Duration,
    /// Polls of neighbours that were no hits.
    lost: Vec<String>,
}

/// Polls the large job and its neighbours at the same time for so long. Redis is another process, which a
/// busy machine may delay for longer than the budget, so there are three attempts.
async fn poll(setup: &Setup, time: Duration) -> (Vec<(String, Duration)>, Duration) {
    let mut polls = poll_once(setup, time).await;
    for _ in 0..2 {
        if !polls.lost.is_empty() {
            eprintln!("once more: {:?}", polls.lost);
            polls = poll_once(setup, time).await;
        }
    }
    let Polls { big, slowest, lost } = polls;
    assert!(lost.is_empty(), "{lost:?}");
    (big, slowest)
}

async fn poll_once(setup: &Setup, time: Duration) -> Polls {
    let start = Instant::now();
    let mut polls = Polls { big: Vec::new(), slowest: Duration::ZERO, lost: Vec::new() };
    let body = big();
    while start.elapsed() < time {
        let neighbours = (0..NEIGHBOURS).map(async |number| {
            let (mut slowest, mut lost) = (Duration::ZERO, Vec::new());
            for _ in 0..4 {
                let (reply, took) = timed(setup, &neighbour(number)).await;
                if !reply.is_hit() {
                    lost.push(format!("a neighbour after {:?}: {reply:?}", start.elapsed()));
                }
                slowest = slowest.max(took);
            }
            (slowest, lost)
        });
        let big_poll = timed(setup, BIG);
        let (neighbours, (reply, big_took)) = tokio::join!(join_all(neighbours), big_poll);
        for (slowest, lost) in neighbours {
            polls.slowest = polls.slowest.max(slowest);
            polls.lost.extend(lost);
        }
        assert!(reply.body == body.as_bytes(), "{}", reply.cache_status());
        polls.big.push((reply.cache_status().to_owned(), big_took));
    }
    polls
}

async fn openings(setup: &Setup) -> usize {
    let metrics = setup.sidecar.admin.get("/metrics").await;
    let lines = metrics.text().lines();
    lines
        .filter(|line| line.starts_with("jobcache_breaker_openings_total") && !line.ends_with(" 0"))
        .count()
}

#[tokio::test]
async fn a_value_that_takes_too_long_is_left_alone_and_its_neighbours_lose_no_poll() {
    for (megabits, near) in [(100, NearMode::Off), (10, NearMode::Off), (100, NearMode::Strict)] {
        let (setup, relay) = relayed(near).await;
        relay.megabits(megabits);

        let (polls, slowest) = poll(&setup, LEFT_ALONE + Duration::from_secs(2)).await;

        let longest = polls.iter().map(|(_, took)| *took).max().unwrap_or_default();
        let late: Vec<_> = polls.iter().filter(|(_, took)| *took > BUDGET / 2).collect();
        println!(
            "{megabits} Mbit/s, {near:?}: {} polls, longest {longest:?}, neighbours {slowest:?}; {late:?}",
            polls.len()
        );
        assert!(polls.iter().any(|(status, _)| status.ends_with("detail=store-timeout")));
        assert!(longest <= BUDGET + EXCHANGE && slowest <= BUDGET, "{longest:?}, {slowest:?}");
        // The fill, and a read after ten seconds; a busy machine adds some.
        assert!(late.len() <= 6, "{late:?}");
        assert_eq!(openings(&setup).await, 0);
    }
}

#[tokio::test]
async fn a_large_value_of_another_sidecar_costs_neighbours_nothing_and_is_found_out() {
    for megabits in [100, 10] {
        let (setup, relay) = relayed(NearMode::Off).await;
        // The connection for large values is there already.
        setup.upstream.set("medium1", 200, big().split_off(SIZE - 20_000));
        setup.hit("/jobs/medium1").await;
        let mut config = setup.config().clone();
        config.store.url = StoreUrl::Redis(setup.redis.url());
        config.store.budget = Duration::from_secs(2);
        let other = Sidecar::start(config).await;
        other.warm().await;
        eventually(SOON, async || {
            other.get(BIG).await;
            setup.redis.holds(&key("big1")).await
        })
        .await;
        relay.megabits(megabits);

        let (polls, slowest) = poll(&setup, Duration::from_secs(3)).await;

        let longest = polls.iter().map(|(_, took)| *took).max().unwrap_or_default();
        println!(
            "{megabits} Mbit/s: {} polls, longest {longest:?}, neighbours {slowest:?}",
            polls.len()
        );
        assert!(
            polls.iter().all(|(status, _)| status.ends_with("detail=store-timeout")),
            "{polls:?}"
        );
        assert!(longest <= BUDGET + EXCHANGE && slowest <= BUDGET, "{longest:?}, {slowest:?}");
        assert_eq!(openings(&setup).await, 0);
    }
}
