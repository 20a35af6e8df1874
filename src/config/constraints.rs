//! Checks that concern more than one setting.

use std::net::SocketAddr;

use super::{
    ClientTls, Config, Endpoint, KeyPair, ListenAddress, SentinelConfig, StoreLogin, StoreUrl,
    TlsVerify, setting, setting_sources::LayeredSettings, settings::IDENTITY_HEADERS,
};

/// Runs every check of settings that are all valid by themselves; `failed` has the others.
pub(super) fn check(
    config: &Config,
    settings: &LayeredSettings,
    failed: &[&str],
    problems: &mut Vec<String>,
) {
    let said = |key| settings.describe(key);
    for (keys, check) in CHECKS {
        if !keys.iter().any(|key| failed.contains(key)) {
            problems.extend(check(config, &said));
        }
    }
}

/// A warning about settings that fit together and are dangerous.
pub(super) fn warning(config: &Config) -> Option<String> {
    let uses_tls = config.store.url.is_tls() || config.store.sentinel.tls == Some(true);
    let is_open = uses_tls && config.store.tls.verify == TlsVerify::None;
    is_open.then(|| {
        "store.tls.verify is \"none\": any server that answers in place of Redis is trusted; put the \
         certificate of Redis into store.tls.ca instead, which needs neither a name nor an authority"
            .to_owned()
    })
}

