//! URLs of the upstream and the store, and how they are shown.

use std::path::PathBuf;

use hyper::Uri;
use percent_encoding::percent_decode_str;
use url::{Host, Url};

use super::{Login, Secret, Seeds, Sentinels, StoreUrl, address::socket_path};

const UPSTREAM: &str = "must be http://host[:port], https://host[:port] or unix:/path/to/socket";
const STORE: &str = "must be redis://[user:password@]host[:port][/db] (rediss:// over TLS), \
                     redis-sentinel://[user:password@]host[:port],host[:port]/master[/db], \
                     redis-cluster://[user:password@]host[:port],host[:port], \
                     unix:///path/to/socket or memory://";

/// Where sentinels listen unless told otherwise.
const SENTINEL_PORT: u16 = 26379;
/// Where nodes of a cluster do.
const CLUSTER_PORT: u16 = 6379;
/// More seeds than anybody has; each is asked.
const MAX_HOSTS: usize = 16;

/// Origin of the upstream, without a trailing slash, or its socket as `unix:/path`.
pub(super) fn upstream(text: &str) -> Result<String, String> {
    let why = |why: &str| Err(format!("{UPSTREAM}; {why}"));
    if let Some(path) = text.strip_prefix("unix:") {
        let path = socket_path(path).or_else(|fault| why(&fault).map(PathBuf::from))?;
        return Ok(format!("unix:{}", path.display()));
    }
    // Before the parser: `localhost:8000` is a scheme to it.
    let scheme = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), _)) => scheme,
        Some(_) => return why("no other scheme is supported"),
        None => return why("the scheme is missing"),
    };
    let Ok(uri) = text.parse::<Uri>() else { return why("this is not a URL") };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return why("user and password do not belong here: clients send their own credentials");
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
        return why("a path does not belong here: requests keep their own");
    }
    // `Uri` takes ports that no socket has.
    if uri.host().is_none_or(str::is_empty) || Url::parse(text).is_err() {
        return why("host or port is not valid");
    }
    Ok(format!("{scheme}://{authority}"))
}

/// Which store. What is accepted here the Redis client accepts too: a test holds the two together.
pub(super) fn store(text: &str) -> Result<StoreUrl, String> {
    let why = |why: &str| Err(format!("{STORE}; {why}"));
    let Some((scheme, rest)) = text.split_once("://") else {
        return why("the scheme is missing");
    };
    match scheme {
        "memory" if rest.is_empty() => return Ok(StoreUrl::Memory),
        "memory" => return why("nothing follows memory://"),
        "redis" | "valkey" | "rediss" | "valkeys" | "unix" | "redis+unix" | "valkey+unix" => {}
        "redis-sentinel" | "rediss-sentinel" => {
            let is_tls = scheme == "rediss-sentinel";
            return sentinels(rest, is_tls)
                .map_or_else(why, |url| Ok(StoreUrl::Sentinel(Box::new(url))));
        }
        "redis-cluster" | "rediss-cluster" => {
            let is_tls = scheme == "rediss-cluster";
            return seeds(rest, is_tls)
                .map_or_else(why, |url| Ok(StoreUrl::Cluster(Box::new(url))));
        }
        _ => return why("no other scheme is supported"),
    }
    let Ok(url) = Url::parse(text) else {
        return why("this is not a URL; percent-encode special characters of the password");
    };
    let fault = if scheme.ends_with("unix") { unix_fault(&url) } else { tcp_fault(&url) };
    fault.map_or_else(|| Ok(StoreUrl::Redis(text.to_owned())), why)
}

/// `[user:password@]host[:port],host[:port]/master[/db]`, which no URL parser takes for its ports.
fn sentinels(rest: &str, is_tls: bool) -> Result<Sentinels, &'static str> {
    const ENCODE: &str = "percent-encode special characters of the password";
    let (authority, path) = rest.split_once('/').ok_or("the name of the master is missing")?;
    let (user, hosts) = authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));
    let (master, database) = path.split_once('/').unwrap_or((path, ""));
    if rest.contains(['?', '#']) || master.contains('@') || database.contains('@') {
        return Err(ENCODE);
    }
    if master.is_empty() {
        return Err("the name of the master is missing");
    }
    let database = match database.trim_end_matches('/') {
        "" => 0,
        number => number.parse().map_err(|_| "the database must be a number")?,
    };
    let hosts = hosts.split(',').map(|text| host(text, SENTINEL_PORT));
    let hosts = hosts.collect::<Result<Vec<_>, _>>()?;
    if hosts.len() > MAX_HOSTS {
        return Err("16 sentinels are enough: they tell of the others");
    }
    let login = user.map_or_else(|| Ok(Login::default()), login)?;
    Ok(Sentinels { hosts, master: master.to_owned(), is_tls, login, database })
}

