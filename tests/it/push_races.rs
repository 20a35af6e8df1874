//! Push where changes, reads, writes and identities overlap.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::BodyExt as _;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, IF_NONE_MATCH},
};
use jobcache::config::{Config, Flags, PushMode};

use crate::support::{
    Client, RedisServer, Reply, SOON, Setup, Upstream,
    client::HOST,
    eventually, full,
    redis::key,
    sidecar::Sidecar,
    soon,
    upstream::{json, version},
};

const X: &str = "/jobs/x1";
const ALICE: &[(&str, &str)] = &[("authorization", "Bearer alice"), JSON];
const BOB: &[(&str, &str)] = &[("authorization", "Bearer bob"), JSON];
const CAROL: &[(&str, &str)] = &[("authorization", "Bearer carol"), JSON];
const NOBODY: &[(&str, &str)] = &[JSON];
/// What streams are read with, so that polls and streams are of one identity.
const JSON: (&str, &str) = ("accept", "application/json");

/// Time in which a client would have been woken that must not be.
const QUIET: Duration = Duration::from_millis(700);

async fn setup() -> Setup {
    Setup::with(|config| config.push.mode = PushMode::All).await
}

async fn rechecking() -> Setup {
    Setup::with(|config| {
        config.push.mode = PushMode::All;
        config.push.recheck = Duration::from_secs(1);
    })
    .await
}

async fn tag(sidecar: &Sidecar, who: &[(&'static str, &str)]) -> String {
    // Even a body that is not stored has a tag in the answer to a poll.
    let get = sidecar.client.request(Method::GET, X).header("prefer", "wait=30");
    let get = get.header("if-none-match", "\"none\"");
    let get = who.iter().fold(get, |get, (name, value)| get.header(name, value));
    get.send().await.header("etag").to_owned()
}

/// Sends a poll from a client of its own.
fn hold(
    sidecar: &Sidecar,
    who: &'static [(&'static str, &'static str)],
    tag: &str,
) -> tokio::task::JoinHandle<Reply> {
    let (address, tag) = (sidecar.client.address(), tag.to_owned());
    tokio::spawn(async move {
        let client = Client::new(address);
        let request = client.request(Method::GET, X).header("prefer", "wait=30");
        let request = request.header("if-none-match", &tag);
        let request =
            who.iter().fold(request, |request, (name, value)| request.header(name, value));
        request.try_send().await.expect("an answer")
    })
}

async fn purge(sidecar: &Sidecar) {
    let reply = sidecar.admin.request(Method::POST, "/purge/x1").send().await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
}

/// Waits until this many polls and streams wait.
async fn waiting(sidecar: &Sidecar, count: u64) {
    eventually(SOON, async || {
        let held = sidecar.admin.metric("jobcache_push_held_polls").await;
        let open = sidecar.admin.metric("jobcache_push_open_streams").await;
        if held + open == count { Ok(()) } else { Err((held, open)) }
    })
    .await;
}

/// An open stream of events.
struct Stream {
    response: Response<Incoming>,
    text: String,
}

impl Stream {
    async fn open(sidecar: &Sidecar, headers: &[(&'static str, &str)]) -> Self {
        let request = sidecar.client.request(Method::GET, X).header("accept", "text/event-stream");
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        Self::of(soon(request.open()).await)
    }

    fn of(response: Response<Incoming>) -> Self {
        Self { response, text: String::new() }
    }

    /// Returns the next event without comments; `None` at the end of the stream.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                if event.lines().any(|line| !line.starts_with(':')) {
                    return Some(event);
                }
                continue;
            }
            let frame = soon(self.response.body_mut().frame()).await?.expect("a whole stream");
            let data = frame.into_data().unwrap_or_default();
            self.text.push_str(std::str::from_utf8(&data).expect("text"));
        }
    }

    async fn expect(&mut self, end: &str) {
        let event = self.next().await.expect("an event");
        assert!(event.ends_with(end), "{event}, not {end}");
    }
}

