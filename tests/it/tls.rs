//! TLS on both sides: trusted certificates, presented certificates, and changes of both.

use std::time::Duration;

use hyper::{HeaderMap, Method, Request, client::conn::http1, header::HOST as HOST_NAME};
use hyper_util::rt::TokioIo;
use jobcache::config::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Process, RedisServer, Reply, SOON, Setup, Upstream,
    client::HOST,
    eventually, full,
    sidecar::{Sidecar, config},
    soon,
    tls::{Authority, write},
    upstream::version,
};

/// Starts a sidecar with a TLS listener for clients.
async fn behind_tls(authority: &Authority) -> Setup {
    let pair = authority.issue("listener", &[HOST]);
    let setup = Setup::cold(RedisServer::start().await, |config| {
        config.tls = pair;
        config.tls_renew_interval = Duration::from_millis(20);
        config.cache.limits.max_body = 1 << 20;
    })
    .await;
    let address = setup.sidecar.client.address();
    eventually(SOON, async || authority.get(address, "/jobs/warm-up1").await.is_hit()).await;
    setup.upstream.forget_requests();
    setup
}

/// Starts a sidecar in front of this upstream, which it may not trust.
async fn in_front_of(upstream: &Upstream, change: impl FnOnce(&mut Config)) -> Sidecar {
    let mut config = Config::default();
    config.cache.settle = Duration::ZERO;
    config.store.reconnect_grace = Duration::ZERO;
    config.store.url = jobcache::config::StoreUrl::Memory;
    config.upstream.url = upstream.url();
    change(&mut config);
    Sidecar::start(config).await
}

#[tokio::test]
async fn clients_speak_http1_or_http2_as_they_offer_it() {
    let authority = Authority::new();
    let setup = behind_tls(&authority).await;
    let address = setup.sidecar.client.address();

    authority.get(address, "/jobs/1").await.assert(200, &version("1", 0));
    let hit = authority.get_http2(address, "/jobs/1").await;
    hit.assert(200, &version("1", 0));
    assert!(hit.is_hit(), "{hit:?}");

    let silent = authority.connect(address, &[]).await;
    assert_eq!(silent.get_ref().1.alpn_protocol(), None);
    let seen = setup.upstream.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].headers["x-forwarded-proto"], "https");
}

#[tokio::test]
async fn a_write_over_tls_invalidates_before_it_is_answered() {
    let authority = Authority::new();
    let setup = behind_tls(&authority).await;
    let address = setup.sidecar.client.address();
    authority.get(address, "/jobs/1").await.assert(200, &version("1", 0));

    authority.request(address, Method::PUT, "/jobs/1").await.assert(200, &version("1", 1));

    authority.get(address, "/jobs/1").await.assert(200, &version("1", 1));
}

