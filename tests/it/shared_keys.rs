//! APIs and routes that give one Redis key: neither is ever served the other's body.

use std::time::Duration;

use hyper::{Method, StatusCode};

use crate::support::{
    Process, Reply, SOON, Setup, Upstream, eventually,
    redis::key,
    sidecar::Sidecar,
    upstream::{json, version},
};

const X: &str = "/jobs/x1";
const X_OF_V1: &str = "/api/v1/jobs/x1";
/// All clients send the same, as through one gateway.
const HOST: &str = "jobs.example";

async fn get(sidecar: &Sidecar, path: &str) -> Reply {
    sidecar.client.request(Method::GET, path).header("host", HOST).send().await
}

async fn hit(sidecar: &Sidecar, path: &str, body: &str) {
    eventually(SOON, async || {
        let reply = get(sidecar, path).await;
        reply.assert(200, body);
        if reply.is_hit() { Ok(()) } else { Err(reply) }
    })
    .await;
}

/// Starts a sidecar of another API on the Redis of the first.
async fn other_api(setup: &Setup, api: Option<&str>) -> (Sidecar, Upstream) {
    let upstream = Upstream::start().await;
    upstream.set("x1", 200, "users");
    let mut config = setup.config().clone();
    config.api.name = api.map(ToOwned::to_owned);
    config.upstream.url = upstream.url();
    (Sidecar::start(config).await, upstream)
}

#[tokio::test]
async fn two_apis_on_one_redis_are_never_served_each_others_body() {
    let setup = Setup::with(|config| config.api.name = Some("billing".to_owned())).await;
    for other in [Some("users"), None] {
        let (second, _upstream) = other_api(&setup, other).await;
        for _ in 0..3 {
            hit(&setup.sidecar, X, &version("x1", 0)).await;
            hit(&second, X, "users").await;
            // The second has replaced the entry, so this is no hit of an entry in the process.
            get(&setup.sidecar, X).await.assert(200, &version("x1", 0));
        }
        // A DEL of the key forgets both.
        hit(&second, X, "users").await;
        setup.redis.del(&key("x1")).await;
        assert!(!get(&second, X).await.is_hit());
        setup.redis.del(&key("x1")).await;
        assert!(!get(&setup.sidecar, X).await.is_hit());
    }
}

#[tokio::test]
async fn a_read_of_another_api_is_not_joined_and_its_fill_not_waited_for() {
    let setup = Setup::with(|config| config.api.name = Some("billing".to_owned())).await;
    let (second, other) = other_api(&setup, Some("users")).await;
    eventually(SOON, async || {
        let reply = get(&second, "/jobs/y1").await;
        if reply.is_hit() { Ok(()) } else { Err(reply) }
    })
    .await;
    let gate = setup.upstream.hold(Method::GET, X);
    let request = setup.sidecar.client.request(Method::GET, X).header("host", HOST);
    let (first, ()) = tokio::join!(request.send(), async {
        gate.arrived(1).await;
        let reply = get(&second, X).await;
        reply.assert(200, "users");
        assert!(reply.cache_status().contains("detail=leased"), "{reply:?}");
        assert_eq!(other.reads(X), 1);
        gate.release();
    });
    first.assert(200, &version("x1", 0));
}

#[tokio::test]
async fn two_routes_with_one_key_replace_each_other_and_a_del_forgets_both() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X_OF_V1, |_| json(StatusCode::OK, "v1"));
    for _ in 0..3 {
        hit(&setup.sidecar, X, &version("x1", 0)).await;
        let reply = get(&setup.sidecar, X_OF_V1).await;
        reply.assert(200, "v1");
        assert!(!reply.is_hit(), "{reply:?}");
        hit(&setup.sidecar, X_OF_V1, "v1").await;
        assert!(!get(&setup.sidecar, X).await.is_hit());
    }
    hit(&setup.sidecar, X_OF_V1, "v1").await;
    assert_eq!(setup.redis.get(&key("x1")).await.as_deref(), Some(&b"v1"[..]));
    let explained = setup.sidecar.admin.get("/explain/x1").await.json();
    assert_eq!(explained["value"], "entry", "a request without a path is one for the entry");
    let head = format!("GET {X} HTTP/1.1\nHost: {HOST}");
    let explain = setup.sidecar.admin.request(Method::POST, "/explain/x1").body(head);
    let explained = explain.send().await.json();
    assert_eq!(explained["value"], "other-route", "{explained}");

    setup.redis.del(&key("x1")).await;

    for path in [X_OF_V1, X] {
        assert!(!get(&setup.sidecar, path).await.is_hit());
        setup.redis.del(&key("x1")).await;
    }
}

