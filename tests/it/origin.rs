//! Requests that a page of another site makes an operator's browser send.

use hyper::{Method, StatusCode};
use jobcache::config::{Config, Secret};

use crate::support::{Setup, client::split};

const X: &str = "/jobs/x1";
const SECRET: &str = "a-secret-of-the-test";

/// Sends a purge as a browser sends it for a page, with these fields.
async fn purge_by(setup: &Setup, fields: &[(&'static str, &str)]) -> StatusCode {
    let mut request = setup.sidecar.admin.request(Method::POST, "/purge/x1");
    for (name, value) in fields {
        request = request.header(name, value);
    }
    request.send().await.status
}

#[tokio::test]
async fn a_page_of_another_site_purges_nothing() {
    let setup = Setup::new().await;
    let own = setup.sidecar.admin.address().to_string();
    let origin = format!("http://{own}");
    let (own, origin) = (own.as_str(), origin.as_str());
    setup.hit(X).await;

    let forged: [&[_]; 5] = [
        &[("host", own), ("origin", "https://evil.example")],
        &[("host", own), ("origin", "null")],
        &[("host", own), ("origin", origin), ("sec-fetch-site", "cross-site")],
        &[("host", own), ("origin", origin), ("sec-fetch-site", "same-site")],
        // A foreign name that resolves to this listener.
        &[("host", "evil.example:9090"), ("origin", "http://evil.example:9090")],
    ];
    for fields in forged {
        assert_eq!(purge_by(&setup, fields).await, StatusCode::FORBIDDEN, "{fields:?}");
    }
    let evil = |method, path| {
        let request = setup.sidecar.admin.request(method, path);
        request.header("origin", "https://evil.example")
    };
    let purge = Method::from_bytes(b"PURGE").expect("a method");
    for request in [evil(purge, X), evil(Method::POST, "/purge").body(r#"{"all":true}"#)] {
        let refused = request.send().await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(refused.reason().contains("cross-site request rejected"), "{refused:?}");
        assert_eq!(refused.headers.get("access-control-allow-origin"), None);
    }
    assert!(setup.get(X).await.is_hit());
    let page: [&[_]; 2] = [
        &[("host", own), ("origin", origin)],
        &[("host", own), ("origin", origin), ("sec-fetch-site", "same-origin")],
    ];
    for fields in page {
        assert_eq!(purge_by(&setup, fields).await, StatusCode::OK, "{fields:?}");
    }
    assert!(!setup.get(X).await.is_hit());
}

#[tokio::test]
async fn who_shows_the_secret_may_purge_from_wherever_he_likes() {
    let secret = |config: &mut Config| config.webhook.secrets = vec![Secret::new(SECRET)];
    let setup = Setup::with(secret).await;
    let bearer = format!("Bearer {SECRET}");
    let elsewhere = ("origin", "https://ops.example");
    assert_eq!(purge_by(&setup, &[elsewhere]).await, StatusCode::UNAUTHORIZED);
    assert_eq!(purge_by(&setup, &[elsewhere, ("authorization", &bearer)]).await, StatusCode::OK);
}

/// Checks what a page can read under a foreign name that resolves to this listener, without a
/// secret.
#[tokio::test]
async fn under_another_sites_name_nothing_is_read_that_names_a_job() {
    let setup = Setup::new().await;
    let admin = &setup.sidecar.admin;
    let ask =
        async |path, host: &str| admin.request(Method::GET, path).header("host", host).send().await;
    setup.hit(X).await;
    for path in ["/status", "/history", "/events", "/explain/x1", "/log", "/no-such-page"] {
        let refused = ask(path, "evil.example:9090").await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path}");
        let told = refused.reason();
        assert!(
            told.contains("\"evil.example:9090\"") && told.contains("webhook_secret"),
            "{told}"
        );
    }
    for (method, path) in
        [("POST", "/purge/x1"), ("PURGE", X), ("PUT", "/log"), ("POST", "/explain/x1")]
    {
        let request = admin.request(method.parse().expect("a method"), path);
        let refused = request.header("host", "evil.example:9090").send().await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{method} {path}");
    }
    assert!(setup.get(X).await.is_hit());
    for open in ["/", "/livez", "/readyz", "/metrics"] {
        assert_eq!(ask(open, "jobcache.cluster.example").await.status, StatusCode::OK, "{open}");
    }
    for host in ["localhost:9090", "127.0.0.1", "[::1]:9090"] {
        assert_eq!(ask("/status", host).await.status, StatusCode::OK, "{host}");
    }
    let counted = "jobcache_webhook_refused_total{reason=\"origin\"}";
    assert_eq!(admin.metric(counted).await, 10);
}

#[tokio::test]
async fn with_a_secret_any_name_will_do() {
    let secret = |config: &mut Config| config.webhook.secrets = vec![Secret::new(SECRET)];
    let setup = Setup::with(secret).await;
    let request = setup.sidecar.admin.request(Method::GET, "/status").header("host", "ops.example");
    let reply = request.header("authorization", &format!("Bearer {SECRET}")).send().await;
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn who_asks_for_no_page_is_told_which_there_are() {
    let setup = Setup::new().await;
    let reply = setup.sidecar.admin.get("/stats").await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    for page in ["\"/stats\"", "/status", "/explain/<id>", "/purge"] {
        assert!(reply.reason().contains(page), "{reply:?}");
    }
}

#[tokio::test]
async fn what_could_be_for_two_names_is_refused_and_the_target_comes_before_host() {
    let setup = Setup::new().await;
    let ask = async |line: &str, fields: &str| {
        let request = format!("{line}\r\n{fields}connection: close\r\n\r\n");
        split(&setup.sidecar.admin.raw(request.as_bytes()).await).0
    };
    let (get, post) = ("GET /status HTTP/1.1", "POST /purge/x1 HTTP/1.1");
    assert_eq!(ask(get, "host: localhost\r\n").await, 200);
    assert_eq!(ask("GET /status HTTP/1.0", "").await, 200);
    for (line, fields) in [
        (get, ""),
        (get, "host: localhost\r\nhost: localhost\r\n"),
        (post, "host: localhost\r\nsec-fetch-site: none\r\nsec-fetch-site: cross-site\r\n"),
        (post, "host: localhost\r\norigin: http://localhost\r\norigin: http://evil.example\r\n"),
    ] {
        assert_eq!(ask(line, fields).await, 400, "{line}: {fields:?}");
    }
    for (line, host) in [
        ("GET http://evil.example/status HTTP/1.1", "localhost"),
        ("GET http://localhost/status HTTP/1.1", "evil.example"),
        (get, "evil.com@localhost"),
        (get, "[localhost]"),
        (get, "[127.0.0.1]"),
        (get, ".localhost"),
    ] {
        assert_eq!(ask(line, &format!("host: {host}\r\n")).await, 403, "{line}: {host}");
    }
}
