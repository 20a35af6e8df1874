//! The URL of the upstream, and how URLs are shown without their passwords.

use std::path::PathBuf;

use hyper::Uri;
use url::Url;

use super::address::socket_path;

const UPSTREAM: &str = "must be http://host[:port], https://host[:port] or unix:/path/to/socket";

/// Schemes that are recognised without the slashes after them.
const SCHEMES: [&str; 5] = ["http", "https", "redis", "rediss", "unix"];

/// The origin of the upstream without a trailing slash, or its socket as `unix:/path`.
pub(super) fn upstream(text: &str) -> Result<String, String> {
    let why = |why: &str| Err(format!("{UPSTREAM}; {why}"));
    if let Some(path) = text.strip_prefix("unix:") {
        let path = socket_path(path).or_else(|fault| why(&fault).map(PathBuf::from))?;
        return Ok(format!("unix:{}", path.display()));
    }
    // The parser would take `localhost:8000` for a scheme.
    let scheme = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), _)) => scheme,
        Some(_) => return why("no other scheme is supported"),
        None => return why("the scheme is missing"),
    };
    let Ok(uri) = text.parse::<Uri>() else { return why("this is not a URL") };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return why("remove user and password: clients send their own credentials");
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
        return why("remove the path: requests keep their own");
    }
    // `Uri` accepts ports that do not exist.
    if uri.host().is_none_or(str::is_empty) || Url::parse(text).is_err() {
        return why("host or port is not valid");
    }
    Ok(format!("{scheme}://{authority}"))
}

/// The URL as it was given, without what may be secret: user and password, query and fragment.
///
/// A message has to show a wrong value, so everything else stays, also of a text that is no URL. Where
/// the login cannot be told apart, `***` replaces more: an unescaped `/`, `?`, `#` or `@` in a password
/// shifts the boundaries that a parser sees, and `user:password` without `@host` looks like
/// `host:port`.
pub(super) fn redacted(text: &str) -> String {
    const HIDDEN: &str = "***";
    let (scheme, rest) = split_scheme(text);
    let query_at = rest.find(['?', '#']).unwrap_or(rest.len());
    let (user, place) = match rest.rfind('@') {
        // In the password or in the query?
        Some(at) if at > query_at => return format!("{scheme}{HIDDEN}"),
        Some(at) => ("***@", &rest[at + 1..query_at]),
        None => ("", &rest[..query_at]),
    };
    let query = match rest[query_at..].chars().next() {
        Some(mark) => format!("{mark}{HIDDEN}"),
        None => String::new(),
    };
    let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    if user.is_empty() && !authority.split(',').all(is_host_and_port) {
        return format!("{scheme}{HIDDEN}{query}");
    }
    format!("{scheme}{user}{authority}{path}{query}")
}

/// Splits a URL after its scheme, also where the slashes are missing.
fn split_scheme(text: &str) -> (&str, &str) {
    let is_known =
        |scheme: &&str| text.strip_prefix(*scheme).is_some_and(|rest| rest.starts_with(':'));
    let end = match text.find("://") {
        Some(at) => at + "://".len(),
        None => SCHEMES.into_iter().find(is_known).map_or(0, |scheme| scheme.len() + ":".len()),
    };
    text.split_at(end)
}

/// Whether the text is a host with or without a port, and no `user:password`. An empty one is that of
/// a socket.
fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_open = host.starts_with('[') == host.ends_with(']')
        && (host.starts_with('[') || !host.contains(':'));
    is_open && port.is_none_or(|port| !host.is_empty() && port.parse::<u16>().is_ok())
}