#[tokio::test]
async fn a_write_through_one_route_forgets_what_another_route_has_stored() {
    let setup = Setup::new().await;
    hit(&setup.sidecar, X, &version("x1", 0)).await;
    setup.sidecar.put(X_OF_V1).await;
    get(&setup.sidecar, X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_shared_key_is_warned_of_once_with_a_prefix_as_the_remedy() {
    let setup = Setup::new().await;
    let (redis, upstream) = (setup.redis.url(), setup.upstream.url());
    let args = ["--redis-url", &redis, "--upstream", &upstream, "--settle", "0s"];
    let sidecar = Process::start(&args, &[]).await;
    for _ in 0..3 {
        for path in [X, X_OF_V1] {
            eventually(SOON, async || sidecar.client.get(path).await.is_hit()).await;
        }
    }
    let log = sidecar.stderr();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("share the Redis key")).collect();
    assert!(lines.len() == 1 && lines[0].contains("another store.prefix"), "{log}");
}

/// Starts a sidecar, and waits for a warning about another configuration that names `settings`.
async fn warned(args: &[&str], settings: Option<&str>) -> Process {
    let sidecar = Process::start(args, &[]).await;
    eventually(SOON, async || sidecar.client.get(X).await.is_hit()).await;
    let look = async || {
        let log = sidecar.stderr();
        let line = log.lines().find(|line| line.contains("has another configuration"));
        line.map(ToOwned::to_owned).ok_or(log)
    };
    match settings {
        Some(settings) => {
            let line = eventually(SOON, look).await;
            assert!(line.contains(settings) && line.contains("WARN"), "{line}");
        }
        None => assert!(look().await.is_err(), "{}", sidecar.stderr()),
    }
    sidecar
}

#[tokio::test]
async fn another_configuration_of_a_live_sidecar_is_warned_of_at_start_and_told_by_check() {
    let setup = Setup::new().await;
    let other = Upstream::start().await;
    let (redis, ours, theirs) = (setup.redis.url(), setup.upstream.url(), other.url());
    let records = "{job_status:}:sidecars";
    eventually(SOON, async || {
        let count: usize = setup.redis.run(redis::cmd("ZCARD").arg(records)).await;
        if count == 1 { Ok(()) } else { Err(count) }
    })
    .await;
    let ttl = setup.redis.ttl_ms(records).await;
    assert!((60_000..=70_000).contains(&ttl), "{ttl}");
    let base = ["--redis-url", &redis, "--upstream"];
    let same = [&base[..], &[ours.as_str()]].concat();
    let other_upstream = [&base[..], &[theirs.as_str()]].concat();
    let other_route = [&same[..], &["--route", "/jobs/{id}"]].concat();
    let other_prefix = [("JOBCACHE_STORE_PREFIX", "users:")];

    let (code, said, _) = Process::output(&[&["check"], &same[..]].concat(), &[]);
    assert!(code == 0 && !said.contains("differs in"), "{said}");
    for (args, settings) in [(&other_upstream, "upstream.url"), (&other_route, "routes")] {
        let check = [&["check"], &args[..]].concat();
        let (code, said, _) = Process::output(&check, &[]);
        let warning =
            format!("warning: another sidecar with the same store.prefix differs in {settings}");
        assert!(code == 0 && said.contains(&warning), "{said}");
        let (_, said, _) = Process::output(&check, &other_prefix);
        assert!(!said.contains("differs in"), "{said}");
    }
    drop(warned(&same, None).await);
    drop(warned(&other_upstream, Some("upstream.url")).await);
    let named = [&other_upstream[..], &["--api", "users"]].concat();
    drop(warned(&named, Some("api")).await);
}

#[tokio::test]
async fn a_reload_records_the_new_routes() {
    let setup = Setup::new().await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("jobcache.toml");
    std::fs::write(&file, "routes = [\"/jobs/{id}\"]").expect("a file");
    let (redis, upstream) = (setup.redis.url(), setup.upstream.url());
    let config = file.display().to_string();
    let args = ["--redis-url", &redis, "--upstream", &upstream, "--config", &config];
    let sidecar = Process::start(&args, &[("JOBCACHE_STORE_LINGER", "1s")]).await;
    eventually(SOON, async || sidecar.client.get(X).await.is_hit()).await;

    std::fs::write(&file, "routes = [\"/jobs/{id}\", \"/v2/jobs/{id}\"]").expect("a file");
    sidecar.hang_up();

    // A record is renewed every ten seconds.
    eventually(SOON + Duration::from_secs(10), async || {
        let records: Vec<String> = setup
            .redis
            .run(redis::cmd("ZRANGE").arg("{job_status:}:sidecars").arg(0).arg(-1))
            .await;
        if records.iter().any(|record| record.contains("/v2/jobs")) { Ok(()) } else { Err(records) }
    })
    .await;
}

#[test]
fn a_name_of_an_api_is_short_and_plain() {
    let long = "a".repeat(65);
    for name in ["a b", "a/b", "a:b", "{a}", "\u{e4}", &long] {
        let (code, _, said) = Process::output(&["check", "--api", name], &[]);
        assert!(code == 78 && said.contains("api"), "{name}: {code} {said}");
    }
}