/// Returns a problem. `Said` gives `key = value (from origin)` for a key.
type Check = fn(&Config, Said<'_>) -> Option<String>;
type Said<'s> = &'s dyn Fn(&'static str) -> String;

const CHECKS: [(&[&str], Check); 14] = [
    (&["listen", "admin"], listeners_differ),
    (&["admin", "webhook_secret"], admin_is_guarded),
    (&["listen", "admin", "upstream.url"], upstream_is_another),
    (&["max_body", "store.url", "store.memory_max"], a_body_fits),
    (&["store.prefix"], prefixes_differ),
    (&["query.allow", "query.ignore"], parameters_differ),
    (&["credentials.headers", "credentials.ignore"], ignored_headers_are_no_credentials),
    (&["tls.cert", "tls.key"], |c, said| key_has_a_certificate(&c.tls, "tls", said)),
    (&["upstream.tls.cert", "upstream.tls.key"], |c, said| {
        key_has_a_certificate(&c.upstream.tls.identity, "upstream.tls", said)
    }),
    (&["upstream.url", "upstream.tls.ca", "upstream.tls.cert"], tls_is_spoken_to_the_upstream),
    (&["store.tls.cert", "store.tls.key"], |c, said| {
        key_has_a_certificate(&c.store.tls.identity, "store.tls", said)
    }),
    (&["store.url", "store.sentinel.tls"], tls_is_spoken_to_the_store),
    (&["store.url", "store.username"], the_password_of_the_store_is_given_once),
    (&["store.url", "store.sentinel.username"], sentinels_are_those_of_the_url),
];

fn listeners_differ(config: &Config, said: Said<'_>) -> Option<String> {
    overlap(&config.listen, &config.admin).then(|| {
        let (listen, admin) = (said("listen"), said("admin"));
        format!("{admin} is the same address as {listen}: give each its own port")
    })
}

/// Anyone who reaches the admin address can purge, and read which jobs exist.
fn admin_is_guarded(config: &Config, said: Said<'_>) -> Option<String> {
    // The permissions of a unix socket limit who may connect.
    let is_remote = config.admin.tcp().is_some_and(|admin| !is_loopback(admin));
    (config.webhook.secrets.is_empty() && is_remote).then(|| {
        format!(
            "{} can be reached from other machines and needs a secret: set JOBCACHE_WEBHOOK_SECRET \
             or JOBCACHE_WEBHOOK_SECRET_FILE, or listen on 127.0.0.1",
            said("admin")
        )
    })
}

/// Redis refuses to report the changes under a prefix and under a part of it.
fn prefixes_differ(config: &Config, said: Said<'_>) -> Option<String> {
    let prefixes = config.prefixes();
    let pairs = prefixes.iter().flat_map(|one| prefixes.iter().map(move |other| (one, other)));
    let (shorter, longer) = pairs
        .filter(|(one, other)| one != other)
        .find(|(one, other)| other.starts_with(one.as_str()))?;
    Some(format!(
        "the prefix {longer:?} begins with {shorter:?}, which is a prefix too (of [[route]], or {}): \
         give each a beginning of its own",
        said("store.prefix")
    ))
}

fn parameters_differ(config: &Config, said: Said<'_>) -> Option<String> {
    let both = config.api.query.allow.iter().find(|name| config.api.query.ignore.contains(name))?;
    Some(in_both(both, &said("query.allow"), &said("query.ignore")))
}

fn in_both(name: &str, one: &str, other: &str) -> String {
    format!("{name:?} is in both {one} and {other}: keep it in one of them")
}

/// Callers would get each other's jobs. Some upstreams read `x_user_id` as `x-user-id`, so spellings
/// count as equal.
fn ignored_headers_are_no_credentials(config: &Config, said: Said<'_>) -> Option<String> {
    let plain = |name: &str| name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let ignored = &config.cache.credentials.ignore;
    let ignore = said("credentials.ignore");
    let is_default = |name: &&String| IDENTITY_HEADERS.split(',').any(|known| known == plain(name));
    if let Some(name) = ignored.iter().find(is_default) {
        return Some(format!(
            "{name:?} in {ignore} is a credential, and callers would get each other's jobs: remove it \
             there"
        ));
    }
    let is_named = |name: &&String| {
        config.cache.credentials.headers.iter().any(|header| plain(header) == plain(name))
    };
    let both = ignored.iter().find(is_named)?;
    Some(in_both(both, &said("credentials.headers"), &ignore))
}

/// A request would go in circles until the connections run out.
fn upstream_is_another(config: &Config, said: Said<'_>) -> Option<String> {
    let upstream = match config.upstream.endpoint() {
        Endpoint::Tcp(authority) | Endpoint::Tls { authority, .. } => authority.parse().ok()?,
        Endpoint::Unix(path) => ListenAddress::Unix(path),
    };
    let own = [&config.listen, &config.admin].into_iter().any(|own| overlap(own, &upstream));
    own.then(|| {
        let upstream = said("upstream.url");
        format!("{upstream} is an address of jobcache itself: set it to the address of the API")
    })
}

fn a_body_fits(config: &Config, said: Said<'_>) -> Option<String> {
    let is_small = config.cache.limits.max_body > config.store.memory_max;
    (config.store.url == StoreUrl::Memory && is_small).then(|| {
        format!(
            "{} is larger than {}: such a body never fits; lower the one or raise the other",
            said("max_body"),
            said("store.memory_max")
        )
    })
}

fn key_has_a_certificate(pair: &KeyPair, table: &str, said: Said<'_>) -> Option<String> {
    // The keys of the table are constants, and this is one of them.
    let key = setting(&format!("{table}.key"))?.key;
    (pair.key.is_some() && pair.cert.is_none())
        .then(|| format!("{} needs {table}.cert too", said(key)))
}

/// TLS settings must not be ignored silently.
fn tls_is_spoken_to_the_upstream(config: &Config, said: Said<'_>) -> Option<String> {
    let tls = &config.upstream.tls;
    let given = tls.ca.is_some() || tls.identity.cert.is_some() || tls.server_name.is_some();
    let spoken = matches!(config.upstream.endpoint(), Endpoint::Tls { .. });
    (given && !spoken).then(|| without_tls("upstream.tls", &said("upstream.url"), "https"))
}

/// TLS settings must not be ignored silently.
fn tls_is_spoken_to_the_store(config: &Config, said: Said<'_>) -> Option<String> {
    let spoken = config.store.url.is_tls() || config.store.sentinel.tls == Some(true);
    let given = config.store.tls != ClientTls::default();
    (given && !spoken).then(|| without_tls("store.tls", &said("store.url"), "rediss"))
}

fn without_tls(table: &str, url: &str, scheme: &str) -> String {
    format!(
        "{table} is set, but {url} does not use TLS: begin it with {scheme}://, or remove {table}"
    )
}

fn the_password_of_the_store_is_given_once(config: &Config, said: Said<'_>) -> Option<String> {
    let store = &config.store;
    let logins = [("store", &store.login), ("store.sentinel", &store.sentinel.login)];
    let is_twice = |login: &StoreLogin| login.password.is_some() && login.password_file.is_some();
    if let Some((table, _)) = logins.into_iter().find(|(_, login)| is_twice(login)) {
        return Some(format!(
            "{table}.password and {table}.password_file are both set: keep one of them"
        ));
    }
    let in_url = match &store.url {
        StoreUrl::Redis(url) => {
            url.contains('@') || url.contains("?pass=") || url.contains("&pass=")
        }
        StoreUrl::Sentinel(sentinels) => sentinels.login.is_some(),
        StoreUrl::Cluster(seeds) => seeds.login.is_some(),
        StoreUrl::Memory => false,
    };
    (in_url && store.login.is_some()).then(|| {
        let url = said("store.url");
        format!("{url} has a user or password, and store.username or store.password is set too: keep one")
    })
}

fn sentinels_are_those_of_the_url(config: &Config, said: Said<'_>) -> Option<String> {
    let named = matches!(config.store.url, StoreUrl::Sentinel(_));
    (config.store.sentinel != SentinelConfig::default() && !named).then(|| {
        format!(
            "store.sentinel is set, but {} names no sentinels: begin it with redis-sentinel://, or \
             remove store.sentinel",
            said("store.url")
        )
    })
}

/// Whether a connection to `b` on this machine would end at `a`.
fn overlap(a: &ListenAddress, b: &ListenAddress) -> bool {
    match (a, b) {
        (ListenAddress::Tcp(a), ListenAddress::Tcp(b)) => overlap_tcp(*a, *b),
        (ListenAddress::Unix(a), ListenAddress::Unix(b)) => a == b,
        _ => false,
    }
}

/// Port 0 is any free one.
fn overlap_tcp(a: SocketAddr, b: SocketAddr) -> bool {
    let wildcard = |address: SocketAddr| address.ip().is_unspecified();
    let local = |address: SocketAddr| is_loopback(address) || wildcard(address);
    a.port() == b.port()
        && a.port() != 0
        && (a.ip().to_canonical() == b.ip().to_canonical()
            || wildcard(a) && local(b)
            || wildcard(b) && local(a))
}

/// Whether only this machine can reach the address.
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
