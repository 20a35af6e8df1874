//! Header fields of forwarded requests and responses: which ones end here, and which ones are
//! added.
//!
//! Pure. Removal is careful: a client that lists `X-Forwarded-User` in `Connection` must not be
//! able to remove what a gateway in front of us added.
//!
//! Some logins belong to a connection and not to a request: NTLM, Negotiate and Kerberos. After such
//! a login the API takes every later request on the same connection for one of that user (RFC 4559
//! 6). So a connection with such a login must never carry requests of anyone else. This file
//! recognises such logins, `upstream` binds connections, and `proxy` keeps responses that are read
//! over them out of the cache.

use std::collections::HashSet;

use hyper::{
    HeaderMap, Method, Version,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, COOKIE, EXPECT, HOST, HeaderName, HeaderValue,
        IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION, RANGE, TE, TRANSFER_ENCODING, UPGRADE, VIA, WWW_AUTHENTICATE,
    },
    http::header::Entry,
};

use super::audience::{is_address_header, may_read_as_another, plain_name};
use crate::transport::Peer;

pub(crate) use super::policy::{CacheStatus, Forward, cache_status};

/// The `Via` of jobcache, as the recipient of an HTTP/1.1 message (RFC 9110 7.6.3).
pub const VIA_JOBCACHE: HeaderValue = HeaderValue::from_static("1.1 jobcache");

/// Suffix that is added to a strong `ETag` when the body is compressed, inside the quotes. No upstream
/// uses it, so it can be stripped again.
pub const ETAG_SUFFIX: &str = "-jobcache-zstd";

/// "Furthermore, intermediaries SHOULD remove or replace fields that are known to require removal
/// before forwarding, whether or not they appear as a connection-option" RFC 9110 7.6.1. The two
/// proxy authentication fields are hop-by-hop by RFC 9110 11.7, `HTTP2-Settings` by RFC 7540 3.2.1.
///
/// `Trailer` is not in the list: it announces trailers that we forward, and hyper sends no HTTP/1
/// trailers without it.
///
/// The entries are names because text would be parsed again for each message.
static HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// End-to-end fields, which no `Connection` option may remove: identity, framing, routing and
/// caching.
///
/// "A sender MUST NOT send a connection option corresponding to a field that is intended for all
/// recipients of the content." RFC 9110 7.6.1
fn is_end_to_end(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "cache-control"
            | "content-encoding"
            | "content-length"
            | "content-type"
            | "cookie"
            | "host"
            | "persistent-auth"
            | "remote-user"
            | "set-cookie"
            | "traceparent"
            | "tracestate"
            | "vary"
            | "via"
            | "x-api-key"
            | "x-tenant-id"
    ) || is_of_gateway(name)
        || END_TO_END_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Prefixes of the fields that gateways add.
const END_TO_END_PREFIXES: [&str; 7] =
    ["cf-", "x-amzn-", "x-auth-", "x-client-", "x-goog-", "x-ms-", "x-user-"];

/// Fields with other names than `X-Forwarded-*` and those of addresses that gateways write: where a
/// request comes from, and the URL that it had.
const FORWARDED: [&str; 3] = ["forwarded", "x-original-url", "x-rewrite-url"];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Removes the hop-by-hop fields and the fields that `Connection` lists, except end-to-end fields.
///
/// "Intermediaries MUST parse a received Connection header field before a message is forwarded and,
/// for each connection-option in this field, remove any header or trailer field(s) from the message
/// with the same name as the connection-option" RFC 9110 7.6.1
///
/// `keep` names more end-to-end fields: a field that tells callers apart must reach the upstream as
/// it reached us.
///
/// `TE: trailers` stays: gRPC requires it, and without it the upstream sends no trailers. "A sender
/// of TE MUST also send a "TE" connection option within the Connection header field" RFC 9110
/// 10.1.4.
///
/// A list member that is not a field name is skipped. The remaining fields keep their order.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, keep: &[HeaderName]) {
    let trailers = list_contains(headers, &TE, b"trailers");
    let mut listed = connection_options(headers);
    listed.retain(|name| !keep.contains(name));
    remove_all(headers, |name| HOP_BY_HOP.contains(name) || listed.contains(name));
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Removes the fields that `Connection` lists, as [`strip_hop_by_hop`] does before a request goes
/// upstream. A read is looked up without them: a field that the upstream does not see must not tell
/// callers apart.
pub(crate) fn strip_listed(headers: &mut HeaderMap, keep: &[HeaderName]) {
    let mut listed = connection_options(headers);
    listed.retain(|name| !keep.contains(name) && !HOP_BY_HOP.contains(name) && *name != EXPECT);
    remove_all(headers, |name| listed.contains(name));
}

