//! Checks that concern more than one setting.

use std::net::SocketAddr;

use super::{
    ClientTls, Config, Endpoint, ListenAddress, SentinelConfig, StoreLogin, StoreUrl, parse,
    settings::IDENTITY_HEADERS, sources::LayeredSettings,
};

/// Runs every check of settings that are all valid by themselves; `failed` has the others.
pub(super) fn check(
    config: &Config,
    settings: &LayeredSettings,
    failed: &[&str],
    problems: &mut Vec<String>,
) {
    for (keys, check) in CHECKS {
        if !keys.iter().any(|key| failed.contains(key)) {
            problems.extend(check(config, settings));
        }
    }
}

type Check = fn(&Config, &LayeredSettings) -> Option<String>;

const CHECKS: [(&[&str], Check); 13] = [
    (&["listen", "admin"], listeners_differ),
    (&["admin", "webhook_secret"], admin_is_guarded),
    (&["listen", "admin", "upstream.url"], upstream_is_another),
    (&["max_body", "store.url", "store.memory_max"], a_body_fits),
    (&["query.allow", "query.ignore"], parameters_differ),
    (&["credentials.headers", "credentials.ignore"], ignored_headers_are_no_credentials),
    (&["tls.cert", "tls.key"], key_has_a_certificate),
    (&["upstream.tls.cert", "upstream.tls.key"], upstream_key_has_a_certificate),
    (&["upstream.url", "upstream.tls.ca", "upstream.tls.cert"], tls_is_spoken_to_the_upstream),
    (&["store.tls.cert", "store.tls.key"], store_key_has_a_certificate),
    (&["store.url", "store.sentinel.tls"], tls_is_spoken_to_the_store),
    (&["store.url", "store.username"], the_password_of_the_store_is_given_once),
    (&["store.url", "store.sentinel.username"], sentinels_are_those_of_the_url),
];

fn listeners_differ(config: &Config, settings: &LayeredSettings) -> Option<String> {
    overlap(&config.listen, &config.admin).then(|| {
        let listen = settings.describe("listen");
        let admin = settings.describe("admin");
        format!("{admin} is the same address as {listen}: give each its own port")
    })
}

/// Anyone who reaches the admin address can purge, and read which jobs exist.
fn admin_is_guarded(config: &Config, settings: &LayeredSettings) -> Option<String> {
    // The permissions of a unix socket limit who may connect.
    let is_remote = config.admin.tcp().is_some_and(|admin| !parse::is_loopback(admin.ip()));
    let open = config.webhook_secret.is_empty() && is_remote;
    open.then(|| {
        let admin = settings.describe("admin");
        format!(
            "{admin} can be reached from other machines and needs a secret: set \
             JOBCACHE_WEBHOOK_SECRET or JOBCACHE_WEBHOOK_SECRET_FILE, or listen on 127.0.0.1"
        )
    })
}

fn parameters_differ(config: &Config, settings: &LayeredSettings) -> Option<String> {
    let both = config.query.allow.iter().find(|name| config.query.ignore.contains(name))?;
    let allow = settings.describe("query.allow");
    let ignore = settings.describe("query.ignore");
    Some(format!("{both:?} is in both {allow} and {ignore}: keep it in one of them"))
}

/// Callers would get each other's jobs. Some upstreams read `x_user_id` as `x-user-id`, so spellings count
/// as equal.
fn ignored_headers_are_no_credentials(
    config: &Config,
    settings: &LayeredSettings,
) -> Option<String> {
    let plain = |name: &str| name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let ignored = &config.credentials.ignore;
    let ignore = settings.describe("credentials.ignore");
    let is_default = |name: &&String| IDENTITY_HEADERS.split(',').any(|known| known == plain(name));
    if let Some(name) = ignored.iter().find(is_default) {
        return Some(format!(
            "{name:?} in {ignore} is a credential, and callers would get each other's jobs: remove it \
             there"
        ));
    }
    let is_named = |name: &&String| {
        config.credentials.headers.iter().any(|header| plain(header) == plain(name))
    };
    let both = ignored.iter().find(is_named)?;
    let headers = settings.describe("credentials.headers");
    Some(format!("{both:?} is in both {headers} and {ignore}: keep it in one of them"))
}

