//! Which differences between two answers keep callers apart, and which do not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{Method, Response, StatusCode};
use jobcache::{
    clock,
    config::{Config, SampleRate, StoreUrl},
};
use serde_json::Value;

use crate::support::{
    Body, Client, Process, Reply, SOON, Setup, Upstream, client::HOST, eventually,
    upstream::with_headers,
};

const X: &str = "/jobs/x1";
const A: &str = "Bearer a";
const B: &str = "Bearer b";
const C: &str = "Bearer c";
const D: &str = "Bearer d";
const CALLERS: [&str; 4] = [A, B, C, D];

async fn read(client: &Client, who: &str) -> Reply {
    client.request(Method::GET, X).header("authorization", who).send().await
}

async fn get(setup: &Setup, who: &str) -> Reply {
    read(&setup.sidecar.client, who).await
}

/// Answers every read of the job with the headers that `headers` makes from its number, counted from
/// zero.
fn number_reads(
    upstream: &Upstream,
    headers: impl Fn(usize) -> Vec<(&'static str, String)> + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let reads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reads);
    upstream.respond_to(X, move |_| answer(&headers(count.fetch_add(1, Ordering::SeqCst))));
    reads
}

fn answer(headers: &[(&'static str, String)]) -> Response<Body> {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    with_headers("{}", &headers)
}

/// Answers the first read with the first value of a header, the second with the second and so on.
async fn answering(name: &'static str, values: &'static [&'static str]) -> Setup {
    let setup = Setup::new().await;
    number_reads(&setup.upstream, move |read| {
        vec![(name, values[read.min(values.len() - 1)].to_owned())]
    });
    setup
}

fn ttl(reply: &Reply) -> u64 {
    let ttl = reply.cache_status().rsplit("ttl=").next().map(str::parse);
    ttl.expect("a ttl").expect("seconds")
}

const VOLATILE: [&str; 8] = [
    "x-envoy-upstream-service-time",
    "x-served-by",
    "cf-ray",
    "x-kong-proxy-latency",
    "x-kong-upstream-latency",
    "x-kong-request-id",
    "x-datadog-trace-id",
    "nel",
];

fn of_a_gateway(read: usize) -> Vec<(&'static str, String)> {
    let now = clock::now();
    let expires = httpdate::fmt_http_date(now + Duration::from_mins(1));
    let mut headers = vec![("expires", expires), ("last-modified", httpdate::fmt_http_date(now))];
    headers.extend(VOLATILE.map(|name| (name, format!("{read}"))));
    headers
}

async fn check_four_callers(change: impl FnOnce(&mut Config)) {
    let setup = Setup::with(change).await;
    let reads = number_reads(&setup.upstream, of_a_gateway);
    let mut hits = 0;
    for poll in 0..10 {
        for who in CALLERS {
            let reply = get(&setup, who).await;
            reply.assert(200, "{}");
            assert!(reply.headers.contains_key("expires"), "{reply:?}");
            if reply.is_hit() {
                hits += 1;
                for name in VOLATILE.iter().chain(&["last-modified"]) {
                    assert!(!reply.headers.contains_key(*name), "{name} is replayed: {reply:?}");
                }
            } else {
                assert_eq!(poll, 0, "{who} read again: {reply:?}");
                assert!(reply.headers.contains_key("cf-ray"), "{reply:?}");
            }
        }
    }
    assert_eq!((reads.load(Ordering::SeqCst), hits), (4, 36));
    let request = setup.sidecar.client.request(Method::GET, X).header("authorization", A);
    let since = httpdate::fmt_http_date(clock::now());
    let reply = request.header("if-modified-since", &since).send().await;
    reply.assert(200, "{}");
    assert!(reply.is_hit(), "{reply:?}");
}

#[tokio::test]
async fn what_changes_with_every_read_costs_one_read_per_caller() {
    check_four_callers(|_| {}).await;
}

#[tokio::test]
async fn what_changes_with_every_read_costs_one_read_per_caller_in_memory_too() {
    check_four_callers(|config| config.store.url = StoreUrl::Memory).await;
}

#[tokio::test]
async fn verification_ignores_what_changes_with_every_read() {
    let all = SampleRate::of_millionths(SampleRate::WHOLE);
    let setup = Setup::with(|config| config.cache.verify = all).await;
    let count = async |outcome: &str| {
        let name = format!("jobcache_verify_total{{outcome=\"{outcome}\"}}");
        setup.sidecar.admin.metric(&name).await
    };
    let before = count("same").await;
    number_reads(&setup.upstream, of_a_gateway);
    get(&setup, A).await;
    assert!(get(&setup, A).await.is_hit());
    eventually(SOON, async || count("same").await > before).await;
    assert_eq!(count("different").await, 0);
}

#[tokio::test]
async fn an_answer_that_lives_longer_admits_and_the_entry_keeps_its_expiry() {
    for (name, values) in [
        ("cache-control", &["max-age=100", "max-age=200"]),
        ("cache-control", &["max-age=100", "max-age=100"]),
        ("cache-control", &["max-age=100, s-maxage=100", "s-maxage=150, max-age=120"]),
    ] {
        let setup = answering(name, values).await;
        // `s-maxage` is for every credential, so the second caller asks for another variant.
        let ask = |language: &'static str| {
            let request = setup.sidecar.client.request(Method::GET, X);
            request.header("authorization", A).header("accept-language", language).send()
        };
        assert!(ask("en").await.is_stored() && !ask("fr").await.is_hit());
        for language in ["en", "fr"] {
            let hit = ask(language).await;
            assert!(hit.is_hit() && ttl(&hit) <= 100, "{values:?} {language}: {hit:?}");
            assert_eq!(hit.header(name), values[0], "{language}");
        }
        assert_eq!(setup.upstream.reads(X), 2, "{values:?}");
    }
}

#[tokio::test]
async fn an_answer_that_lives_shorter_replaces_the_entry_and_keeps_no_caller_out() {
    let values = &["max-age=200", "max-age=150", "max-age=120", "max-age=100"];
    let setup = answering("cache-control", values).await;
    for (who, value) in CALLERS.into_iter().zip(values) {
        let miss = get(&setup, who).await;
        assert_eq!((miss.is_hit(), miss.header("cache-control")), (false, *value), "{who}");
    }
    for who in CALLERS {
        let hit = get(&setup, who).await;
        assert!(hit.is_hit() && ttl(&hit) <= 100, "{who}: {hit:?}");
        assert_eq!(hit.header("cache-control"), "max-age=100");
    }
    assert_eq!(setup.upstream.reads(X), 4);
}

/// A client caches by `max-age`, which may say less than `s-maxage` or the TTL of this cache.
#[tokio::test]
async fn a_lifetime_that_is_shorter_for_clients_alone_replaces_the_entry_too() {
    let setup = answering("cache-control", &["max-age=3600", "max-age=600"]).await;
    get(&setup, A).await;
    get(&setup, B).await;
    for who in [A, B] {
        let hit = get(&setup, who).await;
        assert_eq!((hit.is_hit(), hit.header("cache-control")), (true, "max-age=600"), "{who}");
    }
}

#[tokio::test]
async fn an_answer_that_may_not_be_stored_admits_nobody() {
    for forbids in ["private", "no-store", "no-cache"] {
        let setup = Setup::new().await;
        setup.upstream.respond_to(X, move |headers| {
            let control = if headers["authorization"] == B { forbids } else { "max-age=60" };
            with_headers("{}", &[("cache-control", control)])
        });
        get(&setup, A).await;
        let refused = get(&setup, B).await;
        assert_eq!(refused.cache_status(), format!("jobcache; fwd=miss; detail={forbids}"));
        for _ in 0..2 {
            let reply = get(&setup, B).await;
            assert_eq!((reply.is_hit(), reply.header("cache-control")), (false, forbids));
        }
        assert!(get(&setup, A).await.is_hit(), "{forbids} has dropped the entry of the others");
    }
}

#[tokio::test]
async fn an_answer_without_the_public_of_the_entry_replaces_it() {
    let setup = answering("cache-control", &["public, max-age=60", "max-age=60"]).await;
    get(&setup, A).await;
    assert!(get(&setup, B).await.is_hit(), "public is for all callers");
    let french = setup.sidecar.client.request(Method::GET, X).header("accept-language", "fr");
    assert!(!french.header("authorization", A).send().await.is_hit());
    assert!(!get(&setup, C).await.is_hit(), "a stranger gets what is not public any more");
}

/// Spring MVC sends these three lines with every answer as soon as CORS is configured.
#[tokio::test]
async fn an_answer_that_varies_by_headers_of_a_preflight_is_stored() {
    let setup = Setup::new().await;
    let names = ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"];
    number_reads(&setup.upstream, move |_| names.map(|name| ("vary", name.to_owned())).to_vec());
    assert!(get(&setup, A).await.is_stored());
    assert!(get(&setup, A).await.is_hit());
}

#[tokio::test]
async fn a_modification_date_that_is_no_time_of_an_answer_is_kept_and_compared() {
    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const OLDER: &str = "Sun, 06 Nov 1994 07:49:37 GMT";
    let setup = answering("last-modified", &[OLD, OLD, OLDER]).await;
    get(&setup, A).await;
    get(&setup, B).await;
    for who in [A, B] {
        let hit = get(&setup, who).await;
        assert_eq!((hit.is_hit(), hit.header("last-modified")), (true, OLD), "{who}");
    }
    get(&setup, C).await;
    assert!(!get(&setup, A).await.is_hit(), "another date has admitted its caller");
}

fn by_pod(read: usize) -> Vec<(&'static str, String)> {
    vec![("x-pod", format!("secret-{read}"))]
}

#[tokio::test]
async fn a_header_that_differs_keeps_callers_apart_and_is_named() {
    let upstream = Upstream::start().await;
    number_reads(&upstream, by_pod);
    let args = ["--upstream", &upstream.url(), "--redis-url", "memory://", "--log-format", "json"];
    let process = Process::start(&args, &[]).await;
    // Three replacements for each.
    for who in CALLERS.into_iter().cycle().take(13) {
        assert!(!read(&process.client, who).await.is_hit(), "{who} got the header of another");
    }
    let passed = read(&process.client, B).await;
    assert!(passed.cache_status().contains("detail=audience"), "{passed:?}");

    for who in [D, B] {
        let head = format!("GET {X} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {who}\r\n");
        let request = process.admin.request(Method::POST, "/explain/x1").body(head);
        let told: Value = request.send().await.json();
        let why = told["verdict"]["why"].as_str().expect("text");
        assert!(why.contains("x-pod") && why.contains("responses.volatile"), "{told}");
        assert_eq!(told["marks"]["differing_headers"], serde_json::json!(["x-pod"]), "{told}");
    }
    let warnings = async || {
        let log = process.stderr();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines.filter(|line| line["header"] == "x-pod").collect::<Vec<_>>()
    };
    let lines =
        eventually(SOON, async || Some(warnings().await).filter(|all| !all.is_empty())).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        (&lines[0]["level"], &lines[0]["remedy"]),
        (&"WARN".into(), &"responses.volatile".into())
    );
    assert!(!process.stderr().contains("secret-"), "{}", process.stderr());
}

#[tokio::test]
async fn a_header_that_the_operator_calls_volatile_keeps_nobody_apart() {
    let setup = Setup::with(|config| config.cache.responses.volatile = vec!["x-pod".into()]).await;
    let reads = number_reads(&setup.upstream, by_pod);
    for who in CALLERS {
        assert_eq!(
            get(&setup, who).await.header("x-pod"),
            format!("secret-{}", reads.load(Ordering::SeqCst) - 1)
        );
    }
    for who in CALLERS {
        let hit = get(&setup, who).await;
        assert!(hit.is_hit() && !hit.headers.contains_key("x-pod"), "{who}: {hit:?}");
    }
    assert_eq!(reads.load(Ordering::SeqCst), 4);
}

/// The API shows strangers something else, such as a page to log in.
#[tokio::test]
async fn a_caller_with_answers_of_its_own_does_not_end_sharing_for_the_others() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, |headers| {
        let body = if headers.contains_key("authorization") { "{}" } else { "{\"login\":1}" };
        with_headers(body, &[])
    });
    // A client that asks for a new read replaces an entry as well.
    for asked in ["max-age=60", "no-cache"].into_iter().cycle().take(8) {
        let stranger = setup.sidecar.client.request(Method::GET, X);
        stranger.header("cache-control", asked).send().await.assert(200, "{\"login\":1}");
        get(&setup, A).await.assert(200, "{}");
    }

    for who in [B, C, D] {
        eventually(SOON, async || get(&setup, who).await.is_hit()).await;
    }
    let stranger = setup.get(X).await;
    assert!(stranger.cache_status().contains("detail=audience"), "{stranger:?}");
    assert!(get(&setup, B).await.is_hit());
}

