//! The client's address from the PROXY protocol, and the peers that are trusted to send
//! `X-Forwarded-*`.

use crate::support::{SOON, Setup, client::split, eventually};

const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 80\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\x9c\x40\0\x50";
/// LOCAL: a health check of the balancer itself.
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

async fn balanced(trusted: &[&str]) -> Setup {
    let trusted = trusted.iter().map(|network| network.parse().unwrap()).collect();
    let redis = crate::support::RedisServer::start().await;
    Setup::cold(redis, |config| {
        config.server.proxy_protocol = true;
        config.server.trusted_proxies = trusted;
    })
    .await
}

/// Returns the status of the answer to a request after these bytes, or 0 without an answer.
async fn asked(setup: &Setup, header: &[u8]) -> u16 {
    split(&setup.sidecar.client.raw(&[header, REQUEST].concat()).await).0
}

fn forwarded_for(setup: &Setup) -> Vec<String> {
    let told = |seen: crate::support::upstream::Seen| {
        seen.headers["x-forwarded-for"].to_str().unwrap().to_owned()
    };
    setup.upstream.requests().into_iter().map(told).collect()
}

#[tokio::test]
async fn the_upstream_learns_who_connected_to_the_balancer() {
    let setup = balanced(&["127.0.0.0/8"]).await;

    for header in [V1, V2, V2_LOCAL] {
        assert_eq!(asked(&setup, header).await, 404, "{header:?}");
    }

    assert_eq!(forwarded_for(&setup), ["192.0.2.7", "192.0.2.7", "127.0.0.1"]);
}

#[tokio::test]
async fn a_connection_without_the_header_or_from_a_stranger_is_closed_and_counted() {
    let (setup, strange) = (balanced(&["127.0.0.0/8"]).await, balanced(&["192.0.2.0/24"]).await);

    assert_eq!(asked(&setup, b"").await, 0);
    assert_eq!(asked(&setup, b"PROXY TCP4 nonsense\r\n").await, 0);
    assert_eq!(asked(&strange, V1).await, 0);

    for (setup, count) in [(&setup, 2), (&strange, 1)] {
        assert!(setup.upstream.requests().is_empty());
        let line = format!("jobcache_connection_errors_total{{kind=\"proxy-protocol\"}} {count}");
        eventually(SOON, async || setup.sidecar.admin.get("/metrics").await.text().contains(&line))
            .await;
    }
}

#[tokio::test]
async fn operators_need_no_header() {
    let setup = balanced(&[]).await;
    assert_eq!(setup.sidecar.admin.get("/livez").await.status, 200);
}

#[tokio::test]
async fn what_a_stranger_says_of_others_reaches_nobody() {
    let told = [("x-forwarded-for", "192.0.2.9"), ("x-forwarded-user", "alice")];
    let seen = async |trusted: &[&str]| {
        let trusted = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let setup = Setup::with(|config| config.server.trusted_proxies = trusted).await;
        let mut request = setup.sidecar.client.request(hyper::Method::GET, "/jobs/1");
        for (name, value) in told {
            request = request.header(name, value);
        }
        request.send().await;
        let seen = setup.upstream.requests().remove(0).headers;
        let of = |name: &str| seen.get(name).map(|value| value.to_str().unwrap().to_owned());
        (of("x-forwarded-for"), of("x-forwarded-user"))
    };

    let believed = (Some("192.0.2.9, 127.0.0.1".to_owned()), Some("alice".to_owned()));
    assert_eq!(seen(&["0.0.0.0/0", "::/0"]).await, believed);
    assert_eq!(seen(&["127.0.0.1/32"]).await, believed);
    assert_eq!(seen(&["192.0.2.0/24"]).await, (Some("127.0.0.1".to_owned()), None));
    assert_eq!(seen(&[]).await, (Some("127.0.0.1".to_owned()), None));
}

#[tokio::test]
async fn a_stranger_gets_no_hit_in_the_name_of_another() {
    let setup = Setup::with(|config| config.server.trusted_proxies = Vec::new()).await;
    let as_alice = async || {
        let request = setup.sidecar.client.request(hyper::Method::GET, "/jobs/1");
        request.header("x-forwarded-user", "alice").send().await
    };

    // Both are anonymous and share what the upstream has answered to anonymous requests.
    assert!(as_alice().await.is_stored());
    let hit = setup.get("/jobs/1").await;
    assert!(hit.is_hit(), "{hit:?}");
    assert_eq!(setup.upstream.requests().len(), 1);
    assert_eq!(setup.upstream.requests()[0].headers.get("x-forwarded-user"), None);
}
