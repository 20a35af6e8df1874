//! Several sidecars on one Redis.

use futures_util::future::join_all;
use hyper::Method;

use crate::support::{SOON, Setup, eventually, redis::key, upstream::version};

const JOBS: usize = 20;
const VERSIONS: u64 = 5;
const POLLS: usize = 10;

/// 1,000 polls of 20 jobs through two sidecars, all the polls of a version at once.
#[tokio::test]
async fn two_sidecars_read_the_upstream_once_for_each_version() {
    let setup = Setup::new().await;
    let second = setup.second().await;
    let paths: Vec<String> = (0..JOBS).map(|job| format!("/jobs/{job}")).collect();
    let reads = || paths.iter().map(|path| setup.upstream.reads(path)).sum::<usize>();
    for round in 0..VERSIONS {
        let polls = paths.iter().flat_map(|path| {
            (0..POLLS).map(|poll| if poll % 2 == 0 { &setup.sidecar } else { &second }.get(path))
        });
        for (at, reply) in join_all(polls).await.into_iter().enumerate() {
            reply.assert(200, &version(&(at / POLLS).to_string(), round));
        }
        join_all(paths.iter().map(|path| second.put(path))).await;
    }
    let expected = JOBS * usize::try_from(VERSIONS).unwrap();
    let reads = reads();
    println!("{} polls, {reads} upstream reads", expected * POLLS);
    // A sidecar waits 250 ms for the other's fill; a machine that stalls for longer costs a read.
    assert!((expected..=expected + 2).contains(&reads), "{reads} reads for {expected} versions");
}

#[tokio::test]
async fn another_sidecars_read_that_takes_too_long_is_not_waited_for() {
    let setup = Setup::new().await;
    let second = setup.second().await;
    let gate = setup.upstream.hold(Method::GET, "/jobs/x1");
    let slow = setup.sidecar.client.start(Method::GET, "/jobs/x1", "").await;
    gate.arrived(1).await;

    // The gate holds the second sidecar's own read as well; its arrival shows that it was made.
    let impatient = second.client.start(Method::GET, "/jobs/x1", "").await;
    gate.arrived(2).await;
    assert!(!setup.redis.holds(&key("x1")).await);
    gate.release();

    assert_eq!((slow.answer().await.0, impatient.answer().await.0), (200, 200));
    eventually(SOON, async || second.get("/jobs/x1").await.is_hit()).await;
}
