//! Promise 2 with a real application: a FastAPI service that checks tokens, knows owners and
//! shares, and does not know about a cache (`fastapi/app.py`).

#![allow(clippy::print_stdout, reason = "the test prints its transcript")]

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use hyper::Method;
use jobcache::config::{Config, StoreUrl};
use serde_json::{Value, json};

use crate::support::{
    Client, Process, RedisServer, Reply, SOON, eventually, sidecar::Sidecar, transcript::Transcript,
};

const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fastapi/app.py");

/// `{"alg":"none","typ":"JWT"}`
const UNSIGNED: &str = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";

/// The application in its own process.
struct App {
    client: Client,
    child: Child,
}

impl App {
    /// Debian's interpreter has Debian's packages; another interpreter may come first in PATH.
    fn start() -> Self {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "/usr/bin/python3", "-B", APP])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("setpriv runs python3");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a piped stdout");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let port =
            line.trim().parse().expect("a port; are python3-fastapi, -uvicorn, -jwt installed?");
        Self { client: Client::new(SocketAddr::from(([127, 0, 0, 1], port))), child }
    }

    fn url(&self) -> String {
        format!("http://{}", self.client.address())
    }

    /// Returns how often the application itself has answered each user's read of this job.
    async fn reads(&self, id: &str) -> Value {
        self.client.get(&format!("/reads/{id}")).await.json()
    }

    async fn login(&self, login: Value) -> User {
        let reply = post(&self.client, "/login", &login).await;
        let name = login["user"].as_str().unwrap().to_owned();
        let text = |field| reply.json()[field].as_str().unwrap().to_owned();
        User { name, token: text("token"), session: text("session") }
    }

    /// Moves the clock with which the application compares `exp`.
    async fn set_ahead(&self, seconds: u32) {
        let clock = self.client.request(Method::PUT, "/clock");
        let clock = clock.header("content-type", "application/json");
        assert_eq!(clock.body(json!({ "ahead": seconds }).to_string()).send().await.status, 200);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn post(client: &Client, path: &str, body: &Value) -> Reply {
    let request = client.request(Method::POST, path).header("content-type", "application/json");
    request.body(body.to_string()).send().await
}

/// A logged-in user.
#[derive(Clone)]
struct User {
    name: String,
    token: String,
    session: String,
}

impl User {
    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn cookie(&self) -> String {
        format!("session={}", self.session)
    }
}

/// Alice owns most jobs, some of which are shared with Bob.
struct Office {
    _redis: RedisServer,
    app: App,
    sidecar: Sidecar,
    alice: User,
    bob: User,
}

impl Office {
    async fn open() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let (redis, app) = (RedisServer::start().await, App::start());
        let mut config = Config::default();
        config.cache.settle = Duration::ZERO;
        config.store.reconnect_grace = Duration::ZERO;
        config.store.budget = Duration::from_secs(2);
        config.store.url = StoreUrl::Redis(redis.url());
        config.upstream.url = app.url();
        change(&mut config);
        let sidecar = Sidecar::start(config).await;
        sidecar.warm().await;
        let alice = app.login(json!({ "user": "alice" })).await;
        let bob = app.login(json!({ "user": "bob" })).await;
        Self { _redis: redis, app, sidecar, alice, bob }
    }

    async fn get(&self, who: &User, id: &str) -> Reply {
        self.get_as(&who.bearer(), id).await
    }

    async fn get_as(&self, authorization: &str, id: &str) -> Reply {
        let request = self.sidecar.client.request(Method::GET, &format!("/jobs/{id}"));
        request.header("authorization", authorization).send().await
    }

    async fn write(&self, who: &User, method: Method, path: &str, body: &Value) -> Reply {
        let request = self.sidecar.client.request(method, path);
        let request = request.header("authorization", &who.bearer());
        let request = request.header("content-type", "application/json");
        let reply = request.body(body.to_string()).send().await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply
    }

    async fn share(&self, id: &str) {
        let path = format!("/jobs/{id}/share");
        self.write(&self.alice, Method::POST, &path, &json!({ "user": "bob" })).await;
    }

    async fn revoke(&self, id: &str) {
        let path = format!("/jobs/{id}/share/bob");
        self.write(&self.alice, Method::DELETE, &path, &json!({})).await;
    }

    async fn finish(&self, id: &str) {
        let path = format!("/jobs/{id}");
        self.write(&self.alice, Method::PUT, &path, &json!({ "status": "done" })).await;
    }

    /// Asserts that the application answers the first read and the cache answers the second.
    async fn miss_then_hit(&self, who: &User, id: &str) {
        let first = self.get(who, id).await;
        assert!(first.status == 200 && first.is_uncached() || first.is_stored(), "{first:?}");
        let second = self.get(who, id).await;
        assert!(second.is_hit() && second.body == first.body, "{}: {second:?}", who.name);
    }

    async fn check_refused(&self, authorization: &str, id: &str, status: u16) {
        for _ in 0..3 {
            let reply = self.get_as(authorization, id).await;
            assert_eq!(reply.status, status, "{authorization} {reply:?}");
            assert!(!reply.is_hit() && !reply.text().contains("running"), "{reply:?}");
        }
    }

    /// Returns credentials that the application never answers with 200.
    async fn bad_tokens(&self) -> Vec<String> {
        let [head, claims, signature] =
            self.alice.token.split('.').collect::<Vec<_>>().try_into().expect("a JWT");
        let flipped: String = signature.chars().rev().collect();
        let bobs_claims = self.bob.token.split('.').nth(1).expect("claims");
        let expired = self.app.login(json!({ "user": "alice", "lifetime": -1 })).await;
        let stray = self.app.login(json!({ "user": "alice", "audience": "billing" })).await;
        vec![
            format!("Bearer {head}.{claims}.{flipped}"),
            format!("Bearer {head}.{bobs_claims}.{signature}"),
            format!("Bearer {UNSIGNED}.{claims}."),
            format!("Bearer {head}.{claims}."),
            expired.bearer(),
            stray.bearer(),
            "Bearer".into(),
            String::new(),
            format!("Basic {}", self.alice.token),
            self.alice.token.clone(),
        ]
    }
}

