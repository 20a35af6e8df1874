//! How long a read waits for another client's read of the same job: the bounds of promise 3 in
//! `docs/guarantee.md`. Each test prints its measured figure.

#![allow(clippy::print_stdout, reason = "the tests print their figures")]

use std::time::Duration;

use futures_util::future::join_all;
use hyper::Method;
use tokio::time::{Instant, sleep};

use crate::support::{RedisServer, Reply, SOON, Setup, eventually, sidecar::Sidecar};

const X: &str = "/jobs/x1";

/// Time that the API takes for a read.
const API: Duration = Duration::from_millis(400);

/// Most that a reader waits for the start of its own read without a confirmed lookup.
const NEXT: Duration = Duration::from_millis(50);

/// Most that a read that never answers delays another one.
const HANG: Duration = Duration::from_secs(1);

/// Time that a busy machine may add to a bound.
const SLACK: Duration = Duration::from_millis(200);

async fn timed(sidecar: &Sidecar, path: &str, who: &str) -> (Reply, Duration) {
    let start = Instant::now();
    let request = sidecar.client.request(Method::GET, path).header("authorization", who);
    let reply = request.send().await;
    assert_eq!(reply.status, 200, "{reply:?}");
    (reply, start.elapsed())
}

/// Returns median and maximum, and prints them.
fn figures(what: &str, mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    let [median_ms, most_ms] = [median, most].map(|time| time.as_millis());
    println!("{what}: median {median_ms} ms, most {most_ms} ms of {}", times.len());
    (median, most)
}

/// Clients that poll without a pause. None waits for a read that began before its own.
async fn check_polls(setup: &Setup, detail: &str) {
    setup.upstream.forget_requests();
    let poll = async |_| {
        let mut times = Vec::new();
        for _ in 0..4 {
            let (reply, time) = timed(&setup.sidecar, X, "alice").await;
            assert!(reply.cache_status().contains(detail), "{reply:?}");
            times.push(time);
        }
        times
    };
    let times = join_all((0..20).map(poll)).await.concat();
    let (median, most) = figures(&format!("20 pollers, {detail}"), times);
    assert!(median <= API + NEXT + SLACK, "{median:?}");
    assert!(most < 2 * API, "{most:?} is as long as two reads");
    let (reads, peak) = (setup.upstream.reads(X), setup.upstream.peak_reads(X));
    println!("{reads} upstream reads, {peak} at a time");
    assert!(reads <= 20 && peak <= 4, "{reads} reads, {peak} at a time");
}

#[tokio::test]
async fn with_redis_killed_a_poll_takes_its_own_read_and_50_ms() {
    let mut setup = Setup::new().await;
    setup.redis.kill();
    eventually(SOON, async || setup.get(X).await.cache_status().contains("store-down")).await;
    setup.upstream.slow_down(API);
    check_polls(&setup, "detail=store-down").await;
}

#[tokio::test]
async fn with_redis_down_polls_that_come_at_any_time_do_not_queue_for_a_whole_read() {
    let setup = Setup::cold(RedisServer::absent(), |_| {}).await;
    setup.upstream.slow_down(API);
    let poll = async |poller: u32| {
        sleep(API * poller / 7).await;
        let mut times = Vec::new();
        for turn in 0..5 {
            times.push(timed(&setup.sidecar, X, "alice").await.1);
            sleep(API * ((poller + turn) % 5) / 4).await;
        }
        times
    };
    let times = join_all((0..10).map(poll)).await.concat();
    let (median, most) = figures("10 pollers at any time", times);
    let (reads, peak) = (setup.upstream.reads(X), setup.upstream.peak_reads(X));
    println!("{reads} upstream reads, {peak} at a time");
    assert!(median <= API + 2 * NEXT + SLACK && most < 2 * API + SLACK / 2, "{median:?}, {most:?}");
    assert!(peak <= 4, "{peak} at a time");
}

#[tokio::test]
async fn within_settle_a_poll_takes_its_own_read_and_50_ms() {
    let setup = Setup::with(|config| config.cache.settle = Duration::from_mins(1)).await;
    setup.sidecar.put(X).await;
    setup.upstream.slow_down(API);
    check_polls(&setup, "detail=fenced").await;
}

