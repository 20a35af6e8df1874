//! Reads of push that make news: no circle of reads and news becomes a stream of reads, and a version that
//! cannot be shared holds nobody.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper::{
    Method, Response, StatusCode,
    body::Incoming,
    header::{CACHE_CONTROL, IF_NONE_MATCH},
};
use jobcache::config::{Config, PushMode};

use crate::support::{
    Body, Client, Reply, SOON, Setup, eventually, full,
    redis::key,
    sidecar::Sidecar,
    soon,
    upstream::{version, with_headers},
};

const X: &str = "/jobs/x1";

/// Time in which a circle would make hundreds of reads.
const WHILE: Duration = Duration::from_millis(700);

async fn setup_with(change: impl FnOnce(&mut Config)) -> Setup {
    Setup::with(|config| {
        config.push.mode = PushMode::All;
        change(config);
    })
    .await
}

async fn stream(sidecar: &Sidecar, path: &str) -> Response<Incoming> {
    let mut stream = soon(
        sidecar.client.request(Method::GET, path).header("accept", "text/event-stream").open(),
    )
    .await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    text(&mut stream, "data: ").await;
    stream
}

/// Reads a stream until it has sent this text.
async fn text(stream: &mut Response<Incoming>, end: &str) {
    let mut all = String::new();
    while !all.contains(end) {
        let frame = soon(stream.body_mut().frame()).await.expect("a longer stream");
        let data = frame.expect("a whole stream").into_data().unwrap_or_default();
        all.push_str(std::str::from_utf8(&data).expect("text"));
    }
}

async fn tag(sidecar: &Sidecar) -> String {
    sidecar.get(X).await.header("etag").to_owned()
}

fn hold(
    sidecar: &Sidecar,
    tag: &str,
    cache_control: &'static str,
) -> tokio::task::JoinHandle<Reply> {
    let (address, tag) = (sidecar.client.address(), tag.to_owned());
    tokio::spawn(async move {
        let client = Client::new(address);
        let request = client.request(Method::GET, X).header("prefer", "wait=30");
        let request = request.header(IF_NONE_MATCH.as_str(), &tag);
        request.header(CACHE_CONTROL.as_str(), cache_control).send().await
    })
}

async fn waiting(sidecar: &Sidecar, count: u64) {
    eventually(SOON, async || sidecar.admin.metric("jobcache_push_held_polls").await == count)
        .await;
}

/// Counts the reads of a while.
async fn reads(setup: &Setup, paths: &[&str]) -> usize {
    setup.upstream.forget_requests();
    tokio::time::sleep(WHILE).await;
    paths.iter().map(|path| setup.upstream.reads(path)).sum()
}

/// Each read takes a lease and gives it back.
#[tokio::test]
async fn a_response_that_is_shared_but_not_stored_is_not_read_again_and_again() {
    let setup = setup_with(|_| ()).await;
    let answers: [(StatusCode, fn() -> Body); 3] = [
        (StatusCode::OK, || full("")),
        (StatusCode::NON_AUTHORITATIVE_INFORMATION, || full("{}")),
        // Another body each time.
        (StatusCode::NON_AUTHORITATIVE_INFORMATION, || full(fastrand::u64(..).to_string())),
    ];
    for (number, (status, body)) in answers.into_iter().enumerate() {
        let path = format!("/jobs/a{number}");
        setup.upstream.respond(&path, move |_| {
            let response = Response::builder().status(status).header("etag", "\"a\"");
            Some(response.body(body()).expect("a head"))
        });
        let _stream = stream(&setup.sidecar, &path).await;
        reads(&setup, &[]).await;
        assert_eq!(reads(&setup, &[&path]).await, 0, "{number}");
    }
}

/// Only a stored value makes Redis report a `DEL`.
#[tokio::test]
async fn a_job_whose_responses_become_storable_is_stored_at_once() {
    let setup = setup_with(|_| ()).await;
    let state = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&state);
    setup.upstream.respond(X, move |_| {
        let body = ["", "\"one\"", "\"two\""][seen.load(Ordering::SeqCst)];
        Some(with_headers(body, &[]))
    });
    let mut stream = stream(&setup.sidecar, X).await;
    reads(&setup, &[]).await;
    state.store(1, Ordering::SeqCst);
    let reply = setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;
    assert_eq!(reply.status, StatusCode::OK);
    text(&mut stream, "data: \"one\"").await;
    eventually(SOON, async || setup.redis.get(&key("x1")).await.is_some()).await;
    state.store(2, Ordering::SeqCst);
    setup.redis.del(&key("x1")).await;
    text(&mut stream, "data: \"two\"").await;
}