/// `[user:password@]host[:port],host[:port]`.
fn seeds(rest: &str, is_tls: bool) -> Result<Seeds, &'static str> {
    let (user, hosts) = rest.rsplit_once('@').map_or((None, rest), |(u, h)| (Some(u), h));
    let (hosts, database) = hosts.split_once('/').unwrap_or((hosts, ""));
    if !matches!(database, "" | "0") {
        return Err("a cluster has database 0 and no other");
    }
    let hosts = hosts.split(',').map(|text| host(text, CLUSTER_PORT));
    let hosts = hosts.collect::<Result<Vec<_>, _>>()?;
    if hosts.len() > MAX_HOSTS {
        return Err("16 nodes are enough: they tell of the others");
    }
    let login = user.map_or_else(|| Ok(Login::default()), login)?;
    Ok(Seeds { hosts, is_tls, login })
}

/// One of the above, as a URL parser reads it.
fn host(text: &str, port: u16) -> Result<(String, u16), &'static str> {
    const INVALID: &str = "each is host or host:port, an IPv6 address in brackets";
    if text.is_empty() || text.contains(['/', '?', '#', '@']) {
        return Err(INVALID);
    }
    let url = Url::parse(&format!("redis://{text}")).map_err(|_| INVALID)?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or(INVALID)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), url.port().unwrap_or(port)))
}

fn login(text: &str) -> Result<Login, &'static str> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from);
    let decoded = |text: &str| decoded(text).map_err(|_| "user and password must be UTF-8");
    let (user, password) = text.split_once(':').ok_or("the user needs a password")?;
    let username = if user.is_empty() { None } else { Some(decoded(user)?) };
    Ok(Login { username, password: Some(Secret::new(decoded(password)?)), password_file: None })
}

fn tcp_fault(url: &Url) -> Option<&'static str> {
    let database = url.path().trim_matches('/');
    if url.host_str().is_none_or(str::is_empty) {
        Some("the host is missing")
    } else if is_wildcard(url) {
        Some("0.0.0.0 and [::] are addresses to listen on, not to connect to")
    } else if !database.is_empty() && database.parse::<u32>().is_err() {
        Some("the database must be a number; percent-encode special characters of the password")
    } else if url.fragment().is_some() || url.query().is_some() {
        Some("nothing follows the database; percent-encode special characters of the password")
    } else {
        None
    }
}

fn is_wildcard(url: &Url) -> bool {
    // Schemes unknown to the URL standard keep an IPv4 address as a name.
    match url.host() {
        Some(Host::Domain(name)) => name == "0.0.0.0",
        Some(Host::Ipv4(ip)) => ip.is_unspecified(),
        Some(Host::Ipv6(ip)) => ip.is_unspecified(),
        None => false,
    }
}

fn unix_fault(url: &Url) -> Option<&'static str> {
    let known = |key: &str| matches!(key, "db" | "user" | "pass");
    if url.host().is_some() {
        Some("a socket has three slashes: unix:///path")
    } else if url.path().len() < 2 {
        Some("the path is missing")
    } else if url.query_pairs().any(|(key, _)| !known(&key)) {
        Some("the query may have db, user and pass")
    } else if url.query_pairs().any(|(key, value)| key == "db" && value.parse::<u32>().is_err()) {
        Some("db must be a number")
    } else if url.fragment().is_some() {
        Some("nothing follows the query")
    } else {
        None
    }
}

/// The same for a URL that has no credentials: a bare `host:port`, whose scheme was forgotten, is shown.
///
/// Else nothing could be told of the commonest slip. Whatever else is unclear stays hidden.
pub(super) fn shown_origin(text: &str) -> String {
    let (authority, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    let is_place = authority
        .rsplit_once(':')
        .is_some_and(|(host, port)| is_name(host) && port.parse::<u16>().is_ok());
    let is_path = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/".contains(&b));
    if is_place && is_path { text.to_owned() } else { redacted(text) }
}

/// The URL without user, password, query and fragment; `***` where it is unclear what is what.
///
/// A password with an unescaped `/`, `?`, `#` or `@` shifts the borders that a parser sees, so a
/// stray `@` hides everything.
pub(super) fn redacted(text: &str) -> String {
    const HIDDEN: &str = "***";
    if socket_path(text.strip_prefix("unix:").unwrap_or_default()).is_ok()
        && !text.contains(['?', '#', '@'])
    {
        return text.to_owned();
    }
    if let Ok(url @ (StoreUrl::Sentinel(_) | StoreUrl::Cluster(_))) = store(text) {
        return url.to_string();
    }
    let Ok(url) = Url::parse(text) else { return HIDDEN.to_owned() };
    let Some((scheme, rest)) = text.split_once("://") else { return HIDDEN.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));
    if path.contains('@') || user.is_some_and(|user| user.contains('@')) || url.cannot_be_a_base() {
        return HIDDEN.to_owned();
    }
    let (path, query) = path.split_at(path.find(['?', '#']).unwrap_or(path.len()));
    let user = user.map_or("", |_| "***@");
    let query = if query.is_empty() { "" } else { "?***" };
    format!("{scheme}://{user}{host}{path}{query}")
}