#[tokio::test]
async fn each_of_two_users_asks_the_application_once_for_a_job_of_both() {
    let office = Office::open().await;
    office.miss_then_hit(&office.alice, "shared1").await;
    office.miss_then_hit(&office.bob, "shared1").await;
    for _ in 0..5 {
        assert!(office.get(&office.alice, "shared1").await.is_hit());
        assert!(office.get(&office.bob, "shared1").await.is_hit());
    }
    assert_eq!(office.app.reads("shared1").await, json!({ "alice": 1, "bob": 1 }));
    office.finish("shared1").await;
    for who in [&office.alice, &office.bob] {
        let reply = office.get(who, "shared1").await;
        assert!(!reply.is_hit() && reply.text().contains("done"), "{reply:?}");
    }
    assert_eq!(office.app.reads("shared1").await, json!({ "alice": 2, "bob": 2 }));
}

#[tokio::test]
async fn each_user_hits_his_own_job_and_is_refused_the_others_before_and_after_it_is_warm() {
    let office = Office::open().await;
    office.check_refused(&office.bob.bearer(), "alices1", 403).await;
    office.check_refused(&office.alice.bearer(), "bobs1", 403).await;
    office.miss_then_hit(&office.alice, "alices1").await;
    office.miss_then_hit(&office.bob, "bobs1").await;
    office.check_refused(&office.bob.bearer(), "alices1", 403).await;
    office.check_refused(&office.alice.bearer(), "bobs1", 403).await;
    assert!(
        office.get(&office.alice, "alices1").await.is_hit(),
        "Bob's refusal has dropped Alice's entry"
    );
    assert_eq!(office.app.reads("alices1").await, json!({ "alice": 1 }));
}

#[tokio::test]
async fn no_forged_expired_or_missing_token_is_answered_before_or_after_the_cache_is_warm() {
    let office = Office::open().await;
    let bad = office.bad_tokens().await;
    for authorization in &bad {
        office.check_refused(authorization, "shared1", 401).await;
    }
    assert_eq!(office.sidecar.get("/jobs/shared1").await.status, 401);
    office.miss_then_hit(&office.alice, "shared1").await;
    office.miss_then_hit(&office.bob, "shared1").await;
    for authorization in &bad {
        office.check_refused(authorization, "shared1", 401).await;
    }
    assert_eq!(office.sidecar.get("/jobs/shared1").await.status, 401);
    let head = office.sidecar.client.request(Method::HEAD, "/jobs/shared1").send().await;
    assert!(!head.status.is_success(), "{head:?}");
    assert!(office.get(&office.alice, "shared1").await.is_hit());
}