#[tokio::test]
async fn a_fresh_read_of_the_same_answer_makes_each_other_caller_ask_once_more() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, |_| with_headers("{}", &[]));
    for who in [A, B] {
        eventually(SOON, async || get(&setup, who).await.is_hit()).await;
    }
    for _ in 0..5 {
        let fresh = setup.sidecar.client.request(Method::GET, X).header("authorization", B);
        assert!(!fresh.header("cache-control", "no-cache").send().await.is_hit());

        let other = get(&setup, A).await;

        assert!(!other.cache_status().contains("audience"), "{other:?}");
        eventually(SOON, async || get(&setup, A).await.is_hit()).await;
        assert!(get(&setup, B).await.is_hit());
    }
}

#[tokio::test]
async fn a_header_that_carries_meaning_is_not_called_volatile() {
    for name in ["Content-Type", "ETag", "Set-Cookie", "Cache-Control", "Location", "Vary"] {
        let (code, _, stderr) = Process::output(
            &["--upstream", "http://127.0.0.1:1", "--redis-url", "memory://"],
            &[("JOBCACHE_RESPONSES_VOLATILE", name)],
        );
        let said = format!("must not have {}", name.to_lowercase());
        assert!(code == 78 && stderr.contains(&said), "{name}: {code} {stderr}");
    }
}

/// A header with a meaning cannot be called volatile, so another remedy is proposed.
#[tokio::test]
async fn a_tag_that_differs_between_equal_bodies_is_reported() {
    let upstream = Upstream::start().await;
    number_reads(&upstream, |read| vec![("etag", format!("\"{read}\""))]);
    let args = ["--upstream", &upstream.url(), "--redis-url", "memory://"];
    let process = Process::start(&args, &[]).await;
    for who in [A, B] {
        assert_eq!(read(&process.client, who).await.status, StatusCode::OK);
    }
    let line = eventually(SOON, async || {
        process.stderr().lines().find(|line| line.contains("header=\"etag\"")).map(str::to_owned)
    })
    .await;
    assert!(line.contains("WARN") && !line.contains("responses.volatile"), "{line}");
}
