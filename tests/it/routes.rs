//! Routes with several variables, ids that are any text, exceptions, and statuses besides 200.

use std::time::Duration;

use hyper::{Method, Response, StatusCode};
use jobcache::config::{Config, Ids, RouteConfig, Secret};
use serde_json::json;

use crate::support::{
    Body, Process, RedisServer, Reply, SOON, Setup, Upstream, eventually,
    redis::key,
    upstream::{self, with_status},
};

const OF_TENANT: &str = "/t/{tenant}/jobs/{id}";

fn routes(paths: &[&str]) -> impl Fn(&mut Config) + use<> {
    let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
    move |config| config.api.paths.clone_from(&paths)
}

/// Adds a route that stores these statuses.
fn with_statuses(config: &mut Config) {
    let times = [(202, 5), (303, 300), (404, 2), (410, 300)];
    let time = |(status, seconds): (u16, u64)| {
        (StatusCode::from_u16(status).expect("a status"), Duration::from_secs(seconds))
    };
    config.api.statuses = times.map(time).to_vec();
}

fn json_of(body: &'static str) -> Response<Body> {
    upstream::json(StatusCode::OK, body)
}

/// Reads a path with a body of its own until it is a hit.
async fn served(setup: &Setup, path: &str) -> Reply {
    let body = json!(path).to_string();
    setup.upstream.respond(path, move |_| Some(upstream::json(StatusCode::OK, body.clone())));
    hit(setup, path).await
}

async fn purge(setup: &Setup, body: &serde_json::Value) -> Reply {
    setup.sidecar.admin.request(Method::POST, "/purge").body(body.to_string()).send().await
}

/// Reads a path until it is a hit.
async fn hit(setup: &Setup, path: &str) -> Reply {
    eventually(SOON, async || {
        let reply = setup.get(path).await;
        if reply.is_hit() { Ok(reply) } else { Err(reply) }
    })
    .await
}

#[tokio::test]
async fn the_jobs_of_two_tenants_are_kept_apart_and_each_is_forgotten_by_its_own_writes() {
    let setup = Setup::cold(RedisServer::start().await, routes(&[OF_TENANT])).await;
    let (acme, globex) = ("/t/acme/jobs/x17", "/t/globex/jobs/x17");
    setup.upstream.respond(acme, |_| Some(json_of("\"acme\"")));
    setup.upstream.respond(globex, |_| Some(json_of("\"globex\"")));
    hit(&setup, acme).await.assert(200, "\"acme\"");
    hit(&setup, globex).await.assert(200, "\"globex\"");
    assert!(
        setup.redis.holds(&key("acme:x17")).await && setup.redis.holds(&key("globex:x17")).await
    );

    for write in [
        "/t/acme/jobs/x17",
        "/t/ACME/jobs/x17/cancel",
        "/t/acme/jobs?id=x17",
        "/t/acme/jobs/x17:stop",
    ] {
        hit(&setup, acme).await;
        setup.sidecar.put(write).await;
        assert!(!setup.redis.holds(&key("acme:x17")).await, "{write}");
        assert!(setup.redis.holds(&key("globex:x17")).await, "{write}");
    }
}