/// Removes the fields that `removed` selects and keeps the order of the others.
fn remove_all(headers: &mut HeaderMap, removed: impl Fn(&HeaderName) -> bool) {
    if headers.keys().any(&removed) {
        rewrite(headers, |name, value| (!removed(name)).then_some(value));
    }
}

/// Replaces each line by what `line` returns and keeps the order of the fields. `HeaderMap::remove`
/// would move the last field into the gap.
pub(super) fn rewrite(
    headers: &mut HeaderMap,
    mut line: impl FnMut(&HeaderName, HeaderValue) -> Option<HeaderValue>,
) {
    let fields = std::mem::take(headers);
    headers.reserve(fields.keys_len());
    // The iterator yields a name only with the first of its lines.
    let mut current = None;
    for (name, value) in fields {
        current = name.or(current);
        if let Some(name) = &current
            && let Some(value) = line(name, value)
        {
            headers.append(name, value);
        }
    }
}

/// Removes what an untrusted peer says about others: `X-Forwarded-*` (some of these name a user),
/// `Forwarded` (RFC 7239), and the addresses that some proxies send instead. No entry depends on an
/// address, so a made-up one must not reach an upstream that answers by it.
pub(crate) fn strip_forwarded(headers: &mut HeaderMap) {
    // Some upstreams, such as CGI, map every character that is not a letter or digit to the same one.
    remove_all(headers, |name| {
        is_of_gateway(name.as_str())
            || may_read_as_another(name) && is_of_gateway(&plain_name(name))
    });
}

/// Whether a gateway says with this field where a request comes from.
fn is_of_gateway(name: &str) -> bool {
    name.starts_with("x-forwarded-") || FORWARDED.contains(&name) || is_address_header(name)
}

/// Sets `X-Forwarded-Proto` where it is absent. A request over TLS carries it from the beginning:
/// the upstream has to know the scheme, and its answer may depend on it.
pub(crate) fn set_forwarded_proto(headers: &mut HeaderMap, client: Peer) {
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(client.scheme()));
    }
}

/// Tells the upstream where the request comes from: appends to `X-Forwarded-For` and `Via`, and
/// sets `X-Forwarded-Proto` and `X-Forwarded-Host` where they are absent.
///
/// `headers` must hold `Host`: for HTTP/2 the caller copies `:authority` there first.
pub(crate) fn forward(headers: &mut HeaderMap, client: Peer, version: Version) {
    if let Some(ip) = client.ip {
        join_lines(headers, FORWARDED_FOR, Some(&ip.to_canonical().to_string()), b", ");
    }
    set_forwarded_proto(headers, client);
    if let (false, Some(host)) = (headers.contains_key(FORWARDED_HOST), headers.get(HOST)) {
        let host = host.clone();
        headers.insert(FORWARDED_HOST, host);
    }
    join_cookies(headers);
    via(headers, version);
}

/// "If there are multiple Cookie header fields after decompression, these MUST be concatenated into a
/// single octet string using the two-octet delimiter of 0x3b, 0x20 (the ASCII string '; ') before
/// being passed into a non-HTTP/2 context" RFC 9113 8.2.3
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_some() {
        join_lines(headers, COOKIE, None, b"; ");
    }
}

/// Appends `jobcache` to `Via`.
///
/// "An HTTP-to-HTTP gateway MUST send an appropriate Via header field in each inbound request
/// message and MAY send a Via header field in forwarded response messages." RFC 9110 7.6.3
///
/// `version` is the version of the received message.
pub(crate) fn via(headers: &mut HeaderMap, version: Version) {
    let value = match version {
        Version::HTTP_10 => HeaderValue::from_static("1.0 jobcache"),
        Version::HTTP_2 => HeaderValue::from_static("2.0 jobcache"),
        Version::HTTP_3 => HeaderValue::from_static("3.0 jobcache"),
        _ => VIA_JOBCACHE,
    };
    headers.append(VIA, value);
}

