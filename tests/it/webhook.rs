//! Access to the webhook: several secrets during a rotation, and the answers to other callers.

use std::{
    sync::{Arc, Mutex},
    time::UNIX_EPOCH,
};

use http_body_util::BodyExt as _;
use hyper::{Method, StatusCode};
use jobcache::{
    clock,
    config::{Config, Flags, InvalidConfig, LoadedConfig, Secret},
    reload::ReloadOutcome,
};
use standardwebhooks::Webhook;
use tokio::io::AsyncWriteExt as _;

use crate::support::{
    Client, Process, Reply, SOON, Setup, Upstream, client::split, eventually, sidecar::Sidecar,
    soon,
};

const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const STRANGER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
const BODY: &str = r#"{"job_id":"x1"}"#;

async fn guarded(secrets: &[&str]) -> Setup {
    let secrets = secrets.iter().map(|secret| Secret::new(*secret)).collect();
    Setup::with(|config| config.webhook.secrets = secrets).await
}

/// Sends a purge signed with each of these secrets, with a timestamp this many seconds ago.
async fn signed(admin: &Client, secrets: &[&str], ago: i64) -> Reply {
    signed_body(admin, secrets, ago, BODY).await
}

async fn signed_body(admin: &Client, secrets: &[&str], ago: i64, body: &str) -> Reply {
    let time = now() - ago;
    let sign = |secret: &&str| signature(secret, "msg_1", time, body);
    let signatures: Vec<_> = secrets.iter().map(sign).collect();
    let request = admin.request(Method::POST, "/purge").body(body.to_owned());
    let request = request.header("webhook-id", "msg_1");
    let request = request.header("webhook-timestamp", &time.to_string());
    request.header("webhook-signature", &signatures.join(" ")).send().await
}

/// Returns the seconds since 1970.
fn now() -> i64 {
    let now = clock::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    i64::try_from(now).expect("a date")
}

fn signature(secret: &str, id: &str, time: i64, body: &str) -> String {
    let webhook = Webhook::new(secret).expect("a secret");
    webhook.sign(id, time, body.as_bytes()).expect("a signature")
}

async fn bearer(admin: &Client, secret: &str) -> Reply {
    let request = admin.request(Method::POST, "/purge").body(BODY);
    request.header("authorization", &format!("Bearer {secret}")).send().await
}

