//! Push: held polls and streams of events.

use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use hyper::{Method, Response, StatusCode, body::Incoming};
use jobcache::config::{Config, NearMode, NearTracking, PushMode, StoreUrl};

use crate::support::{
    Reply, SOON, Setup, eventually, redis::key, sidecar::Sidecar, soon, upstream::version,
};

const X: &str = "/jobs/x1";

fn on(config: &mut Config) {
    config.push.mode = PushMode::All;
}

async fn setup() -> Setup {
    Setup::with(on).await
}

/// Reads a job until it is cached, and returns its tag.
async fn tag(sidecar: &Sidecar, path: &str) -> String {
    sidecar.get(path).await.header("etag").to_owned()
}

/// Sends a held poll, and returns its answer and how long that took.
async fn poll(sidecar: &Sidecar, tag: &str, wait: &str) -> (Reply, Duration) {
    let began = Instant::now();
    let request = sidecar.client.request(Method::GET, X).header("prefer", wait);
    let reply = soon(request.header("if-none-match", tag).send()).await;
    (reply, began.elapsed())
}

async fn purge(sidecar: &Sidecar, id: &str) {
    let reply = sidecar.admin.request(Method::POST, &format!("/purge/{id}")).send().await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
}

/// An open stream of events.
struct Stream {
    response: Response<Incoming>,
    text: String,
}

impl Stream {
    async fn open(sidecar: &Sidecar, headers: &[(&'static str, &str)]) -> Self {
        let mut request =
            sidecar.client.request(Method::GET, X).header("accept", "text/event-stream");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        Self { response: soon(request.open()).await, text: String::new() }
    }

    fn header(&self, name: &str) -> &str {
        self.response.headers().get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// Returns the next event, without comments; `None` at the end of the stream.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let lines = event.lines().filter(|line| !line.starts_with(':'));
                let event = lines.collect::<Vec<_>>().join("\n");
                if !event.is_empty() {
                    return Some(event);
                }
                continue;
            }
            let frame = soon(self.response.body_mut().frame()).await?.expect("a whole stream");
            let data = frame.into_data().unwrap_or_default();
            self.text.push_str(std::str::from_utf8(&data).expect("text"));
        }
    }
}

/// Waits until this many polls and streams wait.
async fn waiting(sidecar: &Sidecar, count: u64) {
    eventually(SOON, async || {
        let held = sidecar.admin.metric("jobcache_push_held_polls").await;
        held + sidecar.admin.metric("jobcache_push_open_streams").await == count
    })
    .await;
}

#[tokio::test]
async fn a_poll_of_a_client_that_does_not_know_the_version_is_answered_at_once() {
    let setup = setup().await;
    let known = tag(&setup.sidecar, X).await;
    let (reply, _) = poll(&setup.sidecar, "\"other\"", "wait=30").await;
    reply.assert(200, &version("x1", 0));
    let plain = setup.sidecar.client.request(Method::GET, X).header("prefer", "wait=30");
    soon(plain.send()).await.assert(200, &version("x1", 0));
    assert!(!known.is_empty());
}

#[tokio::test]
async fn a_held_poll_is_answered_when_the_job_is_purged_deleted_or_written() {
    let setup = setup().await;
    let second = setup.second().await;
    for (count, change) in ["purge", "del", "purge elsewhere", "write"].into_iter().enumerate() {
        let known = tag(&setup.sidecar, X).await;
        let held = poll(&setup.sidecar, &known, "wait=30");
        let changed = async {
            waiting(&setup.sidecar, 1).await;
            if change != "write" {
                setup.upstream.commit("x1");
            }
            let at = Instant::now();
            match change {
                "purge" => purge(&setup.sidecar, "x1").await,
                "del" => setup.redis.del(&key("x1")).await,
                "purge elsewhere" => purge(&second, "x1").await,
                _ => drop(setup.sidecar.put(X).await),
            }
            at
        };
        let ((reply, _), at) = tokio::join!(held, changed);
        assert_ne!(reply.header("etag"), known, "{change}");
        assert_eq!((reply.status, reply.header("preference-applied")), (StatusCode::OK, "wait=30"));
        assert!(reply.cache_status().ends_with("detail=held"), "{change}: {reply:?}");
        assert!(reply.text().contains(&format!("{}", count + 1)), "{change}: {}", reply.text());
        assert!(at.elapsed() < Duration::from_secs(8), "{change}: {:?}", at.elapsed());
    }
}

