//! A Redis that serves clients and refuses some commands: renamed ones, those that its ACL denies, and those of
//! slots that it does not serve. Clients get the answers of the API, and one warning a minute says what to do.

use redis::cmd;
use serde_json::Value;

use crate::{
    acl::{PASSWORD, documented, set_user},
    support::{Cluster, Process, RedisServer, SOON, Upstream, eventually, upstream::version},
};

const X: &str = "/jobs/x1";

/// Starts jobcache with a generous budget, so that a busy machine is no slow Redis.
async fn sidecar(url: &str, upstream: &Upstream, envs: &[(&str, &str)]) -> Process {
    let api = upstream.url();
    let envs = [&[("JOBCACHE_STORE_BUDGET", "5s")], envs].concat();
    Process::start(&["--upstream", &api, "--redis-url", url], &envs).await
}

fn warnings(process: &Process) -> Vec<String> {
    let log = process.stderr();
    log.lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .map(str::to_owned)
        .collect()
}

/// Asserts that clients are served, that the log has one warning with all of `parts`, and that `/status` names the
/// problem.
async fn warns_once(process: &Process, parts: &[&str], kind: &str) -> Value {
    let warned = eventually(SOON, async || {
        process.client.get(X).await.assert(200, &version("x1", 0));
        warnings(process).first().cloned().ok_or("no warning")
    })
    .await;
    for part in parts {
        assert!(warned.contains(part), "{part} is missing in {warned}");
    }
    // Reads of several jobs, a write, and a purge of all.
    for job in 1..20 {
        assert_eq!(process.client.get(&format!("/jobs/y{job}")).await.status, 200);
    }
    process.client.get(X).await.assert(200, &version("x1", 0));
    assert_eq!(process.client.put("/jobs/z1").await.status, 200);
    let purge = process.admin.request(hyper::Method::POST, "/purge").body(r#"{"all":true}"#);
    purge.send().await;
    for _ in 0..50 {
        process.client.get(X).await.assert(200, &version("x1", 0));
    }
    assert_eq!(warnings(process).len(), 1, "{:#?}", warnings(process));
    let status = process.admin.get("/status").await.json();
    let problem = &status["store"]["problem"];
    assert_eq!(problem["kind"], kind, "{problem}");
    assert!(!problem["remedy"].as_str().unwrap_or_default().is_empty(), "{problem}");
    problem.clone()
}

async fn problem(process: &Process) -> Value {
    process.admin.get("/status").await.json()["store"]["problem"].clone()
}

/// Waits until a node has noticed the state of its cluster.
async fn cluster_is(node: &RedisServer, state: &str) {
    eventually(SOON, async || {
        let info: String = node.run(cmd("CLUSTER").arg("INFO")).await;
        info.contains(&format!("cluster_state:{state}"))
    })
    .await;
}

#[tokio::test]
async fn a_renamed_command_is_named_once_with_its_remedy() {
    for (renamed, named) in [("MGET", "MGET"), ("PEXPIRETIME", "PEXPIRETIME"), ("EXISTS", "EXISTS")]
    {
        let redis = RedisServer::start_with(&["--rename-command", renamed, ""]).await;
        let upstream = Upstream::start().await;
        let process = sidecar(&redis.url(), &upstream, &[]).await;

        let parts = ["Redis refuses commands", named, "rename-command"];
        let problem = warns_once(&process, &parts, "unknown-command").await;

        assert_eq!(problem["commands"], serde_json::json!([named]));
        let warned = warnings(&process).concat();
        assert_eq!(warned.contains("writes stay unconfirmed"), named == "EXISTS", "{warned}");
        let (refused, line) = Process::check_store(&redis.url(), &upstream, &[]).await;
        assert!(refused && line.contains("it refuses jobcache"), "{line}");
        assert!(line.contains(named) && line.contains("rename-command"), "{line}");
    }
}

#[tokio::test]
async fn a_command_that_the_acl_denies_is_named_once_with_the_user() {
    // `exists` is used in scripts only, whose error does not name it.
    for right in ["+mget", "+exists", "+evalsha", "+del"] {
        let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
        let words: Vec<_> =
            documented("jobcache").into_iter().filter(|word| word != right).collect();
        set_user(&redis, &words).await;
        let login =
            [("JOBCACHE_STORE_USERNAME", "jobcache"), ("JOBCACHE_STORE_PASSWORD", PASSWORD)];
        let process = sidecar(&redis.url(), &upstream, &login).await;
        let named = right.trim_start_matches('+').to_uppercase();

        let parts = ["Redis refuses commands", &*named, "jobcache", "docs/redis.md"];
        warns_once(&process, &parts, "acl").await;

        let (refused, line) = Process::check_store(&redis.url(), &upstream, &login).await;
        assert!(refused && line.contains("the user \"jobcache\" may not run"), "{line}");
        assert!(line.contains(&named) && line.contains("docs/redis.md"), "{line}");
        // The remedy works.
        set_user(&redis, &documented("jobcache")).await;
        let (refused, line) = Process::check_store(&redis.url(), &upstream, &login).await;
        assert!(!refused && line.ends_with(": reachable"), "{line}");
        eventually(SOON, async || process.client.get("/jobs/w1").await.is_hit()).await;
        eventually(SOON, async || problem(&process).await.is_null()).await;
    }
}

#[tokio::test]
async fn what_is_refused_while_connecting_or_by_tracking_is_named_too() {
    let login = [("JOBCACHE_STORE_USERNAME", "jobcache"), ("JOBCACHE_STORE_PASSWORD", PASSWORD)];
    for (word, named) in [("~{job_status:*", "MGET"), ("+client|tracking", "CLIENT TRACKING")] {
        let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
        let words: Vec<_> =
            documented("jobcache").into_iter().filter(|other| other != word).collect();
        set_user(&redis, &words).await;
        let process = sidecar(&redis.url(), &upstream, &login).await;

        let problem = warns_once(&process, &["Redis refuses commands", named], "acl").await;

        let commands = problem["commands"].as_array().expect("a list");
        assert!(commands.contains(&named.into()), "{problem}");
    }
}

#[tokio::test]
async fn a_problem_is_replaced_by_a_newer_one() {
    let mut redis = RedisServer::start_with(&["--rename-command", "MGET", ""]).await;
    let upstream = Upstream::start().await;
    let process = sidecar(&redis.url(), &upstream, &[]).await;
    warns_once(&process, &["MGET"], "unknown-command").await;

    redis.kill();

    eventually(SOON, async || {
        let problem = problem(&process).await;
        if problem["kind"] == "refused" { Ok(()) } else { Err(problem) }
    })
    .await;
}

#[tokio::test]
async fn rights_to_half_of_the_keys_or_of_a_cluster_are_missed_by_a_check() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let login = [("JOBCACHE_STORE_USERNAME", "jobcache"), ("JOBCACHE_STORE_PASSWORD", PASSWORD)];
    for keys in ["~job_status:*", "~{job_status:*"] {
        let words: Vec<_> =
            documented("jobcache").into_iter().filter(|word| word != keys).collect();
        set_user(&redis, &words).await;
        let (refused, line) = Process::check_store(&redis.url(), &upstream, &login).await;
        assert!(refused && line.contains("may not run MGET"), "{keys}: {line}");
    }
    // Without what a cluster needs in addition, and then with it.
    let redis = Cluster::of_one(&[]).await;
    cluster_is(&redis, "ok").await;
    let url = redis.url().replace("redis://", "redis-cluster://");
    let mut words = documented("jobcache");
    set_user(&redis, &words).await;
    let (refused, line) = Process::check_store(&url, &upstream, &login).await;
    assert!(refused && line.contains("NOPERM") && line.contains("cluster|slots"), "{line}");
    words.extend(["+cluster|info", "+cluster|nodes", "+cluster|slots"].map(str::to_owned));
    set_user(&redis, &words).await;
    let (refused, line) = Process::check_store(&url, &upstream, &login).await;
    assert!(refused && line.contains("may not run ASKING, EVAL"), "{line}");
    words.extend(["+asking", "+eval"].map(str::to_owned));
    set_user(&redis, &words).await;
    let (refused, line) = Process::check_store(&url, &upstream, &login).await;
    assert!(!refused, "{line}");
}