#[tokio::test]
async fn a_purge_names_a_job_by_its_key_or_by_its_path() {
    let setup = Setup::cold(RedisServer::start().await, routes(&[OF_TENANT, "/jobs/{id}/"])).await;
    let purges = [
        (json!({ "job_id": "acme:x17" }), "/t/acme/jobs/x17", "acme:x17"),
        (json!({ "path": "/t/acme/jobs/x17" }), "/t/acme/jobs/x17", "acme:x17"),
        (json!({ "job_id": "acme:007" }), "/t/acme/jobs/7", "acme:7"),
        (json!({ "job_id": "x17" }), "/jobs/x17/", "x17"),
        (json!({ "path": "/jobs/x17" }), "/jobs/x17/", "x17"),
    ];
    for (body, path, id) in purges {
        served(&setup, path).await;
        let reply = purge(&setup, &body).await;
        assert_eq!(reply.status, StatusCode::OK, "{body}");
        let gone = reply.json()["purged"].clone();
        assert!(gone.as_array().is_some_and(|ids| ids.contains(&json!(id))), "{gone}");
        assert!(!setup.get(path).await.is_hit(), "{body}");
    }
    served(&setup, "/t/acme/jobs/x17").await;
    let reply = setup
        .sidecar
        .admin
        .request(Method::from_bytes(b"PURGE").expect("a method"), "/t/acme/jobs/x17")
        .send()
        .await;
    assert_eq!(reply.json()["purged"][0], "acme:x17");
    let refused = purge(&setup, &json!({ "path": "/other/7" })).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text().contains("names no job"), "{refused:?}");
}

#[tokio::test]
async fn two_jobs_with_one_key_replace_each_other_and_are_never_mixed() {
    let setup = Setup::cold(RedisServer::start().await, |config| {
        routes(&[OF_TENANT])(config);
        config.api.ids = Ids::Opaque;
    })
    .await;
    let (one, other) = ("/t/a:b/jobs/c7", "/t/a/jobs/b:c7");
    setup.upstream.respond(one, |_| Some(json_of("1")));
    setup.upstream.respond(other, |_| Some(json_of("2")));
    for _ in 0..3 {
        hit(&setup, one).await.assert(200, "1");
        hit(&setup, other).await.assert(200, "2");
    }
    hit(&setup, one).await;
    setup.redis.del(&key("a:b:c7")).await;
    assert!(!setup.get(one).await.is_hit());
}

#[tokio::test]
async fn a_route_with_a_slash_has_it_in_the_canonical_spelling() {
    let setup = Setup::cold(RedisServer::start().await, routes(&["/jobs/{id}/"])).await;
    let (slash, bare) = ("/jobs/x17/", "/jobs/x17");
    hit(&setup, slash).await;
    let passed = setup.get(bare).await;
    assert!(passed.cache_status().ends_with("detail=spelling; setting=\"routes\""), "{passed:?}");
    hit(&setup, slash).await;
    setup.sidecar.put(bare).await;
    assert!(!setup.get(slash).await.is_hit());
}

#[tokio::test]
async fn any_text_is_an_id_if_the_api_compares_ids_as_text() {
    let setup = Setup::with(|config| config.api.ids = Ids::Opaque).await;
    for (read, write, id) in [
        ("/jobs/rq:job:1", "/jobs/rq%3Ajob%3A1", "rq:job:1"),
        ("/jobs/rq%3Ajob%3A2", "/jobs/rq:job:2/cancel", "rq:job:2"),
        ("/jobs/20240101_1200", "/jobs/20240101_1200", "20240101_1200"),
        ("/jobs/latest", "/jobs/latest", "latest"),
        ("/jobs/a%20b", "/jobs/a+b", "a b"),
        (
            "/jobs/0f8fad5bd9cb469fa16570867728950e",
            "/jobs?id=0f8fad5b-d9cb-469f-a165-70867728950e",
            "0f8fad5bd9cb469fa16570867728950e",
        ),
        (
            "/jobs/manual__2024-01-01T00:00:00+00:00",
            "/jobs/manual__2024-01-01T00%3A00%3A00%2B00%3A00",
            "manual__2024-01-01T00:00:00+00:00",
        ),
    ] {
        hit(&setup, read).await;
        assert!(setup.redis.holds(&key(id)).await, "{read}");
        setup.sidecar.put(write).await;
        assert!(!setup.redis.holds(&key(id)).await, "{write}");
    }
    for other in ["/jobs/a%2Fb", "/jobs/a;b", "/jobs/a%257", "/jobs/%7Ba%7D"] {
        let reply = setup.get(other).await;
        assert!(reply.cache_status().contains("detail=spelling"), "{other}: {reply:?}");
    }
}

