//! Promise 2: a credential receives only what the upstream itself has served to it.

use hyper::{HeaderMap, Method, Response, StatusCode};
use jobcache::config::{Config, CredentialMode};

use crate::support::{
    Body, Reply, SOON, Setup, eventually,
    redis::key,
    upstream::{json, version, with_headers},
};

const X: &str = "/jobs/x1";
const ALICE: &str = "Bearer alice-0123456789";
const BOB: &str = "Bearer bob-9876543210";
const EVE: &str = "Bearer eve-5555555555";

async fn get(setup: &Setup, who: &str) -> Reply {
    setup.sidecar.client.request(Method::GET, X).header("authorization", who).send().await
}

/// Reads until the answer is a hit; each earlier answer came from the upstream.
async fn warm(setup: &Setup, who: &str) {
    eventually(SOON, async || get(setup, who).await.is_hit()).await;
}

fn who(headers: &HeaderMap) -> &str {
    headers.get("authorization").map_or("nobody", |value| value.to_str().unwrap())
}

/// An API that knows Alice and Bob, and answers 401 to everyone else.
fn members_only(headers: &HeaderMap) -> Response<Body> {
    match who(headers) {
        ALICE | BOB => json(StatusCode::OK, version("x1", 0)),
        _ => json(StatusCode::UNAUTHORIZED, r#"{"detail":"who are you?"}"#),
    }
}

/// An API that gives each client its own view of the job.
fn personal(headers: &HeaderMap) -> Response<Body> {
    json(StatusCode::OK, format!(r#"{{"id":"x1","for":"{}"}}"#, who(headers)))
}

#[tokio::test]
async fn each_credential_asks_the_upstream_once_and_then_hits() {
    let setup = Setup::new().await;
    for who in [ALICE, BOB, EVE] {
        assert!(!get(&setup, who).await.is_hit(), "{who} was answered without the upstream");
    }
    for who in [ALICE, BOB, EVE] {
        assert!(get(&setup, who).await.is_hit(), "{who} was forgotten");
    }
    assert_eq!(setup.upstream.reads(X), 3);
    setup.sidecar.put(X).await;
    for who in [ALICE, BOB, EVE] {
        get(&setup, who).await.assert(200, &version("x1", 1));
    }
    assert_eq!(setup.upstream.reads(X), 6, "not one read per version and credential");
}

#[tokio::test]
async fn a_stranger_is_refused_by_the_upstream_before_and_after_the_cache_is_warm() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, members_only);
    assert_eq!(get(&setup, EVE).await.status, 401);
    warm(&setup, ALICE).await;
    for _ in 0..3 {
        let reply = get(&setup, EVE).await;
        assert_eq!(reply.status, 401);
        assert!(!reply.cache_status().contains("hit"), "{reply:?}");
    }
    assert_eq!(setup.get(X).await.status, 401, "an anonymous client was served");
    assert!(get(&setup, ALICE).await.is_hit(), "a refusal has dropped the entry of the others");
}

#[tokio::test]
async fn two_users_see_their_own_bodies_always() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, personal);
    for turn in 0..20 {
        for who in [ALICE, BOB] {
            let reply = get(&setup, who).await;
            assert!(reply.text().contains(who), "turn {turn}: {who} got {reply:?}");
        }
    }
    let reply = get(&setup, ALICE).await;
    assert!(reply.text().contains(ALICE));
    let reply = get(&setup, BOB).await;
    let replies = [reply, get(&setup, ALICE).await];
    let passes = replies.iter().any(|reply| reply.cache_status().contains("detail=audience"));
    assert!(passes, "bodies specific to each client do not bypass the cache: {replies:?}");
}

#[tokio::test]
async fn a_credential_revoked_by_a_write_is_not_served_after_it() {
    let setup = Setup::new().await;
    warm(&setup, BOB).await;
    setup.upstream.respond_to(X, |headers| match who(headers) {
        BOB => json(StatusCode::FORBIDDEN, "{}"),
        _ => json(StatusCode::OK, version("x1", 0)),
    });
    setup.sidecar.put(X).await;
    warm(&setup, ALICE).await;
    assert_eq!(get(&setup, BOB).await.status, 403);
}

