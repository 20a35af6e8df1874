//! Events as they happen (`/events`), and the current status (`/status`).

use std::time::Duration;

use hyper::{Method, StatusCode, body::Incoming, header::HeaderValue};
use jobcache::{
    config::{Config, Secret, StoreUrl},
    observe::events::feed::{MAX_SUBSCRIBERS, RING_EVENTS},
};
use serde_json::Value;

use http_body_util::BodyExt as _;

use crate::support::{
    Client, Reply, SOON, Setup, eventually,
    raw::{Between, LAST_OK, request},
    soon,
    upstream::with_headers,
};

const X: &str = "/jobs/x1";
const SECRET: &str = "a-secret-of-the-test";
const TOKEN: &str = "Bearer the-clients-own-token";

/// The stream of events, read as a browser reads it.
struct Stream {
    body: Incoming,
    text: String,
}

impl Stream {
    async fn open(admin: &Client) -> Self {
        let response = admin.request(Method::GET, "/events").open().await;
        assert_eq!(response.status(), StatusCode::OK);
        let kind = HeaderValue::from_static("text/event-stream");
        assert_eq!(response.headers().get("content-type"), Some(&kind));
        Self { body: response.into_body(), text: String::new() }
    }

    /// Returns the next event, or `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let data = event.lines().find_map(|line| line.strip_prefix("data: "));
                let told = data.map(|data| serde_json::from_str(data).expect("JSON"));
                self.text = String::from(rest);
                if told.is_some() {
                    return told;
                }
                continue;
            }
            let frame = soon(self.body.frame()).await?.expect("a frame");
            let data = frame.into_data().expect("no trailers");
            self.text.push_str(std::str::from_utf8(&data).expect("text"));
        }
    }

    /// Returns the next event of this kind, except those about the warm-up job.
    async fn what(&mut self, what: &str) -> Value {
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("no {what} in the stream"));
            if event["what"] == what && event["job"] != "warm-up1" {
                return event;
            }
        }
    }
}

async fn status(setup: &Setup) -> Value {
    let reply = setup.sidecar.admin.get("/status").await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(reply.header("cache-control"), "no-store");
    reply.json()
}

async fn purge(setup: &Setup, body: &'static str) {
    let request = setup.sidecar.admin.request(Method::POST, "/purge");
    let reply = request.header("webhook-id", "msg_7").body(body).send().await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
}