/// Another sidecar's read is older than that of the topic, and is stored after it.
#[tokio::test]
async fn a_stream_gets_no_entry_that_was_read_before_its_last_version() {
    const Y: &str = "/jobs/y1";
    let setup = Setup::with(|config| {
        config.push.mode = PushMode::All;
        config.push.max_reads = 1;
    })
    .await;
    let second = setup.second().await;
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.expect(&version("x1", 0)).await;
    let other = setup.sidecar.client.request(Method::GET, Y).header("accept", "text/event-stream");
    let mut other = Stream::of(soon(other.open()).await);
    other.expect(&version("y1", 0)).await;
    // The topic of the other job keeps the turn.
    let turn = setup.upstream.hold_first(1, Method::GET, Y);
    setup.sidecar.admin.request(Method::POST, "/purge/y1").send().await;
    turn.arrived(1).await;

    let gate = setup.upstream.hold_first_after_read(Method::GET, X);
    setup.upstream.commit("x1");
    setup.redis.del(&key("x1")).await;
    let reader = second.client.request(Method::GET, X).header(JSON.0, JSON.1);
    let (read, ()) = tokio::join!(reader.send(), async {
        gate.arrived(1).await;
        setup.upstream.commit("x1");
        turn.release();
        stream.expect(&version("x1", 2)).await;
        gate.release();
    });
    read.assert(200, &version("x1", 1));

    setup.upstream.commit("x1");
    purge(&setup.sidecar).await;
    stream.expect(&version("x1", 3)).await;
}