#[tokio::test]
async fn without_redis_four_reads_run_at_a_time_and_one_more_starts_each_second() {
    let setup = Setup::cold(RedisServer::absent(), |_| {}).await;
    let gate = setup.upstream.hold(Method::GET, X);
    let mut readers = Vec::new();
    for reads in 1..=4 {
        readers.push(setup.sidecar.client.start(Method::GET, X, "").await);
        gate.arrived(reads).await;
    }
    let since = Instant::now();
    for _ in 0..20 {
        readers.push(setup.sidecar.client.start(Method::GET, X, "").await);
    }
    gate.arrived(5).await;
    let time = since.elapsed();
    println!("the fifth read starts after {time:.0?}");
    assert!(time + SLACK >= HANG && time <= HANG + SLACK, "{time:?}");
    gate.release();
    for reader in readers {
        assert_eq!(reader.answer().await.0, 200);
    }
}

/// Readers that come while `hung` reads of the API never answer: each is answered within a second and
/// its own read.
async fn check_hang(setup: &Setup, sidecar: &Sidecar, hung: usize) {
    let gate = setup.upstream.hold_first(hung, Method::GET, X);
    setup.upstream.slow_down(API);
    let mut lost = Vec::new();
    for reads in 1..=hung {
        lost.push(setup.sidecar.client.start_as(Method::GET, X, "alice").await);
        gate.arrived(reads).await;
    }
    let early = join_all((0..20).map(|_| timed(sidecar, X, "alice"))).await;
    let late = join_all((0..20).map(|_| timed(sidecar, X, "alice"))).await;
    for (what, readers) in [("early", early), ("late", late)] {
        let times = readers.into_iter().map(|(_, time)| time).collect();
        let (_, most) = figures(&format!("{what} readers behind {hung} hung reads"), times);
        assert!(most <= HANG + API + SLACK, "{most:?}");
    }
    let reads = setup.upstream.reads(X);
    println!("{reads} upstream reads");
    assert!(reads <= hung + 12, "{reads}");
}

#[tokio::test]
async fn a_read_that_never_answers_delays_others_by_a_second_at_most() {
    let setup = Setup::new().await;
    check_hang(&setup, &setup.sidecar, 1).await;
}

#[tokio::test]
async fn a_read_that_never_answers_delays_others_by_a_second_at_most_in_another_sidecar() {
    let setup = Setup::new().await;
    let second = setup.second().await;
    check_hang(&setup, &second, 1).await;
}

#[tokio::test]
async fn a_read_that_never_answers_delays_others_by_a_second_at_most_without_redis() {
    let setup = Setup::cold(RedisServer::absent(), |_| {}).await;
    check_hang(&setup, &setup.sidecar, 1).await;
    check_hang(&setup, &setup.sidecar, 3).await;
}

#[tokio::test]
async fn readers_that_joined_a_read_that_never_answers_share_another_one() {
    let setup = Setup::cold(RedisServer::absent(), |_| {}).await;
    let gate = setup.upstream.hold_first(2, Method::GET, X);
    let _first = setup.sidecar.client.start_as(Method::GET, X, "alice").await;
    gate.arrived(1).await;
    // One of these leads the second read, and the others wait for it.
    let mut readers: Vec<_> =
        (0..10).map(|_| Box::pin(timed(&setup.sidecar, X, "alice"))).collect();
    for _ in 1..10 {
        let ((_, time), _, rest) = futures_util::future::select_all(readers).await;
        assert!(time <= HANG + SLACK, "{time:?}");
        readers = rest;
    }
    let reads = setup.upstream.reads(X);
    assert!(reads <= 5, "{reads}");
}

/// The first read of the API times out while a later one, which takes longer than the rest of that time,
/// is under way.
#[tokio::test]
async fn followers_of_a_read_that_times_out_share_the_next_one() {
    const TIMEOUT: Duration = Duration::from_millis(1500);
    const SLOW: Duration = Duration::from_secs(1);
    let setup = Setup::with(|config| config.upstream.response_timeout = TIMEOUT).await;
    let gate = setup.upstream.hold_first(1, Method::GET, X);
    setup.upstream.slow_down(SLOW);
    let _lost = setup.sidecar.client.start_as(Method::GET, X, "alice").await;
    gate.arrived(1).await;
    let readers = join_all((0..30).map(|_| timed(&setup.sidecar, X, "alice"))).await;
    let times = readers.into_iter().map(|(_, time)| time).collect();
    let (_, most) = figures("readers behind a read that times out", times);
    assert!(most <= HANG + SLOW + SLACK, "{most:?}");
    let reads = setup.upstream.reads(X);
    assert!(reads <= 3, "{reads}");
}