#[tokio::test]
async fn who_listens_is_told_of_fills_writes_and_purges_and_by_whom() {
    let setup = Setup::new().await;
    let mut stream = Stream::open(&setup.sidecar.admin).await;

    setup.get(X).await;
    let fill = stream.what("fill").await;
    assert_eq!(fill["job"], "x1", "{fill}");
    assert!(fill["at_ms"].as_i64().is_some_and(|at| at > 1_600_000_000_000), "{fill}");

    purge(&setup, r#"{"job_id":"x1"}"#).await;
    let purged = stream.what("purge").await;
    assert_eq!((&purged["job"], &purged["why"]), (&"x1".into(), &"confirmed".into()), "{purged}");
    assert_eq!(purged["by"], "webhook msg_7 from 127.0.0.1");

    setup.sidecar.put(X).await;
    assert_eq!(stream.what("write").await["job"], "x1");
    assert_eq!(stream.what("write-ended").await["why"], "confirmed");

    purge(&setup, r#"{"all":true}"#).await;
    assert_eq!(stream.what("purge-all").await["by"], "webhook msg_7 from 127.0.0.1");
}

/// Returns kind and reason of the events of `x1` so far, apart from those of its reads.
async fn changes(admin: &Client, stream: &mut Stream) -> Vec<(String, String)> {
    let marker = admin.request(Method::POST, "/purge/marker1").send().await;
    assert_eq!(marker.status, StatusCode::OK, "{marker:?}");
    let mut changes = Vec::new();
    loop {
        let event = stream.next().await.expect("the marker");
        let text = |name: &str| String::from(event[name].as_str().unwrap_or_default());
        match (text("job").as_str(), text("what").as_str()) {
            ("marker1", _) => return changes,
            ("x1", "write" | "write-ended" | "changed" | "purge") => {
                changes.push((text("what"), text("why")));
            }
            _ => {}
        }
    }
}

fn began() -> (String, String) {
    ("write".into(), String::new())
}

fn ended(why: &str) -> (String, String) {
    ("write-ended".into(), why.into())
}

#[tokio::test]
async fn a_write_ends_once_and_when_its_answer_has_ended() {
    let setup = Setup::new().await;
    let mut stream = Stream::open(&setup.sidecar.admin).await;
    setup.sidecar.put(X).await;
    let told = changes(&setup.sidecar.admin, &mut stream).await;
    assert_eq!(told, [began(), ended("confirmed")]);

    let streams: [&[_]; 2] = [&[], &[("content-type", "text/event-stream")]];
    for headers in streams {
        let feed = setup.upstream.feed("/jobs/x1/run", headers);
        feed.data("data: 1\n\n").await;
        let run = setup.sidecar.client.request(Method::POST, "/jobs/x1/run").open().await;
        let told = changes(&setup.sidecar.admin, &mut stream).await;
        assert_eq!(told, [began()], "{headers:?}");

        feed.end();
        Reply::read(run).await.expect("a whole body");
        let told = changes(&setup.sidecar.admin, &mut stream).await;
        assert_eq!(told, [ended("confirmed")], "{headers:?}");
    }

    let feed = setup.upstream.feed("/jobs/x1/run", &[]);
    feed.data("started\n").await;
    let run = setup.sidecar.client.request(Method::POST, "/jobs/x1/run").open().await;
    feed.break_off().await;
    assert!(Reply::read(run).await.is_err());
    let told = changes(&setup.sidecar.admin, &mut stream).await;
    assert_eq!(told, [began(), ended("outcome-unknown")]);
}

#[tokio::test]
async fn a_write_ends_once_and_when_its_upload_has_ended_after_the_answer() {
    for answer in [LAST_OK, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"] {
        let between = Between::start().await;
        let admin = &between.sidecar.admin;
        let mut stream = Stream::open(admin).await;
        let head = request("PUT", X, "Content-Length: 6\r\n");
        let (mut writer, mut upload, _) = between.pass(head).await;
        writer.send("abc").await;
        upload.exactly(3).await;
        upload.send(answer).await;
        writer.answer().await;
        assert_eq!(changes(admin, &mut stream).await, [began()]);

        writer.send("def").await;
        upload.exactly(3).await;

        assert_eq!(stream.what("write-ended").await["why"], "confirmed");
        assert_eq!(changes(admin, &mut stream).await, []);
    }
}

#[tokio::test]
async fn a_write_that_gets_no_answer_ends_once() {
    let between = Between::start().await;
    let mut stream = Stream::open(&between.sidecar.admin).await;
    let head = request("PUT", X, "Content-Length: 6\r\n");
    let (mut writer, mut upload, _) = between.pass(head).await;
    writer.send("abc").await;
    upload.exactly(3).await;
    drop(upload);

    let (head, _) = writer.answer().await;

    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    let told = changes(&between.sidecar.admin, &mut stream).await;
    assert_eq!(told, [began(), ended("outcome-unknown")]);
}

#[tokio::test]
async fn a_job_named_in_a_query_is_purged_once_more_after_settle_and_its_write_ends_once() {
    let setup = Setup::with(|config| config.cache.settle = Duration::from_millis(50)).await;
    let mut stream = Stream::open(&setup.sidecar.admin).await;

    let write = setup.sidecar.client.request(Method::DELETE, "/jobs?id=x1").send().await;

    assert!(!write.status.is_server_error(), "{write:?}");
    assert_eq!(stream.what("write").await["job"], "x1");
    assert_eq!(stream.what("write-ended").await["job"], "x1");
    let again = stream.what("purge").await;
    assert_eq!(again["job"], "x1", "{again}");
    assert_eq!(again["by"], "a write that named it, once more after settle");
    assert_eq!(changes(&setup.sidecar.admin, &mut stream).await, []);
}

#[tokio::test]
async fn who_listens_is_told_when_an_answer_is_not_stored_and_why() {
    let setup = Setup::new().await;
    let mut stream = Stream::open(&setup.sidecar.admin).await;
    setup.upstream.respond_to(X, |_| with_headers("{}", &[("cache-control", "private")]));

    setup.get(X).await;

    let refused = stream.what("fill-refused").await;
    assert_eq!((&refused["job"], &refused["why"]), (&"x1".into(), &"private".into()), "{refused}");
}

#[tokio::test]
async fn hits_are_told_by_the_second_with_the_busiest_jobs() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    let mut stream = Stream::open(&setup.sidecar.admin).await;
    for _ in 0..20 {
        setup.get(X).await;
    }
    let mut hits = 0;
    while hits < 20 {
        let second = stream.what("second").await;
        hits += second["hit"].as_u64().expect("a count");
        if hits > 0 {
            assert_eq!(second["busiest"][0]["job"], "x1", "{second}");
        }
    }
}

#[tokio::test]
async fn a_third_partys_del_is_told_and_what_the_sidecar_does_itself_is_not() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    purge(&setup, r#"{"job_id":"x1"}"#).await;
    setup.hit(X).await;
    let mut stream = Stream::open(&setup.sidecar.admin).await;
    // Changes made through this sidecar may be reported up to a second later.
    eventually(SOON, async || {
        setup.redis.del("job_status:x1").await;
        setup.get(X).await;
        tokio::time::timeout(Duration::from_millis(1_100), stream.what("changed")).await
    })
    .await;
}

#[tokio::test]
async fn a_breaker_that_opens_and_closes_is_told() {
    let mut setup = Setup::new().await;
    let mut stream = Stream::open(&setup.sidecar.admin).await;
    setup.redis.kill();
    stream.what("store-down").await;
    let down = status(&setup).await;
    assert_eq!(down["store"]["breaker"], "open", "{down}");
    setup.redis.restart_empty().await;
    stream.what("store-up").await;
    stream.what("tracking-up").await;
}

#[tokio::test]
async fn a_slow_reader_is_told_how_much_it_lost() {
    // The embedded store is used because a busy Redis would delay this many purges.
    let setup = Setup::with(|config| config.store.url = StoreUrl::Memory).await;
    let mut slow = Stream::open(&setup.sidecar.admin).await;
    let ids: Vec<String> = (0..10).map(|id| format!("{id}-{}", "x".repeat(100))).collect();
    let body = serde_json::json!({ "job_ids": ids }).to_string();
    // More events than sockets and queues can hold, while the stream is not read.
    for _ in 0..20 * RING_EVENTS {
        let request = setup.sidecar.admin.request(Method::POST, "/purge");
        assert_eq!(request.body(body.clone()).send().await.status, StatusCode::OK);
    }
    let lost = slow.what("lost").await;
    assert!(lost["events"].as_u64().is_some_and(|lost| lost > 0), "{lost}");
    // The stream continues after the gap.
    slow.what("purge").await;
}

#[tokio::test]
async fn listeners_are_bounded_and_leave_their_place() {
    let setup = Setup::new().await;
    let mut streams = Vec::new();
    for _ in 0..MAX_SUBSCRIBERS {
        streams.push(Stream::open(&setup.sidecar.admin).await);
    }
    let refused = setup.sidecar.admin.get("/events").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    refused.reason();
    streams.clear();
    eventually(SOON, async || {
        let response = setup.sidecar.admin.request(Method::GET, "/events").open().await;
        response.status() == StatusCode::OK
    })
    .await;
}

#[tokio::test]
async fn the_stream_ends_when_the_sidecar_drains() {
    let mut setup = Setup::new().await;
    let mut stream = Stream::open(&setup.sidecar.admin).await;
    setup.sidecar.begin_shutdown();
    stream.what("drain").await;
    assert!(stream.next().await.is_none());
    setup.sidecar.shutdown().await.expect("a clean end");
}

#[tokio::test]
async fn what_names_jobs_needs_the_secret_and_shows_none() {
    let secret = |config: &mut Config| config.webhook.secrets = vec![Secret::new(SECRET)];
    let setup = Setup::with(secret).await;
    let admin = &setup.sidecar.admin;
    for path in ["/status", "/history", "/events"] {
        let reply = admin.get(path).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path}");
        reply.reason();
    }
    let request = setup.sidecar.client.request(Method::GET, X);
    request.header("authorization", TOKEN).header("cookie", "sid=crumb").send().await;
    let query = format!("{X}?q=hidden");
    setup.get(&query).await;

    let bearer = format!("Bearer {SECRET}");
    let status = admin.request(Method::GET, "/status").header("authorization", &bearer);
    let status = status.send().await;
    assert_eq!(status.status, StatusCode::OK);
    let events = admin.request(Method::GET, "/events").header("authorization", &bearer);
    let mut events = Stream { body: events.open().await.into_body(), text: String::new() };
    events.what("second").await;
    let told = format!("{}{}", status.text(), events.text);
    for hidden in ["the-clients-own", "crumb", "hidden", SECRET] {
        assert!(!told.contains(hidden), "{hidden} in {told}");
    }
}