#[tokio::test]
async fn each_secret_opens_by_token_and_by_signature_and_which_it_was_is_counted() {
    let setup = guarded(&[NEW, OLD]).await;
    let admin = &setup.sidecar.admin;
    for secret in [NEW, OLD] {
        assert_eq!(bearer(admin, secret).await.status, StatusCode::OK);
        assert_eq!(signed(admin, &[secret], 0).await.status, StatusCode::OK);
        let page = admin.request(Method::GET, "/status");
        let page = page.header("authorization", &format!("Bearer {secret}")).send().await;
        assert_eq!(page.status, StatusCode::OK);
    }
    // A sender that rotates its secrets signs with each.
    assert_eq!(signed(admin, &[STRANGER, OLD], 0).await.status, StatusCode::OK);
    assert_eq!(signed(admin, &[STRANGER], 0).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(bearer(admin, STRANGER).await.status, StatusCode::UNAUTHORIZED);
    for (secret, count) in [("newest", 3), ("older", 4)] {
        let name = format!("jobcache_webhook_accepted_total{{secret=\"{secret}\"}}");
        assert_eq!(admin.metric(&name).await, count, "{secret}");
    }
}

/// A sender and jobcache switch secrets independently, and no purge is rejected in between.
#[tokio::test]
async fn secrets_are_rotated_by_reloads_without_a_purge_refused() {
    let upstream = Upstream::start().await;
    let secrets = Arc::new(Mutex::new(OLD.to_owned()));
    let (url, shared) = (upstream.url(), Arc::clone(&secrets));
    let read = move || -> Result<LoadedConfig, InvalidConfig> {
        let secret = shared.lock().expect("no panic under the lock").clone();
        let vars = [("JOBCACHE_WEBHOOK_SECRET", secret), ("JOBCACHE_UPSTREAM", url.clone())];
        let vars = vars.into_iter().chain([("REDIS_URL", "memory://".to_owned())]);
        Config::load(Flags::default(), vars.map(|(name, text)| (name.to_owned(), text)))
    };
    let (sidecar, reloader) = Sidecar::reloading(read).await;
    let opens = async |secret| signed(&sidecar.admin, &[secret], 0).await.status == StatusCode::OK;
    assert!(opens(OLD).await && !opens(NEW).await);

    for (text, old) in [(format!("{NEW}\n{OLD}"), true), (NEW.to_owned(), false)] {
        *secrets.lock().expect("no panic under the lock") = text;
        assert_eq!(reloader.reload().await, Some(ReloadOutcome::Applied));
        assert!(opens(NEW).await);
        assert_eq!(opens(OLD).await, old);
    }
}

/// A stream ends once its secret is no longer valid.
#[tokio::test]
async fn streams_of_events_end_when_the_secrets_change_and_at_no_other_reload() {
    let upstream = Upstream::start().await;
    let settings = Arc::new(Mutex::new((OLD.to_owned(), "60")));
    let (url, shared) = (upstream.url(), Arc::clone(&settings));
    let read = move || -> Result<LoadedConfig, InvalidConfig> {
        let (secret, failures) = shared.lock().expect("no panic under the lock").clone();
        let vars = [
            ("JOBCACHE_WEBHOOK_SECRET", secret),
            ("JOBCACHE_WEBHOOK_MAX_FAILURES", failures.to_owned()),
            ("JOBCACHE_UPSTREAM", url.clone()),
            ("REDIS_URL", "memory://".to_owned()),
        ];
        Config::load(Flags::default(), vars.map(|(name, text)| (name.to_owned(), text)))
    };
    let (sidecar, reloader) = Sidecar::reloading(read).await;
    let listen = sidecar.admin.request(Method::GET, "/events");
    let listen = listen.header("authorization", &format!("Bearer {OLD}"));
    let mut events = listen.open().await.into_body();
    let change = async |secret: String, failures| {
        *settings.lock().expect("no panic under the lock") = (secret, failures);
        assert_eq!(reloader.reload().await, Some(ReloadOutcome::Applied));
    };

    change(OLD.to_owned(), "61").await;
    let job = sidecar.admin.request(Method::POST, "/purge").body(BODY);
    let job = job.header("authorization", &format!("Bearer {OLD}")).send().await;
    assert_eq!(job.status, StatusCode::OK);
    let mut told = String::new();
    while !told.contains("\"purge\"") {
        let frame = soon(events.frame()).await.expect("a stream that continues").expect("a frame");
        told.push_str(&String::from_utf8_lossy(&frame.into_data().expect("data")));
    }

    change(format!("{NEW} {OLD}"), "61").await;
    while let Some(frame) = soon(events.frame()).await {
        frame.expect("a clean end");
    }
}

#[tokio::test]
async fn each_refusal_says_why_and_is_counted_under_its_reason() {
    let setup = guarded(&[NEW]).await;
    let admin = &setup.sidecar.admin;
    let purge = || admin.request(Method::POST, "/purge").body(BODY);
    let incomplete = purge().header("webhook-signature", "v1,x").send().await;
    let several = bearer(admin, &format!("{NEW} {OLD}")).await;
    assert!(several.reason().contains("send one of them"), "{several:?}");
    assert_eq!(admin.metric("jobcache_webhook_refused_total{reason=\"bearer\"}").await, 1);
    let malformed = purge().body("{}").header("authorization", &format!("Bearer {NEW}"));
    for (reply, reason, says) in [
        (purge().send().await, "unsigned", "send `Authorization: Bearer"),
        (incomplete, "header", "webhook-id is missing"),
        (signed(admin, &[STRANGER], 0).await, "signature", "webhook-signature"),
        (signed(admin, &[NEW], 420).await, "timestamp", "NTP"),
        (malformed.send().await, "malformed", "exactly one"),
    ] {
        assert!(reply.status.is_client_error(), "{reason}: {reply:?}");
        assert!(reply.reason().contains(says), "{reason}: {reply:?}");
        let name = format!("jobcache_webhook_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(admin.metric(&name).await, 1, "{reason}");
    }
}

/// A signature captured from an empty purge would otherwise open all of these while it is valid.
#[tokio::test]
async fn a_signature_opens_what_its_body_names_and_nothing_else() {
    let setup = guarded(&[NEW]).await;
    let admin = &setup.sidecar.admin;
    let webhook = Webhook::new(NEW).expect("a secret");
    let now = clock::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let time = i64::try_from(now).expect("a date");
    let ask = async |method: &str, path, body: &'static str, token: &str| {
        let signature = webhook.sign("msg_1", time, body.as_bytes()).expect("a signature");
        let request = admin.request(method.parse().expect("a method"), path).body(body);
        let request = request.header("webhook-id", "msg_1").header("webhook-signature", &signature);
        let request = request.header("webhook-timestamp", &time.to_string());
        request.header("authorization", &format!("Bearer {token}")).send().await
    };
    for (method, path, body) in [
        ("POST", "/purge/x1", ""),
        ("PURGE", "/jobs/x1", ""),
        ("GET", "/status", ""),
        ("GET", "/history", ""),
        ("GET", "/events", ""),
        ("GET", "/explain/x1", ""),
        ("POST", "/explain/x1", "Accept: text/x"),
        ("PUT", "/log", "info"),
    ] {
        let refused = ask(method, path, body, STRANGER).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{method} {path}");
        assert!(refused.reason().contains("bearer token"), "{refused:?}");
        let signature = webhook.sign("msg_1", time, body.as_bytes()).expect("a signature");
        let signed = admin.request(method.parse().expect("a method"), path).body(body);
        let signed = signed.header("webhook-id", "msg_1").header("webhook-signature", &signature);
        let signed = signed.header("webhook-timestamp", &time.to_string()).send().await;
        assert_eq!(signed.status, StatusCode::UNAUTHORIZED, "{method} {path}");
        assert!(signed.reason().contains("covers neither method nor path"), "{signed:?}");
        assert!(signed.reason().contains("send `Authorization: Bearer"), "{signed:?}");
    }
    // A valid signature is accepted even with a wrong token.
    assert_eq!(ask("POST", "/purge", BODY, STRANGER).await.status, StatusCode::OK);
}

/// Returns a purge of 1 MiB and more, signed so that its head could belong to a valid one.
fn stalled(size: usize) -> Vec<u8> {
    let (now, signature) = (now(), signature(STRANGER, "msg_9", 0, ""));
    let head = format!(
        "POST /purge HTTP/1.1\r\nhost: localhost\r\nwebhook-id: msg_9\r\nwebhook-timestamp: {now}\r\n\
         webhook-signature: {signature}\r\ncontent-length: {}\r\n\r\n",
        2 << 20
    );
    let mut request = head.into_bytes();
    request.resize(request.len() + size, b' ');
    request
}

#[tokio::test]
async fn bodies_that_stand_still_keep_no_signed_purge_out_and_are_given_up() {
    let setup = Setup::with(|config| {
        config.webhook.secrets = vec![Secret::new(NEW)];
        config.webhook.max_failures = 4;
    })
    .await;
    let admin = &setup.sidecar.admin;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut connection = admin.connect().await;
        connection.write_all(&stalled((1 << 20) - 4096)).await.expect("bytes written");
        open.push(connection);
    }
    // A quarter of 16 MiB, less the first 8 KiB of each.
    eventually(SOON, async || {
        let held = admin.metric("jobcache_purges_bytes").await;
        if held > 4_100_000 { Ok(()) } else { Err(held) }
    })
    .await;
    for _ in 0..24 {
        let mut connection = admin.connect().await;
        connection.write_all(&stalled(1 << 18)).await.expect("bytes written");
        open.push(connection);
    }
    eventually(SOON, async || {
        let busy = admin.metric("jobcache_webhook_refused_total{reason=\"busy\"}").await;
        if busy == 24 { Ok(()) } else { Err(busy) }
    })
    .await;
    assert!(admin.metric("jobcache_purges_bytes").await <= 4 << 20);
    assert_eq!(signed(admin, &[NEW], 0).await.status, StatusCode::OK);

    // Stalled purges count as failures once they are given up; after that none is read.
    eventually(SOON, async || {
        let slow = admin.metric("jobcache_webhook_refused_total{reason=\"slow\"}").await;
        if slow == 4 { Ok(()) } else { Err(slow) }
    })
    .await;
    assert_eq!(admin.metric("jobcache_purges_bytes").await, 0);
    let (status, reason) = split(&admin.raw(&stalled(0)).await);
    assert_eq!(status, 429, "{reason}");
    assert!(reason.contains("webhook_max_failures"), "{reason}");
    assert_eq!(signed(admin, &[NEW], 0).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_large_purge_that_is_rightly_signed_is_taken() {
    let setup = guarded(&[OLD, NEW]).await;
    let admin = &setup.sidecar.admin;
    let body = format!("{BODY}{}", " ".repeat(1 << 20));
    for (secret, ago, status) in [(NEW, 0, 200), (STRANGER, 0, 401), (NEW, 420, 401)] {
        let reply = signed_body(admin, &[secret], ago, &body).await;
        assert_eq!(reply.status, status, "{reply:?}");
    }
    assert_eq!(
        admin.metric("jobcache_webhook_skew_seconds_count").await,
        1,
        "an unverified skew of 420 s was counted"
    );
}

#[tokio::test]
async fn a_body_that_says_to_be_too_large_is_not_waited_for() {
    let setup = guarded(&[NEW]).await;
    let head = format!(
        "POST /purge HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {NEW}\r\n\
         content-length: 2097153\r\n\r\n"
    );
    let (status, reason) = split(&setup.sidecar.admin.raw(head.as_bytes()).await);
    assert_eq!(status, 413, "{reason}");
}

#[tokio::test]
async fn a_skew_of_years_is_counted_as_a_day_and_only_while_failures_are_answered() {
    let setup = Setup::with(|config| {
        config.webhook.secrets = vec![Secret::new(NEW)];
        config.webhook.max_failures = 1;
    })
    .await;
    let admin = &setup.sidecar.admin;
    for status in [401, 429, 429] {
        assert_eq!(signed(admin, &[NEW], 500_000_000).await.status, status);
    }
    assert_eq!(admin.metric("jobcache_webhook_skew_seconds_count").await, 1);
    let metrics = admin.get("/metrics").await;
    assert!(metrics.text().contains("jobcache_webhook_skew_seconds_sum 86400.0\n"), "{metrics:?}");
}

/// Returns how many valid signatures were off by at most this many seconds.
async fn within(admin: &Client, seconds: &str) -> u64 {
    admin.metric(&format!("jobcache_webhook_skew_seconds_bucket{{le=\"{seconds}\"}}")).await
}

#[tokio::test]
async fn a_skew_is_measured_of_right_signatures_only_whether_they_are_taken_or_not() {
    let setup = guarded(&[NEW]).await;
    let admin = &setup.sidecar.admin;
    for (ago, status) in [(0, 200), (-90, 200), (90, 200), (420, 401), (-420, 401)] {
        assert_eq!(signed(admin, &[NEW], ago).await.status, status, "{ago}");
    }
    signed(admin, &[STRANGER], 90).await;
    let buckets =
        [within(admin, "5.0").await, within(admin, "60.0").await, within(admin, "120.0").await];
    assert_eq!(buckets, [1, 1, 3]);
    assert_eq!(admin.metric("jobcache_webhook_skew_seconds_count").await, 5);
    let refused = signed(admin, &[NEW], 420).await;
    let told = ["420 s old", "421 s old"].iter().any(|told| refused.reason().contains(told));
    assert!(told && refused.reason().contains("may be off by 300 s"), "{refused:?}");
}

#[tokio::test]
async fn a_skew_is_warned_of_before_deliveries_are_refused() {
    let upstream = Upstream::start().await;
    let args = ["--upstream", &upstream.url(), "--redis-url", "memory://"];
    let process = Process::start(&args, &[("JOBCACHE_WEBHOOK_SECRET", NEW)]).await;
    assert_eq!(signed(&process.admin, &[NEW], 30).await.status, StatusCode::OK);
    assert_eq!(signed(&process.admin, &[NEW], -90).await.status, StatusCode::OK);
    let line = eventually(SOON, async || {
        let log = process.stderr();
        log.lines().find(|line| line.contains("signed=\"ahead\"")).map(str::to_owned).ok_or(log)
    })
    .await;
    assert!(line.contains("WARN") && line.contains("limit=300"), "{line}");
    assert!(
        !process.stderr().contains("signed=\"old\""),
        "a skew of 30 s was warned of: {}",
        process.stderr()
    );
}

#[tokio::test]
async fn failures_past_the_limit_are_told_to_wait_and_the_secret_opens_all_the_same() {
    let setup = Setup::with(|config| {
        config.webhook.secrets = vec![Secret::new(NEW)];
        config.webhook.max_failures = 3;
    })
    .await;
    let admin = &setup.sidecar.admin;
    for status in [401, 401, 401, 429, 429] {
        let reply = bearer(admin, STRANGER).await;
        assert_eq!(reply.status, status, "{reply:?}");
        assert_eq!(bearer(admin, NEW).await.status, StatusCode::OK);
        assert_eq!(signed(admin, &[NEW], 0).await.status, StatusCode::OK);
    }
    for page in ["/status", "/history", "/events", "/explain/x1"] {
        let reply = admin.get(page).await;
        assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS, "{page}");
        let wait: u64 = reply.header("retry-after").parse().expect("seconds");
        assert!((1..=20).contains(&wait), "not three attempts per minute: {wait}");
        assert!(reply.reason().contains("accepted at any time"), "{reply:?}");
    }
    assert_eq!(admin.limit_hits("webhook_max_failures").await, 6);
    for open in ["/livez", "/readyz", "/metrics", "/"] {
        assert_eq!(admin.get(open).await.status, StatusCode::OK, "{open}");
    }
}

#[tokio::test]
async fn a_purge_past_the_limit_has_not_been_applied_and_is_when_it_is_sent_again() {
    let setup = Setup::with(|config| config.webhook.max_purges = 1).await;
    let admin = &setup.sidecar.admin;
    let other = async || admin.request(Method::POST, "/purge/other1").send().await.status;
    let purge = async || admin.request(Method::POST, "/purge").body(BODY).send().await;
    let refused = eventually(SOON, async || {
        setup.hit("/jobs/x1").await;
        other().await;
        let reply = purge().await;
        if reply.status == StatusCode::OK { Err(reply) } else { Ok(reply) }
    })
    .await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{refused:?}");
    assert_eq!(refused.header("retry-after"), "1");
    assert!(refused.reason().contains("nothing was purged or queued"), "{refused:?}");
    assert!(setup.get("/jobs/x1").await.is_hit(), "a rejected purge was applied");
    assert!(admin.limit_hits("webhook_max_purges").await > 0);

    setup.upstream.commit("x1");
    eventually(SOON, async || {
        let reply = purge().await;
        if reply.status == StatusCode::OK { Ok(()) } else { Err(reply) }
    })
    .await;
    assert!(!setup.get("/jobs/x1").await.is_hit());
}