#[tokio::test]
async fn an_exception_is_never_cached() {
    let setup = Setup::with(|config| {
        config.api.ids = Ids::Opaque;
        config.api.except = vec!["/jobs/latest".to_owned(), "/{any}/stats".to_owned()];
    })
    .await;
    for path in ["/jobs/latest", "/jobs/stats"] {
        for _ in 0..2 {
            let reply = setup.get(path).await;
            assert!(reply.cache_status().ends_with("detail=except"), "{path}: {reply:?}");
        }
    }
    hit(&setup, "/jobs/newest").await;
}

#[tokio::test]
async fn a_status_beside_200_is_replayed_and_forgotten_like_a_job() {
    let setup = Setup::with(with_statuses).await;
    let path = "/jobs/x17";
    setup.upstream.respond(path, |_| Some(with_status(StatusCode::ACCEPTED, "retry-after", "7")));
    let first = setup.get(path).await;
    let again = hit(&setup, path).await;
    assert_eq!((again.status, again.header("retry-after")), (StatusCode::ACCEPTED, "7"));
    assert_eq!((first.text(), first.status), (again.text(), again.status));
    // An application that reads the key never takes it for a job.
    assert_eq!(setup.redis.get(&key("x17")).await.as_deref(), Some(&b""[..]));
    assert!(setup.redis.ttl_ms(&key("x17")).await <= 5_000);

    setup
        .upstream
        .respond(path, |_| Some(with_status(StatusCode::SEE_OTHER, "location", "/results/17")));
    setup.sidecar.put(path).await;
    let done = hit(&setup, path).await;
    assert_eq!((done.status, done.header("location")), (StatusCode::SEE_OTHER, "/results/17"));
    let conditional = setup.sidecar.client.request(Method::GET, path).header("if-none-match", "*");
    assert_eq!(conditional.send().await.status, StatusCode::SEE_OTHER);

    setup.upstream.respond(path, |_| Some(with_status(StatusCode::GONE, "x-none", "")));
    setup.redis.del(&key("x17")).await;
    assert_eq!(hit(&setup, path).await.status, StatusCode::GONE);
    let purged = purge(&setup, &json!({ "job_id": "x17" })).await.json();
    assert!(purged["receipts"][0]["entry"].is_object(), "{purged}");
    assert!(!setup.get(path).await.is_hit());
}

#[tokio::test]
async fn a_status_that_is_not_stored_is_shared_by_those_who_wait_for_it() {
    let setup = Setup::new().await;
    for (id, status, header, is_shared) in [
        ("a1", StatusCode::NOT_FOUND, ("x-none", ""), true),
        ("b1", StatusCode::ACCEPTED, ("cache-control", "max-age=2"), true),
        ("c1", StatusCode::ACCEPTED, ("x-none", ""), false),
        ("d1", StatusCode::NOT_FOUND, ("cache-control", "no-store"), false),
        ("e1", StatusCode::NOT_FOUND, ("set-cookie", "a=b"), false),
        ("f1", StatusCode::INTERNAL_SERVER_ERROR, ("x-none", ""), false),
    ] {
        let path = format!("/jobs/{id}");
        setup.upstream.respond(&path, move |_| Some(with_status(status, header.0, header.1)));
        let gate = setup.upstream.hold(Method::GET, &path);
        let client = &setup.sidecar.client;
        let mut polls = Vec::new();
        for _ in 0..4 {
            polls.push(client.start(Method::GET, &path, "").await);
        }
        gate.arrived(1).await;
        eventually(SOON, async || {
            let joined = setup.sidecar.admin.metric("jobcache_flights_joined_total").await;
            let waiting = setup.sidecar.admin.metric("jobcache_requests_in_flight").await;
            if waiting >= 4 { Ok(()) } else { Err((joined, waiting)) }
        })
        .await;
        gate.release();
        for poll in polls {
            assert_eq!(poll.answer().await.0, status.as_u16());
        }
        // On a busy machine not every poll comes in time to join.
        assert_eq!(setup.upstream.reads(&path) < 4, is_shared, "{id}");
        assert!(!setup.redis.holds(&key(id)).await, "{id}");
    }
}

