//! The requests that jobcache makes on its own: jobs and a list at its upstream, and never a URL
//! from outside.
//!
//! A trap listens at each URL in these tests. Any connection to it shows that the URL was fetched.

use std::io::ErrorKind;

use hyper::{Method, StatusCode};
use serde_json::json;

use crate::support::{
    RedisServer, SOON, Setup, Upstream, eventually,
    sidecar::{Sidecar, config},
    upstream::with_status,
};

const X: &str = "/jobs/x1";

/// A listener to which nothing should connect.
struct Trap {
    listener: std::net::TcpListener,
    url: String,
}

impl Trap {
    fn set() -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a non-blocking socket");
        let url = format!("http://{}/jobs/x1", listener.local_addr().expect("a bound listener"));
        Self { listener, url }
    }

    #[track_caller]
    fn assert_untouched(&self) {
        let met = self.listener.accept().map(|(_, address)| address);
        assert_eq!(met.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    }
}

/// Waits until this many prefetched jobs have this outcome.
async fn warmed(sidecar: &Sidecar, outcome: &str, jobs: u64) {
    let name = format!("jobcache_warm_total{{outcome=\"{outcome}\"}}");
    eventually(SOON, async || sidecar.admin.metric(&name).await == jobs).await;
}

#[tokio::test]
async fn no_url_of_a_purge_is_fetched() {
    let (setup, trap) = (Setup::new().await, Trap::set());
    let admin = &setup.sidecar.admin;
    let url = trap.url.as_str();
    setup.hit(X).await;
    for body in [
        json!({ "job_id": url }),
        json!({ "job_id": url.trim_start_matches("http:"), "refresh": true }),
        json!({ "job_id": "../x", "refresh": true }),
        json!({ "job_id": "a/b", "refresh": true }),
        json!({ "job_ids": ["x1", url], "refresh": true }),
        json!({ "job_id": "x1", "url": url }),
        json!({ "job_id": "x1", "callback_url": url }),
        json!({ "job_id": "x1", "refresh": url }),
        json!({ "all": url }),
    ] {
        let reply = admin.request(Method::POST, "/purge").body(body.to_string()).send().await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}: {reply:?}");
    }
    assert!(setup.get(X).await.is_hit(), "one of them has purged the job");
    let (status, _) = admin.spelled("POST", "/purge/http:%2f%2f127.0.0.1%2fx").await;
    assert_eq!(status, 400);

    // Only the named job is read at the upstream, whatever the headers contain.
    let purge = admin.request(Method::POST, "/purge").body(r#"{"job_id":"x1","refresh":true}"#);
    let purge = ["location", "content-location", "origin-agent-callback", "x-original-url", "link"]
        .into_iter()
        .fold(purge, |purge, name| purge.header(name, url));
    setup.upstream.forget_requests();
    assert_eq!(purge.send().await.status, StatusCode::OK);
    warmed(&setup.sidecar, "stored", 1).await;
    assert_eq!(setup.upstream.reads(X), 1);
    trap.assert_untouched();
}

#[tokio::test]
async fn no_redirect_is_followed_for_a_job_that_is_read_anew() {
    let (setup, trap) = (Setup::new().await, Trap::set());
    for (jobs, status) in (1..).zip([301, 302, 303, 307, 308, 300, 201]) {
        let status = StatusCode::from_u16(status).expect("a status");
        let url = trap.url.clone();
        setup.upstream.respond(X, move |_| Some(with_status(status, "location", &url)));
        let body = r#"{"job_id":"x1","refresh":true}"#;
        setup.sidecar.admin.request(Method::POST, "/purge").body(body).send().await;
        warmed(&setup.sidecar, "status", jobs).await;
        // The client gets the redirect and may follow it.
        assert_eq!(setup.get(X).await.status, status);
    }
    trap.assert_untouched();
}

#[tokio::test]
async fn no_redirect_is_followed_for_the_list_and_no_url_in_it() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let trap = Trap::set();
    let mut config = config(&redis, &upstream);
    config.warm.list = Some("/list".parse().expect("a path"));
    let url = trap.url.clone();
    let redirect = with_status;
    let asked = std::sync::atomic::AtomicUsize::new(0);
    upstream.respond("/list", move |_| {
        let nth = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Some(match nth {
            0 => redirect(StatusCode::FOUND, "location", &url),
            1 => redirect(StatusCode::PERMANENT_REDIRECT, "location", &url),
            _ => {
                let list =
                    json!({ "items": [{ "id": url }, { "id": "x1", "href": url }], "next": url });
                crate::support::upstream::json(StatusCode::OK, list.to_string())
            }
        })
    });
    let sidecar = Sidecar::start(config).await;

    warmed(&sidecar, "stored", 1).await;

    assert_eq!((upstream.reads("/list"), upstream.reads(X)), (3, 1));
    trap.assert_untouched();
}