#[tokio::test]
async fn a_held_poll_ends_with_304_when_its_time_is_over() {
    let setup = setup().await;
    let known = tag(&setup.sidecar, X).await;
    let reads = setup.upstream.reads(X);
    let (reply, took) = poll(&setup.sidecar, &known, "Wait=1").await;
    assert_eq!(reply.status, StatusCode::NOT_MODIFIED);
    assert_eq!(reply.header("preference-applied"), "wait=1");
    assert_eq!(reply.cache_status(), "jobcache; hit; detail=held");
    assert!(took >= Duration::from_secs(1), "{took:?}");
    assert_eq!(setup.upstream.reads(X), reads);
}

#[tokio::test]
async fn a_change_costs_one_read_however_many_wait() {
    let setup = setup().await;
    let known = tag(&setup.sidecar, X).await;
    let polls = (0..50).map(|_| poll(&setup.sidecar, &known, "wait=30"));
    let polls = futures_util::future::join_all(polls);
    let changed = async {
        waiting(&setup.sidecar, 50).await;
        setup.upstream.forget_requests();
        setup.upstream.commit("x1");
        purge(&setup.sidecar, "x1").await;
    };
    let (replies, ()) = tokio::join!(polls, changed);
    for (reply, _) in replies {
        reply.assert(200, &version("x1", 1));
    }
    assert_eq!(setup.upstream.reads(X), 1);
    assert_eq!(setup.sidecar.admin.metric("jobcache_requests_in_flight").await, 0);
}

#[tokio::test]
async fn the_status_counts_who_waits_and_what_they_got() {
    let setup = setup().await;
    let status = async || setup.sidecar.admin.get("/status").await.json();
    let known = tag(&setup.sidecar, X).await;
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.next().await.expect("the current version");
    let held = poll(&setup.sidecar, &known, "wait=30");
    let changed = async {
        waiting(&setup.sidecar, 2).await;
        let push = status().await["push"].take();
        assert_eq!(
            (push["mode"].as_str(), push["max_waiting"].as_u64()),
            (Some("all"), Some(5_000))
        );
        for (name, count) in [("held_polls", 1), ("open_streams", 1), ("topics", 2)] {
            assert_eq!(push[name], count, "{name}: {push}");
        }
        let limit = status().await["limits"]["push.max_waiting"].take();
        assert_eq!((limit["used"].as_u64(), limit["limit"].as_u64()), (Some(2), Some(5_000)));
        setup.upstream.commit("x1");
        purge(&setup.sidecar, "x1").await;
    };
    tokio::join!(held, changed);
    stream.next().await.expect("the new version");
    let push = status().await["push"].take();
    // The stream and the poll. The first version of a stream does not count.
    assert_eq!(
        (push["delivered"].as_u64(), push["refused"].as_u64()),
        (Some(2), Some(0)),
        "{push}"
    );
    assert_eq!(push["delivery_ms"]["samples"], 2, "{push}");
    assert!(push["woken"].as_u64() >= Some(2), "{push}");
}

#[tokio::test]
async fn a_client_without_a_place_is_answered_at_once_and_counted_as_refused() {
    let setup = Setup::with(|config| {
        on(config);
        config.push.max_waiting = 1;
    })
    .await;
    let known = tag(&setup.sidecar, X).await;
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.next().await.expect("the current version");
    let (reply, _) = poll(&setup.sidecar, &known, "wait=30").await;
    assert_eq!(reply.status, StatusCode::NOT_MODIFIED);
    assert_eq!(reply.header("preference-applied"), "");
    assert_eq!(setup.sidecar.admin.metric("jobcache_push_refused_total").await, 1);
    assert_eq!(setup.sidecar.admin.get("/status").await.json()["push"]["refused"], 1);
}