/// Holds Bob's read, which the upstream has answered, during `invalidate` and until Alice has
/// filled the same bytes again. The late read must not admit Bob.
async fn check_late_admission(invalidate: impl AsyncFn(&Setup)) {
    let setup = Setup::new().await;
    warm(&setup, ALICE).await;
    let gate = setup.upstream.hold_after_read(Method::GET, X);
    let late = setup.sidecar.client.start_as(Method::GET, X, BOB).await;
    gate.arrived(1).await;
    setup.upstream.respond_to(X, |headers| match who(headers) {
        BOB => json(StatusCode::FORBIDDEN, "{}"),
        _ => json(StatusCode::OK, version("x1", 0)),
    });
    invalidate(&setup).await;
    gate.release();
    assert_eq!(late.answer().await.0, 200, "Bob's read began before the invalidation");
    warm(&setup, ALICE).await;
    assert_eq!(get(&setup, BOB).await.status, 403);
}

#[tokio::test]
async fn a_read_that_began_before_a_write_admits_nobody() {
    check_late_admission(async |setup| drop(setup.sidecar.put(X).await)).await;
}

#[tokio::test]
async fn a_read_that_began_before_a_plain_del_admits_nobody() {
    check_late_admission(async |setup| setup.redis.del(&key("x1")).await).await;
}

#[tokio::test]
async fn a_read_that_began_before_a_del_and_a_set_of_the_same_bytes_admits_nobody() {
    check_late_admission(async |setup| {
        let body = setup.redis.get(&key("x1")).await.unwrap();
        setup.redis.del(&key("x1")).await;
        setup.redis.set(&key("x1"), &body).await;
    })
    .await;
}

#[tokio::test]
async fn a_leaders_refusal_and_cookie_reach_nobody_else_in_its_flight() {
    for status in [StatusCode::UNAUTHORIZED, StatusCode::OK] {
        let setup = Setup::new().await;
        setup.upstream.respond_to(X, move |headers| {
            let mut response = json(status, "{}");
            if status == StatusCode::OK {
                let id = headers.get("x-request-number").unwrap().clone();
                response.headers_mut().insert("set-cookie", id);
            }
            response
        });
        let gate = setup.upstream.hold(Method::GET, X);
        let ask = |number: &'static str| {
            setup.sidecar.client.request(Method::GET, X).header("x-request-number", number).send()
        };
        let (first, second, ()) = tokio::join!(ask("1"), ask("2"), async {
            gate.arrived(1).await;
            setup.exchange().await;
            gate.release();
        });
        assert_eq!(setup.upstream.reads(X), 2, "not one read each");
        if status == StatusCode::OK {
            assert_eq!((first.header("set-cookie"), second.header("set-cookie")), ("1", "2"));
        }
    }
}

#[tokio::test]
async fn headers_of_one_exchange_are_not_replayed() {
    let setup = Setup::new().await;
    let headers = [("x-ratelimit-remaining", "7"), ("x-request-id", "a"), ("x-kept", "k")];
    setup.upstream.respond(X, move |_| Some(with_headers("{}", &headers)));
    assert_eq!(get(&setup, ALICE).await.header("x-kept"), "k");
    let hit = get(&setup, ALICE).await;
    assert!(hit.is_hit());
    assert_eq!(hit.header("x-kept"), "k");
    assert!(!hit.headers.contains_key("x-ratelimit-remaining"), "{hit:?}");
    assert!(!hit.headers.contains_key("x-request-id"), "{hit:?}");
}

#[tokio::test]
async fn a_stored_header_that_differs_keeps_another_credential_out() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, |headers| {
        let mut response = json(StatusCode::OK, "{}");
        response.headers_mut().insert("x-plan", headers["authorization"].clone());
        response
    });
    for _ in 0..3 {
        for who in [ALICE, BOB] {
            assert_eq!(get(&setup, who).await.header("x-plan"), who);
        }
    }
}

#[tokio::test]
async fn what_the_upstream_calls_public_is_for_all_who_ask_for_its_form() {
    for directive in ["public", "s-maxage=60"] {
        let setup = Setup::new().await;
        setup
            .upstream
            .respond(X, move |_| Some(with_headers("{}", &[("cache-control", directive)])));
        warm(&setup, ALICE).await;
        assert!(get(&setup, BOB).await.is_hit(), "{directive}");
        let french = setup.sidecar.client.request(Method::GET, X).header("accept-language", "fr");
        assert!(!french.send().await.is_hit(), "{directive} does not waive content negotiation");
    }
}

