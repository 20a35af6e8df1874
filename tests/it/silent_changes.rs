//! Jobs that change without a purge are noticed when their TTL ends, without reads for it.

use serde_json::{Value, json};

use crate::support::{Process, RedisServer, SOON, Upstream, eventually, redis::key};

const X: &str = "/jobs/x1";
const WARNING: &str = "jobs change without a purge";

struct Team {
    redis: RedisServer,
    upstream: Upstream,
    process: Process,
}

impl Team {
    async fn with_ttl(ttl: &str, near: &str) -> Self {
        let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
        let process = start(&redis.url(), &upstream, ttl, near).await;
        Self { redis, upstream, process }
    }

    /// Changes the job, and polls until that is seen, as the client of a team without purges does.
    async fn change_silently(&self) {
        self.upstream.commit("x1");
        let before = polled(&self.process).await;
        eventually(SOON, async || {
            let body = polled(&self.process).await;
            if body == before { Err(body) } else { Ok(()) }
        })
        .await;
    }

    async fn total(&self) -> u64 {
        self.process.admin.metric("jobcache_silent_changes_total").await
    }

    fn warnings(&self) -> usize {
        self.process.stderr().matches(WARNING).count()
    }

    async fn status(&self) -> Value {
        self.process.admin.get("/status").await.json()["silent_changes"].clone()
    }
}

async fn start(redis: &str, upstream: &Upstream, ttl: &str, near: &str) -> Process {
    let url = upstream.url();
    let args = ["--upstream", &*url, "--redis-url", redis, "--ttl", ttl, "--settle", "0s"];
    Process::start(&args, &[("JOBCACHE_NEAR", near), ("JOBCACHE_STORE_BUDGET", "2s")]).await
}

async fn polled(process: &Process) -> String {
    process.client.get(X).await.text().to_owned()
}

async fn hits(process: &Process) {
    eventually(SOON, async || process.client.get(X).await.is_hit()).await;
}

#[tokio::test]
async fn jobs_that_change_without_a_purge_are_counted_and_one_warning_is_given() {
    for near in ["strict", "off"] {
        let team = Team::with_ttl("1s", near).await;
        hits(&team.process).await;
        let mut seen = 0;
        // A stall of the machine at a wrong moment hides a change; it never invents one.
        for _ in 0..10 {
            team.change_silently().await;
            seen += 1;
            if team.total().await >= 3 {
                break;
            }
        }
        assert!((3..=seen).contains(&team.total().await), "{near}");
        eventually(SOON, async || team.warnings() == 1).await;
        let log = team.process.stderr();
        for remedy in ["webhook", "DEL", "shorter ttl", "/jobs/{id}"] {
            assert!(log.contains(remedy), "{log}");
        }
        let now = team.status().await;
        assert_eq!(
            (&now["routes"][0]["route"], &now["routes"][0]["without_purges"]),
            (&json!("/jobs/{id}"), &json!(true)),
            "{now}"
        );
        team.change_silently().await;
        assert_eq!(team.warnings(), 1, "{near}: once an hour");
        // Nothing was read for it.
        let reads = u64::try_from(team.upstream.reads(X)).unwrap();
        let misses = team.process.admin.get("/status").await.json()["requests"]["life"].clone();
        assert_eq!(reads, misses["reads"].as_u64().unwrap() - misses["hit"].as_u64().unwrap());
    }
}

#[tokio::test]
async fn a_route_with_one_del_or_purge_in_the_hour_gets_no_warning() {
    for purge in [true, false] {
        let team = Team::with_ttl("1s", "strict").await;
        hits(&team.process).await;
        if purge {
            let request = team.process.admin.request(hyper::Method::POST, "/purge");
            let reply = request.body(r#"{"job_id":"x1"}"#).send().await;
            assert_eq!(reply.status, 200, "{reply:?}");
        } else {
            // More than one, in case one hits an entry that has just expired.
            for _ in 0..3 {
                hits(&team.process).await;
                team.redis.del(&key("x1")).await;
            }
        }
        hits(&team.process).await;
        for _ in 0..10 {
            team.change_silently().await;
            if team.total().await >= 3 {
                break;
            }
        }
        assert!(team.total().await >= 3);
        assert_eq!(team.warnings(), 0, "{}", team.process.stderr());
        assert_eq!(team.status().await["routes"][0]["without_purges"], false);
    }
}

#[tokio::test]
async fn a_change_that_a_write_or_a_purge_explains_is_not_silent() {
    let team = Team::with_ttl("300s", "strict").await;
    let other = start(&team.redis.url(), &team.upstream, "300s", "strict").await;
    for process in [&team.process, &other] {
        for _ in 0..3 {
            hits(&team.process).await;
            assert_eq!(process.client.put(X).await.status, 200);
            hits(&team.process).await;
            team.upstream.commit("x1");
            let request = process.admin.request(hyper::Method::POST, "/purge");
            assert_eq!(request.body(r#"{"job_id":"x1"}"#).send().await.status, 200);
        }
    }
    hits(&team.process).await;
    assert_eq!((team.total().await, team.warnings()), (0, 0));
    assert_eq!(team.status().await, json!({ "total": 0, "routes": [] }));
}

#[tokio::test]
async fn personal_answers_are_no_silent_changes() {
    let team = Team::with_ttl("1s", "strict").await;
    team.upstream.respond_to(X, |headers| {
        let who = headers.get("authorization").and_then(|value| value.to_str().ok());
        let body = format!("{{\"for\":\"{}\"}}", who.unwrap_or("nobody"));
        crate::support::upstream::json(hyper::StatusCode::OK, body)
    });
    let get = async |who: &str| {
        let request = team.process.client.request(hyper::Method::GET, X);
        request.header("authorization", who).send().await
    };
    eventually(SOON, async || get("Bearer a").await.is_hit()).await;
    // Each finds the entry of the other expired.
    for who in ["Bearer b", "Bearer a", "Bearer b", "Bearer a"] {
        eventually(SOON, async || !team.redis.holds(&key("x1")).await).await;
        get(who).await.assert(200, &format!("{{\"for\":\"{who}\"}}"));
    }
    assert_eq!(team.total().await, 0);
}