#[tokio::test]
async fn a_route_with_a_prefix_of_its_own_is_followed_and_purged_too() {
    let setup = Setup::with(|config| {
        let exports =
            RouteConfig { prefix: Some("exports:".to_owned()), ..RouteConfig::at("/exports/{id}") };
        config.api.tables = vec![exports];
    })
    .await;
    let (job, export) = ("/jobs/x17", "/exports/x17");
    hit(&setup, job).await;
    served(&setup, export).await;
    assert!(setup.redis.holds("exports:x17").await);
    // The entry in the process goes with that in Redis.
    setup.redis.del("exports:x17").await;
    assert!(!setup.get(export).await.is_hit());
    assert!(hit(&setup, export).await.is_hit() && setup.get(job).await.is_hit());

    setup.sidecar.put(export).await;
    assert!(!setup.get(export).await.is_hit() && setup.get(job).await.is_hit());
    hit(&setup, export).await;
    assert_eq!(purge(&setup, &json!({ "all": true })).await.status, StatusCode::OK);
    assert!(!setup.get(export).await.is_hit() && !setup.get(job).await.is_hit());
}

#[tokio::test]
async fn a_variable_after_the_id_makes_a_write_forget_every_job() {
    let setup = Setup::cold(RedisServer::start().await, routes(&["/jobs/{id}/{part}"])).await;
    for path in ["/jobs/x1/status", "/jobs/x1/result", "/jobs/x2/status"] {
        hit(&setup, path).await;
    }
    setup.sidecar.put("/jobs/x1").await;
    for path in ["/jobs/x1/status", "/jobs/x1/result", "/jobs/x2/status"] {
        assert!(!setup.get(path).await.is_hit(), "{path}");
    }
}

/// Starts the binary in front of an upstream with these arguments.
async fn process(redis: &RedisServer, upstream: &Upstream, args: &[&str]) -> Process {
    let (url, store) = (upstream.url(), redis.url());
    Process::start(&[&["--upstream", &url, "--redis-url", &store], args].concat(), &[]).await
}