#[tokio::test]
async fn other_representations_are_let_in_by_the_upstream_too() {
    let setup = Setup::new().await;
    let get = |language: &'static str| {
        setup.sidecar.client.request(Method::GET, X).header("accept-language", language).send()
    };
    for language in ["de", "fr", "en"] {
        assert!(!get(language).await.is_hit());
    }
    for language in ["de", "fr", "en"] {
        assert!(get(language).await.is_hit(), "{language}");
    }
    assert_eq!(setup.upstream.reads(X), 3);
}

fn mode(mode: CredentialMode) -> impl FnOnce(&mut Config) {
    move |config| config.cache.credentials.mode = mode
}

#[tokio::test]
async fn in_shared_mode_one_read_serves_every_credential() {
    let setup = Setup::with(mode(CredentialMode::Shared)).await;
    warm(&setup, ALICE).await;
    assert!(get(&setup, BOB).await.is_hit());
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn in_bypass_mode_a_request_with_a_credential_is_not_cached() {
    let setup = Setup::with(mode(CredentialMode::Bypass)).await;
    setup.hit(X).await;
    setup.upstream.forget_requests();
    for turn in 1..=3 {
        assert!(get(&setup, ALICE).await.is_uncached());
        assert_eq!(setup.upstream.reads(X), turn);
    }
    assert!(setup.get(X).await.is_hit());
}

#[tokio::test]
async fn past_its_limit_an_audience_takes_nobody_in() {
    let setup = Setup::with(|config| config.cache.credentials.audience = 1).await;
    warm(&setup, ALICE).await;
    for _ in 0..3 {
        let reply = get(&setup, BOB).await;
        assert!(reply.cache_status().ends_with("detail=audience"), "{reply:?}");
    }
    assert!(get(&setup, ALICE).await.is_hit());
}

#[tokio::test]
async fn a_head_by_a_stranger_is_the_upstreams_to_answer() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, members_only);
    warm(&setup, ALICE).await;
    let head = |who| setup.sidecar.client.request(Method::HEAD, X).header("authorization", who);
    assert_eq!(head(EVE).send().await.status, 401);
    assert!(head(ALICE).send().await.is_hit());
    let etag = get(&setup, ALICE).await.header("etag").to_owned();
    let stranger = setup.sidecar.client.request(Method::GET, X).header("authorization", EVE);
    assert_eq!(stranger.header("if-none-match", &etag).send().await.status, 401);
}

#[tokio::test]
async fn no_credential_stands_in_redis() {
    let setup = Setup::new().await;
    warm(&setup, ALICE).await;
    warm(&setup, BOB).await;
    for name in setup.redis.keys("*").await {
        let value = String::from_utf8_lossy(&setup.redis.content(&name).await).into_owned();
        for secret in ["alice", "0123456789", "bob", "9876543210"] {
            assert!(!name.contains(secret) && !value.contains(secret), "{name}: {value}");
        }
    }
}

#[tokio::test]
async fn sidecars_know_each_others_credentials() {
    let setup = Setup::new().await;
    warm(&setup, ALICE).await;
    let second = setup.second().await;
    let reply = second.client.request(Method::GET, X).header("authorization", ALICE).send().await;
    assert!(reply.is_hit(), "{reply:?}");
}

#[tokio::test]
async fn polls_of_one_credential_share_the_read_that_lets_it_in() {
    let setup = Setup::new().await;
    warm(&setup, ALICE).await;
    let gate = setup.upstream.hold(Method::GET, X);
    let polls = futures_util::future::join_all((0..50).map(|_| get(&setup, BOB)));
    let (replies, ()) = tokio::join!(polls, async {
        gate.arrived(1).await;
        setup.exchange().await;
        gate.release();
    });
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert_eq!(setup.upstream.reads(X), 2, "not one read by Alice and one by Bob");
}

