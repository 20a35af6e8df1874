//! The Redis user of `docs/redis.md`: jobcache works with its rights, and needs each of them.

use std::{collections::HashMap, time::Duration};

use hyper::Method;
use jobcache::config::{Config, StoreUrl};
use tokio::time::timeout;

use crate::support::{
    RedisServer, SOON, Upstream, eventually,
    redis::key,
    sentinel::{Deployment, MASTER},
    sidecar::{Sidecar, config},
    upstream::version,
    within,
};

pub(crate) const REDIS_PAGE: &str = include_str!("../../docs/redis.md");
const X: &str = "/jobs/x1";
pub(crate) const PASSWORD: &str = "a-password";

/// Time limit for something that never happens if a right is missing.
const BRIEF: Duration = Duration::from_millis(1500);
/// Attempts to show that a right is needed.
const LIVES: usize = 5;
/// Number of servers that run at a time.
const AT_A_TIME: usize = 4;

/// Returns the words after `ACL` in the documented line.
pub(crate) fn documented(user: &str) -> Vec<String> {
    let start = format!("ACL SETUSER {user} ");
    let line =
        REDIS_PAGE.lines().find(|line| line.starts_with(&start)).expect("a line of docs/redis.md");
    let words = line.split_whitespace().skip(1);
    words.map(|word| word.replace("PASSWORD", PASSWORD)).collect()
}

fn rights(words: &[String]) -> Vec<&String> {
    words.iter().filter(|word| word.starts_with('+')).collect()
}

pub(crate) async fn set_user(redis: &RedisServer, words: &[String]) {
    let mut acl = redis::cmd("ACL");
    acl.arg(words);
    let () = redis.run(&acl).await;
}

/// Returns the rejected commands.
pub(crate) async fn refused(redis: &RedisServer) -> Vec<String> {
    let log: Vec<HashMap<String, redis::Value>> = redis.run(redis::cmd("ACL").arg("LOG")).await;
    let object = |entry: &HashMap<String, redis::Value>| {
        let object = redis::from_redis_value(entry["object"].clone());
        object.expect("the name of a command")
    };
    log.iter().map(object).collect()
}

async fn sidecar_of(redis: &RedisServer, upstream: &Upstream, words: &[String]) -> Sidecar {
    set_user(redis, words).await;
    let mut config: Config = config(redis, upstream);
    config.store.login.username = Some("jobcache".into());
    config.store.login.password = Some(jobcache::config::Secret::new(PASSWORD));
    config.cache.settle = Duration::from_millis(1);
    // The mark of the epoch needs no further right.
    config.store.reconnect_grace = Duration::from_millis(50);
    Sidecar::start(config).await
}

/// Returns whether a condition becomes true in time.
async fn if_it_will(patience: Duration, look: impl AsyncFnMut() -> bool) -> bool {
    within(patience, look).await.is_ok()
}

/// Makes a sidecar use everything that it needs from Redis. Returns whether all of it worked, each
/// part within `patience`.
async fn live(sidecar: &Sidecar, upstream: &Upstream, patience: Duration) -> bool {
    let as_user = async |user: &str, cache_control: &str| {
        let get = sidecar.client.request(Method::GET, X).header("authorization", user);
        get.header("cache-control", cache_control).send().await
    };
    let mut well = if_it_will(patience, async || sidecar.get(X).await.is_hit()).await;
    well &= if_it_will(patience, async || sidecar.admin.metric("jobcache_tracking_up").await == 1)
        .await;
    // The first hit is kept in the process, and the next one checks whether it is still valid.
    for _ in 0..3 {
        well &= sidecar.get(X).await.is_hit();
    }
    // Another credential is admitted, and a newer body replaces the old one.
    for user in ["a", "b"] {
        well &= if_it_will(patience, async || as_user(user, "max-age=60").await.is_hit()).await;
    }
    upstream.commit("x1");
    as_user("a", "no-cache").await;
    // A lease that is released.
    upstream.set("none1", 404, "");
    sidecar.get("/jobs/none1").await;
    let written = sidecar.put(X).await;
    well &= !written.header("cache-status").contains("pending");
    well &= if_it_will(patience, async || sidecar.get(X).await.is_hit()).await;
    let explained = sidecar.admin.get("/explain/x1").await;
    well &= explained.json()["stored"]["state"] == "entry" || explained.status == 200;
    for purge in [r#"{"job_id":"x1"}"#, r#"{"all":true}"#] {
        let post = sidecar.admin.request(Method::POST, "/purge");
        let reply = timeout(patience * 2, post.body(purge).send()).await;
        well &= reply.is_ok_and(|reply| reply.status == 200);
    }
    well
}