/// Runs on several threads, which use the machine's clock, because the steady clock may stand still
/// during a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_tells_what_was_asked_and_what_was_spared() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    for _ in 0..8 {
        assert!(setup.get(X).await.is_hit());
    }
    setup.get(&format!("{X}?fresh")).await;
    setup.get("/other").await;
    setup.sidecar.put(X).await;

    let told = status(&setup).await;

    assert_eq!(told["version"], env!("CARGO_PKG_VERSION"));
    let life = &told["requests"]["life"];
    assert!(life["hit"].as_u64() >= Some(9), "{told}");
    assert!(life["miss"].as_u64() >= Some(1), "{told}");
    assert_eq!((&life["write"], &life["pass"]), (&1.into(), &1.into()), "{told}");
    assert_eq!(life["saved"], life["hit"], "{told}");
    assert!(life["hit_ratio"].as_f64().is_some_and(|ratio| ratio > 0.5), "{told}");
    assert_eq!(told["requests"]["last_minute"], *life, "{told}");
    assert_eq!(told["reasons"]["pass"]["query"], 1, "{told}");
    assert_eq!(told["reasons_last_minute"], told["reasons"], "{told}");
    for kind in ["hit", "miss", "upstream", "store"] {
        let latency = &told["latency_ms"][kind];
        let ms = |name: &str| latency[name].as_f64().expect("a time");
        assert!(0.0 < ms("p50") && ms("p50") <= ms("p99") && ms("p99") < 10_000.0, "{told}");
    }
    assert_eq!((&told["store"]["up"], &told["upstream"]["up"]), (&true.into(), &true.into()));
    assert_eq!(told["store"]["tracking"], true, "{told}");
    let busiest = told["busiest"].as_array().expect("a list");
    let x = busiest.iter().find(|job| job["job"] == "x1").unwrap_or_else(|| panic!("{told}"));
    assert!(x["hits"].as_u64() >= Some(9), "{told}");
    assert!(told["limits"]["max_flights"]["limit"].as_u64() > Some(0), "{told}");
}

#[tokio::test]
async fn the_history_tells_the_last_minutes_in_steps() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    setup.get(&format!("{X}?fresh")).await;

    // A history step appears once it is complete.
    let sum = |told: &serde_json::Value, kind: &str| {
        let counts = told[kind].as_array().expect("a list");
        counts.iter().map(|n| n.as_u64().expect("a count")).sum::<u64>()
    };
    let told = eventually(SOON, async || {
        let told = setup.sidecar.admin.get("/history").await.json();
        if sum(&told, "hit") > 0 && sum(&told, "pass") > 0 { Ok(told) } else { Err(told) }
    })
    .await;

    assert_eq!(sum(&told, "saved"), sum(&told, "hit"), "{told}");
    assert_eq!(told["step_s"], 2);
    let last = told["p99_ms"]["hit"].as_array().and_then(|all| all.last()).expect("a step");
    assert!(last.as_f64().is_some_and(|ms| ms > 0.0), "{told}");
}