/// Both routes give one Redis key, and replace each other's entries.
#[tokio::test]
async fn streams_of_two_routes_with_one_key_do_not_wake_each_other_for_ever() {
    const OTHER: &str = "/api/v1/jobs/x1";
    let setup = setup_with(|config| {
        config.api.paths = ["/jobs/{id}", "/api/v1/jobs/{id}"].map(str::to_owned).to_vec();
    })
    .await;
    for path in [X, OTHER] {
        setup.upstream.respond(path, move |_| Some(with_headers("{}", &[("x-path", path)])));
    }
    let _streams = (stream(&setup.sidecar, X).await, stream(&setup.sidecar, OTHER).await);
    assert!(reads(&setup, &[X, OTHER]).await <= 2);
    setup.redis.del(&key("x1")).await;
    assert!(reads(&setup, &[X, OTHER]).await >= 2);
    assert!(reads(&setup, &[X, OTHER]).await <= 2);
}

#[tokio::test]
async fn an_api_that_writes_the_key_when_it_is_read_is_read_at_a_bounded_rate() {
    let setup = setup_with(|_| ()).await;
    let url = setup.redis.url();
    let address = url.trim_start_matches("redis://").trim_end_matches('/').to_owned();
    setup.upstream.respond(X, move |_| {
        let mut redis = TcpStream::connect(&address).expect("a connection");
        write!(redis, "SET {} {}\r\n", key("x1"), fastrand::u64(..)).expect("a command");
        redis.read_exact(&mut [0; 5]).expect("a reply");
        Some(with_headers("{}", &[]))
    });
    let _stream = stream(&setup.sidecar, X).await;
    let count = reads(&setup, &[X]).await;
    // Sixteen at once, and five a second.
    assert!(count <= 25, "{count}");
    assert!(reads(&setup, &[X]).await <= 5);
}

#[tokio::test]
async fn a_version_that_cannot_be_shared_ends_polls_and_streams() {
    let setup = setup_with(|_| ()).await;
    for (name, value) in [("cache-control", "no-store"), ("set-cookie", "a=b"), ("vary", "*")] {
        let known = tag(&setup.sidecar).await;
        let mut stream = stream(&setup.sidecar, X).await;
        let poll = hold(&setup.sidecar, &known, "max-age=300");
        waiting(&setup.sidecar, 1).await;
        setup.upstream.respond(X, move |_| {
            Some(with_headers("\"last\"", &[("etag", "\"last\""), (name, value)]))
        });
        setup.redis.del(&key("x1")).await;
        soon(poll).await.expect("an answer").assert(200, "\"last\"");
        text(&mut stream, "event: error\ndata: {\"status\": 200}").await;
        setup.upstream.respond(X, move |_| Some(with_headers("{}", &[("x-name", name)])));
        setup.redis.del(&key("x1")).await;
        // What could not be stored is read past the cache for a while.
        eventually(SOON, async || {
            setup.redis.del(&key("x1")).await;
            setup.sidecar.get(X).await.cache_status().ends_with("stored")
        })
        .await;
    }
}

/// An API may renew a cookie with one response, and send the next one without.
#[tokio::test]
async fn one_response_that_cannot_be_shared_ends_no_hold() {
    let setup = setup_with(|_| ()).await;
    let mut stream = stream(&setup.sidecar, X).await;
    let count = AtomicU64::new(0);
    setup.upstream.respond(X, move |_| {
        let is_first = count.fetch_add(1, Ordering::SeqCst) == 0;
        let cookie = [("set-cookie", "a=b")];
        Some(with_headers("\"next\"", if is_first { &cookie } else { &[] }))
    });
    setup.redis.del(&key("x1")).await;
    text(&mut stream, "data: \"next\"").await;
}

#[tokio::test]
async fn a_poll_gets_what_its_own_cache_control_asks_for() {
    let setup = setup_with(|_| ()).await;
    // Nothing to hold, and the API is not asked.
    let only_if_cached = hold(&setup.sidecar, "\"x\"", "only-if-cached").await;
    assert_eq!(only_if_cached.expect("an answer").status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(setup.upstream.reads(X), 0);
    let known = tag(&setup.sidecar).await;
    let first = hold(&setup.sidecar, &known, "max-age=300");
    waiting(&setup.sidecar, 1).await;
    // Nobody tells of this change.
    setup.upstream.commit("x1");
    let second = hold(&setup.sidecar, &known, "max-age=300");
    waiting(&setup.sidecar, 2).await;
    let third = soon(hold(&setup.sidecar, &known, "no-cache")).await;
    for poll in [third, soon(first).await, soon(second).await] {
        poll.expect("an answer").assert(200, &version("x1", 1));
    }
}