/// Removes the fields that could make the response to a fill less than the whole representation.
pub(crate) fn strip_for_fill(headers: &mut HeaderMap) {
    let conditional = [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE, RANGE, ACCEPT_ENCODING, EXPECT];
    remove_all(headers, |name| conditional.contains(name));
}

/// Turns the entity tags of compressed hits in `If-Match` into the tags that the upstream knows.
/// Otherwise the upstream would answer 412 to a write that carries such a tag, although nothing has
/// changed. `If-None-Match` keeps them: they match nothing there, and the client gets a whole
/// answer. A 304 would confirm another coding than the client has.
///
/// "If a client has a partial copy of a representation [..], it could use the Range header field
/// with a conditional GET (using either or both of If-Unmodified-Since and If-Match.)" RFC 9110
/// 13.1.5. The client's part is compressed and the upstream's response would not be, so the tag of
/// such a GET stays as it is and the answer is 412. With another method "a server MUST ignore a
/// Range header field" (14.2).
pub(crate) fn restore_entity_tags(headers: &mut HeaderMap, method: &Method) {
    if *method == Method::GET && headers.contains_key(RANGE) {
        return;
    }
    let Entry::Occupied(mut lines) = headers.entry(IF_MATCH) else { return };
    for line in lines.iter_mut() {
        let plain = line.to_str().map(|value| value.replace(ETAG_SUFFIX, ""));
        // A valid value stays valid when a suffix is removed.
        if let Some(plain) = plain.ok().and_then(|plain| HeaderValue::try_from(plain).ok()) {
            *line = plain;
        }
    }
}

/// Whether the client waits for a 100 before it sends its body.
///
/// "A server that receives a 100-continue expectation in an HTTP/1.0 request MUST ignore that
/// expectation." RFC 9110 10.1.1. Such a client gets no 100, so the upstream is not asked for one.
pub(crate) fn expects_continue(headers: &mut HeaderMap, version: Version) -> bool {
    let expects = list_contains(headers, &EXPECT, b"100-continue");
    if expects && version == Version::HTTP_10 {
        headers.remove(EXPECT);
        return false;
    }
    expects
}

/// Whether the client asks to switch protocols: `Connection` lists `upgrade`, and `Upgrade` names
/// a protocol that is passed on.
///
/// "A server MAY ignore a received Upgrade header field" RFC 9110 7.8. Offers of h2c are ignored:
/// RFC 9113 has withdrawn them, and curl sends one with any request.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    offered_protocols(headers).is_some()
}

/// Returns the protocols that a client offers to switch to, as the one line that is forwarded.
///
/// A protocol that carries HTTP is not among them: requests in such a tunnel would reach the upstream
/// unseen, and writes among them would invalidate nothing. Nor is anything that is no name of a
/// protocol, because a server may still read one in it (`"h2c"`).
pub(crate) fn offered_protocols(headers: &HeaderMap) -> Option<HeaderValue> {
    if !headers.contains_key(UPGRADE) || !list_contains(headers, &CONNECTION, b"upgrade") {
        return None;
    }
    let offers: Vec<&[u8]> =
        members(headers, &UPGRADE).filter(|offer| !carries_http(offer)).collect();
    HeaderValue::from_bytes(&offers.join(&b", "[..])).ok().filter(|offers| !offers.is_empty())
}

/// Returns whether a protocol that a server switches to is one of the offered ones.
pub(crate) fn is_offered(offered: &HeaderValue, protocol: &HeaderValue) -> bool {
    let protocol = protocol.as_bytes().trim_ascii();
    let mut offers = offered.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii);
    offers.any(|offer| offer.eq_ignore_ascii_case(protocol))
}

/// Whether an offer is no name of a protocol with an optional version, or names one that carries HTTP.
fn carries_http(offer: &[u8]) -> bool {
    let name = offer.split(|&b| b == b'/').next().unwrap_or_default();
    let carriers: [&[u8]; 6] = [b"h2c", b"h2", b"h3", b"http", b"tls", b"ssl"];
    !offer.split(|&b| b == b'/').all(is_token)
        || offer.split(|&b| b == b'/').count() > 2
        || carriers.iter().any(|carrier| name.eq_ignore_ascii_case(carrier))
}

/// `token` of RFC 9110 5.6.2.
pub(super) fn is_token(text: &[u8]) -> bool {
    let is_token_char = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    !text.is_empty() && text.iter().all(is_token_char)
}

