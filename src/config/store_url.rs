//! The URL of the store, parsed into kind, hosts and login.
//!
//! The query of the URL is parsed by `url_options.rs`, because it is the same for every kind of store. What it
//! says of the database and the login ends up in [`StoreUrl`]; what it says of TLS becomes settings
//! (`derived_settings.rs`).
//!
//! The parsed values keep passwords; `Debug` and `Display` hide them. Nothing here connects or resolves.

use std::{fmt, str::FromStr};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::{Host, Url};

use super::{Secret, StoreLogin, address::redacted, url_options::UrlOptions};

const EXPECTED: &str = "must be redis://[user:password@]host[:port][/db] (rediss:// over TLS), \
                     redis-sentinel://[user:password@]host[:port],host[:port]/master[/db], \
                     redis-cluster://[user:password@]host[:port],host[:port], \
                     unix:///path/to/socket or memory://";

/// Default port of Redis, nodes of a cluster included.
const REDIS_PORT: u16 = 6379;
/// Default port of sentinels.
const SENTINEL_PORT: u16 = 26379;
/// More hosts than anyone needs to list; each of them is asked.
const MAX_HOSTS: usize = 16;

/// Kind and address of the store.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// The URL of a Redis server; may hold a password, which `Debug` and `Display` hide.
    Redis(String),
    /// A Redis server that sentinels locate.
    Sentinel(Box<Sentinels>),
    /// Nodes of a Redis Cluster.
    Cluster(Box<ClusterSeeds>),
    /// The store in this process.
    Memory,
}

/// Sentinels, and the master to ask them for.
#[derive(Clone, PartialEq, Eq)]
pub struct Sentinels {
    /// Host and port of the sentinels to ask first.
    pub hosts: Vec<(String, u16)>,
    /// Name under which they watch the master.
    pub master: String,
    /// Whether the master uses TLS.
    pub is_tls: bool,
    /// User and password at the master.
    pub login: StoreLogin,
    /// Database of the master.
    pub database: u32,
}

/// Some nodes of a Redis Cluster; one that answers is enough to find the others.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSeeds {
    /// Host and port of each node.
    pub hosts: Vec<(String, u16)>,
    /// Whether the nodes use TLS.
    pub is_tls: bool,
    /// User and password at the nodes.
    pub login: StoreLogin,
}

impl StoreUrl {
    /// Whether Redis uses TLS according to the scheme.
    pub fn is_tls(&self) -> bool {
        match self {
            Self::Redis(url) => url.starts_with("rediss:") || url.starts_with("valkeys:"),
            Self::Sentinel(sentinels) => sentinels.is_tls,
            Self::Cluster(seeds) => seeds.is_tls,
            Self::Memory => false,
        }
    }

    /// Address and database of the store, without user and password.
    pub fn identity(&self) -> String {
        let text = match self {
            Self::Redis(text) => text,
            Self::Sentinel(sentinels) => {
                let login = StoreLogin::default();
                return Sentinels { login, ..(**sentinels).clone() }.to_string();
            }
            Self::Cluster(seeds) => {
                let login = StoreLogin::default();
                return ClusterSeeds { login, ..(**seeds).clone() }.to_string();
            }
            Self::Memory => return self.to_string(),
        };
        let Ok(url) = Url::parse(text) else { return self.to_string() };
        if let Some(host) = url.host_str().filter(|host| !host.is_empty()) {
            let database = Some(url.path().trim_matches('/')).filter(|text| !text.is_empty());
            let port = url.port().unwrap_or(REDIS_PORT);
            format!("redis://{host}:{port}/{}", database.unwrap_or("0"))
        } else {
            let database = url.query_pairs().find(|(key, _)| key == "db");
            let database = database.map_or_else(|| "0".to_owned(), |(_, db)| db.into_owned());
            format!("unix://{}?db={database}", url.path())
        }
    }
}

/// Parses a URL. The Redis client accepts every URL that comes out; a test checks that.
impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map(|(url, _)| url)
    }
}

const ENCODE: &str = "percent-encode special characters of the password";
const NOT_A_URL: &str = "this is not a URL; percent-encode special characters of the password";

