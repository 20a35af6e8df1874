//! Addresses of listeners and of the upstream, and how URLs are shown without their passwords.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use hyper::Uri;
use url::Url;

use super::url_options;

/// The longest path of a unix socket, in bytes: an address holds 107 (`sun_path` without its NUL,
/// unix(7)), and a process id is appended to the path while the socket is created.
const MAX_PATH: usize = 96;

/// An IP address and port, or the path of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// Parses `127.0.0.1:8080` or `unix:/run/jobcache.sock`; the error says what would be right.
///
/// `localhost` is the only name accepted: RFC 6761 6.3 fixes it to loopback. Any other name needs a
/// resolver, and its answer may change after the bind.
impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        let named = text
            .strip_prefix("localhost:")
            .and_then(|port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().ok()?))));
        text.parse().ok().or(named).map(Self::Tcp).ok_or_else(|| {
            "must be an IP address and a port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080 \
             (the only name accepted is localhost), or unix:/path/to/socket"
                .to_owned()
        })
    }
}

impl ListenAddress {
    /// The address of a TCP listener.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// The path of a unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(path) => Some(path),
        }
    }
}

/// An absolute path; `text` is the part after `unix:` and may be `///path`.
fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("//").unwrap_or(text);
    if !path.starts_with('/') || path.ends_with('/') {
        return Err("the path of a socket must be absolute: unix:/path/to/socket".to_owned());
    }
    if path.len() > MAX_PATH {
        return Err(format!("the path of a socket must be at most {MAX_PATH} bytes long"));
    }
    // In a URL no path continues after `?` or `#`, and a user who writes one of them means a URL.
    if path.contains(|c: char| c.is_control() || c == '?' || c == '#') {
        return Err("the path of a socket must not hold ?, # or control characters".to_owned());
    }
    Ok(PathBuf::from(path))
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

const UPSTREAM: &str = "must be http://host[:port], https://host[:port] or unix:/path/to/socket";

/// Schemes that are recognised without the slashes after them.
const SCHEMES: [&str; 5] = ["http", "https", "redis", "rediss", "unix"];

/// The origin of the upstream without a trailing slash, or its socket as `unix:/path`.
pub(super) fn upstream(text: &str) -> Result<String, String> {
    let why = |why: &str| Err(format!("{UPSTREAM}; {why}"));
    let text = text.trim();
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

/// The text without white space and one pair of quotes around it.
pub(super) fn unquoted(text: &str) -> &str {
    let text = text.trim();
    let inner = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\'')).map_or(text, str::trim)
}

const HIDDEN: &str = "***";

/// The URL as it was given, without what may be secret: the password, options of the query that may
/// hold one, and the fragment.
///
/// A message has to show a wrong value, so everything else stays, also of a text that is no URL. Where
/// the login cannot be told apart, `***` replaces more: an unescaped `/`, `?`, `#` or `@` in a password
/// shifts the boundaries that a parser sees, and `user:password` without `@host` looks like
/// `host:port`.
pub(super) fn redacted(text: &str) -> String {
    let (scheme, rest) = split_scheme(text);
    let query_at = rest.find(['?', '#']).unwrap_or(rest.len());
    let (user, place) = match rest.rfind('@') {
        // In the password or in the query?
        Some(at) if at > query_at => return format!("{scheme}{HIDDEN}"),
        Some(at) => (shown_user(&rest[..at]), &rest[at + 1..query_at]),
        None => (String::new(), &rest[..query_at]),
    };
    let query = shown_query(&rest[query_at..]);
    let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    // Without a host, the port must follow a scheme.
    let is_local = !scheme.is_empty() && is_port(authority.strip_prefix(':'));
    if user.is_empty() && !is_local && !authority.split(',').all(is_host_and_port) {
        return format!("{scheme}{HIDDEN}{query}");
    }
    format!("{scheme}{user}{authority}{path}{query}")
}

/// The login without the password. One word alone may be the password.
fn shown_user(login: &str) -> String {
    match login.split_once(':') {
        Some((user, _)) => format!("{user}:{HIDDEN}@"),
        None => format!("{HIDDEN}@"),
    }
}

/// The query, from its mark on, without the values that may be secret.
fn shown_query(query: &str) -> String {
    let Some(options) = query.strip_prefix('?').filter(|options| !options.contains('#')) else {
        let mark = query.chars().next();
        return mark.map(|mark| format!("{mark}{HIDDEN}")).unwrap_or_default();
    };
    let shown = options.split('&').map(|option| match option.split_once('=') {
        Some((name, _)) if url_options::is_public(name) => option.to_owned(),
        Some((name, _)) if url_options::is_password(name) => format!("{name}={HIDDEN}"),
        // May be a part of a password.
        _ => HIDDEN.to_owned(),
    });
    format!("?{}", shown.collect::<Vec<_>>().join("&"))
}

fn is_port(text: Option<&str>) -> bool {
    text.is_some_and(|text| text.parse::<u16>().is_ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_password_is_shown_as_it_was_given() {
        for url in [
            "redis://:16379/1",
            "redis://h:1/2?db=3&socket_timeout=5&ssl_cert_reqs=none",
            "unix:///run/redis.sock?db=2",
            "redis+socket:///run/redis.sock?virtual_host=3",
            "redis-sentinel://h,g:1/m?client_name=jobs",
            "http://[::1]:80",
        ] {
            assert_eq!(redacted(url), url);
        }
    }

    #[test]
    fn of_a_url_with_a_password_only_that_is_hidden() {
        for (url, shown) in [
            ("redis://me:sw0rd@h:1/2?db=3", "redis://me:***@h:1/2?db=3"),
            ("redis://:sw0rd@h", "redis://:***@h"),
            ("redis://sw0rd@h", "redis://***@h"),
            ("unix:///a.sock?db=2&user=me&pass=sw0rd", "unix:///a.sock?db=2&user=me&pass=***"),
            ("redis://h?PASSWORD=sw0rd&connection_kwargs=sw0rd", "redis://h?PASSWORD=***&***"),
            ("redis://h?sw0rd=sw0rd&db=1", "redis://h?***&db=1"),
            ("redis://h/0#sw0rd", "redis://h/0#***"),
            ("redis://h/0?db=1#sw0rd", "redis://h/0?***"),
            ("me:16379", "me:16379"),
            (":16379", "***"),
        ] {
            assert_eq!(redacted(url), shown);
        }
    }
}
