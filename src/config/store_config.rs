//! The store of entries: its settings, and its URL parsed into kind, hosts and login.
//!
//! The parsed values keep passwords; `Debug` and `Display` hide them. Nothing here connects or resolves.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use super::{ClientTls, Secret, address::redacted};

/// The store of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Kind and address of the store.
    pub url: StoreUrl,
    /// User and password, if the URL has none.
    pub login: StoreLogin,
    /// TLS files, for URLs with a scheme that means TLS.
    pub tls: ClientTls,
    /// Settings of the sentinels, for a URL that names some.
    pub sentinel: SentinelConfig,
    /// Text before the job id in a key.
    pub prefix: String,
    /// Time that the store may cost a read, over all operations; a write has as much for its begin and
    /// for each end.
    pub budget: Duration,
    /// Lifetime of a lease, the right to fill.
    pub lease: Duration,
    /// Time after a write of unknown outcome during which fills are refused.
    pub linger: Duration,
    /// Time for which no hit is served after a restart or failover of the store.
    pub reconnect_grace: Duration,
    /// Bodies of more bytes are compressed; none = no body is.
    pub compress_above: Option<usize>,
    /// Bytes of bodies that the embedded store keeps.
    pub memory_max: usize,
}

/// Connections to sentinels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentinelConfig {
    /// User and password at the sentinels. Those of Redis are never sent to them.
    pub login: StoreLogin,
    /// Whether they use TLS; none = as Redis does.
    pub tls: Option<bool>,
}

/// Invalidations that the store has not confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingConfig {
    /// Largest number of ids. Beyond it, reads in the slot of each further id bypass the cache until
    /// a purge of all is confirmed.
    pub limit: usize,
    /// File in which they survive a restart; synced.
    pub journal: Option<PathBuf>,
}

const STORE: &str = "must be redis://[user:password@]host[:port][/db] (rediss:// over TLS), \
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

/// User and password of Redis or of sentinels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreLogin {
    /// User name; none = the default user of the server.
    pub username: Option<String>,
    /// Password; none = no password is sent.
    pub password: Option<Secret>,
    /// File with the password instead; it is read for each connection.
    pub password_file: Option<PathBuf>,
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
        let shown = self.to_string().replace("***@", "");
        let Self::Redis(text) = self else { return shown };
        let Ok(url) = Url::parse(text) else { return shown };
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

impl StoreLogin {
    /// Whether any part is set.
    pub fn is_some(&self) -> bool {
        *self != Self::default()
    }
}

/// Parses a URL. The Redis client accepts every URL that is accepted here; a test checks that.
impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let why = |why: &str| Err(format!("{STORE}; {why}"));
        let Some((scheme, rest)) = text.split_once("://") else {
            return why("the scheme is missing");
        };
        match scheme {
            "memory" if rest.is_empty() => return Ok(StoreUrl::Memory),
            "memory" => return why("nothing may follow memory://"),
            "redis" | "valkey" | "rediss" | "valkeys" | "unix" | "redis+unix" | "valkey+unix" => {}
            "redis-sentinel" | "rediss-sentinel" => return sentinels(scheme, rest).or_else(why),
            "redis-cluster" | "rediss-cluster" => return seeds(scheme, rest).or_else(why),
            _ => return why("no other scheme is supported"),
        }
        let Ok(url) = Url::parse(text) else {
            return why("this is not a URL; percent-encode special characters of the password");
        };
        let fault = if scheme.ends_with("unix") { unix_fault(&url) } else { tcp_fault(&url) };
        fault.map_or_else(|| Ok(StoreUrl::Redis(text.to_owned())), why)
    }
}

/// `[user:password@]host[:port],host[:port]/master[/db]`; a URL parser does not accept several ports.
fn sentinels(scheme: &str, rest: &str) -> Result<StoreUrl, &'static str> {
    const ENCODE: &str = "percent-encode special characters of the password";
    let (authority, path) = rest.split_once('/').ok_or("the name of the master is missing")?;
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
    let (user, hosts) = split_user(authority);
    let hosts = hosts_of(hosts, SENTINEL_PORT, "at most 16 sentinels: they report the others")?;
    let is_tls = scheme.starts_with("rediss");
    let sentinels =
        Sentinels { hosts, master: master.to_owned(), is_tls, login: login(user)?, database };
    Ok(StoreUrl::Sentinel(Box::new(sentinels)))
}

/// `[user:password@]host[:port],host[:port]`.
fn seeds(scheme: &str, rest: &str) -> Result<StoreUrl, &'static str> {
    let (user, hosts) = split_user(rest);
    let (hosts, database) = hosts.split_once('/').unwrap_or((hosts, ""));
    if !matches!(database, "" | "0") {
        return Err("a cluster only has database 0");
    }
    let hosts = hosts_of(hosts, REDIS_PORT, "at most 16 nodes: they report the others")?;
    let seeds = ClusterSeeds { hosts, is_tls: scheme.starts_with("rediss"), login: login(user)? };
    Ok(StoreUrl::Cluster(Box::new(seeds)))
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

fn login(text: Option<&str>) -> Result<StoreLogin, &'static str> {
    let Some(text) = text else { return Ok(StoreLogin::default()) };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from);
    let decoded = |text: &str| decoded(text).map_err(|_| "user and password must be UTF-8");
    let (user, password) = text.split_once(':').ok_or("the user needs a password")?;
    let username = if user.is_empty() { None } else { Some(decoded(user)?) };
    let password = Some(Secret::new(decoded(password)?));
    Ok(StoreLogin { username, password, password_file: None })
}

fn tcp_fault(url: &Url) -> Option<&'static str> {
    let database = url.path().trim_matches('/');
    if url.host_str().is_none_or(str::is_empty) {
        Some("the host is missing")
    } else if is_wildcard(url) {
        Some("0.0.0.0 and [::] are addresses for listening, not for connecting")
    } else if !database.is_empty() && database.parse::<u32>().is_err() {
        Some("the database must be a number; percent-encode special characters of the password")
    } else if url.fragment().is_some() || url.query().is_some() {
        Some("nothing may follow the database; percent-encode special characters of the password")
    } else {
        None
    }
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

fn unix_fault(url: &Url) -> Option<&'static str> {
    let known = |key: &str| matches!(key, "db" | "user" | "pass");
    if url.host().is_some() {
        Some("write three slashes before the path of a socket: unix:///path")
    } else if url.path().len() < 2 {
        Some("the path is missing")
    } else if url.query_pairs().any(|(key, _)| !known(&key)) {
        Some("the query may have db, user and pass")
    } else if url.query_pairs().any(|(key, value)| key == "db" && value.parse::<u32>().is_err()) {
        Some("db must be a number")
    } else if url.fragment().is_some() {
        Some("nothing may follow the query")
    } else {
        None
    }
}

/// The URL without user, password and query, for logs.
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

/// Without user and password.
impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_tls { "rediss-sentinel://" } else { "redis-sentinel://" })?;
        write_hosts(f, &self.login, &self.hosts)?;
        write!(f, "/{}", self.master)?;
        if self.database > 0 { write!(f, "/{}", self.database) } else { Ok(()) }
    }
}

/// Without user and password.
impl fmt::Display for ClusterSeeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_tls { "rediss-cluster://" } else { "redis-cluster://" })?;
        write_hosts(f, &self.login, &self.hosts)
    }
}

/// Writes the part after the scheme, without user and password.
fn write_hosts(
    f: &mut fmt::Formatter<'_>,
    login: &StoreLogin,
    hosts: &[(String, u16)],
) -> fmt::Result {
    if login.password.is_some() {
        f.write_str("***@")?;
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
