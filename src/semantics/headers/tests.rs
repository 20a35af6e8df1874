//! Tests of the fields that are removed and added.

use hyper::{
    HeaderMap, Version,
    header::{HeaderName, HeaderValue},
};

use super::{
    ConnectionIdentity, Peer, forward, identity_of, is_login, is_upgrade, strip_for_fill,
    strip_forwarded, strip_hop_by_hop, strip_listed, via,
};

type Lines<'a> = &'a [(&'a str, &'a str)];

fn strip(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers, &[HeaderName::from_static("x-me")]);
}

fn headers(lines: Lines<'_>) -> HeaderMap {
    let line = |&(name, value): &(&str, &str)| {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), value)
    };
    lines.iter().map(line).collect()
}

#[track_caller]
fn check(change: impl Fn(&mut HeaderMap), before: Lines<'_>, after: Lines<'_>) {
    let mut got = headers(before);
    change(&mut got);
    // Compare as lists: maps compare equal in any order.
    let list = |headers: &HeaderMap| -> Vec<_> {
        headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    assert_eq!(list(&got), list(&headers(after)), "{before:?}");
}

#[test]
fn hop_by_hop_fields_end_here() {
    for name in ["Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "HTTP2-Settings"] {
        check(strip, &[(name, "x"), ("a", "1")], &[("a", "1")]);
    }
    check(strip, &[("upgrade", "h2c"), ("connection", "upgrade")], &[]);
    check(strip, &[("proxy-authorization", "x")], &[]);
    check(strip, &[("trailer", "x")], &[("trailer", "x")]);
}

#[test]
fn fields_that_connection_lists_end_here() {
    let before = [("connection", "close, X-Hop"), ("connection", ",x-hop2 "), ("x-hop", "1")];
    check(strip, &[&before[..], &[("x-hop2", "1"), ("b", "2")]].concat(), &[("b", "2")]);
}

#[test]
fn a_lookup_does_not_see_fields_that_connection_lists_and_sees_the_others() {
    let strip = |headers: &mut HeaderMap| {
        strip_listed(headers, &[HeaderName::from_static("x-me")]);
    };
    let connection = ("connection", "close, X-Hop, x-me, upgrade, expect, authorization");
    let kept = [("x-me", "1"), ("upgrade", "a"), ("expect", "b"), ("authorization", "c")];
    let before = [&[connection, ("x-hop", "1")], &kept[..]].concat();
    check(strip, &before, &[&[connection], &kept[..]].concat());
    let usual = [("connection", "Keep-Alive, TE"), ("te", "trailers"), ("x-hop", "1")];
    check(strip, &usual, &usual);
}

#[test]
fn end_to_end_fields_stay_whatever_connection_lists() {
    for name in ["authorization", "host", "cookie", "content-length", "x-forwarded-for"] {
        check(strip, &[("connection", name), (name, "1")], &[(name, "1")]);
    }
    for name in
        ["Forwarded", "X-Auth-Request-User", "X-Api-Key", "X-User-Id", "Remote-User", "X-Me"]
    {
        check(strip, &[("connection", name), (name, "1")], &[(name, "1")]);
    }
}

#[test]
fn malformed_connection_values_remove_nothing() {
    for value in ["a b", "é", "\"a\"", "", ",,", "a=b"] {
        check(strip, &[("connection", value), ("a", "1")], &[("a", "1")]);
    }
}

#[test]
fn te_is_reduced_to_trailers() {
    let after = [("te", "trailers"), ("connection", "te")];
    check(strip, &[("te", "gzip, Trailers;q=0.5")], &after);
    check(strip, &[("te", "trailers"), ("connection", "TE")], &after);
    check(strip, &[("te", "gzip")], &[]);
}

#[test]
fn order_and_repeated_fields_are_kept() {
    let lines = [("b", "1"), ("a", "2"), ("a", "3"), ("c", "4")];
    check(strip, &lines, &lines);
    let (hop, listed) = (("connection", "x"), ("x", "1"));
    let before = [hop, lines[0], listed, lines[1], ("keep-alive", "1"), lines[2], lines[3]];
    check(strip, &before, &lines);
}

#[track_caller]
fn check_forward(ip: &str, before: Lines<'_>, after: Lines<'_>) {
    let client = Peer { ip: ip.parse().ok(), is_tls: false, is_trusted: true, connection: None };
    check(|headers| forward(headers, client, Version::HTTP_11), before, after);
}

#[test]
fn the_upstream_learns_who_asked() {
    let via = ("via", "1.1 jobcache");
    let (host, proto) = (("host", "a:1"), ("x-forwarded-proto", "http"));
    check_forward("::1", &[], &[("x-forwarded-for", "::1"), proto, via]);
    let after = [host, ("x-forwarded-for", "10.0.0.1"), proto, ("x-forwarded-host", "a:1"), via];
    check_forward("10.0.0.1", &[host], &after);
    check_forward("::ffff:10.0.0.1", &[host], &after);
}

#[test]
fn what_a_gateway_said_is_kept() {
    let before = [("x-forwarded-proto", "https"), ("x-forwarded-host", "b"), ("host", "a")];
    let added = [("x-forwarded-for", "::1"), ("via", "1.1 jobcache")];
    check_forward("::1", &before, &[&before[..], &added].concat());
    let before = [("x-forwarded-for", "1.1.1.1, 2.2.2.2"), ("x-forwarded-for", "3.3.3.3")];
    let list = ("x-forwarded-for", "1.1.1.1, 2.2.2.2, 3.3.3.3, ::1");
    check_forward("::1", &before, &[list, ("x-forwarded-proto", "http"), added[1]]);
}

#[test]
fn who_comes_without_an_address_is_not_named() {
    check_forward("", &[], &[("x-forwarded-proto", "http"), ("via", "1.1 jobcache")]);
}

#[test]
fn what_a_stranger_says_of_others_goes() {
    let forwarding = [
        ("x-forwarded-for", "1.1.1.1"),
        ("X-Forwarded-User", "alice"),
        ("forwarded", "for=1.1.1.1"),
        ("x-real-ip", "1.1.1.1"),
        ("x_forwarded_user", "alice"),
        ("x-real.ip", "1.1.1.1"),
        ("cf-connecting-ip", "1.1.1.1"),
        ("client_ip", "1.1.1.1"),
        ("x-original-url", "/admin"),
    ];
    let own = [("authorization", "x"), ("x-forwarded", "1"), ("x-user-id", "7")];
    check(strip_forwarded, &[&own[..], &forwarding].concat(), &own);
}

#[test]
fn via_is_appended() {
    let before = [("via", "1.0 a")];
    check(|headers| via(headers, Version::HTTP_2), &before, &[before[0], ("via", "2.0 jobcache")]);
    check(|headers| via(headers, Version::HTTP_10), &[], &[("via", "1.0 jobcache")]);
}

#[test]
fn a_fill_asks_for_the_whole_representation() {
    let before = [
        ("if-none-match", "\"a\""),
        ("if-modified-since", "x"),
        ("accept-encoding", "gzip"),
        ("range", "bytes=0-1"),
        ("if-range", "x"),
        ("accept", "*/*"),
    ];
    check(strip_for_fill, &before, &[("accept", "*/*")]);
}

#[track_caller]
fn check_upgrade(lines: Lines<'_>, want: bool) {
    assert_eq!(is_upgrade(&headers(lines)), want, "{lines:?}");
}

#[test]
fn only_protocols_without_http_in_them_are_forwarded_and_may_be_switched_to() {
    let connection = ("connection", "Upgrade");
    let lines = [connection, ("upgrade", "h2c"), ("upgrade", "websocket, \"h2c\", foo/2")];
    let offered = super::offered_protocols(&headers(&lines)).expect("an offer");
    assert_eq!(offered, "websocket, foo/2");
    for (protocol, want) in [("WebSocket", true), ("foo/2", true), ("h2c", false), ("", false)] {
        let protocol = HeaderValue::from_static(protocol);
        assert_eq!(super::is_offered(&offered, &protocol), want, "{protocol:?}");
    }
}

#[test]
fn an_upgrade_needs_both_fields_and_another_protocol_than_h2c() {
    let connection = ("connection", "keep-alive, Upgrade");
    check_upgrade(&[connection, ("upgrade", "websocket")], true);
    check_upgrade(&[connection, ("upgrade", "h2c, websocket")], true);
    check_upgrade(&[connection, ("upgrade", "H2C")], false);
    for carrier in ["\"h2c\"", "h2c/1", "HTTP/2.0", "TLS/1.0", "h2", "web socket", "a/b/c", "/1"] {
        check_upgrade(&[connection, ("upgrade", carrier)], false);
    }
    check_upgrade(&[connection, ("upgrade", "")], false);
    check_upgrade(&[connection], false);
    check_upgrade(&[("upgrade", "websocket")], false);
    check_upgrade(&[("connection", "close"), ("upgrade", "websocket")], false);
}

#[track_caller]
fn check_login(lines: &[(&'static str, &str)], want: bool) {
    assert_eq!(is_login(&headers(lines)), want, "{lines:?}");
}

#[test]
fn a_login_is_known_by_its_scheme_in_any_letter_case() {
    for login in [
        "NTLM TlRMTVNTUAAB",
        "ntlm x",
        "Negotiate YII=",
        "NEGOTIATE\tYII=",
        "kErBeRoS x",
        "NTLM",
        "  NTLM  x",
        "NTLM=x",
        "Basic eDp5, Negotiate x",
    ] {
        check_login(&[("authorization", login)], true);
    }
    check_login(&[("authorization", "Basic x"), ("authorization", "NTLM y")], true);
    for other in ["Bearer NTLM", "Basic eDp5", "NTLMv2 x", "Digest realm=\"NTLM\"", "", "x"] {
        check_login(&[("authorization", other)], false);
    }
    check_login(&[("proxy-authorization", "NTLM x")], false);
}

#[test]
fn a_response_states_an_identity_or_asks_for_one() {
    use ConnectionIdentity::{Challenged, Established, Unstated};
    let check = |lines: &[(&'static str, &str)], want| {
        assert_eq!(identity_of(&headers(lines)), want, "{lines:?}");
    };
    check(&[("www-authenticate", "Negotiate"), ("www-authenticate", "NTLM")], Challenged);
    check(&[("www-authenticate", "Basic realm=\"a\", ntlm")], Challenged);
    check(&[("proxy-authenticate", "NTLM")], Challenged);
    check(&[("www-authenticate", "Bearer realm=\"a\"")], Unstated);
    check(&[], Unstated);
    check(&[("www-authenticate", "NTLM x"), ("persistent-auth", "true")], Established);
    check(&[("persistent-auth", "false")], Established);
}
