//! Requests with the fields of an earlier one on their connection: the repeat fast path answers
//! them without parsing, and otherwise treats them like all others.

use std::time::Duration;

use hyper::Method;
use jobcache::config::NearMode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::Instant,
};

use crate::support::{
    SOON, Setup, eventually,
    raw::{End, LAST_OK},
    redis::key,
    soon,
    upstream::{version, with_headers},
};

const X: &str = "/jobs/x1";
const Y: &str = "/jobs/y1";

/// A client that sends the same fields with each request over one connection.
struct Poller {
    end: End,
    fields: String,
}

impl Poller {
    async fn new(setup: &Setup) -> Self {
        Self::with(setup, "").await
    }

    async fn with(setup: &Setup, fields: &str) -> Self {
        let fields = format!("Host: jobs.example\r\nAccept: */*\r\n{fields}\r\n");
        Self { end: End::new(setup.sidecar.client.connect().await), fields }
    }

    /// Returns a client that takes the fast path with its next request.
    async fn known(setup: &Setup) -> Self {
        let mut poller = Self::new(setup).await;
        poller.known_for(setup, X).await;
        poller
    }

    /// Polls until a request takes the fast path.
    async fn known_for(&mut self, setup: &Setup, path: &str) {
        eventually(SOON, async || {
            let before = repeats(setup).await;
            self.poll(path).await;
            repeats(setup).await > before
        })
        .await;
    }

    fn request(&self, path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\n{}", self.fields)
    }

    async fn poll(&mut self, path: &str) -> (String, String) {
        self.end.send(self.request(path)).await;
        self.end.answer().await
    }

    async fn body(&mut self, path: &str) -> String {
        self.poll(path).await.1
    }
}

