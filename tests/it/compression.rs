//! Large entries that are stored compressed: which client gets which form, and what counts as a
//! hit.

use hyper::{Method, StatusCode};
use jobcache::config::{Config, NearMode};
use xxhash_rust::xxh3::xxh3_128;

use crate::support::{
    Client, Reply, SOON, Setup, eventually,
    redis::key,
    upstream::{json, with_headers},
};

const X: &str = "/jobs/x1";
/// The magic number of a Zstandard frame (RFC 8878 3.1.1).
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const SUFFIX: &str = "-jobcache-zstd\"";

fn body() -> String {
    let steps: Vec<_> = (0..200).map(|step| format!(r#"{{"step":{step},"ok":true}}"#)).collect();
    format!(r#"{{"id":"x1","steps":[{}]}}"#, steps.join(","))
}

fn compressing(config: &mut Config) {
    config.store.compress_above = Some(1024);
}

/// Returns a setup with a large job in the cache.
async fn filled(change: impl FnOnce(&mut Config)) -> Setup {
    let setup = Setup::with(|config| {
        compressing(config);
        change(config);
    })
    .await;
    setup.upstream.set("x1", 200, body());
    setup.get(X).await.assert(200, &body());
    setup.hit(X).await;
    setup
}

async fn accepting(client: &Client, accept: &str) -> Reply {
    client.request(Method::GET, X).header("accept-encoding", accept).send().await
}

fn decompressed(reply: &Reply) -> String {
    let mut whole: Vec<u8> = Vec::with_capacity(body().len());
    zstd_safe::decompress(&mut whole, &reply.body).expect("a Zstandard frame");
    String::from_utf8(whole).expect("text")
}

#[track_caller]
fn assert_identity(reply: &Reply) {
    assert!(reply.is_hit(), "{reply:?}");
    reply.assert(200, &body());
    assert!(!reply.headers.contains_key("content-encoding"), "{reply:?}");
    assert_eq!(reply.header("vary"), "accept-encoding");
    assert_eq!(reply.header("content-length"), body().len().to_string());
    assert!(!reply.header("etag").ends_with(SUFFIX), "{reply:?}");
}

#[track_caller]
fn assert_compressed(reply: &Reply) {
    assert!(reply.is_hit(), "{reply:?}");
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.header("content-encoding"), "zstd");
    assert_eq!(reply.header("vary"), "accept-encoding");
    assert_eq!(reply.header("content-length"), reply.body.len().to_string());
    assert!(reply.body.len() < body().len() / 4, "{}", reply.body.len());
    assert_eq!(decompressed(reply), body());
    assert!(reply.header("etag").ends_with(SUFFIX), "{reply:?}");
}

#[tokio::test]
async fn each_client_gets_the_form_that_it_accepts() {
    for near in [NearMode::Strict, NearMode::Off] {
        let setup = filled(|config| config.cache.near.mode = near).await;
        let client = &setup.sidecar.client;
        assert_identity(&setup.get(X).await);
        assert_compressed(&accepting(client, "gzip, deflate, br, zstd").await);
        assert_identity(&accepting(client, "gzip, deflate, br").await);
        assert_identity(&accepting(client, "zstd;q=0, *").await);
        assert_compressed(&accepting(client, "zstd;q=0.5").await);
        assert_eq!(setup.upstream.reads(X), 1, "{near:?}");

        let stored = setup.redis.get(&key("x1")).await.expect("an entry");
        assert_eq!(stored[..4], MAGIC, "{near:?}");
        assert_eq!(accepting(client, "zstd").await.body, stored, "not sent in the stored form");
    }
}

#[tokio::test]
async fn a_head_request_is_told_of_the_form_that_a_get_would_see() {
    let setup = filled(|_| {}).await;
    let get = accepting(&setup.sidecar.client, "zstd").await;

    let head = setup.sidecar.client.request(Method::HEAD, X).header("accept-encoding", "zstd");
    let head = head.send().await;

    assert!(head.is_hit() && head.body.is_empty(), "{head:?}");
    for name in ["content-length", "content-encoding", "etag", "vary"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
}

#[tokio::test]
async fn whoever_repeats_its_request_gets_its_own_form_each_time() {
    let setup = filled(|_| {}).await;
    // Two connections, so that each repeats its own request.
    let address = setup.sidecar.client.address();
    let (plain, zstd) = (Client::new(address), Client::new(address));
    for _ in 0..4 {
        assert_compressed(&accepting(&zstd, "zstd").await);
        assert_identity(&plain.get(X).await);
    }
    assert!(setup.sidecar.admin.metric("jobcache_repeats_total").await >= 4);
    // One connection may also change its choice.
    assert_identity(&zstd.get(X).await);
    assert_compressed(&accepting(&zstd, "zstd").await);
}

#[tokio::test]
async fn a_validator_of_either_form_is_answered_304() {
    let setup = filled(|_| {}).await;
    let client = &setup.sidecar.client;
    let identity = setup.get(X).await.header("etag").to_owned();
    let zstd = accepting(client, "zstd").await.header("etag").to_owned();
    assert_ne!(identity, zstd);
    for accept in ["zstd", "gzip"] {
        for tag in [&identity, &zstd] {
            let asked = client.request(Method::GET, X).header("accept-encoding", accept);
            let reply = asked.header("if-none-match", tag).send().await;
            assert_eq!(reply.status, StatusCode::NOT_MODIFIED, "{accept} {tag}: {reply:?}");
            assert_eq!(reply.header("etag"), tag, "{accept}");
            assert_eq!(reply.header("vary"), "accept-encoding");
        }
        let asked = client.request(Method::GET, X).header("accept-encoding", accept);
        let reply = asked.header("if-none-match", "\"other\"").send().await;
        assert_eq!(reply.status, StatusCode::OK, "{accept}");
    }
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn the_upstreams_own_tag_and_vary_are_kept() {
    let setup = Setup::with(compressing).await;
    setup.upstream.respond_to(X, |_| {
        let mut response = json(StatusCode::OK, body());
        let headers = response.headers_mut();
        headers.insert("etag", "\"v7\"".parse().unwrap());
        headers.insert("vary", "Accept".parse().unwrap());
        response
    });
    setup.get(X).await;
    let plain = setup.hit(X).await;
    let vary = |reply: &Reply| {
        let lines =
            reply.headers.get_all("vary").iter().map(|line| line.to_str().unwrap().to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(plain.header("etag"), "\"v7\"");
    assert_eq!(vary(&plain), ["Accept", "accept-encoding"]);
    let zstd = accepting(&setup.sidecar.client, "zstd").await;
    assert_eq!(zstd.header("etag"), "\"v7-jobcache-zstd\"");
    assert_eq!(vary(&zstd), ["Accept", "accept-encoding"]);

    // The tag in a conditional write is translated to the upstream's tag.
    let write = setup.sidecar.client.request(Method::PUT, X).body("{}");
    write.header("if-match", zstd.header("etag")).send().await;
    let writes: Vec<_> =
        setup.upstream.requests().into_iter().filter(|seen| seen.method == Method::PUT).collect();
    assert_eq!(writes[0].headers["if-match"], "\"v7\"");
}

/// A client with a part of the compressed body would otherwise combine it with a part of another
/// form.
#[tokio::test]
async fn a_part_is_asked_for_under_the_tag_that_the_client_has() {
    let setup = filled(|_| {}).await;
    let tag = accepting(&setup.sidecar.client, "zstd").await.header("etag").to_owned();
    let asked = |method: Method| {
        let request = setup.sidecar.client.request(method, X).header("range", "bytes=100-");
        request.header("if-match", &tag).send()
    };
    asked(Method::GET).await;
    asked(Method::PUT).await;
    let requests = setup.upstream.requests();
    let [.., read, write] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!((&read.method, read.headers["if-match"].to_str().unwrap()), (&Method::GET, &*tag));
    let plain = tag.replace("-jobcache-zstd", "");
    assert_eq!(
        (&write.method, write.headers["if-match"].to_str().unwrap()),
        (&Method::PUT, &*plain)
    );
}

#[tokio::test]
async fn small_bodies_and_those_that_nobody_may_transform_are_stored_as_they_are() {
    let setup = Setup::with(compressing).await;
    setup.upstream.respond("/jobs/fixed1", |_| {
        let body: &'static str = body().leak();
        Some(with_headers(body, &[("cache-control", "max-age=60, no-transform")]))
    });
    setup.upstream.respond("/jobs/digested1", |_| {
        let body: &'static str = body().leak();
        Some(with_headers(body, &[("content-digest", "sha-256=:AAAA:")]))
    });
    for id in ["small1", "fixed1", "digested1"] {
        let path = format!("/jobs/{id}");
        setup.get(&path).await;
        let hit = setup.hit(&path).await;
        assert_eq!(setup.redis.get(&key(id)).await.as_deref(), Some(&hit.body[..]), "{id}");
        assert!(!hit.headers.contains_key("vary"), "{id}: {hit:?}");
    }
}

#[tokio::test]
async fn nothing_is_compressed_unless_it_is_asked_for() {
    let setup = Setup::new().await;
    setup.upstream.set("x1", 200, body());
    setup.get(X).await;
    let hit = setup.hit(X).await;

    assert_eq!(setup.redis.get(&key("x1")).await.as_deref(), Some(body().as_bytes()));
    assert!(!hit.headers.contains_key("vary"), "{hit:?}");
    assert!(
        !accepting(&setup.sidecar.client, "zstd").await.headers.contains_key("content-encoding")
    );
}

#[tokio::test]
async fn a_sidecar_that_compresses_nothing_serves_what_another_has_compressed() {
    let setup = filled(|_| {}).await;
    let mut config = crate::support::sidecar::config(&setup.redis, &setup.upstream);
    config.cache.near.mode = NearMode::Off;
    let other = crate::support::sidecar::Sidecar::start(config).await;

    // Requests pass through until it is connected.
    eventually(SOON, async || other.get(X).await.is_hit()).await;
    setup.upstream.forget_requests();

    assert_identity(&other.get(X).await);
    assert_compressed(&accepting(&other.client, "zstd").await);
    assert_eq!(setup.upstream.reads(X), 0);
}

/// Sidecars without compression accept only the uncompressed version as a hit.
#[tokio::test]
async fn what_is_compressed_is_of_a_version_that_older_sidecars_do_not_serve() {
    const COMPRESSED: i32 = 4;
    let setup = filled(|_| {}).await;
    setup.get("/jobs/small1").await;
    setup.hit("/jobs/small1").await;
    for (id, version) in [("x1", COMPRESSED), ("small1", 3)] {
        let meta = setup.redis.get(&format!("{{{}}}:meta", key(id))).await.expect("meta");
        let meta: serde_json::Value = serde_json::from_slice(&meta).expect("JSON");
        assert_eq!(meta["v"], version, "{meta}");
        assert_eq!(meta.get("zstd_of").is_some(), version == COMPRESSED, "{meta}");
    }
}

#[tokio::test]
async fn a_credential_that_is_given_the_same_shares_the_compressed_entry() {
    let setup = filled(|_| {}).await;
    let alice = || {
        let asked = setup.sidecar.client.request(Method::GET, X);
        asked.header("authorization", "Bearer alice").header("accept-encoding", "zstd").send()
    };
    let first = alice().await;
    assert!(!first.is_hit(), "{first:?}");
    eventually(SOON, async || alice().await.is_hit()).await;
    assert_compressed(&alice().await);
    assert_identity(&setup.get(X).await);
    assert_eq!(setup.upstream.reads(X), 2);
}

/// Replaces the body under the same expiry, with matching metadata.
async fn forge(setup: &Setup, stored: &[u8], zstd_of: usize) {
    let (main, meta_key) = (key("x1"), format!("{{{}}}:meta", key("x1")));
    let meta = setup.redis.get(&meta_key).await.expect("meta");
    let mut meta: serde_json::Value = serde_json::from_slice(&meta).expect("JSON");
    meta["digest"] = format!("{:032x}", xxh3_128(stored)).into();
    meta["zstd_of"] = zstd_of.into();
    for (key, value) in [(meta_key.as_str(), meta.to_string().as_bytes()), (&main, stored)] {
        let mut set = redis::cmd("SET");
        set.arg(key).arg(value).arg("KEEPTTL");
        setup.redis.run::<()>(&set).await;
    }
}

#[tokio::test]
async fn a_body_that_is_not_what_meta_tells_of_is_no_hit() {
    let zeros = vec![0; 1 << 20];
    let mut bomb: Vec<u8> = Vec::with_capacity(1 << 20);
    zstd_safe::compress(&mut bomb, &zeros, 1).expect("a frame");
    let mut good: Vec<u8> = Vec::with_capacity(body().len());
    zstd_safe::compress(&mut good, body().as_bytes(), 1).expect("a frame");
    for (stored, length, hit) in [
        (&good[..], body().len(), true),
        (&bomb, body().len(), false),
        (&bomb, usize::MAX, false),
        (&good, body().len() - 1, false),
        (&good, body().len() + 1, false),
        (body().as_bytes(), body().len(), false),
    ] {
        let setup = filled(|config| config.cache.near.mode = NearMode::Off).await;
        forge(&setup, stored, length).await;

        let reply = setup.get(X).await;

        reply.assert(200, &body());
        assert_eq!(reply.is_hit(), hit, "{} of {length}: {reply:?}", stored.len());
    }
}

#[tokio::test]
async fn the_same_bytes_from_somebody_else_are_no_hit() {
    let setup = filled(|_| {}).await;
    let stored = setup.redis.get(&key("x1")).await.expect("an entry");
    setup.redis.set(&key("x1"), &stored).await;

    let reply = accepting(&setup.sidecar.client, "zstd").await;

    assert!(!reply.is_hit(), "{reply:?}");
    assert_eq!(setup.upstream.reads(X), 2);
}