#[tokio::test]
async fn a_full_redis_is_called_full() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let process = sidecar(&redis.url(), &upstream, &[]).await;
    eventually(SOON, async || process.client.get(X).await.is_hit()).await;
    let () = redis.run(cmd("CONFIG").arg("SET").arg("maxmemory").arg(1)).await;

    let refused = eventually(SOON, async || {
        process.client.get("/jobs/y1").await;
        warnings(&process).first().cloned().ok_or("no warning")
    })
    .await;

    assert!(refused.contains("raise its maxmemory"), "{refused}");
    assert!(!refused.contains("unconfirmed"), "{refused}");
    let (refused, line) = Process::check_store(&redis.url(), &upstream, &[]).await;
    assert!(refused && line.contains("Redis is full"), "{line}");
}

#[tokio::test]
async fn a_node_of_a_cluster_is_told_from_a_single_redis() {
    let (cluster, upstream) = (Cluster::start().await, Upstream::start().await);
    let url = cluster.nodes[0].url();
    let process = sidecar(&url, &upstream, &[]).await;

    warns_once(&process, &["MOVED", "use a redis-cluster:// URL"], "cluster-node").await;

    let (refused, line) = Process::check_store(&url, &upstream, &[]).await;
    assert!(refused && line.contains("redis-cluster://"), "{line}");
    // The remedy works.
    let (refused, line) = Process::check_store(&cluster.url(), &upstream, &[]).await;
    assert!(!refused, "{line}");
    let other = sidecar(&cluster.url(), &upstream, &[]).await;
    eventually(SOON, async || other.client.get(X).await.is_hit()).await;
}