#[tokio::test]
async fn who_is_revoked_is_refused_from_the_moment_it_is_acknowledged() {
    let office = Office::open().await;
    for _ in 0..5 {
        // After a refusal, reads of this job with that credential bypass the cache for a while
        // (hit-for-miss), so use a fresh token.
        let bob = office.app.login(json!({ "user": "bob" })).await;
        for who in [&office.alice, &bob] {
            office.miss_then_hit(who, "shared1").await;
        }
        office.revoke("shared1").await;
        office.check_refused(&bob.bearer(), "shared1", 403).await;
        office.miss_then_hit(&office.alice, "shared1").await;
        office.check_refused(&bob.bearer(), "shared1", 403).await;
        office.share("shared1").await;
    }
}

#[tokio::test]
async fn who_is_granted_a_job_sees_it_at_once_though_he_was_refused_before() {
    let office = Office::open().await;
    office.miss_then_hit(&office.alice, "alices1").await;
    office.check_refused(&office.bob.bearer(), "alices1", 403).await;
    office.share("alices1").await;
    assert_eq!(office.get(&office.bob, "alices1").await.status, 200);
    office.get(&office.alice, "alices1").await;
    // After the refusal Bob's reads of this job bypass the cache for a while (hit-for-miss) instead
    // of queueing.
    assert_eq!(office.get(&office.bob, "alices1").await.status, 200);
}

/// Polls as both users at the same time, in many interleavings, while the job changes.
async fn poll_mixed(office: &Office, id: &str, check: impl Fn(&User, &Reply)) {
    for round in 0..20 {
        let polls = (0..16).map(|poll| async move {
            let who = if fastrand::bool() { &office.alice } else { &office.bob };
            for _ in 0..poll % 4 {
                tokio::task::yield_now().await;
            }
            (who, office.get(who, id).await)
        });
        for (who, reply) in join_all(polls).await {
            assert_eq!(reply.status, 200, "{reply:?}");
            check(who, &reply);
        }
        if round % 5 == 4 {
            office.finish(id).await;
        }
    }
}

#[tokio::test]
async fn each_user_reads_his_own_name_in_a_personal_job_however_polls_interleave() {
    let office = Office::open().await;
    poll_mixed(&office, "personal1", |who, reply| {
        assert_eq!(reply.json()["viewer"], json!(who.name), "{reply:?}");
    })
    .await;
}

#[tokio::test]
async fn no_user_is_shown_the_etag_of_another_one() {
    let office = Office::open().await;
    poll_mixed(&office, "tagged1", |who, reply| {
        assert!(reply.header("etag").contains(&who.name), "{}: {reply:?}", who.name);
    })
    .await;
    let bobs = office.get(&office.bob, "tagged1").await.header("etag").to_owned();
    let request = office.sidecar.client.request(Method::GET, "/jobs/tagged1");
    let request = request.header("authorization", &office.alice.bearer());
    assert_eq!(request.header("if-none-match", &bobs).send().await.status, 200);
}

#[tokio::test]
async fn no_rate_limit_of_one_answer_is_replayed_in_another() {
    let office = Office::open().await;
    let mut seen = Vec::new();
    for _ in 0..5 {
        for who in [&office.alice, &office.bob] {
            let reply = office.get(who, "shared1").await;
            let left = reply.header("x-ratelimit-remaining").to_owned();
            assert!(!reply.is_hit() || left.is_empty(), "{reply:?}");
            if !left.is_empty() {
                seen.push((who.name.clone(), left));
            }
        }
    }
    let own = |name: &str| (name.to_owned(), "9999".to_owned());
    assert_eq!(seen, [own("alice"), own("bob")], "not one body each from the application");
}

/// The documented limit: an entry outlives a token, for its TTL at most and until the job changes.
#[tokio::test]
async fn an_expired_token_keeps_what_it_was_served_until_the_job_changes_and_no_longer() {
    let office = Office::open().await;
    let lent = office.app.login(json!({ "user": "bob", "lifetime": 600 })).await;
    office.miss_then_hit(&lent, "shared1").await;
    office.app.set_ahead(700).await;
    let reply = office.get(&lent, "shared1").await;
    assert!(reply.is_hit(), "{reply:?}");
    office.check_refused(&lent.bearer(), "personal1", 401).await;
    office.finish("shared1").await;
    office.check_refused(&lent.bearer(), "shared1", 401).await;
}

#[tokio::test]
async fn an_expired_token_is_refused_when_the_ttl_is_over() {
    let ttl = Duration::from_secs(1);
    let office = Office::with(|config| config.cache.lifetimes.ttl = ttl).await;
    let lent = office.app.login(json!({ "user": "bob", "lifetime": 600 })).await;
    assert_eq!(office.get(&lent, "shared1").await.status, 200);
    office.app.set_ahead(700).await;
    eventually(SOON, async || office.get(&lent, "shared1").await.status == 401).await;
    office.check_refused(&lent.bearer(), "shared1", 401).await;
}