#[tokio::test]
async fn while_push_is_off_the_status_says_no_more_than_that() {
    let status = Setup::new().await.sidecar.admin.get("/status").await.json();
    assert_eq!(status["push"]["mode"], "off");
    assert!(status["limits"]["push.max_waiting"].is_null(), "{status}");
}

#[tokio::test]
async fn an_explanation_says_that_a_client_would_wait() {
    let setup = setup().await;
    tag(&setup.sidecar, X).await;
    for (fields, words) in [
        (
            "Prefer: wait=90\r\nIf-None-Match: \"x\"",
            "held until the job has another ETag than that, for at most 60 s",
        ),
        ("Accept: text/event-stream", "would get a stream of events"),
    ] {
        let head = format!("GET {X} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let post = setup.sidecar.admin.request(Method::POST, "/explain/x1").body(head);
        let why = post.send().await.json()["verdict"]["why"].to_string();
        assert!(why.contains(words), "{why}");
    }
}

#[tokio::test]
async fn a_stream_has_each_version_once_and_ends_after_a_final_state() {
    let setup = setup().await;
    let known = tag(&setup.sidecar, X).await;
    let mut stream = Stream::open(&setup.sidecar, &[("cache-control", "no-cache")]).await;
    assert_eq!(stream.response.status(), StatusCode::OK);
    assert_eq!(stream.header("content-type"), "text/event-stream");
    assert!(stream.header("cache-status").ends_with("detail=held"));
    let event = |tag: &str, body: &str| Some(format!("id: {tag}\ndata: {body}"));
    assert_eq!(stream.next().await, event(&known, &version("x1", 0)));
    for number in 1..4 {
        setup.upstream.commit("x1");
        purge(&setup.sidecar, "x1").await;
        let next = stream.next().await.expect("an event");
        assert!(next.ends_with(&version("x1", number)), "{next}");
    }
    // A purge without a change is no event.
    purge(&setup.sidecar, "x1").await;
    setup.upstream.set("x1", 200, r#"{"status":"COMPLETED"}"#);
    purge(&setup.sidecar, "x1").await;
    let last = stream.next().await.expect("an event");
    assert!(last.ends_with("data: {\"status\":\"COMPLETED\"}"), "{last}");
    assert!(stream.next().await.expect("the end").starts_with("event: end"));
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_client_that_returns_gets_no_version_twice() {
    let setup = setup().await;
    let known = tag(&setup.sidecar, X).await;
    let mut stream = Stream::open(&setup.sidecar, &[("last-event-id", &known)]).await;
    setup.upstream.commit("x1");
    purge(&setup.sidecar, "x1").await;
    let next = stream.next().await.expect("an event");
    assert!(next.ends_with(&version("x1", 1)), "{next}");
}

#[tokio::test]
async fn a_stream_ends_with_an_error_when_the_api_refuses_the_job() {
    let setup = setup().await;
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.next().await.expect("the current version");
    setup.upstream.set("x1", 403, "no");
    purge(&setup.sidecar, "x1").await;
    let error = stream.next().await.expect("an event");
    assert_eq!(error, "event: error\ndata: {\"status\": 403}");
    assert_eq!(stream.next().await, None);
    let refused = Stream::open(&setup.sidecar, &[]).await;
    assert_eq!(refused.response.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn without_redis_and_without_a_webhook_a_change_is_found_by_the_recheck() {
    let mut setup = Setup::with(|config| {
        on(config);
        config.push.recheck = Duration::from_secs(1);
    })
    .await;
    setup.redis.kill();
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.next().await.expect("the current version");
    setup.upstream.commit("x1");
    let next = stream.next().await.expect("an event");
    assert!(next.ends_with(&version("x1", 1)), "{next}");
}

/// Redis reports no change of what it does not have, so the version has to get there.
#[tokio::test]
async fn a_version_that_redis_refused_is_stored_as_soon_as_redis_takes_it() {
    let setup = setup().await;
    tag(&setup.sidecar, X).await;
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.next().await.expect("the current version");
    limit_memory(&setup, "1").await;
    setup.upstream.commit("x1");
    setup.redis.del(&key("x1")).await;
    let next = stream.next().await.expect("an event");
    assert!(next.ends_with(&version("x1", 1)), "{next}");
    assert_eq!(setup.redis.get(&key("x1")).await, None);

    limit_memory(&setup, "0").await;
    let is_stored = async || setup.redis.get(&key("x1")).await.is_some_and(|it| !it.is_empty());
    eventually(SOON, is_stored).await;
    setup.upstream.commit("x1");
    setup.redis.del(&key("x1")).await;
    let next = stream.next().await.expect("an event");
    assert!(next.ends_with(&version("x1", 2)), "{next}");
}

async fn limit_memory(setup: &Setup, bytes: &str) {
    let mut set = redis::cmd("CONFIG");
    let () = setup.redis.run(set.arg("SET").arg("maxmemory").arg(bytes)).await;
}

#[tokio::test]
async fn without_redis_the_api_is_read_once_for_a_stream_until_the_recheck() {
    let mut setup = setup().await;
    setup.redis.kill();
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.next().await.expect("the current version");
    // Longer than the first two looks whether Redis has the version.
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn a_drain_answers_polls_and_ends_streams() {
    let mut setup = setup().await;
    let known = tag(&setup.sidecar, X).await;
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.next().await.expect("the current version");
    let address = setup.sidecar.client.address();
    let held = tokio::spawn({
        let known = known.clone();
        async move {
            let client = crate::support::Client::new(address);
            let request = client.request(Method::GET, X).header("prefer", "wait=50");
            soon(request.header("if-none-match", &known).send()).await
        }
    });
    waiting(&setup.sidecar, 2).await;
    setup.sidecar.begin_shutdown();
    assert!(stream.next().await.expect("an event").starts_with("retry: "));
    assert_eq!(stream.next().await, None);
    assert_eq!(soon(held).await.expect("an answer").status, StatusCode::NOT_MODIFIED);
    setup.sidecar.shutdown().await.expect("a drain");
}

#[tokio::test]
async fn a_read_that_never_ends_delays_no_later_client_for_long() {
    let setup = setup().await;
    let known = tag(&setup.sidecar, X).await;
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.next().await.expect("the current version");
    let gate = setup.upstream.hold_first(1, Method::GET, X);
    setup.upstream.commit("x1");
    purge(&setup.sidecar, "x1").await;
    gate.arrived(1).await;
    let began = Instant::now();
    let (reply, _) = poll(&setup.sidecar, &known, "wait=30").await;
    reply.assert(200, &version("x1", 1));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let next = stream.next().await.expect("an event");
    assert!(next.ends_with(&version("x1", 1)), "{next}");
}

#[tokio::test]
async fn changes_are_heard_without_near_entries_and_by_keys_and_in_memory() {
    let modes: [fn(&mut Config); 3] = [
        |config| config.cache.near.mode = NearMode::Off,
        |config| config.cache.near.tracking = NearTracking::Keys,
        |config| config.store.url = StoreUrl::Memory,
    ];
    for (number, mode) in modes.into_iter().enumerate() {
        let setup = Setup::with(|config| {
            on(config);
            mode(config);
        })
        .await;
        let mut stream = Stream::open(&setup.sidecar, &[]).await;
        stream.next().await.expect("the current version");
        for version_number in 1..4 {
            setup.upstream.commit("x1");
            if number == 2 {
                purge(&setup.sidecar, "x1").await;
            } else {
                setup.redis.del(&key("x1")).await;
            }
            let next = stream.next().await.expect("an event");
            assert!(next.ends_with(&version("x1", version_number)), "{number}: {next}");
        }
    }
}