#[tokio::test]
async fn what_was_read_over_tls_is_another_representation() {
    let authority = Authority::new();
    let setup = behind_tls(&authority).await;
    let scheme = |headers: &HeaderMap| {
        let proto = headers["x-forwarded-proto"].to_str().unwrap().to_owned();
        let mut response = hyper::Response::new(full(format!(r#"{{"self":"{proto}://a"}}"#)));
        response.headers_mut().insert("content-type", "application/json".parse().unwrap());
        response
    };
    setup.upstream.respond_to("/jobs/1", scheme);
    let plain = Sidecar::start(config(&setup.redis, &setup.upstream)).await;
    plain.warm().await;

    let over_tls = authority.get(setup.sidecar.client.address(), "/jobs/1").await;
    over_tls.assert(200, r#"{"self":"https://a"}"#);
    plain.get("/jobs/1").await.assert(200, r#"{"self":"http://a"}"#);
}

#[tokio::test]
async fn repeated_requests_are_answered_whole_over_tls() {
    let authority = Authority::new();
    let setup = behind_tls(&authority).await;
    // More than a socket and the TLS buffers take at once.
    let body = "x".repeat(900 << 10);
    setup.upstream.set("1", 200, body.clone());
    let address = setup.sidecar.client.address();
    let io = TokioIo::new(authority.connect(address, &["http/1.1"]).await);
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let repeats = async || setup.sidecar.admin.metric("jobcache_repeats_total").await;

    eventually(SOON, async || {
        soon(sender.ready()).await.unwrap();
        let request = Request::get("/jobs/1").header(HOST_NAME, HOST).body(full("")).unwrap();
        let reply = Reply::read(soon(sender.send_request(request)).await.unwrap()).await.unwrap();
        reply.assert(200, &body);
        repeats().await >= 3
    })
    .await;
    setup.sidecar.admin.request(Method::POST, "/purge/1").send().await;
    setup.upstream.set("1", 200, "changed");

    let request = Request::get("/jobs/1").header(HOST_NAME, HOST).body(full("")).unwrap();
    soon(sender.ready()).await.unwrap();
    let reply = Reply::read(soon(sender.send_request(request)).await.unwrap()).await.unwrap();
    reply.assert(200, "changed");
}

#[tokio::test]
async fn what_is_no_tls_is_closed_and_counted() {
    let authority = Authority::new();
    let setup = behind_tls(&authority).await;

    let answer = setup.sidecar.client.raw(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;

    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    let counted = r#"jobcache_connection_errors_total{kind="tls"} 1"#;
    eventually(SOON, async || setup.sidecar.admin.get("/metrics").await.text().contains(counted))
        .await;
}

#[tokio::test]
async fn a_handshake_that_drags_on_is_cut_off() {
    let authority = Authority::new();
    let pair = authority.issue("listener", &[HOST]);
    let setup = Setup::cold(RedisServer::start().await, |config| {
        config.tls = pair;
        config.server.header_timeout = Duration::from_millis(50);
    })
    .await;
    let mut stream = setup.sidecar.client.connect().await;
    // The beginning of a ClientHello.
    stream.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();

    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let authority = Authority::new();
    let setup = behind_tls(&authority).await;
    let address = setup.sidecar.client.address();
    let shown = async || {
        let stream = authority.connect(address, &[]).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let counted = async |outcome: &str| {
        let line = format!("jobcache_tls_reloads_total{{outcome=\"{outcome}\"}}");
        setup.sidecar.admin.get("/metrics").await.text().contains(&line)
    };
    let (first, next) = (shown().await, authority.sign(&[HOST]));

    // Only half of the pair has changed: it does not match, and the old pair stays in use.
    write(&authority.path("listener.pem"), &next.cert);
    eventually(SOON, async || counted("failed").await).await;
    assert_eq!(shown().await, first);

    write(&authority.path("listener.key"), &next.key);
    eventually(SOON, async || shown().await != first).await;
    eventually(SOON, async || counted("applied").await).await;
}

#[tokio::test]
async fn an_upstream_is_believed_by_the_configured_authority() {
    let authority = Authority::new();
    let upstream = Upstream::start_tls(authority.server(&["127.0.0.1"])).await;
    let sidecar =
        in_front_of(&upstream, |config| config.upstream.tls.ca = Some(authority.ca())).await;

    sidecar.get("/jobs/1").await.assert(200, &version("1", 0));
    let hit = sidecar.get("/jobs/1").await;
    assert!(hit.is_hit(), "{hit:?}");
    sidecar.put("/jobs/1").await.assert(200, &version("1", 1));
    sidecar.get("/jobs/1").await.assert(200, &version("1", 1));
}

#[tokio::test]
async fn an_upstream_of_another_authority_or_name_is_not_spoken_to() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let upstream = Upstream::start_tls(authority.server(&["api.internal"])).await;
    let check = async |ca: &Authority, name: Option<&str>, status: u16| {
        let sidecar = in_front_of(&upstream, |config| {
            config.upstream.tls.ca = Some(ca.ca());
            config.upstream.tls.server_name = name.map(str::to_owned);
        })
        .await;
        let reply = sidecar.get("/jobs/1").await;
        assert_eq!(reply.status, status, "{name:?}: {reply:?}");
        reply.cache_status().to_owned()
    };

    let refused = "jobcache; fwd=bypass; detail=upstream-tls";
    assert_eq!(check(&authority, None, 502).await, refused);
    assert_eq!(check(&stranger, Some("api.internal"), 502).await, refused);
    assert!(upstream.requests().is_empty());
    check(&authority, Some("api.internal"), 200).await;
}

#[tokio::test]
async fn an_upstream_that_asks_for_it_is_shown_a_certificate() {
    let authority = Authority::new();
    let upstream = Upstream::start_tls(authority.server_for_known_clients(&["127.0.0.1"])).await;
    let trusting = |config: &mut Config| config.upstream.tls.ca = Some(authority.ca());
    let nameless = in_front_of(&upstream, trusting).await;
    let named = in_front_of(&upstream, |config| {
        trusting(config);
        config.upstream.tls.identity = authority.issue("client", &["jobcache"]);
    })
    .await;

    assert_eq!(nameless.get("/jobs/1").await.status, 502);
    named.get("/jobs/1").await.assert(200, &version("1", 0));
}

#[test]
fn a_check_tells_of_certificates_that_do_not_fit() {
    let authority = Authority::new();
    let (one, other) = (authority.issue("one", &[HOST]), authority.issue("other", &[HOST]));
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().display().to_string();
    let check = |cert: &str, key: &str| {
        let envs = [("JOBCACHE_TLS_CERT", cert), ("JOBCACHE_TLS_KEY", key)];
        let (code, _, error) = Process::output(&["check", "--redis-url", "memory://"], &envs);
        (code, error)
    };

    assert_eq!(check(&path(&one.cert), &path(&one.key)).0, 0);
    let (code, error) = check(&path(&one.cert), &path(&other.key));
    assert_eq!(code, 78, "{error}");
    assert!(error.contains("one.pem cannot be used"), "{error}");
}