async fn logs(process: &Process, text: &str) {
    eventually(SOON, async || {
        let log = process.stderr();
        if log.contains(text) { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn reads_that_match_no_route_are_told_once_with_the_route_to_use() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let process = process(&redis, &upstream, &[]).await;
    logs(&process, "routes=\"/jobs/{id} /api/v1/jobs/{id}\"").await;
    for n in 0..250 {
        process.client.get(&format!("/runs/r{n}/")).await;
    }
    logs(&process, "route=\"/runs/{id}/\"").await;
    let log = process.stderr();
    assert_eq!(log.matches("match no route").count(), 1, "{log}");
    assert!(log.contains("/runs/{id}/") && !log.contains("/runs/r7"), "{log}");
}

#[tokio::test]
async fn ids_that_are_not_taken_are_told_once_with_the_setting_that_takes_them() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    for ids in [
        ["red", "blue", "green", "cyan", "teal", "pink", "gold", "gray"]
            .map(str::to_owned)
            .to_vec(),
        (0..100).map(|n| format!("2024_{n}")).collect(),
    ] {
        let process = process(&redis, &upstream, &[]).await;
        for id in ids.iter().chain(&ids) {
            process.client.get(&format!("/jobs/{id}")).await;
        }
        logs(&process, "--ids opaque").await;
        assert_eq!(process.stderr().matches("--ids opaque").count(), 1);
    }
}

#[tokio::test]
async fn the_check_of_a_path_says_what_becomes_of_a_get_and_a_put() {
    let check = |args: &[&str]| {
        let (code, stdout, stderr) = Process::output(&[&["check"], args].concat(), &[]);
        assert_eq!(code, 0, "{stderr}");
        stdout
    };
    assert_eq!(
        check(&["--route", OF_TENANT, "--path", "/t/a1/jobs/17"]),
        "GET /t/a1/jobs/17: cached under job_status:a1:17, by the route /t/{tenant}/jobs/{id}\n\
         PUT /t/a1/jobs/17: forgets job_status:a1:17 job_status:A1:17\n"
    );
    assert_eq!(
        check(&["--path", "/jobs/stats", "--path", "/other"]),
        "GET /jobs/stats: passes, and is not cached (detail=word); ids=opaque would take it\n\
         PUT /jobs/stats: forgets job_status:stats\n\
         GET /other: passes, and is not cached (detail=path)\n\
         PUT /other: names no job by its path, and forgets none\n"
    );
}

#[tokio::test]
async fn flags_and_variables_set_what_a_table_does() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let flags = [
        "--route",
        "/runs/{id}/",
        "--ids",
        "opaque",
        "--statuses",
        "404=2s",
        "--except",
        "/runs/latest/",
    ];
    let process = process(&redis, &upstream, &flags).await;
    upstream.respond("/runs/red/", |_| Some(with_status(StatusCode::NOT_FOUND, "x-none", "")));
    eventually(SOON, async || {
        let reply = process.client.get("/runs/red/").await;
        if reply.is_hit() && reply.status == StatusCode::NOT_FOUND { Ok(()) } else { Err(reply) }
    })
    .await;
    let latest = process.client.get("/runs/latest/").await;
    assert!(latest.cache_status().ends_with("detail=except"), "{latest:?}");
}

#[tokio::test]
async fn an_operator_sees_the_routes() {
    let setup = Setup::cold(RedisServer::start().await, |config| {
        routes(&[OF_TENANT])(config);
        config.webhook.secrets = vec![Secret::new("0123456789abcdef")];
    })
    .await;
    let status = setup.sidecar.admin.request(Method::GET, "/status");
    let status = status.header("authorization", "Bearer 0123456789abcdef").send().await;
    assert_eq!(status.json()["routes"], json!([OF_TENANT]));
}

#[tokio::test]
async fn a_purge_or_a_question_about_a_key_that_no_route_can_have_is_refused() {
    let setup = Setup::cold(RedisServer::start().await, routes(&[OF_TENANT])).await;
    served(&setup, "/t/acme/jobs/x17").await;
    let refused = purge(&setup, &json!({ "job_id": "x17" })).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
    let explained = setup.sidecar.admin.get("/explain/x17").await;
    assert_eq!(explained.status, StatusCode::BAD_REQUEST, "{explained:?}");
    let encoded = setup.sidecar.admin.request(Method::POST, "/purge/acme%3Ax17").send().await;
    assert_eq!(encoded.json()["purged"], json!(["acme:x17"]));
    assert!(!setup.get("/t/acme/jobs/x17").await.is_hit());
}

#[tokio::test]
async fn a_job_of_each_prefix_is_explained_by_its_path() {
    let setup = Setup::with(|config| {
        let exports =
            RouteConfig { prefix: Some("exports:".to_owned()), ..RouteConfig::at("/exports/{id}") };
        config.api.tables = vec![exports];
    })
    .await;
    served(&setup, "/exports/x17").await;
    let head = "GET /exports/x17 HTTP/1.1\r\nHost: a\r\n\r\n";
    let explain = setup.sidecar.admin.request(Method::POST, "/explain/x17").body(head);
    let explained = explain.send().await.json();
    assert_eq!(explained["value"], "entry", "{explained}");
    let without = setup.sidecar.admin.get("/explain/x17").await.json();
    assert_eq!(without["value"], "none", "{without}");
}

#[tokio::test]
async fn reads_with_another_slash_than_the_route_are_told_too() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let process = process(&redis, &upstream, &["--route", "/runs/{id}"]).await;
    for n in 0..150 {
        process.client.get(&format!("/runs/r{n}/")).await;
    }
    logs(&process, "route=\"/runs/{id}/\"").await;
}
