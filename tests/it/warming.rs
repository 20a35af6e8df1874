//! Prefetches: at the start, and after purges that request them.

use std::{
    io::Write as _,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use hyper::{Method, StatusCode, header};
use jobcache::config::{CacheMode, Config, CredentialMode, Secret};
use tempfile::NamedTempFile;
use tokio::time::Instant;

use crate::support::{
    RedisServer, SOON, Setup, Upstream,
    client::HOST,
    eventually,
    redis::key,
    sidecar::{Sidecar, config},
    upstream::{json, version, with_headers},
};

const X: &str = "/jobs/x1";
const SERVICE: &str = "Bearer service-0123456789";
const ALICE: &str = "Bearer alice-0123456789";

const BODY: &str = r#"{"id":"x1"}"#;

/// The servers and the configuration of a test.
struct World {
    redis: RedisServer,
    upstream: Upstream,
    config: Config,
}

impl World {
    async fn new() -> Self {
        Self::on(RedisServer::start().await).await
    }

    async fn on(redis: RedisServer) -> Self {
        let upstream = Upstream::start().await;
        let mut config = config(&redis, &upstream);
        as_clients_ask(&mut config);
        Self { redis, upstream, config }
    }

    async fn sidecar(&self) -> Sidecar {
        Sidecar::start(self.config.clone()).await
    }

    fn file(&mut self, ids: &str) -> NamedTempFile {
        let (file, path) = ids_file(ids);
        self.config.warm.file = Some(path);
        file
    }
}

/// Makes prefetches request the same representation as the clients of the tests, and fast.
fn as_clients_ask(config: &mut Config) {
    config.warm.headers = vec![(header::HOST, Secret::new(HOST))];
    config.warm.rate = 1_000;
}

fn ids_file(ids: &str) -> (NamedTempFile, PathBuf) {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(ids.as_bytes()).expect("a file written");
    let path = file.path().to_owned();
    (file, path)
}

/// Waits until this many jobs have this outcome.
async fn warmed(sidecar: &Sidecar, outcome: &str, jobs: u64) {
    let name = format!("jobcache_warm_total{{outcome=\"{outcome}\"}}");
    eventually(SOON, async || {
        let now = sidecar.admin.metric(&name).await;
        if now == jobs { Ok(()) } else { Err(sidecar.admin.get("/metrics").await) }
    })
    .await;
}

/// Waits until at least this many attempts were postponed for this reason.
async fn postponed(sidecar: &Sidecar, outcome: &str, tries: u64) {
    let name = format!("jobcache_warm_postponed_total{{outcome=\"{outcome}\"}}");
    eventually(SOON, async || sidecar.admin.metric(&name).await >= tries).await;
}

async fn refresh(setup: &Setup, id: &str) {
    let body = format!(r#"{{"job_id":"{id}","refresh":true}}"#);
    let reply = setup.sidecar.admin.request(Method::POST, "/purge").body(body).send().await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(reply.json()["purged"], serde_json::json!([id]));
    assert_eq!(reply.json()["refreshing"], 1);
}

#[tokio::test]
async fn the_jobs_of_a_file_are_hits_from_their_first_client_on() {
    let mut world = World::new().await;
    let _file = world.file("# active\nx1\n\ny1 # the second\nx1\n");
    let sidecar = world.sidecar().await;
    warmed(&sidecar, "stored", 2).await;

    for id in ["x1", "y1"] {
        let path = format!("/jobs/{id}");
        let reply = sidecar.get(&path).await;
        reply.assert(200, &version(id, 0));
        assert!(reply.is_hit(), "{reply:?}");
        assert_eq!(world.upstream.reads(&path), 1);
    }
    assert_eq!(sidecar.admin.metric("jobcache_warm_waiting").await, 0);
}

#[tokio::test]
async fn the_jobs_of_a_list_are_read_with_the_service_credential() {
    let mut world = World::new().await;
    world.config.warm.list = Some("/jobs?status=active".parse().unwrap());
    world.config.warm.authorization = Some(Secret::new(SERVICE));
    let list = r#"{"items":[{"id":"x1"},{"id":7},{"name":"no id"}]}"#;
    world.upstream.respond("/jobs", move |_| Some(json(StatusCode::OK, list)));
    let sidecar = world.sidecar().await;
    warmed(&sidecar, "stored", 2).await;

    let seen = world.upstream.requests();
    let mut targets: Vec<_> = seen.iter().map(|seen| seen.target.as_str()).collect();
    targets.sort_unstable();
    assert_eq!(targets, ["/jobs/7", X, "/jobs?status=active"]);
    for seen in &seen {
        assert_eq!(seen.headers["authorization"], SERVICE, "{seen:?}");
        assert_eq!(seen.headers["host"], HOST, "{seen:?}");
    }
}

#[tokio::test]
async fn a_list_that_is_not_there_yet_is_asked_for_again() {
    let mut world = World::new().await;
    world.config.warm.list = Some("/list".parse().unwrap());
    world.config.warm.pointer = jobcache::semantics::json_pointer::JsonPointer::parse("").unwrap();
    let asked = AtomicUsize::new(0);
    world.upstream.respond("/list", move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Some(json(StatusCode::SERVICE_UNAVAILABLE, "{}")),
        1 => Some(json(StatusCode::OK, "<html>")),
        _ => Some(json(StatusCode::OK, r#"["x1"]"#)),
    });
    let sidecar = world.sidecar().await;

    warmed(&sidecar, "stored", 1).await;

    assert_eq!(world.upstream.reads("/list"), 3);
    let read = "jobcache_warm_sources_total{source=\"list\",outcome=\"read\"}";
    assert_eq!(sidecar.admin.metric(read).await, 1);
}

/// Asserts how many upstream reads the first client of a prefetched job causes, with this
/// credential mode.
async fn check_first_client(mode: CredentialMode, cache_control: Option<&str>, reads: usize) {
    let mut world = World::new().await;
    let _file = world.file("x1");
    world.config.cache.credentials.mode = mode;
    world.config.warm.authorization = Some(Secret::new(SERVICE));
    let headers: Vec<_> =
        cache_control.iter().map(|value| ("cache-control", (*value).to_owned())).collect();
    world.upstream.respond(X, move |_| {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Some(with_headers(BODY, &headers))
    });
    let sidecar = world.sidecar().await;
    warmed(&sidecar, "stored", 1).await;

    let alice = sidecar.client.request(Method::GET, X).header("authorization", ALICE).send().await;

    alice.assert(200, BODY);
    assert_eq!(world.upstream.reads(X), reads, "{mode:?} {cache_control:?}: {alice:?}");
    // The credential that was served is admitted, as usual.
    eventually(SOON, async || {
        let again = sidecar.client.request(Method::GET, X).header("authorization", ALICE);
        again.send().await.is_hit()
    })
    .await;
}

#[tokio::test]
async fn a_warmed_job_is_a_hit_for_others_by_the_ordinary_rules_alone() {
    check_first_client(CredentialMode::Partition, None, 2).await;
    check_first_client(CredentialMode::Partition, Some("public, max-age=60"), 1).await;
    check_first_client(CredentialMode::Shared, None, 1).await;
}

#[tokio::test]
async fn a_warmed_job_is_for_the_representation_it_was_read_with() {
    let mut world = World::new().await;
    let _file = world.file("x1");
    let sidecar = world.sidecar().await;
    warmed(&sidecar, "stored", 1).await;

    let other = sidecar.client.request(Method::GET, X).header("accept", "text/html").send().await;

    assert!(!other.is_hit(), "{other:?}");
    assert_eq!(world.upstream.reads(X), 2);
}

#[tokio::test]
async fn what_is_cached_already_is_not_read_again() {
    let setup = Setup::new().await;
    setup.get(X).await;
    setup.hit(X).await;
    let (_file, path) = ids_file("x1");
    let mut config = config(&setup.redis, &setup.upstream);
    config.warm.file = Some(path);
    // Another credential, for which there is no entry.
    config.warm.authorization = Some(Secret::new(SERVICE));

    let second = Sidecar::start(config).await;

    warmed(&second, "present", 1).await;
    assert_eq!(setup.upstream.reads(X), 1);
    assert!(setup.get(X).await.is_hit());
}

#[tokio::test]
async fn what_cannot_be_stored_is_told_apart() {
    let mut world = World::new().await;
    let _file = world.file("gone1\nprivate1\nbare1\nchunked1\n");
    world.upstream.set("gone1", 404, "{}");
    world
        .upstream
        .respond("/jobs/private1", |_| Some(with_headers("{}", &[("cache-control", "private")])));
    world.upstream.respond("/jobs/bare1", |_| Some(json(StatusCode::OK, "")));
    let feed = world.upstream.feed("/jobs/chunked1", &[]);
    let sidecar = world.sidecar().await;
    feed.data("{\"id\":").await;
    feed.data("\"chunked\"}").await;
    feed.end();

    warmed(&sidecar, "status", 1).await;
    warmed(&sidecar, "unstorable", 2).await;
    warmed(&sidecar, "stored", 1).await;
    let reply = sidecar.get("/jobs/chunked1").await;
    reply.assert(200, r#"{"id":"chunked"}"#);
    assert!(reply.is_hit(), "{reply:?}");
}

#[tokio::test]
async fn a_purge_with_refresh_is_answered_first_and_read_anew_then() {
    let setup = Setup::with(as_clients_ask).await;
    setup.get(X).await;
    setup.hit(X).await;
    setup.upstream.commit("x1");
    let gate = setup.upstream.hold(Method::GET, X);

    refresh(&setup, "x1").await;

    assert!(setup.redis.get(&key("x1")).await.is_none_or(|body| body.is_empty()));
    gate.arrived(1).await;
    gate.release();
    warmed(&setup.sidecar, "stored", 1).await;
    let reply = setup.get(X).await;
    reply.assert(200, &version("x1", 1));
    assert!(reply.is_hit(), "{reply:?}");
    assert_eq!(setup.upstream.reads(X), 2);
}

#[tokio::test]
async fn a_cache_that_is_switched_off_reads_nothing_ahead() {
    let redis = RedisServer::start().await;
    let setup = Setup::cold(redis, |config| config.cache.mode = CacheMode::Off).await;
    eventually(SOON, async || setup.sidecar.admin.metric("jobcache_store_up").await == 1).await;
    refresh(&setup, "x1").await;
    warmed(&setup.sidecar, "passed", 1).await;
    assert_eq!(setup.upstream.reads("/jobs/x1"), 0);
}

/// There would be nothing to read.
#[tokio::test]
async fn a_cache_that_is_switched_off_asks_for_no_list() {
    let mut world = World::new().await;
    world.config.warm.list = Some("/active".parse().unwrap());
    world.config.cache.mode = CacheMode::Off;
    let file = world.file("x1\n");
    let sidecar = world.sidecar().await;
    // The jobs of the file are processed at the same time, which shows that prefetching ran.
    warmed(&sidecar, "passed", 1).await;
    sidecar.get(X).await.assert(200, &version("x1", 0));
    assert_eq!(world.upstream.reads("/active"), 0);
    drop(file);
}

#[tokio::test]
async fn a_purge_of_several_refreshes_each_once() {
    let setup = Setup::with(as_clients_ask).await;

    let body = r#"{"job_ids":["x1","y1","x1"],"refresh":true}"#;
    let reply = setup.sidecar.admin.request(Method::POST, "/purge").body(body).send().await;

    assert_eq!(reply.json()["refreshing"], 2, "{reply:?}");
    warmed(&setup.sidecar, "stored", 2).await;
    for path in [X, "/jobs/y1"] {
        assert!(setup.get(path).await.is_hit(), "{path}");
        assert_eq!(setup.upstream.reads(path), 1, "{path}");
    }
}

#[tokio::test]
async fn a_purge_without_refresh_and_one_of_all_read_nothing() {
    let setup = Setup::with(as_clients_ask).await;
    setup.get(X).await;
    setup.hit(X).await;

    for (body, status) in [
        (r#"{"job_id":"x1"}"#, 200),
        (r#"{"job_id":"x1","refresh":false}"#, 200),
        (r#"{"all":true}"#, 200),
        (r#"{"all":true,"refresh":true}"#, 400),
    ] {
        let purge = setup.sidecar.admin.request(Method::POST, "/purge").body(body);
        assert_eq!(purge.send().await.status.as_u16(), status, "{body}");
    }

    // If one of the other jobs were read, this would happen before this one, which was queued
    // later.
    refresh(&setup, "y1").await;
    warmed(&setup.sidecar, "stored", 1).await;
    assert_eq!(setup.upstream.reads(X), 1);
    assert!(!setup.redis.holds(&key("x1")).await);
}

#[tokio::test]
async fn a_refresh_waits_for_the_end_of_a_write() {
    let setup = Setup::with(as_clients_ask).await;
    let write = setup.upstream.hold(Method::PUT, X);
    let writer = setup.sidecar.client.start(Method::PUT, X, "{}").await;
    write.arrived(1).await;

    refresh(&setup, "x1").await;
    postponed(&setup.sidecar, "fenced", 2).await;
    assert_eq!(setup.upstream.reads(X), 0, "a read that cannot be stored");

    write.release();
    assert_eq!(writer.answer().await.0, 200);
    warmed(&setup.sidecar, "stored", 1).await;
    let reply = setup.get(X).await;
    reply.assert(200, &version("x1", 1));
    assert!(reply.is_hit(), "{reply:?}");
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn a_refresh_waits_until_a_write_has_settled() {
    let settle = Duration::from_secs(1);
    let setup = Setup::with(|config| {
        as_clients_ask(config);
        config.cache.settle = settle;
    })
    .await;
    // Redis uses the machine's clock, so this test does too.
    let written = std::time::Instant::now();
    assert_eq!(setup.sidecar.put(X).await.status, StatusCode::OK);

    refresh(&setup, "x1").await;

    warmed(&setup.sidecar, "stored", 1).await;
    assert!(written.elapsed() >= settle);
    assert_eq!(setup.upstream.reads(X), 1);
    setup.hit(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn what_a_third_party_deletes_while_it_is_read_ahead_is_not_stored() {
    let setup = Setup::with(as_clients_ask).await;
    let gate = setup.upstream.hold_after_read(Method::GET, X);
    refresh(&setup, "x1").await;
    gate.arrived(1).await;

    setup.upstream.commit("x1");
    setup.redis.del(&key("x1")).await;
    gate.release();

    // The job is read once more, because it has changed.
    warmed(&setup.sidecar, "stored", 1).await;
    assert_eq!(
        setup.sidecar.admin.metric("jobcache_warm_postponed_total{outcome=\"revoked\"}").await,
        1
    );
    let reply = setup.get(X).await;
    reply.assert(200, &version("x1", 1));
    assert!(reply.is_hit(), "{reply:?}");
}

#[tokio::test]
async fn a_client_shares_the_read_that_is_ahead_of_it() {
    let setup = Setup::with(as_clients_ask).await;
    let gate = setup.upstream.hold(Method::GET, X);
    refresh(&setup, "x1").await;
    gate.arrived(1).await;

    let client = setup.sidecar.client.start(Method::GET, X, "").await;
    // The client has joined once its lookup is complete.
    eventually(SOON, async || {
        let name = "jobcache_store_operation_seconds_count{op=\"lease\"}";
        setup.sidecar.admin.metric(name).await >= 3
    })
    .await;
    gate.release();

    assert_eq!(client.answer().await, (200, version("x1", 0)));
    warmed(&setup.sidecar, "stored", 1).await;
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn without_redis_the_upstream_is_not_read_and_with_it_everything_is() {
    let mut world = World::on(RedisServer::absent()).await;
    let _file = world.file("x1\ny1\n");
    let sidecar = world.sidecar().await;
    postponed(&sidecar, "store", 4).await;
    assert_eq!(world.upstream.requests().len(), 0);

    world.redis.restart_empty().await;

    eventually(SOON, async || {
        sidecar.admin.metric("jobcache_warm_total{outcome=\"stored\"}").await == 2
    })
    .await;
    assert_eq!(world.upstream.requests().len(), 2);
    eventually(SOON, async || sidecar.get(X).await.is_hit()).await;
}

#[tokio::test]
async fn an_upstream_that_is_not_there_yet_is_waited_for() {
    let mut world = World::new().await;
    let _file = world.file("x1");
    let asked = AtomicUsize::new(0);
    world.upstream.respond(X, move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => None,
        1 => Some(json(StatusCode::BAD_GATEWAY, "{}")),
        _ => Some(json(StatusCode::OK, version("x1", 0))),
    });
    let sidecar = world.sidecar().await;

    postponed(&sidecar, "upstream", 1).await;
    warmed(&sidecar, "stored", 1).await;

    assert!(sidecar.get(X).await.is_hit());
}

#[tokio::test]
async fn warming_is_bounded_in_what_waits_at_a_time_and_a_second() {
    let mut world = World::new().await;
    let ids: Vec<_> = (0..30).map(|id| format!("j{id}")).collect();
    let _file = world.file(&ids.join("\n"));
    world.config.warm.max = 20;
    world.config.warm.rate = 50;
    let gate = world.upstream.hold_all();
    let started = Instant::now();
    let sidecar = world.sidecar().await;
    warmed(&sidecar, "overflow", 10).await;
    gate.arrived(8).await;

    // Prefetching affects neither clients nor readiness.
    assert_eq!(sidecar.admin.get("/readyz").await.status, StatusCode::OK);
    assert_eq!(sidecar.put("/jobs/other1").await.status, StatusCode::OK);
    assert_eq!(gate.arrivals(), 8);
    assert_eq!(sidecar.admin.metric("jobcache_warm_waiting").await, 12);

    gate.release();
    warmed(&sidecar, "stored", 20).await;
    assert!(started.elapsed() >= Duration::from_millis(380), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_drain_ends_the_warming_and_waits_for_what_is_under_way() {
    let mut world = World::new().await;
    let ids: Vec<_> = (0..1_000).map(|id| format!("j{id}")).collect();
    let _file = world.file(&ids.join("\n"));
    world.config.warm.rate = 10;
    let gate = world.upstream.hold_all();
    let mut sidecar = world.sidecar().await;
    gate.arrived(2).await;

    sidecar.begin_shutdown();
    eventually(SOON, async || sidecar.refuses().await).await;
    let reads = gate.arrivals();
    gate.release();

    sidecar.shutdown().await.expect("a drain");
    assert_eq!(gate.arrivals(), reads);
    // Either may come first, because a job is postponed if Redis is late.
    let seen = world.upstream.requests();
    assert!(seen.len() >= 2, "{seen:?}");
    for request in &seen {
        let id = request.target.strip_prefix("/jobs/").expect("a job");
        assert!(world.redis.holds(&key(id)).await, "{id} was read and not stored");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_told_and_changes_nothing() {
    let mut world = World::new().await;
    world.config.warm.file = Some("/nowhere/ids".into());
    let sidecar = world.sidecar().await;

    eventually(SOON, async || {
        let failed = "jobcache_warm_sources_total{source=\"file\",outcome=\"failed\"}";
        sidecar.admin.metric(failed).await == 1
    })
    .await;
    sidecar.get(X).await.assert(200, &version("x1", 0));
}

#[tokio::test]
async fn a_refresh_without_the_headers_of_clients_says_what_is_missing() {
    let body = r#"{"job_id":"x1","refresh":true}"#;
    let bare = Setup::new().await;
    let told = bare.sidecar.admin.request(Method::POST, "/purge").body(body).send().await.json();
    assert!(told["warning"].as_str().is_some_and(|text| text.contains("warm.headers")), "{told}");
    let setup = Setup::with(as_clients_ask).await;
    let told = setup.sidecar.admin.request(Method::POST, "/purge").body(body).send().await.json();
    assert_eq!((&told["refreshing"], &told["warning"]), (&1.into(), &serde_json::Value::Null));
}

/// The first answer is reported, instead of the last one after two minutes.
#[tokio::test]
async fn a_list_that_is_answered_wrongly_is_told_at_once() {
    let upstream = Upstream::start().await;
    upstream.respond("/list", move |_| Some(json(StatusCode::OK, "<html>")));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ids = dir.path().join("ids.txt");
    std::fs::write(&ids, "x1\na b\n").expect("a file written");
    let path = ids.display().to_string();
    let envs = [("JOBCACHE_WARM_LIST", "/list"), ("JOBCACHE_WARM_FILE", &*path)];
    let args = ["--upstream", &upstream.url(), "--redis-url", "memory://"];
    let process = crate::support::Process::start(&args, &envs).await;
    for says in ["cannot read warm.list; retrying", "line 2: \\\"a b\\\""] {
        eventually(SOON, async || {
            let log = process.stderr();
            if log.contains(says) { Ok(()) } else { Err(log) }
        })
        .await;
    }
}