/// A request would go in circles until the connections run out.
fn upstream_is_another(config: &Config, settings: &LayeredSettings) -> Option<String> {
    let upstream = match config.upstream.endpoint() {
        Endpoint::Tcp(authority) | Endpoint::Tls { authority, .. } => authority.parse().ok()?,
        Endpoint::Unix(path) => ListenAddress::Unix(path),
    };
    let own = [&config.listen, &config.admin].into_iter().any(|own| overlap(own, &upstream));
    own.then(|| {
        let upstream = settings.describe("upstream.url");
        format!("{upstream} is an address of jobcache itself: set it to the address of the API")
    })
}

fn a_body_fits(config: &Config, settings: &LayeredSettings) -> Option<String> {
    let max_body = settings.describe("max_body");
    let memory_max = settings.describe("store.memory_max");
    (config.store.url == StoreUrl::Memory && config.max_body > config.store.memory_max)
        .then(|| format!("{max_body} is larger than {memory_max}: such a body never fits; lower the one or raise the other"))
}

fn key_has_a_certificate(config: &Config, settings: &LayeredSettings) -> Option<String> {
    let alone = config.tls.key.is_some() && config.tls.cert.is_none();
    alone.then(|| format!("{} needs tls.cert too", settings.describe("tls.key")))
}

fn upstream_key_has_a_certificate(config: &Config, settings: &LayeredSettings) -> Option<String> {
    let pair = &config.upstream.tls.identity;
    (pair.key.is_some() && pair.cert.is_none()).then(|| {
        let key = settings.describe("upstream.tls.key");
        format!("{key} needs upstream.tls.cert too")
    })
}

/// TLS settings must not be ignored silently.
fn tls_is_spoken_to_the_upstream(config: &Config, settings: &LayeredSettings) -> Option<String> {
    let tls = &config.upstream.tls;
    let given = tls.ca.is_some() || tls.identity.cert.is_some() || tls.server_name.is_some();
    let spoken = matches!(config.upstream.endpoint(), Endpoint::Tls { .. });
    (given && !spoken).then(|| {
        let url = settings.describe("upstream.url");
        format!("upstream.tls is set, but {url} does not use TLS: begin it with https://, or remove upstream.tls")
    })
}

fn store_key_has_a_certificate(config: &Config, settings: &LayeredSettings) -> Option<String> {
    let pair = &config.store.tls.identity;
    (pair.key.is_some() && pair.cert.is_none())
        .then(|| format!("{} needs store.tls.cert too", settings.describe("store.tls.key")))
}

/// TLS settings must not be ignored silently.
fn tls_is_spoken_to_the_store(config: &Config, settings: &LayeredSettings) -> Option<String> {
    let spoken = config.store.url.is_tls() || config.store.sentinel.tls == Some(true);
    (config.store.tls != ClientTls::default() && !spoken).then(|| {
        let url = settings.describe("store.url");
        format!("store.tls is set, but {url} does not use TLS: begin it with rediss://, or remove store.tls")
    })
}

fn the_password_of_the_store_is_given_once(
    config: &Config,
    settings: &LayeredSettings,
) -> Option<String> {
    let store = &config.store;
    let url = settings.describe("store.url");
    let twice = |login: &StoreLogin| login.password.is_some() && login.password_file.is_some();
    if twice(&store.login) {
        return Some(
            "store.password and store.password_file are both set: keep one of them".to_owned(),
        );
    }
    if twice(&store.sentinel.login) {
        let key = "store.sentinel.password";
        return Some(format!("{key} and {key}_file are both set: keep one of them"));
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
        format!("{url} has a user or password, and store.username or store.password is set too: keep one")
    })
}

fn sentinels_are_those_of_the_url(config: &Config, settings: &LayeredSettings) -> Option<String> {
    let named = matches!(config.store.url, StoreUrl::Sentinel(_));
    (config.store.sentinel != SentinelConfig::default() && !named).then(|| {
        let url = settings.describe("store.url");
        format!("store.sentinel is set, but {url} names no sentinels: begin it with redis-sentinel://, or remove \
             store.sentinel")
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
    let local = |address: SocketAddr| parse::is_loopback(address.ip()) || wildcard(address);
    a.port() == b.port()
        && a.port() != 0
        && (a.ip().to_canonical() == b.ip().to_canonical()
            || wildcard(a) && local(b)
            || wildcard(b) && local(a))
}
