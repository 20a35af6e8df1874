//! Whether a page of another site makes a browser send a request.
//!
//! A browser that stands on the operator's machine reaches the admin listener as he does, and any page
//! that he looks at may send it a `POST`: one with an ordinary body asks for nobody's leave (CORS), and
//! that the page cannot read the answer helps nobody once the purge is done. With a webhook secret such
//! a page is refused for want of it, as no browser adds it by itself. Without one it is told apart here.
//!
//! Without a secret a page must not read what is here either. As a page of a name that leads here (DNS
//! rebinding) it may, so what names jobs is only answered under a name that can be nobody else's: an
//! address, or `localhost`.
//!
//! Who is no browser sends none of these fields, and is none of our concern here.

use std::net::IpAddr;

use hyper::{
    HeaderMap,
    http::{
        Uri,
        header::{HOST, ORIGIN},
        uri::Authority,
    },
};

/// Characters of a name that are shown.
const MAX_SHOWN: usize = 200;

/// Whether these are the headers of a request that another site's page has made.
///
/// Fetch Metadata says it outright, over TLS and to a loopback address. Older browsers, and all of them
/// over plain HTTP to a name, send the `Origin` of the page with whatever is not a `GET` (Fetch, 3.2); it
/// has to be the `Host`. And that an address or `localhost`: the name of another site may lead here
/// (DNS rebinding), and what its page sends is then of the same origin.
pub(super) fn is_foreign(headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        // `none`: the operator himself, by an address bar or an extension.
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let Some(origin) = origin.as_ref().and_then(Uri::authority) else { return true };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    !host.is_some_and(|host| host.eq_ignore_ascii_case(origin.as_str())) || !is_here(origin)
}

/// The name that a request is for, where that may be another site's. A browser always says one.
pub(super) fn foreign_name(headers: &HeaderMap) -> Option<String> {
    let host = headers.get(HOST)?;
    let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    if authority.as_ref().is_some_and(is_here) {
        return None;
    }
    let shown = String::from_utf8_lossy(host.as_bytes());
    Some(shown.chars().take(MAX_SHOWN).collect())
}

/// A name that no other site's can be: RFC 6761 (6.3) keeps `localhost` and what is below it for
/// loopback.
fn is_here(host: &Authority) -> bool {
    let name = host.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(fields: &[(&'static str, &'static str)], foreign: bool) {
        let field = |(name, value): &(&'static str, &str)| {
            (name.parse::<hyper::header::HeaderName>().unwrap(), value.parse().unwrap())
        };
        let headers: HeaderMap = fields.iter().map(field).collect();
        assert_eq!(is_foreign(&headers), foreign, "{fields:?}");
    }

    #[test]
    fn a_name_that_may_be_another_sites_is_told_apart() {
        let check = |host: &str, name: Option<&str>| {
            let headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
            assert_eq!(foreign_name(&headers).as_deref(), name, "{host}");
        };
        for host in ["127.0.0.1:9090", "10.1.2.3", "[::1]:9090", "LocalHost:1", "a.localhost."] {
            check(host, None);
        }
        for host in ["evil.example:9090", "127.0.0.1.evil.example", "localhost.evil", "", "a b"] {
            check(host, Some(host));
        }
        assert_eq!(foreign_name(&HeaderMap::new()), None);
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