/// Parses a URL. What its options say of the database and of the login is in the URL that is returned,
/// which has no other option.
pub(super) fn parse(text: &str) -> Result<(StoreUrl, UrlOptions), String> {
    let why = |why: &str| format!("{EXPECTED}; {why}");
    let (scheme, rest) =
        text.trim().split_once("://").ok_or_else(|| why("the scheme is missing"))?;
    let scheme = &*scheme.to_ascii_lowercase();
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    if scheme == "memory" {
        let is_alone = rest.is_empty().then(|| (StoreUrl::Memory, UrlOptions::default()));
        return is_alone.ok_or_else(|| why("nothing may follow memory://"));
    }
    // The password has a `?`: `user:12?more@host` would give the host `user`, and `user:a@b?more@host` the
    // host `b`.
    let is_cut = query.contains('@') && (place.contains('@') || !place.contains('/'));
    if is_cut || query.contains('#') {
        return Err(why(NOT_A_URL));
    }
    let options = UrlOptions::parse(query).map_err(why)?;
    let url = match scheme {
        "redis" | "valkey" | "rediss" | "valkeys" => tcp(scheme, place, &options),
        "unix" | "redis+unix" | "valkey+unix" => unix(scheme, place, &options),
        "redis+socket" | "redis-socket" | "socket" => unix("unix", place, &options),
        "redis-sentinel" | "rediss-sentinel" => sentinels(scheme, place, &options),
        "redis-cluster" | "rediss-cluster" => seeds(scheme, place, &options),
        "sentinel" => Err("Celery's sentinel:// does not name the master; use redis-sentinel://"),
        _ => Err("no other scheme is supported"),
    };
    Ok((url.map_err(why)?, options))
}

/// `[user:password@][host][:port][/db]`. A missing host is `localhost`, as in redis-py and ioredis.
fn tcp(scheme: &str, place: &str, options: &UrlOptions) -> Result<StoreUrl, &'static str> {
    let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    let database = path.trim_matches('/');
    if place.contains('#') {
        return Err(
            "nothing may follow the database; percent-encode special characters of the password",
        );
    }
    let (user, host) = split_user(authority);
    let user = user.map_or_else(|| userinfo(&options.login), |user| format!("{user}@"));
    let local = if host.is_empty() || host.starts_with(':') { "localhost" } else { "" };
    let path = options.database.map_or_else(|| path.to_owned(), |number| format!("/{number}"));
    let text = format!("{scheme}://{user}{local}{host}{path}");
    let url = Url::parse(&text).map_err(|_| NOT_A_URL)?;
    if is_wildcard(&url) {
        return Err("0.0.0.0 and [::] are addresses for listening, not for connecting");
    }
    if !database.is_empty() && database.parse::<u32>().is_err() {
        return Err(
            "the database must be a number; percent-encode special characters of the password",
        );
    }
    Ok(StoreUrl::Redis(text))
}

/// `[user:password@]/path/to/socket`.
fn unix(scheme: &str, place: &str, options: &UrlOptions) -> Result<StoreUrl, &'static str> {
    let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    let (user, host) = split_user(authority);
    if !host.is_empty() {
        return Err("write three slashes before the path of a socket: unix:///path");
    }
    if path.len() < 2 {
        return Err("the path is missing");
    }
    if path.contains('#') {
        return Err("nothing may follow the query");
    }
    let StoreLogin { username, password, .. } = login_of(user, options)?;
    let database = options.database.map(|number| number.to_string());
    let pairs = [
        ("db", database.as_deref()),
        ("user", username.as_deref()),
        ("pass", password.as_ref().map(Secret::expose)),
    ];
    let pair = |(name, value): (&str, Option<&str>)| Some(format!("{name}={}", encoded(value?)));
    let pairs: Vec<_> = pairs.into_iter().filter_map(pair).collect();
    let mark = if pairs.is_empty() { "" } else { "?" };
    let text = format!("{scheme}://{path}{mark}{}", pairs.join("&"));
    Url::parse(&text).map_err(|_| NOT_A_URL)?;
    Ok(StoreUrl::Redis(text))
}