/// Returns the fields that are there, that `Connection` lists and that may be removed. It may list
/// thousands, so each costs one lookup, and no allocation.
fn connection_options(headers: &HeaderMap) -> Vec<HeaderName> {
    if members(headers, &CONNECTION).all(is_usual_option) {
        return Vec::new();
    }
    let present: HashSet<&[u8]> = headers.keys().map(|name| name.as_str().as_bytes()).collect();
    let longest = present.iter().map(|name| name.len()).max().unwrap_or_default();
    let mut listed = Vec::new();
    let mut lower = Vec::new();
    for option in members(headers, &CONNECTION).filter(|option| option.len() <= longest) {
        lower.clear();
        lower.extend(option.iter().map(u8::to_ascii_lowercase));
        if present.contains(&lower[..])
            && let Ok(name) = HeaderName::from_bytes(&lower)
            && !listed.contains(&name)
            && !may_read_as_another(&name)
            && !is_end_to_end(name.as_str())
        {
            listed.push(name);
        }
    }
    listed
}

/// Whether an option names a hop-by-hop field, or none. Nearly every request has such options only, and
/// needs no set of its fields.
fn is_usual_option(option: &[u8]) -> bool {
    let usual = [&b"keep-alive"[..], b"close", b"te", b"upgrade", b""];
    usual.iter().any(|usual| usual.eq_ignore_ascii_case(option))
}

/// Whether a list field has `token` among its members, ignoring case.
pub(crate) fn list_contains(headers: &HeaderMap, name: &HeaderName, token: &[u8]) -> bool {
    members(headers, name).any(|member| member.eq_ignore_ascii_case(token))
}

/// Returns the members of every line of a list field, trimmed and without parameters.
fn members<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    let lines = headers.get_all(name).into_iter();
    let members = lines.flat_map(|line| line.as_bytes().split(|&b| b == b','));
    members.map(|member| member.split(|&b| b == b';').next().unwrap_or_default().trim_ascii())
}

/// Joins the lines of a field, and one more line, into one. Frameworks that keep headers in a map see
/// only the first or only the last line.
fn join_lines(headers: &mut HeaderMap, name: HeaderName, more: Option<&str>, separator: &[u8]) {
    let lines = headers.get_all(&name).into_iter().map(HeaderValue::as_bytes);
    let lines: Vec<&[u8]> = lines.chain(more.map(str::as_bytes)).collect();
    // Valid values joined by visible characters form a valid value.
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(separator)) {
        headers.insert(name, joined);
    }
}

/// Schemes that authenticate the connection.
const SCHEMES: [&[u8]; 3] = [b"ntlm", b"negotiate", b"kerberos"];

/// States that the connection stays authenticated after the response. Servers also send it with the
/// value `false`. Its presence alone counts here, because a server that sends it knows such logins.
pub(crate) const PERSISTENT_AUTH: HeaderName = HeaderName::from_static("persistent-auth");

/// A statement of a response about the identity of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionIdentity {
    /// Nothing.
    Unstated,
    /// The response asks for a login on this connection.
    Challenged,
    /// The connection has an identity.
    Established,
}

/// Whether a request carries a login of a scheme that authenticates the connection.
pub(crate) fn is_login(headers: &HeaderMap) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(names_scheme)
}

/// Whether a member of a list of credentials or challenges begins with one of these schemes. "It
/// uses a case-insensitive token to identify the authentication scheme" RFC 9110 11.1.
pub(crate) fn names_scheme(value: &HeaderValue) -> bool {
    value.as_bytes().split(|&b| b == b',').any(|member| {
        let member = member.trim_ascii();
        let end = member.iter().position(|b| !b.is_ascii_alphanumeric());
        let scheme = &member[..end.unwrap_or(member.len())];
        SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme))
    })
}

/// Returns what a response says about the identity of its connection.
///
/// jobcache removes `Proxy-Authorization`, so no client can log in to a proxy through it. Such a
/// challenge is treated like the other one all the same.
pub(crate) fn identity_of(headers: &HeaderMap) -> ConnectionIdentity {
    if headers.contains_key(PERSISTENT_AUTH) {
        return ConnectionIdentity::Established;
    }
    let challenges = [WWW_AUTHENTICATE, PROXY_AUTHENTICATE];
    if challenges.iter().flat_map(|name| headers.get_all(name)).any(names_scheme) {
        return ConnectionIdentity::Challenged;
    }
    ConnectionIdentity::Unstated
}

#[cfg(test)]
mod tests;