#[tokio::test]
async fn what_entries_are_told_apart_by_reaches_the_upstream_whatever_connection_lists() {
    let setup = Setup::new().await;
    let headers = [
        ("origin", "https://app.example"),
        ("accept", "text/html"),
        ("accept-language", "de"),
        ("x-remote-user", "alice"),
    ];
    for (name, value) in headers {
        let request = setup.sidecar.client.request(Method::GET, X).header("connection", name);
        request.header(name, value).send().await;
        let seen = setup.upstream.requests().pop().unwrap();
        assert_eq!(seen.headers.get(name).unwrap(), value);
    }
}

#[tokio::test]
async fn cookies_of_several_lines_reach_the_upstream_in_one() {
    let setup = Setup::new().await;
    let request = setup.sidecar.client.request(Method::GET, X).header("cookie", "a=1");
    request.header("cookie", "b=2").send().await;
    let seen = setup.upstream.requests().pop().unwrap();
    let lines: Vec<_> = seen.headers.get_all("cookie").iter().collect();
    assert_eq!(lines, ["a=1; b=2"]);
}

/// "public" allows anyone to get the answer, but `Vary: Authorization` says that each client gets
/// another one.
#[tokio::test]
async fn what_varies_by_who_asks_is_public_to_nobody() {
    for vary in ["authorization", "Accept, Cookie", "X-User-Id"] {
        let setup = Setup::new().await;
        setup.upstream.respond_to(X, move |headers| {
            let mut response = personal(headers);
            let fields = response.headers_mut();
            fields.insert("cache-control", "public, s-maxage=60".parse().unwrap());
            fields.insert("vary", vary.parse().unwrap());
            response
        });
        warm(&setup, ALICE).await;
        let reply = get(&setup, BOB).await;
        assert!(!reply.is_hit() && reply.text().contains(BOB), "{vary}: {reply:?}");
    }
}

/// WSGI and CGI pass `x_user_id` to an application in the same form as `x-user-id`.
#[tokio::test]
async fn a_header_that_gateways_read_as_a_credential_is_one() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, |headers| {
        let name = ["x_user_id", "api_key", "x.api.key"].iter().find_map(|name| headers.get(*name));
        let name = name.map_or("nobody", |value| value.to_str().unwrap());
        json(StatusCode::OK, format!(r#"{{"for":"{name}"}}"#))
    });
    for header in ["x_user_id", "api_key", "x.api.key"] {
        // Fields listed in `Connection` are for this hop, but credentials are for the upstream.
        let get = |who: &'static str| {
            let request = setup.sidecar.client.request(Method::GET, X);
            request.header("connection", header).header(header, who).send()
        };
        for who in ["alice", "bob", "alice", "bob"] {
            get(who).await.assert(200, &format!(r#"{{"for":"{who}"}}"#));
        }
        setup.get(X).await.assert(200, r#"{"for":"nobody"}"#);
    }
}

/// A client without access must not learn that there is an entry, or that it is specific to each
/// client.
#[tokio::test]
async fn a_refusal_does_not_tell_whether_there_is_an_entry() {
    check_refusal(StatusCode::FORBIDDEN).await;
}

#[tokio::test]
async fn a_redirect_to_a_login_does_not_tell_whether_there_is_an_entry() {
    check_refusal(StatusCode::FOUND).await;
}

async fn check_refusal(status: StatusCode) {
    for (audience, asked) in [(1, "max-age=300"), (300, "max-age=300"), (300, "no-cache")] {
        check_refusal_in(status, audience, asked).await;
    }
}

async fn check_refusal_in(status: StatusCode, audience: usize, asked: &str) {
    let setup = Setup::with(|config| config.cache.credentials.audience = audience).await;
    setup.upstream.respond_to(X, move |headers| match who(headers) {
        ALICE => json(StatusCode::OK, version("x1", 1)),
        _ => json(status, "{}"),
    });
    let get_as = async |who| {
        let request = setup.sidecar.client.request(Method::GET, X).header("authorization", who);
        request.header("cache-control", asked).send().await
    };
    let before = get_as(EVE).await;
    warm(&setup, ALICE).await;
    for _ in 0..3 {
        let after = get_as("Bearer another-stranger").await;
        assert_eq!(after.status, before.status);
        assert_eq!(after.cache_status(), before.cache_status());
    }
}