/// Every read that the followers join ends without an answer.
#[tokio::test]
async fn followers_of_reads_that_end_without_an_answer_share_another_one_each_time() {
    const TIMEOUT: Duration = Duration::from_millis(400);
    for setup in [
        Setup::with(|config| config.upstream.response_timeout = TIMEOUT).await,
        Setup::cold(RedisServer::absent(), |config| config.upstream.response_timeout = TIMEOUT)
            .await,
    ] {
        let _gate = setup.upstream.hold_first(2, Method::GET, X);
        let replies = join_all((0..30).map(|_| setup.get(X))).await;
        let answered = replies.iter().filter(|reply| reply.status == 200).count();
        assert!(answered >= 28, "{answered}: {replies:?}");
        let reads = setup.upstream.reads(X);
        assert!(reads <= 6, "{reads}");
    }
}

#[tokio::test]
async fn another_callers_read_is_not_waited_for_and_the_answer_admits_the_caller() {
    let setup = Setup::new().await;
    setup.upstream.slow_down(API);
    let mut times = Vec::new();
    for job in 1..=5 {
        let path = format!("/jobs/{job}");
        let alice = timed(&setup.sidecar, &path, "alice");
        let bob = async {
            eventually(SOON, async || setup.upstream.reads(&path) == 1).await;
            timed(&setup.sidecar, &path, "bob").await
        };
        let (_, (reply, time)) = tokio::join!(alice, bob);
        assert!(reply.cache_status().contains("detail=leased"), "{reply:?}");
        times.push(time);
        let meta = format!("{{job_status:{job}}}:meta");
        eventually(SOON, async || {
            let meta = setup.redis.get(&meta).await.unwrap_or_default();
            let members = String::from_utf8_lossy(&meta).matches('@').count();
            if members == 2 { Ok(()) } else { Err(members) }
        })
        .await;
        for who in ["alice", "bob"] {
            assert!(timed(&setup.sidecar, &path, who).await.0.is_hit(), "{who}");
        }
        assert_eq!(setup.upstream.reads(&path), 2);
    }
    let (median, _) = figures("the second of two callers", times);
    assert!(median <= API + Duration::from_millis(20) + SLACK / 2, "{median:?}");
}

#[tokio::test]
async fn the_read_of_another_sidecar_is_waited_for_until_ones_own_ends() {
    let setup = Setup::new().await;
    let second = setup.second().await;
    setup.upstream.slow_down(API);
    let mut times = Vec::new();
    for job in 1..=5 {
        let path = format!("/jobs/{job}");
        let first = timed(&setup.sidecar, &path, "alice");
        let other = async {
            eventually(SOON, async || setup.upstream.reads(&path) == 1).await;
            join_all((0..10).map(|_| timed(&second, &path, "alice"))).await
        };
        let (_, readers) = tokio::join!(first, other);
        times.extend(readers.into_iter().map(|(_, time)| time));
        assert_eq!(setup.upstream.reads(&path), 2);
    }
    let (median, _) = figures("readers in the second sidecar", times);
    assert!(median <= API + SLACK / 2, "{median:?}");
}

#[tokio::test]
async fn a_lease_that_is_about_to_be_released_delays_nobody() {
    let setup = Setup::new().await;
    setup.upstream.only_known(&["other1"]);
    let mut times = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        assert_eq!(setup.get(X).await.status, 404);
        times.push(start.elapsed());
    }
    let (_, most) = figures("polls of an unknown job", times);
    assert!(most < Duration::from_millis(150), "{most:?}");
    assert_eq!(setup.upstream.reads(X), 50);
}

#[tokio::test]
async fn callers_who_come_back_after_a_hang_are_cached_again() {
    let setup = Setup::with(|config| config.store.lease = Duration::from_secs(2)).await;
    let gate = setup.upstream.hold_first(1, Method::GET, X);
    let _lost = setup.sidecar.client.start_as(Method::GET, X, "alice").await;
    gate.arrived(1).await;
    let since = Instant::now();
    eventually(SOON, async || {
        sleep(Duration::from_millis(50)).await;
        timed(&setup.sidecar, X, "alice").await.0.is_hit()
    })
    .await;
    println!("hits are back after {:.1?}", since.elapsed());
}