/// Answers each caller with a body that names it and this version.
fn personalise(upstream: &Upstream) -> Arc<AtomicU64> {
    let number = Arc::new(AtomicU64::new(0));
    let version = Arc::clone(&number);
    upstream.respond_to(X, move |headers| {
        let who = headers.get("authorization").map_or("nobody", |who| who.to_str().expect("text"));
        let version = version.load(Ordering::SeqCst);
        json(StatusCode::OK, format!(r#"{{"for":"{who}","version":{version}}}"#))
    });
    number
}

#[tokio::test]
async fn callers_with_bodies_of_their_own_neither_wake_nor_end_each_others_holds() {
    let setup = setup().await;
    let number = personalise(&setup.upstream);
    for round in 1..4 {
        let (alice, bob) = (tag(&setup.sidecar, ALICE).await, tag(&setup.sidecar, BOB).await);
        let (alice, bob) = (hold(&setup.sidecar, ALICE, &alice), hold(&setup.sidecar, BOB, &bob));
        waiting(&setup.sidecar, 2).await;
        let reads = setup.upstream.reads(X);
        tag(&setup.sidecar, CAROL).await;
        tokio::time::sleep(QUIET).await;
        assert!(!alice.is_finished() && !bob.is_finished(), "{round}");
        assert_eq!(setup.upstream.reads(X) - reads, 1, "{round}: reads without a change");

        number.store(round, Ordering::SeqCst);
        purge(&setup.sidecar).await;
        let (alice, bob) = (soon(alice).await.expect("alice"), soon(bob).await.expect("bob"));
        alice.assert(200, &format!(r#"{{"for":"Bearer alice","version":{round}}}"#));
        bob.assert(200, &format!(r#"{{"for":"Bearer bob","version":{round}}}"#));
        tokio::time::sleep(QUIET).await;
        assert_eq!(setup.upstream.reads(X) - reads, 3, "{round}: reads of a change");
    }
}

#[tokio::test]
async fn streams_of_callers_with_bodies_of_their_own_cost_one_read_each_for_a_change() {
    let setup = setup().await;
    let number = personalise(&setup.upstream);
    let mut alice = Stream::open(&setup.sidecar, ALICE).await;
    let mut bob = Stream::open(&setup.sidecar, BOB).await;
    for round in 0..4 {
        alice.expect(&format!(r#"{{"for":"Bearer alice","version":{round}}}"#)).await;
        bob.expect(&format!(r#"{{"for":"Bearer bob","version":{round}}}"#)).await;
        tokio::time::sleep(QUIET).await;
        assert_eq!(setup.upstream.reads(X), 2, "{round}");
        setup.upstream.forget_requests();
        number.store(round + 1, Ordering::SeqCst);
        purge(&setup.sidecar).await;
    }
}

#[tokio::test]
async fn a_credential_that_is_revoked_ends_what_it_holds_and_nothing_else() {
    let setup = rechecking().await;
    let is_revoked = Arc::new(AtomicU64::new(0));
    let revoked = Arc::clone(&is_revoked);
    setup.upstream.respond_to(X, move |headers| {
        let is_alice = headers.get("authorization").is_some_and(|who| who == ALICE[0].1);
        if is_alice && revoked.load(Ordering::SeqCst) > 0 {
            return json(StatusCode::UNAUTHORIZED, "no");
        }
        json(StatusCode::OK, version("x1", 0))
    });
    let known = tag(&setup.sidecar, ALICE).await;
    let mut stream = Stream::open(&setup.sidecar, ALICE).await;
    stream.expect(&version("x1", 0)).await;
    let mut other = Stream::open(&setup.sidecar, BOB).await;
    other.expect(&version("x1", 0)).await;
    let (alice, bob) = (hold(&setup.sidecar, ALICE, &known), hold(&setup.sidecar, BOB, &known));
    waiting(&setup.sidecar, 4).await;

    is_revoked.store(1, Ordering::SeqCst);
    assert_eq!(stream.next().await.as_deref(), Some("event: error\ndata: {\"status\": 401}"));
    assert_eq!(stream.next().await, None);
    assert_eq!(soon(alice).await.expect("an answer").status, StatusCode::UNAUTHORIZED);
    tokio::time::sleep(2 * QUIET).await;
    assert!(!bob.is_finished());
    waiting(&setup.sidecar, 2).await;
}

#[tokio::test]
async fn a_waiter_that_comes_during_a_read_never_gets_what_that_read_finds() {
    let setup = setup().await;
    let known = tag(&setup.sidecar, NOBODY).await;
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.expect(&version("x1", 0)).await;
    let gate = setup.upstream.hold_after_read(Method::GET, X);
    setup.upstream.commit("x1");
    purge(&setup.sidecar).await;
    gate.arrived(1).await;
    // The read under way has version 1.
    setup.upstream.commit("x1");
    purge(&setup.sidecar).await;
    let poll = hold(&setup.sidecar, NOBODY, &known);
    let address = setup.sidecar.client.address();
    let second = tokio::spawn(async move {
        let client = Client::new(address);
        let request = client.request(Method::GET, X).header("accept", "text/event-stream");
        let mut stream = Stream::of(soon(request.open()).await);
        stream.next().await
    });
    eventually(SOON, async || setup.sidecar.admin.metric("jobcache_push_waiting").await == 3).await;
    gate.release();

    soon(poll).await.expect("an answer").assert(200, &version("x1", 2));
    let second = soon(second).await.expect("no panic").expect("an event");
    assert!(second.ends_with(&version("x1", 2)), "{second}");
    let first = stream.next().await.expect("an event");
    if !first.ends_with(&version("x1", 2)) {
        assert!(first.ends_with(&version("x1", 1)), "{first}");
        stream.expect(&version("x1", 2)).await;
    }
    assert_eq!(setup.upstream.reads(X), 3);
}

#[tokio::test]
async fn a_waiter_waits_for_the_fence_of_a_write_and_then_reads_without_it() {
    let setup = setup().await;
    let known = tag(&setup.sidecar, NOBODY).await;
    let poll = hold(&setup.sidecar, NOBODY, &known);
    waiting(&setup.sidecar, 1).await;
    let gate = setup.upstream.hold(Method::PUT, X);
    let began = Instant::now();
    let write = setup.sidecar.client.start(Method::PUT, X, "{}").await;
    gate.arrived(1).await;
    setup.upstream.commit("x1");

    let reply = soon(poll).await.expect("an answer");
    reply.assert(200, &version("x1", 1));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(4), "{took:?}");
    assert!(!setup.redis.holds(&key("x1")).await);

    // The tag is of what was not stored; the write shows as soon as it is done.
    let poll = hold(&setup.sidecar, NOBODY, reply.header("etag"));
    waiting(&setup.sidecar, 1).await;
    gate.release();
    assert_eq!(write.answer().await.0, 200);
    let done = Instant::now();
    soon(poll).await.expect("an answer").assert(200, &version("x1", 2));
    assert!(done.elapsed() < Duration::from_secs(3), "{:?}", done.elapsed());
}

#[tokio::test]
async fn past_the_limit_of_waiters_requests_are_answered_as_if_push_were_off() {
    let setup = Setup::with(|config| {
        config.push.mode = PushMode::All;
        config.push.max_waiting = 1;
    })
    .await;
    let known = tag(&setup.sidecar, NOBODY).await;
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.expect(&version("x1", 0)).await;

    let poll = soon(hold(&setup.sidecar, NOBODY, &known)).await.expect("an answer");
    assert_eq!(poll.status, StatusCode::NOT_MODIFIED);
    assert!(poll.header("preference-applied").is_empty(), "{poll:?}");
    let second = Stream::open(&setup.sidecar, &[]).await;
    assert_eq!(second.response.headers()["content-type"], "application/json");
    drop(second);
    assert_eq!(setup.sidecar.admin.metric("jobcache_push_refused_total").await, 2);
    assert_eq!(setup.sidecar.admin.limit_hits("push.max_waiting").await, 2);

    // The place is free again when its client has gone.
    drop(stream);
    eventually(SOON, async || setup.sidecar.admin.metric("jobcache_push_waiting").await == 0).await;
    let poll = hold(&setup.sidecar, NOBODY, &known);
    waiting(&setup.sidecar, 1).await;
    setup.upstream.commit("x1");
    purge(&setup.sidecar).await;
    soon(poll).await.expect("an answer").assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_poll_and_streams_share_one_http2_connection() {
    let setup = setup().await;
    let known = tag(&setup.sidecar, NOBODY).await;
    let mut sender = setup.sidecar.client.http2().await;
    let get = || Request::get(format!("http://{HOST}{X}"));
    let poll =
        get().header("prefer", "wait=30").header(ACCEPT, JSON.1).header(IF_NONE_MATCH, &known);
    let poll = sender.send_request(poll.body(full("")).expect("a head"));
    let open = get().header(ACCEPT, "text/event-stream").body(full("")).expect("a head");
    let mut first = Stream::of(soon(sender.send_request(open)).await.expect("a stream"));
    let open = get().header(ACCEPT, "text/event-stream").body(full("")).expect("a head");
    let second = Stream::of(soon(sender.send_request(open)).await.expect("a stream"));
    first.expect(&version("x1", 0)).await;
    let poll = tokio::spawn(poll);
    waiting(&setup.sidecar, 3).await;
    // A client that resets its stream no longer waits.
    drop(second);
    waiting(&setup.sidecar, 2).await;

    setup.upstream.forget_requests();
    setup.upstream.commit("x1");
    purge(&setup.sidecar).await;
    first.expect(&version("x1", 1)).await;
    let reply = soon(poll).await.expect("no panic").expect("an answer");
    Reply::read(reply).await.expect("an answer").assert(200, &version("x1", 1));
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn a_stream_begins_with_the_current_version_unless_the_client_names_it() {
    let setup = setup().await;
    let old = tag(&setup.sidecar, NOBODY).await;
    setup.sidecar.put(X).await;
    let current = tag(&setup.sidecar, NOBODY).await;
    assert_ne!(old, current);
    for (id, has_it) in [(&*old, false), ("\"other\"", false), ("x", false), (&*current, true)] {
        let mut stream = Stream::open(&setup.sidecar, &[("last-event-id", id)]).await;
        if !has_it {
            stream.expect(&version("x1", 1)).await;
        }
        drop(stream);
    }
    let mut stream = Stream::open(&setup.sidecar, &[("last-event-id", &current)]).await;
    // Changes back and forth between purges are one change, or none.
    purge(&setup.sidecar).await;
    setup.upstream.commit("x1");
    purge(&setup.sidecar).await;
    stream.expect(&version("x1", 2)).await;
}

#[tokio::test]
async fn the_cache_control_of_one_client_costs_the_others_no_reads() {
    for directive in [
        &[("cache-control", "no-cache"), JSON],
        &[("cache-control", "max-age=0"), JSON],
        &[("cache-control", "no-store"), JSON],
    ] {
        let setup = setup().await;
        let known = tag(&setup.sidecar, NOBODY).await;
        let _first = hold(&setup.sidecar, directive, &known);
        waiting(&setup.sidecar, 1).await;
        setup.upstream.forget_requests();
        for count in 2..6 {
            let _plain = hold(&setup.sidecar, NOBODY, &known);
            waiting(&setup.sidecar, count).await;
        }
        assert_eq!(setup.upstream.reads(X), 0, "{directive:?}");
    }
}

#[tokio::test]
async fn the_time_of_a_delivery_does_not_count_while_nobody_waits() {
    let setup = setup().await;
    let known = tag(&setup.sidecar, NOBODY).await;
    let poll = hold(&setup.sidecar, NOBODY, &known);
    waiting(&setup.sidecar, 1).await;
    setup.upstream.commit("x1");
    purge(&setup.sidecar).await;
    soon(poll).await.expect("an answer").assert(200, &version("x1", 1));
    // The topic stays for a while.
    setup.upstream.commit("x1");
    purge(&setup.sidecar).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut stream = Stream::open(&setup.sidecar, &[]).await;
    stream.expect(&version("x1", 2)).await;
    let metric = "jobcache_push_delivery_seconds";
    let all = setup.sidecar.admin.metric(&format!("{metric}_count")).await;
    let fast = setup.sidecar.admin.metric(&format!("{metric}_bucket{{le=\"1.0\"}}")).await;
    assert!(all > 0);
    assert_eq!(fast, all);
}

#[tokio::test]
async fn a_reload_that_takes_the_route_away_answers_what_was_held() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("jobcache.toml");
    let write = |text: &str| std::fs::write(&path, text).expect("a file written");
    let here = "settle = '0s'\n[push]\nmode = 'all'\n";
    write(here);
    let env = [
        ("REDIS_URL", redis.url()),
        ("UPSTREAM_URL", upstream.url()),
        ("JOBCACHE_CONFIG", path.to_str().expect("a path").to_owned()),
        ("JOBCACHE_STORE_BUDGET", "2s".to_owned()),
        ("JOBCACHE_STORE_RECONNECT_GRACE", "0s".to_owned()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let load = move || Config::load(Flags::default(), env.clone());
    let (sidecar, reloader) = Sidecar::reloading(load).await;
    sidecar.warm().await;
    let known = tag(&sidecar, NOBODY).await;
    let poll = hold(&sidecar, NOBODY, &known);
    let mut stream = Stream::open(&sidecar, &[]).await;
    stream.expect(r#""status":"running"}"#).await;
    waiting(&sidecar, 2).await;
    // The mode of push needs a restart.
    write("routes = ['/elsewhere/{id}']\n[push]\nmode = 'all'\n");
    soon(reloader.reload()).await.expect("a sidecar that runs");

    let status = soon(poll).await.expect("an answer").status;
    assert!([200, 304].contains(&status.as_u16()), "{status}");
    assert!(stream.next().await.expect("an event").starts_with("retry: "));
    assert_eq!(stream.next().await, None);
    waiting(&sidecar, 0).await;
    write(here);
    soon(reloader.reload()).await.expect("a sidecar that runs");
    // Waiters under the new configuration hear of changes.
    let poll = hold(&sidecar, NOBODY, &tag(&sidecar, NOBODY).await);
    waiting(&sidecar, 1).await;
    upstream.commit("x1");
    purge(&sidecar).await;
    soon(poll).await.expect("an answer").assert(200, &version("x1", 1));
}
