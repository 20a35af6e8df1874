//! Detection of requests that a page of another site makes a browser send (CSRF, DNS rebinding).
//!
//! A browser on the operator's machine can reach the admin listener, and every page that it shows
//! may send a `POST` there. A simple request needs no preflight (CORS). The page cannot read the
//! answer, but the purge is done. With a webhook secret such a request fails, because no browser
//! adds the secret by itself. Without a secret this module detects it.
//!
//! Without a secret, pages must not read the listener either. A page can do so if its host name
//! resolves to this listener (DNS rebinding). Pages that name jobs are therefore served only under
//! a host name that no other site can own: an IP address, or `localhost`.
//!
//! Clients other than browsers do not send these fields and are not affected.

use std::{
    borrow::Cow,
    net::{Ipv4Addr, Ipv6Addr},
};

use hyper::{
    Method, Request, StatusCode, Version,
    http::{
        HeaderName, Uri,
        header::{HOST, ORIGIN},
        uri::Authority,
    },
};

use super::{
    admin_route::Access,
    reply::{Reply, error_reply},
};
use crate::transport::Peer;

/// Characters of a host name that an error shows.
const MAX_SHOWN_CHARS: usize = 200;

const CROSS_SITE_TEXT: &str = "cross-site request rejected; use the status page of this listener, or \
                               configure a webhook_secret and send it";

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses the cross-site request of a browser. `access` is that of its route, if it has one. A
/// client on a unix socket is not a browser.
pub(super) fn reject<B>(request: &Request<B>, access: Option<Access>, peer: Peer) -> Option<Reply> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if !is_read && is_cross_site(request) {
        return Some(error_reply(StatusCode::FORBIDDEN, CROSS_SITE_TEXT));
    }
    if peer.ip.is_none() || access == Some(Access::Everyone) {
        return None;
    }
    // Another site may have pointed this name at this listener.
    let name = untrusted_host(request)?;
    let error = format!(
        "the host name {name:?} may belong to another site (DNS rebinding); use an IP address or \
         localhost, such as http://127.0.0.1:9090, or configure a webhook_secret"
    );
    Some(error_reply(StatusCode::FORBIDDEN, &error))
}

/// Returns an error if the host or the origin of a request is ambiguous: of two fields, one reader
/// takes the first and another the last.
pub(super) fn ambiguous_field<B>(request: &Request<B>) -> Option<String> {
    // RFC 9112 (3.2): "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1
    // request message that lacks a Host header field and to any request message that contains more
    // than one".
    if request.version() == Version::HTTP_11 && !request.headers().contains_key(HOST) {
        return Some("the request has no Host field; send one".to_owned());
    }
    let is_repeated = |name: &HeaderName| request.headers().get_all(name).iter().nth(1).is_some();
    let name = [HOST, ORIGIN, SEC_FETCH_SITE].into_iter().find(is_repeated)?;
    Some(format!("the request has more than one {name} field; send one"))
}

/// Whether a page of another site made the browser send this request.
///
/// Over TLS and to loopback addresses, browsers say so with Fetch Metadata. Older browsers, and all
/// browsers over plain HTTP to a host name, send the `Origin` of the page with every method but
/// `GET` and `HEAD` (Fetch, 3.2). It has to equal the requested host. The host has to be an IP
/// address or `localhost`, because another site's name may resolve to this listener (DNS
/// rebinding), and its page then has the same origin.
fn is_cross_site<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        // `none`: the user agent itself, from the address bar or an extension.
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let Some(origin) = origin.as_ref().and_then(Uri::authority) else { return true };
    let is_own = requested_hosts(request)
        .next()
        .is_some_and(|name| name.eq_ignore_ascii_case(origin.as_str()));
    !is_own || !is_local_host(origin)
}

/// Returns the requested host name if another site may own it. Browsers always send a host.
fn untrusted_host<B>(request: &Request<B>) -> Option<String> {
    let is_foreign = |name: &Cow<str>| !name.parse().is_ok_and(|name| is_local_host(&name));
    let name = requested_hosts(request).find(is_foreign)?;
    Some(name.chars().take(MAX_SHOWN_CHARS).collect())
}

/// The host names of a request: of its target, then of `Host`. RFC 9112 (3.2.2): "When an origin
/// server receives a request with an absolute-form of request-target, the origin server MUST ignore
/// the received Host header field", and HTTP/2 has `:authority`. Both are checked, so that neither
/// can hide the other.
fn requested_hosts<B>(request: &Request<B>) -> impl Iterator<Item = Cow<'_, str>> {
    let target = request.uri().authority().map(|name| Cow::Borrowed(name.as_str()));
    let host = request.headers().get(HOST);
    target.into_iter().chain(host.map(|host| String::from_utf8_lossy(host.as_bytes())))
}