/// Returns the sum of a metric over all its labels.
async fn metric(setup: &Setup, name: &str) -> u64 {
    let text = setup.sidecar.admin.get("/metrics").await;
    let lines = text.text().lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

async fn repeats(setup: &Setup) -> u64 {
    metric(setup, "jobcache_repeats_total").await
}

fn cache_status(head: &str) -> &str {
    let line = head.lines().rfind(|line| line.starts_with("cache-status: "));
    line.unwrap_or_default().split("; ttl=").next().unwrap_or_default()
}

#[tokio::test]
async fn a_repeated_request_is_answered_to_the_byte_as_one_that_is_not() {
    for mode in [NearMode::Strict, NearMode::Bounded] {
        let setup = Setup::with(|config| config.cache.near.mode = mode).await;
        let theirs: &[_] = &[
            ("cache-status", "cdn; hit; ttl=7"),
            ("via", "1.1 cdn"),
            ("x-lines", "one"),
            ("age", "3"),
            ("x-lines", "two"),
            ("vary", "accept"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("etag", "\"7\""),
        ];
        setup.upstream.respond(Y, move |_| Some(with_headers("{\"y\":1}", theirs)));
        for path in [X, Y] {
            Poller::new(&setup).await.known_for(&setup, path).await;
            eventually(SOON, async || {
                let mut poller = Poller::new(&setup).await;
                let before = repeats(&setup).await;
                let first = poller.poll(path).await;
                assert_eq!(repeats(&setup).await, before);
                let again = poller.poll(path).await;
                assert_eq!(repeats(&setup).await, before + 1);
                // A new second may have begun between the two.
                if first == again { Ok(()) } else { Err((first, again)) }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn only_the_path_may_differ() {
    let setup = Setup::new().await;
    let paths = [X, Y, "/jobs/42", "/api/v1/jobs/z1"];
    let mut poller = Poller::new(&setup).await;
    for path in paths {
        poller.known_for(&setup, path).await;
    }
    let before = repeats(&setup).await;
    for (path, id) in paths.into_iter().zip(["x1", "y1", "42", "z1"]) {
        assert_eq!(poller.body(path).await, version(id, 0), "{path}");
    }
    assert_eq!(repeats(&setup).await, before + 4);
    let requests = setup.upstream.requests();
    assert!(requests.iter().all(|seen| seen.method == Method::GET), "{requests:?}");
}

#[tokio::test]
async fn a_repeated_request_counts_as_any_other_hit() {
    let setup = Setup::new().await;
    let mut poller = Poller::known(&setup).await;
    let names = [
        "jobcache_requests_total{outcome=\"hit\"",
        "jobcache_near_lookups_total{outcome=\"hit\"}",
        "jobcache_barrier_waits_total",
        "jobcache_repeats_total",
    ];
    let mut before = vec![];
    for name in names {
        before.push(metric(&setup, name).await);
    }
    for _ in 0..20 {
        poller.poll(X).await;
    }
    for (name, before) in names.into_iter().zip(before) {
        assert_eq!(metric(&setup, name).await, before + 20, "{name}");
    }
}

#[tokio::test]
async fn another_credential_on_the_same_connection_gets_what_is_its_own() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, |headers| {
        let who = headers.get("authorization").and_then(|who| who.to_str().ok());
        let body: &'static str =
            if who == Some("Bearer a") { "{\"of\":\"a\"}" } else { "{\"of\":\"b\"}" };
        with_headers(body, &[])
    });
    let mut a = Poller::with(&setup, "Authorization: Bearer a\r\n").await;
    a.known_for(&setup, X).await;
    let before = repeats(&setup).await;
    let of_b = a.request(X).replace("Bearer a", "Bearer b");
    for _ in 0..20 {
        assert_eq!(a.body(X).await, "{\"of\":\"a\"}");
        a.end.send(&of_b).await;
        assert_eq!(a.end.answer().await.1, "{\"of\":\"b\"}");
    }
    assert!(repeats(&setup).await <= before + 20, "more repeats than one client can have");
}

#[tokio::test]
async fn what_changes_between_two_repeated_requests_is_seen() {
    let setup = Setup::new().await;
    let mut redis = setup.redis.connection().await;
    let mut poller = Poller::new(&setup).await;
    for round in 0..60 {
        poller.known_for(&setup, X).await;
        assert_eq!(poller.body(X).await, version("x1", round));
        match round % 3 {
            0 => drop(setup.sidecar.put(X).await),
            1 => {
                setup.upstream.commit("x1");
                let purge = setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;
                assert_eq!(purge.status, 200);
            }
            _ => {
                setup.upstream.commit("x1");
                let del = redis::cmd("DEL").arg(key("x1")).query_async(&mut redis).await;
                let () = del.expect("Redis");
            }
        }
        assert_eq!(poller.body(X).await, version("x1", round + 1));
    }
}

#[tokio::test]
async fn while_redis_hangs_a_repeated_request_is_answered_by_the_upstream_within_the_budget() {
    let budget = Duration::from_millis(200);
    let setup = Setup::with(|config| config.store.budget = budget).await;
    let mut poller = Poller::known(&setup).await;
    let before = repeats(&setup).await;
    setup.upstream.commit("x1");

    setup.redis.stop();
    let asked = Instant::now();
    let (head, body) = poller.poll(X).await;
    let took = asked.elapsed();
    setup.redis.cont();

    assert_eq!(body, version("x1", 1), "{head}");
    assert!(!cache_status(&head).contains("hit"), "{head}");
    assert!(took < budget + budget / 2, "{took:?}");
    assert_eq!(repeats(&setup).await, before);
    poller.known_for(&setup, X).await;
}

/// Returns names and parts of requests that must not take the fast path.
#[track_caller]
fn others() -> Vec<(&'static str, Vec<String>)> {
    let rest = "Host: jobs.example\r\nAccept: */*\r\n\r\n";
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\n{rest}");
    let one = |text: String| vec![text];
    vec![
        ("query", one(get("/jobs/x1?x"))),
        ("slashes", one(get("//jobs/x1"))),
        ("zeros", one(get("/jobs/01"))),
        ("encoded", one(get("/jobs/%78"))),
        ("dots", one(get("/jobs/../jobs/x1"))),
        ("absolute", one(get("http://jobs.example/jobs/x1"))),
        ("another host", one(get("http://other.example/jobs/x1"))),
        ("below", one(get("/jobs/x1/logs"))),
        ("not a job", one(get("/reports/x"))),
        ("HEAD", one(format!("HEAD /jobs/x1 HTTP/1.1\r\n{rest}"))),
        ("POST", one(format!("POST /reports/x HTTP/1.1\r\n{rest}"))),
        ("case", one(get(X).replace("Host", "host"))),
        ("order", one("GET /jobs/x1 HTTP/1.1\r\nAccept: */*\r\nHost: jobs.example\r\n\r\n".into())),
        ("more", one(get(X).replace("Accept", "X-More: 1\r\nAccept"))),
        ("empty line first", one(format!("\r\n{}", get(X)))),
        ("conditions", one(get(X).replace("Accept: */*", "If-None-Match: *"))),
        ("old", one(format!("GET /jobs/x1 HTTP/1.0\r\nConnection: keep-alive\r\n{rest}"))),
        ("split line", vec!["GET /jo".into(), format!("bs/x HTTP/1.1\r\n{rest}")]),
        ("split fields", vec![format!("GET {X} HTTP/1.1\r\nHost"), rest.replacen("Host", "", 1)]),
    ]
}

#[tokio::test]
async fn whatever_is_not_exactly_the_same_is_answered_as_ever() {
    let setup = Setup::new().await;
    for (what, parts) in others() {
        let mut heads = vec![];
        for mut poller in [Poller::new(&setup).await, Poller::known(&setup).await] {
            let before = repeats(&setup).await;
            for part in &parts {
                poller.end.send(part).await;
                // Makes the part arrive as a separate read.
                setup.exchange().await;
            }
            let head = poller.end.head().await;
            assert_eq!(repeats(&setup).await, before, "{what}");
            let status = head.lines().next().unwrap_or_default().to_owned();
            heads.push((status, cache_status(&head).to_owned()));
        }
        // The first request may have filled the entry.
        let filled = heads[0].1.contains("fwd=miss") && heads[1].1.ends_with("hit");
        assert!(heads[0] == heads[1] || filled, "{what}: {heads:?}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_turn() {
    let setup = Setup::new().await;
    let mut poller = Poller::known(&setup).await;
    poller.known_for(&setup, Y).await;
    let (x, y) = (poller.request(X), poller.request(Y));
    for _ in 0..20 {
        let (half, rest) = y.split_at(y.len() / 2);
        poller.end.send(format!("{x}{y}{x}{half}")).await;
        for id in ["x1", "y1", "x1"] {
            assert_eq!(poller.end.answer().await.1, version(id, 0));
        }
        // The end of a head that hyper has begun to read, followed by a whole head.
        poller.end.send(format!("{rest}{x}")).await;
        for id in ["y1", "x1"] {
            assert_eq!(poller.end.answer().await.1, version(id, 0));
        }
        assert_eq!(poller.body(Y).await, version("y1", 0));
    }
}

#[tokio::test]
async fn the_end_of_a_head_that_looks_like_one_is_none() {
    let setup = Setup::new().await;
    let mut poller = Poller::known(&setup).await;
    let before = repeats(&setup).await;
    poller.end.send("GET /reports/x HTTP/1.1\r\nHost: jobs.example\r\nX-Odd: a").await;
    setup.exchange().await;
    poller.end.send(poller.request(X)).await;
    assert!(poller.end.head().await.starts_with("HTTP/1.1 400 "), "a second Host");
    assert_eq!(repeats(&setup).await, before);
}

#[tokio::test]
async fn a_body_that_looks_like_a_repeated_request_is_a_body() {
    let setup = Setup::new().await;
    for held in [false, true] {
        let mut poller = Poller::known(&setup).await;
        let before = repeats(&setup).await;
        let body = poller.request(X);
        let head = format!(
            "POST /reports/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let gate = held.then(|| setup.upstream.hold(Method::POST, "/reports/x"));
        poller.end.send(head).await;
        setup.exchange().await;
        poller.end.send(&body).await;
        if let Some(gate) = gate {
            gate.arrived(1).await;
            gate.release();
        }
        poller.end.answer().await;
        assert_eq!(repeats(&setup).await, before);
        poller.known_for(&setup, X).await;
    }
}

/// Starts an upstream that switches protocols on request and then echoes what it receives.
async fn switching() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = vec![0; 4096];
                let count = stream.read(&mut read).await.unwrap_or(0);
                let asked = String::from_utf8_lossy(&read[..count]).to_lowercase();
                if !asked.contains("upgrade: echo") {
                    return stream.write_all(LAST_OK.as_bytes()).await.unwrap_or(());
                }
                let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
                stream.write_all(switch.as_bytes()).await.unwrap_or(());
                while let Ok(count @ 1..) = stream.read(&mut read).await {
                    stream.write_all(&read[..count]).await.unwrap_or(());
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn after_a_switch_of_protocols_nothing_is_a_request() {
    let url = switching().await;
    let setup = Setup::with(|config| config.upstream.url = url).await;
    let mut poller = Poller::known(&setup).await;
    let before = repeats(&setup).await;
    let fields = "Host: jobs.example\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    poller.end.send(format!("GET /socket HTTP/1.1\r\n{fields}")).await;
    assert!(poller.end.head().await.starts_with("HTTP/1.1 101 "));
    let repeated = poller.request(X);
    for _ in 0..3 {
        poller.end.send(&repeated).await;
        assert_eq!(poller.end.exactly(repeated.len()).await, repeated);
    }
    assert_eq!(repeats(&setup).await, before);
}

fn large(setup: &Setup) -> &'static str {
    let body: &'static str = "x".repeat(1_000_000).leak();
    setup.upstream.respond(X, move |_| Some(with_headers(body, &[])));
    body
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_all_of_it() {
    let setup = Setup::with(|config| config.cache.limits.max_body = 1 << 20).await;
    let body = large(&setup);
    let mut poller = Poller::known(&setup).await;
    let before = repeats(&setup).await;
    for _ in 0..5 {
        poller.end.send(poller.request(X)).await;
        setup.exchange().await;
        // Sent while the answer is still waiting.
        poller.end.send(poller.request(Y)).await;
        assert_eq!(poller.end.answer().await.1, body);
        assert_eq!(poller.end.answer().await.1, version("y1", 0));
    }
    assert!(repeats(&setup).await > before);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let setup = Setup::with(|config| {
        config.server.write_timeout = Duration::from_millis(200);
        config.cache.limits.max_body = 1 << 20;
    })
    .await;
    large(&setup);
    let mut poller = Poller::known(&setup).await;
    for _ in 0..20 {
        poller.end.send(poller.request(X)).await;
    }
    eventually(SOON, async || metric(&setup, "jobcache_connection_errors_total").await > 0).await;
    drop(poller);
}

#[tokio::test]
async fn repeated_requests_keep_a_connection_and_silence_ends_it() {
    let limit = Duration::from_millis(400);
    let setup = Setup::with(|config| config.server.header_timeout = limit).await;
    let mut poller = Poller::known(&setup).await;
    let began = Instant::now();
    while began.elapsed() < 4 * limit {
        assert_eq!(poller.body(X).await, version("x1", 0));
        // An immediate poll would not show that the next one moves the limit.
        tokio::time::sleep(limit / 4).await;
    }
    assert_eq!(poller.end.rest().await, "");
}

#[tokio::test]
async fn a_drain_closes_a_connection_only_between_two_answers() {
    let mut setup = Setup::new().await;
    let (mut idle, mut asking) = (Poller::known(&setup).await, Poller::known(&setup).await);
    setup.redis.stop();
    asking.end.send(asking.request(X)).await;
    setup.exchange().await;
    setup.sidecar.begin_shutdown();
    assert_eq!(idle.end.rest().await, "");
    let (head, body) = asking.end.answer().await;
    setup.redis.cont();
    assert_eq!(body, version("x1", 0), "{head}");
    assert_eq!(asking.end.rest().await, "");
    soon(setup.sidecar.shutdown()).await.expect("a drain");
}

#[tokio::test]
async fn a_client_that_hangs_up_while_it_waits_harms_nobody() {
    let setup = Setup::new().await;
    let mut other = Poller::known(&setup).await;
    let poller = Poller::known(&setup).await;
    setup.redis.stop();
    let Poller { mut end, fields } = poller;
    end.send(format!("GET {X} HTTP/1.1\r\n{fields}")).await;
    drop(end);
    setup.redis.cont();
    assert_eq!(other.body(X).await, version("x1", 0));
}

#[tokio::test]
async fn turned_off_every_hit_goes_through_hyper_and_is_as_right() {
    let setup = Setup::with(|config| config.server.repeat_fast_path = false).await;
    let hits = "jobcache_near_lookups_total{outcome=\"hit\"}";
    let mut poller = Poller::new(&setup).await;
    for path in [X, Y] {
        eventually(SOON, async || {
            let before = metric(&setup, hits).await;
            poller.poll(path).await;
            metric(&setup, hits).await > before
        })
        .await;
    }
    let before = metric(&setup, hits).await;
    for _ in 0..20 {
        assert_eq!(poller.body(X).await, version("x1", 0));
        assert_eq!(poller.body(Y).await, version("y1", 0));
    }
    assert_eq!(metric(&setup, hits).await, before + 40);

    drop(setup.sidecar.put(X).await);
    assert_eq!(poller.body(X).await, version("x1", 1));
    let two = format!("{}{}", poller.request(X), poller.request(Y));
    poller.end.send(two).await;
    assert_eq!(poller.end.answer().await.1, version("x1", 1));
    assert_eq!(poller.end.answer().await.1, version("y1", 0));
    assert_eq!(repeats(&setup).await, 0);
}