#[tokio::test]
async fn a_fresh_token_of_the_same_user_asks_the_application_once() {
    let office = Office::open().await;
    office.miss_then_hit(&office.bob, "shared1").await;
    let again = office.app.login(json!({ "user": "bob" })).await;
    office.miss_then_hit(&again, "shared1").await;
    assert!(office.get(&office.bob, "shared1").await.is_hit());
}

#[tokio::test]
async fn sessions_in_cookies_are_told_apart_as_tokens_are() {
    for cookies in [vec![], vec!["session".to_owned()]] {
        let office = Office::with(|config| config.cache.credentials.cookies = cookies).await;
        let get = |cookie: String, id: &'static str| {
            let request = office.sidecar.client.request(Method::GET, id);
            request.header("cookie", &cookie).send()
        };
        let (alice, bob) = (office.alice.cookie(), office.bob.cookie());
        assert!(!get(alice.clone(), "/jobs/alices1").await.is_hit());
        assert!(get(alice.clone(), "/jobs/alices1").await.is_hit());
        assert_eq!(get(bob.clone(), "/jobs/alices1").await.status, 403);
        for forged in ["session=", "session", "Session=1", "session=0; session=1", "a=b"] {
            assert_eq!(get(forged.into(), "/jobs/alices1").await.status, 401, "{forged}");
        }
        // Starlette reads the last of two cookies, so a client with both sessions is the last user.
        let both = get(format!("{alice}; {bob}"), "/jobs/alices1").await;
        assert_eq!(both.status, 403);
        let both = get(format!("{bob}; {alice}"), "/jobs/alices1").await;
        assert!(both.status == 200 && !both.is_hit(), "{both:?}");
        for _ in 0..3 {
            let personal = get(bob.clone(), "/jobs/personal1").await;
            assert_eq!(personal.json()["viewer"], "bob");
            let personal = get(alice.clone(), "/jobs/personal1").await;
            assert_eq!(personal.json()["viewer"], "alice");
        }
    }
}

/// The application's answer to each spelling is served, whether or not the cache is warm.
#[tokio::test]
async fn an_odd_spelling_of_a_credential_is_answered_as_the_application_answers_it() {
    let office = Office::open().await;
    let (alice, bob) = (&office.alice.token, &office.bob.token);
    let spellings = [
        format!("Authorization: Bearer {bob}"),
        format!("AUTHORIZATION: Bearer {bob}"),
        format!("authorization: bearer {bob}"),
        format!("authorization: BEARER {bob}"),
        format!("authorization:Bearer {bob}"),
        format!("authorization: \t Bearer {bob} \t"),
        format!("authorization: Bearer  {bob}"),
        format!("authorization: Bearer\t{bob}"),
        format!("authorization: Bearer {bob},"),
        format!("authorization: Bearer {bob}, Bearer {alice}"),
        format!("authorization: Bearer {bob}\r\nauthorization: Bearer {alice}"),
        format!("authorization: Bearer {alice}\r\nauthorization: Bearer {bob}"),
        format!("authorization: \r\nauthorization: Bearer {alice}"),
        format!("connection: close, authorization\r\nauthorization: Bearer {bob}"),
        format!("connection: close\r\nconnection: Authorization\r\nauthorization: Bearer {bob}"),
        format!("x-authorization: Bearer {alice}"),
        format!("proxy-authorization: Bearer {alice}"),
        format!("te: authorization\r\nauthorization: Bearer {bob}"),
    ];
    office.miss_then_hit(&office.alice, "alices1").await;
    office.miss_then_hit(&office.alice, "personal1").await;
    for spelling in &spellings {
        for id in ["alices1", "personal1"] {
            let ask = async |client: &Client| {
                let rest = "host: jobs.example\r\nconnection: close\r\n";
                let request = format!("GET /jobs/{id} HTTP/1.1\r\n{rest}{spelling}\r\n\r\n");
                crate::support::client::split(&client.raw(request.as_bytes()).await)
            };
            let want = ask(&office.app.client).await;
            for _ in 0..2 {
                assert_eq!(ask(&office.sidecar.client).await, want, "{id} {spelling}");
            }
        }
    }
}

