//! Redis over TLS, and jobcache's identity there: a real `redis-server` with a TLS port and a plain
//! port, which the test itself uses.

use hyper::StatusCode;
use jobcache::config::{Config, KeyPair, StoreUrl};

use crate::support::{
    Process, RedisServer, SOON, Setup, Upstream, eventually, free_port,
    redis::key,
    tls::{Authority, write},
    upstream::version,
};

const X: &str = "/jobs/x1";

/// Returns the TLS port and the arguments with which Redis shows this certificate.
pub(crate) fn tls_args(authority: &Authority, pair: &KeyPair, clients: &str) -> (u16, Vec<String>) {
    let port = free_port();
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().display().to_string();
    let (port_text, ca) = (port.to_string(), authority.ca().display().to_string());
    let (cert, key) = (path(&pair.cert), path(&pair.key));
    let pairs = [
        ("--tls-port", port_text),
        ("--tls-cert-file", cert),
        ("--tls-key-file", key),
        ("--tls-ca-cert-file", ca),
        ("--tls-auth-clients", clients.to_owned()),
    ];
    (port, pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect())
}

async fn tls_redis(authority: &Authority, pair: &KeyPair, clients: &str) -> (RedisServer, String) {
    let (port, args) = tls_args(authority, pair, clients);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    (RedisServer::start_with(&args).await, format!("rediss://127.0.0.1:{port}"))
}

#[tokio::test]
async fn redis_over_tls_serves_hits_writes_and_purges_and_comes_back_after_a_restart() {
    let authority = Authority::new();
    let pair = authority.issue("redis", &["127.0.0.1"]);
    let (redis, url) = tls_redis(&authority, &pair, "yes").await;
    let mut setup = Setup::cold(redis, |config| {
        config.store.url = StoreUrl::Redis(url);
        config.store.tls.ca = Some(authority.ca());
        config.store.tls.identity = authority.issue("sidecar", &["jobcache"]);
    })
    .await;
    let near = async |setup: &Setup| {
        eventually(SOON, async || {
            setup.get(X).await;
            let reply = setup.sidecar.admin.get("/metrics").await;
            let metrics = reply.text();
            let near = metrics.lines().filter(|line| {
                line.contains("near_lookups_total{") || line.contains("tracking_up")
            });
            let near: Vec<_> = near.map(str::to_owned).collect();
            let hits = near.iter().find_map(|line| {
                line.strip_prefix("jobcache_near_lookups_total{outcome=\"hit\"} ")
            });
            if hits.is_some_and(|hits| hits != "0") { Ok(()) } else { Err(near) }
        })
        .await;
    };
    near(&setup).await;
    assert!(setup.redis.holds(&key("x1")).await);

    // A deletion over the plain port is noticed at once over TLS.
    setup.upstream.commit("x1");
    setup.redis.del(&key("x1")).await;
    setup.get(X).await.assert(200, &version("x1", 1));
    setup.sidecar.put(X).await.assert(200, &version("x1", 2));
    setup.hit(X).await.assert(200, &version("x1", 2));
    setup.upstream.commit("x1");
    let purge = setup.sidecar.admin.request(hyper::Method::POST, "/purge/x1").send().await;
    assert_eq!(purge.status, StatusCode::OK, "{purge:?}");
    setup.hit(X).await.assert(200, &version("x1", 3));

    setup.redis.restart_empty().await;
    eventually(SOON, async || setup.get(X).await.is_hit()).await;
    let tracking = async || setup.sidecar.admin.metric("jobcache_tracking_up").await == 1;
    eventually(SOON, tracking).await;
}

#[tokio::test]
async fn a_large_body_goes_both_ways_over_tls() {
    let authority = Authority::new();
    let pair = authority.issue("redis", &["127.0.0.1"]);
    let (redis, url) = tls_redis(&authority, &pair, "no").await;
    let setup = Setup::cold(redis, |config| {
        config.store.url = StoreUrl::Redis(url);
        config.store.tls.ca = Some(authority.ca());
        config.cache.near.mode = jobcache::config::NearMode::Off;
        config.cache.limits.max_body = 1 << 20;
    })
    .await;
    let body = "x".repeat(900 << 10);
    setup.upstream.set("x1", 200, body.clone());

    setup.hit(X).await.assert(200, &body);
}

#[tokio::test]
async fn a_redis_that_is_not_believed_is_passed_by_and_counted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let pair = authority.issue("redis", &["127.0.0.1"]);
    let (redis, url) = tls_redis(&authority, &pair, "no").await;
    let setup = Setup::cold(redis, |config| {
        config.store.url = StoreUrl::Redis(url);
        config.store.tls.ca = Some(stranger.ca());
    })
    .await;

    let failed = "jobcache_store_connect_failures_total{error=\"tls\"}";
    eventually(SOON, async || setup.sidecar.admin.metric(failed).await > 0).await;
    for _ in 0..3 {
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 0));
        assert!(reply.is_uncached(), "{reply:?}");
    }
    assert_eq!(setup.sidecar.put(X).await.status, StatusCode::OK);
}