#[tokio::test]
async fn a_cluster_of_one_master_may_be_used_like_a_single_redis() {
    let (redis, upstream) = (Cluster::of_one(&[]).await, Upstream::start().await);
    cluster_is(&redis, "ok").await;
    let process = sidecar(&redis.url(), &upstream, &[]).await;
    eventually(SOON, async || process.client.get(X).await.is_hit()).await;
    let (refused, line) = Process::check_store(&redis.url(), &upstream, &[]).await;
    assert!(!refused, "{line}");
}

#[tokio::test]
async fn a_cluster_with_a_slot_without_a_master_is_called_down_once() {
    let (redis, upstream) = (Cluster::of_one(&[]).await, Upstream::start().await);
    let () = redis.run(cmd("CLUSTER").arg("DELSLOTS").arg(7)).await;
    cluster_is(&redis, "fail").await;
    let url = redis.url().replace("redis://", "redis-cluster://");
    let process = sidecar(&url, &upstream, &[]).await;

    warns_once(&process, &["clusterdown", "redis-cli --cluster check"], "cluster-down").await;

    let (refused, line) = Process::check_store(&url, &upstream, &[]).await;
    assert!(refused && line.contains("slots without a master"), "{line}");
    // With the slot the next attempt succeeds.
    let () = redis.run(cmd("CLUSTER").arg("ADDSLOTS").arg(7)).await;
    eventually(SOON, async || process.client.get(X).await.is_hit()).await;
    assert_eq!(process.admin.get("/status").await.json()["store"]["problem"], Value::Null);
}

#[tokio::test]
async fn a_cluster_that_goes_down_does_not_flood_the_log() {
    let (redis, upstream) = (Cluster::of_one(&[]).await, Upstream::start().await);
    for url in [redis.url(), redis.url().replace("redis://", "redis-cluster://")] {
        cluster_is(&redis, "ok").await;
        let process = sidecar(&url, &upstream, &[]).await;
        eventually(SOON, async || process.client.get(X).await.is_hit()).await;
        let () = redis.run(cmd("CLUSTER").arg("DELSLOTS").arg(7)).await;

        let mut job = 0;
        let mut read = async || {
            job += 1;
            // A job that this sidecar has not kept.
            let reply = process.client.get(&format!("/jobs/n{job}")).await;
            assert_eq!(reply.status, 200);
        };
        eventually(SOON, async || {
            read().await;
            !warnings(&process).is_empty()
        })
        .await;
        for _ in 0..100 {
            read().await;
        }

        assert_eq!(warnings(&process).len(), 1, "{:#?}", warnings(&process));
        let sessions = process.stderr().matches("store is up").count();
        assert!(sessions <= 2, "{}", process.stderr());
        let () = redis.run(cmd("CLUSTER").arg("ADDSLOTS").arg(7)).await;
    }
}