#[tokio::test]
async fn the_documented_user_can_do_everything_and_is_refused_nothing() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let words = documented("jobcache");
    let sidecar = sidecar_of(&redis, &upstream, &words).await;

    assert!(live(&sidecar, &upstream, SOON).await, "{:?}", refused(&redis).await);
    // jobcache asks newer servers for their number of threads, which they may reject.
    let mut refused = refused(&redis).await;
    refused.retain(|command| command != "config|get");
    assert!(refused.is_empty(), "{refused:?}");
    assert!(redis.get("{job_status:}:credential-key").await.is_some());
    // The user has no further rights: not to foreign keys, and not to harmful commands.
    for denied in [&["GET", "other"][..], &["FLUSHALL"], &["KEYS", "*"], &["CONFIG", "GET", "*"]] {
        let mut dry = redis::cmd("ACL");
        dry.arg("DRYRUN").arg("jobcache").arg(denied);
        let said: String = redis.run(&dry).await;
        assert_ne!(said, "OK", "{denied:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_right_of_the_documented_user_is_needed() {
    let words = documented("jobcache");
    let rights = rights(&words);
    assert!(rights.len() > 10, "{rights:?}");
    for some in rights.chunks(AT_A_TIME) {
        futures_util::future::join_all(some.iter().map(|right| lack(right, &words))).await;
    }
}

/// Runs a sidecar with all rights except one, and asserts that Redis rejects the command of that
/// right.
async fn lack(right: &str, words: &[String]) {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let rest: Vec<_> = words.iter().filter(|word| *word != right).cloned().collect();
    let sidecar = sidecar_of(&redis, &upstream, &rest).await;
    let is_it = |command: &String| command.eq_ignore_ascii_case(right.trim_start_matches('+'));
    let is_refused = async || refused(&redis).await.iter().any(is_it);
    // On a slow machine one attempt may be too short to use every right.
    let lives = async {
        for _ in 0..LIVES {
            live(&sidecar, &upstream, BRIEF).await;
        }
    };
    tokio::select! {
        () = lives => {}
        () = eventually(SOON, is_refused) => {}
    }
    let refused = refused(&redis).await;
    // Clients are served whatever rights are missing.
    assert_eq!(sidecar.get(X).await.status, 200, "without {right}");
    assert!(refused.iter().any(is_it), "{right} is not needed: {refused:?}");
}

#[tokio::test]
async fn without_the_rights_that_may_be_missing_the_rest_works() {
    let words = documented("jobcache");
    for (right, tracked) in [("+client|tracking", false), ("+ping", false), ("+scan", true)] {
        let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
        let rest: Vec<_> = words.iter().filter(|word| *word != right).cloned().collect();
        let sidecar = sidecar_of(&redis, &upstream, &rest).await;
        eventually(SOON, async || sidecar.get(X).await.is_hit()).await;
        sidecar.put(X).await.assert(200, &version("x1", 1));
        eventually(SOON, async || sidecar.get(X).await.is_hit()).await;
        if tracked {
            eventually(SOON, async || sidecar.admin.metric("jobcache_tracking_up").await == 1)
                .await;
        }
        let all = sidecar.admin.request(Method::POST, "/purge").body(r#"{"all":true}"#);
        assert_eq!(all.send().await.status, 200, "without {right}");
        assert!(!sidecar.get(X).await.is_hit(), "without {right}");
    }
}

#[tokio::test]
async fn sentinels_and_redis_may_each_have_a_user_of_their_own() {
    let (mut redis, upstream) = (Deployment::start().await, Upstream::start().await);
    for node in &redis.nodes {
        set_user(node, &documented("jobcache")).await;
    }
    for sentinel in &redis.sentinels {
        let mut acl = redis::cmd("ACL");
        acl.arg(documented("jobcache-sentinel"));
        let () = sentinel.ask(&acl).await.expect("a sentinel of 6.2 or newer");
    }
    let mut config = config(&RedisServer::absent(), &upstream);
    let hosts = redis.sentinels.iter().take(1);
    config.store.url = StoreUrl::Sentinel(Box::new(jobcache::config::Sentinels {
        hosts: hosts.map(|sentinel| ("127.0.0.1".to_owned(), sentinel.port())).collect(),
        master: MASTER.to_owned(),
        is_tls: false,
        login: jobcache::config::StoreLogin::default(),
        database: 0,
    }));
    let login = |user: &str| jobcache::config::StoreLogin {
        username: Some(user.into()),
        password: Some(jobcache::config::Secret::new(PASSWORD)),
        password_file: None,
    };
    config.store.login = login("jobcache");
    config.store.sentinel.login = login("jobcache-sentinel");
    let sidecar = Sidecar::start(config).await;
    eventually(SOON, async || sidecar.get(X).await.is_hit()).await;

    let deposed = redis.master;
    redis.nodes[deposed].kill();
    redis.find_it_down().await;
    redis.failed_over().await;
    eventually(SOON, async || {
        sidecar.get(X).await.is_hit() && redis.master().holds(&key("x1")).await
    })
    .await;
    for sentinel in &redis.sentinels {
        let log: Vec<redis::Value> =
            sentinel.ask(redis::cmd("ACL").arg("LOG")).await.expect("a log");
        assert!(log.is_empty(), "{log:?}");
    }
}