/// Returns what `jobcache check` prints about the store.
fn store_verdict(url: &str, envs: &[(&str, &str)]) -> String {
    let (code, out, error) = Process::output(&["check", "--redis-url", url], envs);
    assert_eq!(code, 0, "{error}");
    let line = out.lines().find(|line| line.starts_with("# store ")).expect("a line").to_owned();
    line.split_once(": ").expect("a verdict").1.to_owned()
}

#[tokio::test]
async fn what_is_wrong_with_tls_is_said_with_its_mend() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let text = |path: std::path::PathBuf| path.display().to_string();
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().display().to_string();
    let (ca, other_ca) = (text(authority.ca()), text(stranger.ca()));
    let good = authority.issue("good", &["127.0.0.1"]);
    let named = authority.issue("named", &["redis.internal"]);
    let old = authority.issue_expired("old", &["127.0.0.1"]);
    let (redis, url) = tls_redis(&authority, &good, "no").await;
    let (_strict, strict) = tls_redis(&authority, &good, "yes").await;
    let (_named, named) = tls_redis(&authority, &named, "no").await;
    let (_old, old) = tls_redis(&authority, &old, "no").await;
    let ours = authority.issue("ours", &["jobcache"]);
    let (cert, our_key) = (path(&ours.cert), path(&ours.key));
    let trust = ("JOBCACHE_STORE_TLS_CA", ca.as_str());
    let name = ("JOBCACHE_STORE_TLS_SERVER_NAME", "redis.internal");
    let shown = [("JOBCACHE_STORE_TLS_CERT", &*cert), ("JOBCACHE_STORE_TLS_KEY", &*our_key)];
    let check = |url: &str, envs: &[(&str, &str)], parts: &[&str]| {
        let said = store_verdict(url, envs);
        for part in parts {
            assert!(said.contains(part), "{url} {envs:?}: {said}");
        }
    };

    assert_eq!(store_verdict(&url, &[trust]), "reachable");
    check(
        &url,
        &[("JOBCACHE_STORE_TLS_CA", &other_ca)],
        &["invalid peer certificate", "store.tls.ca"],
    );
    check(&named, &[trust], &["not valid for name", "store.tls.server_name"]);
    assert_eq!(store_verdict(&named, &[trust, name]), "reachable");
    check(&old, &[trust], &["expired"]);
    check(&strict, &[trust], &["CertificateRequired", "store.tls.cert"]);
    assert_eq!(store_verdict(&strict, &[trust, shown[0], shown[1]]), "reachable");
    // Each kind of URL with the other kind of server.
    let plain = redis.url().replace("redis://", "rediss://");
    check(
        &plain,
        &[trust],
        &["TLS to the store failed", "use a redis:// URL for a server without TLS"],
    );
    let clear = url.replace("rediss://", "redis://");
    check(&clear, &[], &["use a rediss:// URL for a server with TLS"]);
}

#[tokio::test]
async fn a_wrong_password_is_called_one() {
    let redis = RedisServer::start().await;
    let url = redis.url().replace("redis://", "redis://nobody:wrong@");

    let verdict = store_verdict(&url, &[]);

    assert!(verdict.contains("authentication failed"), "{verdict}");
    assert!(verdict.contains("store.password") && !verdict.contains("broke"), "{verdict}");
}

#[tokio::test]
async fn a_changed_password_is_used_at_the_next_connection() {
    let redis = RedisServer::start().await;
    let set = async |password: &str| {
        let user = ["SETUSER", "app", "reset", "on", "allcommands", "allkeys", "allchannels"];
        let mut acl = redis::cmd("ACL");
        acl.arg(&user[..]).arg(format!(">{password}"));
        let () = redis.run(&acl).await;
    };
    set("first").await;
    let upstream = Upstream::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    write(&file, "first\n");
    let mut config: Config = crate::support::sidecar::config(&redis, &upstream);
    config.store.login.username = Some("app".into());
    config.store.login.password_file = Some(file.clone());
    let sidecar = crate::support::sidecar::Sidecar::start(config).await;
    sidecar.warm().await;

    set("second").await;
    write(&file, "second\n");
    let mut kill = redis::cmd("CLIENT");
    let () = redis.run(kill.arg("KILL").arg("USER").arg("app").arg("SKIPME").arg("yes")).await;

    eventually(SOON, async || sidecar.get("/jobs/y1").await.is_hit()).await;
    let tracking = async || sidecar.admin.metric("jobcache_tracking_up").await == 1;
    eventually(SOON, tracking).await;
}