/// A folded line or a space before the colon hides a header from one of two parsers.
#[tokio::test]
async fn a_head_that_two_parsers_may_read_differently_is_refused() {
    let office = Office::open().await;
    office.miss_then_hit(&office.alice, "alices1").await;
    let bearer = office.alice.bearer();
    for lines in [
        format!("x-a: b\r\n authorization: {bearer}"),
        format!("authorization:\r\n {bearer}"),
        format!("authorization : {bearer}"),
        format!(" authorization: {bearer}"),
        format!("authorization\0: {bearer}"),
        format!("authorization: {bearer}\0"),
        format!("authorization: {bearer}\rx: y"),
    ] {
        let head = format!("GET /jobs/alices1 HTTP/1.1\r\nhost: jobs.example\r\n{lines}\r\n\r\n");
        let answer = office.sidecar.client.raw(head.as_bytes()).await;
        let (status, body) = crate::support::client::split(&answer);
        assert_eq!((status, body.as_str()), (400, ""), "{lines:?}");
    }
}

#[tokio::test]
async fn no_token_or_session_stands_in_redis_metrics_logs_or_errors() {
    let (redis, mut app) = (RedisServer::start().await, App::start());
    let args = ["--access-log", "--log", "trace", "--settle", "0s", "--store-budget", "2s"];
    let (url, redis_url) = (app.url(), redis.url());
    let urls = ["--upstream", &url, "--redis-url", &redis_url];
    let sidecar = Process::start(&[&args[..], &urls].concat(), &[]).await;
    let alice = app.login(json!({ "user": "alice" })).await;
    let get = |id: &str| {
        let request = sidecar.client.request(Method::GET, &format!("/jobs/{id}"));
        let request = request.header("authorization", &alice.bearer());
        request.header("cookie", &alice.cookie()).send()
    };
    eventually(SOON, async || get("alices1").await.is_hit()).await;
    assert_eq!(get("bobs1").await.status, 403);
    let query = format!("/jobs/alices1?token={}", alice.token);
    sidecar.client.get(&query).await;
    app.child.kill().unwrap();
    let refused = eventually(SOON, async || {
        let reply = get("personal1").await;
        if reply.status == 502 { Ok(reply) } else { Err(format!("{reply:?}")) }
    })
    .await;

    let mut places = vec![("error", format!("{refused:?} {}", refused.text()))];
    places.push(("metrics", sidecar.admin.get("/metrics").await.text().to_owned()));
    for name in redis.keys("*").await {
        let dump: Vec<u8> = redis.run(redis::cmd("DUMP").arg(&name)).await;
        let value = [name.clone().into_bytes(), dump, redis.content(&name).await].concat();
        places.push(("redis", String::from_utf8_lossy(&value).into_owned()));
    }
    // The log line of the last request may be written shortly after its answer.
    let log = eventually(SOON, async || {
        let log = sidecar.stderr();
        log.contains("status=502").then_some(log)
    })
    .await;
    assert!(places.iter().any(|(place, text)| *place == "redis" && text.contains("running")));
    places.push(("log", log));
    let signature = alice.token.rsplit('.').next().unwrap();
    let claims = alice.token.split('.').nth(1).unwrap();
    for (place, text) in places {
        for secret in [signature, claims, &alice.session] {
            assert!(!text.contains(secret), "{place} holds a credential: {text}");
        }
    }
}

async fn note_get(transcript: &mut Transcript, office: &Office, who: &User, id: &str) {
    let reply = office.get(who, id).await;
    transcript.note(&who.name, &format!("GET /jobs/{id}"), &reply, &[]);
}

#[tokio::test]
async fn two_users_see_what_the_transcript_in_the_readme_says() {
    let office = Office::open().await;
    let (alice, bob) = (&office.alice, &office.bob);
    let mut transcript = Transcript::default();
    for who in [alice, bob, alice, bob] {
        note_get(&mut transcript, &office, who, "shared1").await;
    }
    let nobody = office.sidecar.get("/jobs/shared1").await;
    transcript.note("nobody", "GET /jobs/shared1", &nobody, &[]);
    let [head, claims, _] = alice.token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let forged = office.get_as(&format!("Bearer {head}.{claims}.forged"), "shared1").await;
    transcript.note("mallory", "GET /jobs/shared1", &forged, &[]);
    let path = "/jobs/shared1/share/bob";
    let revoked = office.write(alice, Method::DELETE, path, &json!({})).await;
    transcript.note("alice", &format!("DELETE {path}"), &revoked, &[]);
    for who in [bob, alice, alice, bob] {
        note_get(&mut transcript, &office, who, "shared1").await;
    }
    for who in [alice, bob, alice, bob] {
        note_get(&mut transcript, &office, who, "personal1").await;
    }
    let transcript = transcript.0;
    // For runs with --nocapture; tests/README.md contains the same.
    print!("{transcript}");
    assert!(include_str!("../README.md").contains(&transcript), "not in the README:\n{transcript}");
}