/// User and password as a URL begins with them.
fn userinfo(login: &StoreLogin) -> String {
    let user = login.username.as_deref().map(encoded).unwrap_or_default();
    match &login.password {
        Some(password) => format!("{user}:{}@", encoded(password.expose())),
        None if user.is_empty() => String::new(),
        None => format!("{user}@"),
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// `[user:password@]host[:port],host[:port]/master[/db]`; a URL parser does not accept several ports.
fn sentinels(scheme: &str, place: &str, options: &UrlOptions) -> Result<StoreUrl, &'static str> {
    let (authority, path) = place.split_once('/').ok_or("the name of the master is missing")?;
    let (master, database) = path.split_once('/').unwrap_or((path, ""));
    if place.contains('#') || master.contains('@') || database.contains('@') {
        return Err(ENCODE);
    }
    if master.is_empty() {
        return Err("the name of the master is missing");
    }
    let database = match database.trim_end_matches('/') {
        "" => 0,
        number => number.parse().map_err(|_| "the database must be a number")?,
    };
    let database = options.database.unwrap_or(database);
    let (user, hosts) = split_user(authority);
    let hosts = hosts_of(hosts, SENTINEL_PORT, "at most 16 sentinels: they report the others")?;
    let is_tls = scheme.starts_with("rediss");
    let login = login_of(user, options)?;
    let sentinels = Sentinels { hosts, master: master.to_owned(), is_tls, login, database };
    Ok(StoreUrl::Sentinel(Box::new(sentinels)))
}

/// `[user:password@]host[:port],host[:port]`.
fn seeds(scheme: &str, place: &str, options: &UrlOptions) -> Result<StoreUrl, &'static str> {
    let (user, hosts) = split_user(place);
    let (hosts, database) = hosts.split_once('/').unwrap_or((hosts, ""));
    if !matches!(database, "" | "0") || options.database.is_some_and(|number| number > 0) {
        return Err("a cluster only has database 0");
    }
    let hosts = hosts_of(hosts, REDIS_PORT, "at most 16 nodes: they report the others")?;
    let login = login_of(user, options)?;
    let seeds = ClusterSeeds { hosts, is_tls: scheme.starts_with("rediss"), login };
    Ok(StoreUrl::Cluster(Box::new(seeds)))
}

/// The login before the hosts, or else that of the options.
fn login_of(user: Option<&str>, options: &UrlOptions) -> Result<StoreLogin, &'static str> {
    user.map_or_else(|| Ok(options.login.clone()), login)
}

fn split_user(authority: &str) -> (Option<&str>, &str) {
    authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts))
}

fn hosts_of(
    text: &str,
    port: u16,
    too_many: &'static str,
) -> Result<Vec<(String, u16)>, &'static str> {
    let hosts: Vec<_> = text.split(',').map(|text| host(text, port)).collect::<Result<_, _>>()?;
    if hosts.len() > MAX_HOSTS { Err(too_many) } else { Ok(hosts) }
}

/// One host, read by a URL parser.
fn host(text: &str, port: u16) -> Result<(String, u16), &'static str> {
    const INVALID: &str = "write each as host or host:port, with an IPv6 address in brackets";
    if text.is_empty() || text.contains(['/', '?', '#', '@']) {
        return Err(INVALID);
    }
    let url = Url::parse(&format!("redis://{text}")).map_err(|_| INVALID)?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or(INVALID)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), url.port().unwrap_or(port)))
}

fn login(text: &str) -> Result<StoreLogin, &'static str> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from);
    let decoded = |text: &str| decoded(text).map_err(|_| "user and password must be UTF-8");
    let (user, password) = text.split_once(':').ok_or("the user needs a password")?;
    let username = if user.is_empty() { None } else { Some(decoded(user)?) };
    let password = Some(Secret::new(decoded(password)?));
    Ok(StoreLogin { username, password, password_file: None })
}

fn is_wildcard(url: &Url) -> bool {
    // In schemes that the URL standard does not know, an IPv4 address remains a name.
    match url.host() {
        Some(Host::Domain(name)) => name == "0.0.0.0",
        Some(Host::Ipv4(ip)) => ip.is_unspecified(),
        Some(Host::Ipv6(ip)) => ip.is_unspecified(),
        None => false,
    }
}

/// The URL without the password, for logs.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(url) => f.write_str(&redacted(url)),
            Self::Sentinel(sentinels) => fmt::Display::fmt(sentinels, f),
            Self::Cluster(seeds) => fmt::Display::fmt(seeds, f),
            Self::Memory => f.write_str("memory://"),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Without the password.
impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_tls { "rediss-sentinel://" } else { "redis-sentinel://" })?;
        write_hosts(f, &self.login, &self.hosts)?;
        write!(f, "/{}", self.master)?;
        if self.database > 0 { write!(f, "/{}", self.database) } else { Ok(()) }
    }
}

/// Without the password.
impl fmt::Display for ClusterSeeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_tls { "rediss-cluster://" } else { "redis-cluster://" })?;
        write_hosts(f, &self.login, &self.hosts)
    }
}

/// Writes the part after the scheme, without the password.
fn write_hosts(
    f: &mut fmt::Formatter<'_>,
    login: &StoreLogin,
    hosts: &[(String, u16)],
) -> fmt::Result {
    if login.password.is_some() {
        let user = login.username.as_deref().map(encoded).unwrap_or_default();
        write!(f, "{user}:***@")?;
    }
    for (place, (host, port)) in hosts.iter().enumerate() {
        let comma = if place > 0 { "," } else { "" };
        if host.contains(':') {
            write!(f, "{comma}[{host}]:{port}")?;
        } else {
            write!(f, "{comma}{host}:{port}")?;
        }
    }
    Ok(())
}
