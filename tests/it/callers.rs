//! Promise 2 for request headers that nobody has told jobcache about: they tell callers apart, unless
//! they are known to say nothing about the caller.

use hyper::{HeaderMap, Method, Response, StatusCode};
use jobcache::config::{Config, CredentialMode};
use serde_json::Value;

use crate::support::{
    Body, Process, Reply, SOON, Setup, Upstream, client::HOST, eventually, redis::key,
    upstream::json,
};

const X: &str = "/jobs/x1";

/// Headers by which APIs and gateways know a caller: some are default credentials, others are unknown.
const IDENTITIES: [&str; 41] = [
    "x-token",
    "token",
    "access-token",
    "x-jwt",
    "x-user",
    "x-username",
    "x-org-id",
    "x-account",
    "x-fields",
    "x-requested-with",
    "x-csrf-token",
    "x-quite-invented-7",
    "last-event-id",
    "accept-profile",
    "client-cert",
    "client-cert-chain",
    "ssl-client-subject-dn",
    "x-ssl-client-cn",
    "x-amzn-mtls-clientcert-subject",
    "x-forwarded-client-cert",
    "x-forwarded-tls-client-cert-info",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-unheard-of",
    "x-datadog-api-key",
    "sec-ch-token",
    "l5d-client-id",
    "x-consumer-username",
    "x-consumer-id",
    "x-credential-identifier",
    "private-token",
    "job-token",
    "tailscale-user-login",
    "x-pomerium-claim-email",
    "x-authentik-uid",
    "ocp-apim-subscription-key",
    "x-hasura-role",
    "x-endpoint-api-userinfo",
    "x-azure-fdid",
    "cf-worker",
    "correlation-context",
];

/// Headers that say nothing about the caller, with two values.
const IGNORED: [(&str, &str, &str); 33] = [
    ("user-agent", "curl/8", "python-requests/2"),
    ("accept-encoding", "gzip", "br"),
    ("referer", "https://a/", "https://b/"),
    ("sec-fetch-site", "same-origin", "cross-site"),
    ("sec-ch-ua-platform", "\"Linux\"", "\"Windows\""),
    ("dnt", "1", "0"),
    ("priority", "u=1", "u=2"),
    ("content-type", "application/json", "text/plain"),
    ("x-forwarded-for", "192.0.2.1", "192.0.2.2"),
    ("x-real-ip", "192.0.2.1", "192.0.2.2"),
    ("cf-connecting-ip", "192.0.2.1", "192.0.2.2"),
    ("cf-ipcountry", "DE", "FR"),
    ("forwarded", "for=\"192.0.2.1:4711\"", "for=\"[2001:db8::1]:4712\";by=10.0.0.1"),
    ("traceparent", "00-1-1-01", "00-2-2-01"),
    ("tracestate", "a=1", "a=2"),
    ("baggage", "sentry-trace_id=1", "sentry-trace_id=2,sentry-sampled=true"),
    ("sentry-trace", "1", "2"),
    ("b3", "1", "2"),
    ("x-b3-traceid", "1", "2"),
    ("x-request-id", "1", "2"),
    ("x-correlation-id", "1", "2"),
    ("x-amzn-trace-id", "Root=1", "Root=2"),
    ("x-cloud-trace-context", "1", "2"),
    ("x-datadog-trace-id", "1", "2"),
    ("uber-trace-id", "1", "2"),
    ("newrelic", "1", "2"),
    ("x-instana-t", "1", "2"),
    ("cf-ray", "1", "2"),
    ("x-arr-log-id", "1", "2"),
    ("x-envoy-attempt-count", "1", "2"),
    ("l5d-remote-ip", "192.0.2.1", "192.0.2.2"),
    ("x-request-start", "t=1", "t=2"),
    ("via", "1.1 a", "1.1 b"),
];