/// Whether no other site can own this host: an IP address, or `localhost` and its subdomains, which
/// RFC 6761 (6.3) reserves for loopback. Hosts that can be parsed in two ways do not count.
fn is_local_host(host: &Authority) -> bool {
    if host.as_str().contains('@') {
        return false;
    }
    let name = host.host();
    if let Some(ip) = name.strip_prefix('[') {
        return ip.strip_suffix(']').is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok());
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_subdomain = |labels: &str| labels.split('.').all(|label| !label.is_empty());
    name == "localhost"
        || name.strip_suffix(".localhost").is_some_and(is_subdomain)
        || name.parse::<Ipv4Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, fields: &[(&str, &str)]) -> Request<()> {
        let request = Request::builder().uri(target);
        let request =
            fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap()
    }

    #[track_caller]
    fn check(fields: &[(&str, &str)], foreign: bool) {
        assert_eq!(is_cross_site(&request("/", fields)), foreign, "{fields:?}");
    }

    #[test]
    fn a_name_that_may_be_another_sites_is_told_apart() {
        let check = |host: &str, name: Option<&str>| {
            let found = untrusted_host(&request("/", &[("host", host)]));
            assert_eq!(found.as_deref(), name, "{host}");
        };
        for host in ["127.0.0.1:9090", "10.1.2.3", "[::1]:9090", "LocalHost:1", "a.localhost."] {
            check(host, None);
        }
        for host in [
            "evil.example:9090",
            "127.0.0.1.evil.example",
            "localhost.evil",
            "",
            "a b",
            "evil.com@localhost",
            "evil.com:x@127.0.0.1",
            "[localhost]",
            "[127.0.0.1]",
            ".localhost",
            "a..localhost",
            "localhost..",
            "[::1",
        ] {
            check(host, Some(host));
        }
        assert_eq!(untrusted_host(&request("/", &[])), None);
    }

    #[test]
    fn the_name_in_the_target_is_looked_at_before_that_in_host() {
        let name = |target, host| untrusted_host(&request(target, &[("host", host)]));
        assert_eq!(name("http://evil.example/status", "localhost").unwrap(), "evil.example");
        assert_eq!(name("http://localhost/status", "evil.example").unwrap(), "evil.example");
        assert_eq!(name("http://localhost:1/status", "localhost:1"), None);
        assert_eq!(untrusted_host(&request("http://evil.example/", &[])).unwrap(), "evil.example");
        let is_foreign_origin = |target, origin| {
            is_cross_site(&request(target, &[("host", "127.0.0.1:9"), ("origin", origin)]))
        };
        assert!(!is_foreign_origin("http://localhost:9/purge", "http://localhost:9"));
        assert!(is_foreign_origin("http://localhost:9/purge", "http://127.0.0.1:9"));
    }

    #[test]
    fn a_request_that_can_be_read_in_two_ways_is_told_apart() {
        let check = |version, fields: &[_], expected: Option<&str>| {
            let mut request = request("/", fields);
            *request.version_mut() = version;
            let found = ambiguous_field(&request);
            assert_eq!(found.is_some(), expected.is_some(), "{fields:?}: {found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()), "{fields:?}");
        };
        check(Version::HTTP_11, &[], Some("no Host"));
        check(Version::HTTP_10, &[], None);
        check(Version::HTTP_2, &[], None);
        check(Version::HTTP_11, &[("host", "a"), ("origin", "b")], None);
        for name in ["host", "origin", "sec-fetch-site"] {
            check(Version::HTTP_11, &[("host", "a"), (name, "b"), (name, "b")], Some(name));
        }
    }

    #[test]
    fn what_another_sites_page_sends_is_told_apart() {
        check(&[("host", "127.0.0.1:9090")], false);
        for (site, foreign) in
            [("same-origin", false), ("none", false), ("same-site", true), ("cross-site", true)]
        {
            check(&[("sec-fetch-site", site)], foreign);
        }
        let pairs = [
            ("http://127.0.0.1:9090", "127.0.0.1:9090", false),
            ("http://[::1]:9090", "[::1]:9090", false),
            ("http://localhost:9090", "LOCALHOST:9090", false),
            ("http://127.0.0.1:8000", "127.0.0.1:9090", true),
            ("https://evil.example", "127.0.0.1:9090", true),
            ("http://evil.example:9090", "evil.example:9090", true),
            ("null", "127.0.0.1:9090", true),
            ("", "127.0.0.1:9090", true),
        ];
        for (origin, host, foreign) in pairs {
            check(&[("origin", origin), ("host", host)], foreign);
        }
        check(&[("origin", "http://127.0.0.1:9090")], true);
    }
}