async fn get(setup: &Setup, headers: &[(&'static str, &str)]) -> Reply {
    let request = setup.sidecar.client.request(Method::GET, X);
    headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send().await
}

/// An API that answers only callers who send `name`, each with its own body.
fn known_by(name: &'static str) -> impl Fn(&HeaderMap) -> Response<Body> + Send + Sync + 'static {
    move |headers| match headers.get(name) {
        Some(who) => {
            let body = format!(r#"{{"for":"{}"}}"#, who.to_str().unwrap());
            let mut response = json(StatusCode::OK, body);
            if headers.contains_key("x-b3-flags") {
                response.headers_mut().insert("cache-control", "public".parse().unwrap());
            }
            response
        }
        None => json(StatusCode::UNAUTHORIZED, "{}"),
    }
}

async fn check_told_apart(setup: &Setup, name: &'static str, with: Option<(&'static str, &str)>) {
    setup.redis.del(&key("x1")).await;
    setup.upstream.respond_to(X, known_by(name));
    let ask = async |who: Option<&str>| {
        let who = who.map(|who| (name, who));
        get(setup, &with.into_iter().chain(who).collect::<Vec<_>>()).await
    };
    eventually(SOON, async || ask(Some("alice")).await.is_hit()).await;
    let nobody = ask(None).await;
    assert_eq!(nobody.status, 401, "{name} {with:?}: a client without it got {nobody:?}");
    let bob = ask(Some("bob")).await;
    bob.assert(200, r#"{"for":"bob"}"#);
    ask(Some("alice")).await.assert(200, r#"{"for":"alice"}"#);
}

#[tokio::test]
async fn a_header_that_may_identify_the_caller_tells_callers_apart() {
    let setup = Setup::new().await;
    for name in IDENTITIES {
        check_told_apart(&setup, name, None).await;
        check_told_apart(&setup, name, Some(("authorization", "Bearer same"))).await;
    }
}

/// An unknown header, unlike a credential, is waived by nothing.
#[tokio::test]
async fn neither_public_nor_shared_mode_waives_an_unknown_header() {
    let setup = Setup::new().await;
    for name in ["x-token", "x-org-id", "x-fields", "x-quite-invented-7", "x_org"] {
        check_told_apart(&setup, name, Some(("x-b3-flags", "public"))).await;
    }
    let setup = Setup::with(|config| config.cache.credentials.mode = CredentialMode::Shared).await;
    for name in ["x-token", "x-org-id", "x-fields", "x_org"] {
        check_told_apart(&setup, name, Some(("authorization", "Bearer same"))).await;
    }
}

/// An API that answers everyone alike.
fn same(_: &HeaderMap) -> Response<Body> {
    json(StatusCode::OK, r#"{"id":"x1"}"#)
}

#[tokio::test]
async fn callers_that_differ_only_in_what_says_nothing_about_them_share_an_entry() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, same);
    setup.hit(X).await;
    for (name, one, other) in IGNORED {
        for value in [one, other] {
            let reply = get(&setup, &[(name, value)]).await;
            assert!(reply.is_hit(), "{name}: {value}: {reply:?}");
        }
    }
    for (name, value) in [
        ("forwarded", "for=192.0.2.1;host=b"),
        ("forwarded", "for=\"a;host=b\""),
        ("baggage", "sentry-trace_id=1,user=alice"),
    ] {
        let reply = get(&setup, &[(name, value)]).await;
        assert!(!reply.is_hit(), "{name}: {value}: {reply:?}");
    }
}

#[tokio::test]
async fn the_configuration_decides_about_a_header_before_the_built_in_list() {
    let setup = Setup::with(|config: &mut Config| {
        config.cache.credentials.headers.push("x-real-ip".into());
        config.cache.credentials.ignore.push("x-poll-nonce".into());
        config.cache.credentials.ignore.push("accept-language".into());
    })
    .await;
    setup.upstream.respond_to(X, same);
    setup.hit(X).await;
    assert!(get(&setup, &[("x-poll-nonce", "1")]).await.is_hit());
    assert!(get(&setup, &[("accept-language", "de")]).await.is_hit());
    assert!(!get(&setup, &[("x-real-ip", "192.0.2.1")]).await.is_hit());
    for vary in ["accept-language", "x-poll-nonce", "user-agent", "forwarded"] {
        setup.upstream.respond_to("/jobs/y1", move |headers| {
            let mut response = same(headers);
            response.headers_mut().insert("vary", vary.parse().unwrap());
            response
        });
        setup.get("/jobs/y1").await;
        let again = setup.get("/jobs/y1").await;
        assert!(!again.is_hit(), "a response that varies by {vary} was stored");
    }
}

/// A field that `Connection` lists ends at jobcache, so the response does not depend on it.
#[tokio::test]
async fn a_field_that_the_upstream_does_not_see_selects_no_entry() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, |headers| {
        let org = headers.get("x-org-id").map_or("none", |org| org.to_str().unwrap());
        json(StatusCode::OK, format!(r#"{{"org":"{org}"}}"#))
    });
    for _ in 0..2 {
        let reply = get(&setup, &[("connection", "x-org-id"), ("x-org-id", "a")]).await;
        reply.assert(200, r#"{"org":"none"}"#);
    }
    get(&setup, &[("x-org-id", "a")]).await.assert(200, r#"{"org":"a"}"#);
}

#[tokio::test]
async fn a_ninth_pair_of_a_credential_replaces_its_oldest_and_nobody_elses() {
    let setup = Setup::with(|config| config.cache.credentials.audience = 9).await;
    setup.upstream.respond_to(X, same);
    let ask = async |who: &str, nonce: &str| {
        get(&setup, &[("authorization", who), ("x-nonce", nonce)]).await
    };
    eventually(SOON, async || ask("Bearer alice", "0").await.is_hit()).await;
    for nonce in 0..12 {
        let nonce = nonce.to_string();
        let first = ask("Bearer mallory", &nonce).await;
        assert!(!first.is_hit(), "{first:?}");
        eventually(SOON, async || ask("Bearer mallory", &nonce).await.is_hit()).await;
    }
    assert!(ask("Bearer alice", "0").await.is_hit(), "alice has lost her place");
    let meta = format!("{{{}}}:meta", key("x1"));
    let meta: Value = serde_json::from_slice(&setup.redis.get(&meta).await.unwrap()).unwrap();
    assert_eq!(meta["audience"].as_array().unwrap().len(), 9, "{meta}");
    assert!(
        ask("Bearer mallory", "11").await.is_hit() && ask("Bearer mallory", "4").await.is_hit()
    );
    assert!(!ask("Bearer mallory", "3").await.is_hit(), "the oldest pair has not made way");
}

/// The lines of the log that warn about headers.
fn warnings(log: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"].as_str().unwrap().contains("credentials.ignore")).collect()
}

async fn explained(process: &Process, head: &str) -> Value {
    let request = process.admin.request(Method::POST, "/explain/x1").body(head.to_owned());
    request.send().await.json()
}

#[tokio::test]
async fn a_header_that_splits_the_callers_of_a_job_is_named_once_and_its_values_never() {
    let upstream = Upstream::start().await;
    let url = upstream.url();
    let args = ["--upstream", &url, "--redis-url", "memory://", "--log-format", "json"];
    let process = Process::start(&args, &[]).await;
    let ask = async |value: &str| {
        let request = process.client.request(Method::GET, X).header("x-poll-nonce", value);
        request.header("x-app", "constant").send().await
    };
    for n in 0..7 {
        ask(&format!("secret-{n}")).await;
        ask(&format!("secret-{n}")).await;
    }
    assert_eq!(warnings(&process.stderr()), Vec::<Value>::new(), "seven values are not enough");
    for n in 7..20 {
        ask(&format!("secret-{n}")).await;
    }
    let found = eventually(SOON, async || {
        let found = warnings(&process.stderr());
        (!found.is_empty()).then_some(found)
    })
    .await;
    let [line] = &found[..] else { panic!("not one warning: {found:?}") };
    assert_eq!((&line["level"], &line["header"]), (&"WARN".into(), &"x-poll-nonce".into()));
    let head = format!("GET {X} HTTP/1.1\nHost: {HOST}\nX-Poll-Nonce: secret-new\n");
    for head in ["", &head] {
        let told = explained(&process, head).await;
        assert_eq!(told["marks"]["splitting_headers"], serde_json::json!(["x-poll-nonce"]));
        let why = told["verdict"]["why"].as_str().unwrap();
        assert!(why.contains("(x-poll-nonce)") && why.contains("credentials.ignore"), "{told}");
        assert!(!told.to_string().contains("secret"), "{told}");
    }
    assert!(!process.stderr().contains("secret"), "{}", process.stderr());
}

/// The variant of the entry may be assumed for a head without `Host`, but not the value of a header that
/// may identify the caller.
#[tokio::test]
async fn explain_does_not_take_one_caller_for_another() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, known_by("x-token"));
    eventually(SOON, async || get(&setup, &[("x-token", "alice")]).await.is_hit()).await;
    let told = setup.sidecar.admin.request(Method::POST, "/explain/x1").body("X-Token: bob");
    let told = told.send().await.json();
    assert_eq!(told["verdict"]["outcome"], "miss", "{told}");
}

#[test]
fn a_credential_cannot_be_ignored() {
    for (header, ignore, part) in [
        ("", "Authorization", "\"authorization\" in credentials.ignore"),
        ("", "X-Consumer-Username", "remove it there"),
        ("X-Token", "x-nonce,X-Token", "\"x-token\" is in both credentials.headers"),
        ("", "a b", "\"a b\" is not the name of a header"),
    ] {
        let mut envs = vec![("JOBCACHE_CREDENTIALS_IGNORE", ignore)];
        if !header.is_empty() {
            envs.push(("JOBCACHE_CREDENTIALS_HEADERS", header));
        }
        let (code, stdout, stderr) = Process::output(&["check"], &envs);
        assert_eq!(code, 78, "{ignore}: {stdout}{stderr}");
        assert!(format!("{stdout}{stderr}").contains(part), "{ignore}: {stdout}{stderr}");
    }
}
