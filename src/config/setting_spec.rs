//! The table of knobs: names, default, limits and field of each, in the order of the file.

use std::{borrow::Cow, fmt, time::Duration};

use super::{Config, Secret, defaults::IDENTITY_HEADERS, log_directives, parse, store_url, url};

/// One setting.
pub struct SettingSpec {
    /// Its name in messages and, as a dotted key, in the file: `store.budget`.
    pub key: &'static str,
    /// Its default as one would write it; empty where there is none.
    pub default: &'static str,
    /// Its flag without the dashes.
    pub flag: Option<&'static str>,
    /// Its environment variables, the strongest first; the first is the one to document.
    pub env: &'static [&'static str],
    /// Whether `<env>_FILE` may name a file that holds the value, as secrets are mounted.
    pub(super) by_file: bool,
    /// When another value comes into force.
    pub(super) applies: ReloadClass,
    /// What of its value may be shown.
    pub(super) shown: Visibility,
    /// Parses a value, checks its limits and sets its field.
    pub(super) set: Setter,
}

/// When another value of a knob comes into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadClass {
    /// When the process starts: sockets, connections and the store are made with it.
    AtStart,
    /// Also when a running process reads its configuration anew.
    OnReload,
}

/// How much of a value messages may show.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Visibility {
    /// All of it.
    Plain,
    /// A URL: all but user, password and query.
    Url,
    /// The same of one that has neither user nor password.
    Origin,
    /// Nothing.
    Nothing,
}

/// Sets a field from text; the error says what would be right.
#[derive(Clone, Copy)]
pub(super) enum Setter {
    /// From one value.
    One(fn(&mut Config, &str) -> Result<(), String>),
    /// From a list.
    Many(SetItems),
    /// From a list, or from one text in which white space separates its members.
    Words(SetItems),
    /// From a table whose keys are the user's own.
    Pairs(SetPairs),
}

type SetItems = fn(&mut Config, &[String]) -> Result<(), String>;
type SetPairs = fn(&mut Config, &[(String, String)]) -> Result<(), String>;

/// What a source says, not parsed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawValue {
    /// One value.
    One(String),
    /// A list.
    Many(Vec<String>),
    /// Keys and their values.
    Pairs(Vec<(String, String)>),
}

/// The knob with the given key.
pub fn setting(key: &str) -> Option<&'static SettingSpec> {
    SETTINGS.iter().find(|knob| knob.key == key)
}

/// Instead of a secret.
const HIDDEN: &str = "***";

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const TEN_SECONDS: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_mins(1);
const FIVE_MINUTES: Duration = Duration::from_mins(5);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// Every knob.
pub(super) const SETTINGS: &[SettingSpec] = &[
    one("listen", "127.0.0.1:8080", |c, v| put(&mut c.listen, v.parse()))
        .flag("listen")
        .env(&["JOBCACHE_LISTEN"]),
    one("admin", "127.0.0.1:9090", |c, v| put(&mut c.admin, v.parse()))
        .flag("admin")
        .env(&["JOBCACHE_ADMIN"]),
    one("unix_mode", "0660", |c, v| put(&mut c.unix_mode, parse::mode_bits(v)))
        .env(&["JOBCACHE_UNIX_MODE"]),
    words("webhook_secret", |c, v| put(&mut c.webhook_secret, parse::secrets(v)))
        .shown(Visibility::Nothing)
        .by_file()
        .on_reload()
        .env(&["JOBCACHE_WEBHOOK_SECRET"]),
    one("webhook_max_purges", "5000", |c, v| {
        put(&mut c.webhook_max_purges, parse::number(v, 1..=1_000_000))
    })
    .on_reload()
    .env(&["JOBCACHE_WEBHOOK_MAX_PURGES"]),
    one("webhook_max_failures", "60", |c, v| {
        put(&mut c.webhook_max_failures, parse::number(v, 1..=1_000_000))
    })
    .on_reload()
    .env(&["JOBCACHE_WEBHOOK_MAX_FAILURES"]),
    one("mode", "on", |c, v| put(&mut c.mode, parse::serving(v)))
        .flag("mode")
        .on_reload()
        .env(&["JOBCACHE_MODE"]),
    one("verify", "0", |c, v| put(&mut c.verify, parse::share(v)))
        .on_reload()
        .env(&["JOBCACHE_VERIFY"]),
    many("routes", "/jobs/{id},/api/v1/jobs/{id}", |c, v| put(&mut c.routes, parse::routes(v)))
        .flag("route")
        .on_reload()
        .env(&["JOBCACHE_ROUTES"]),
    many("query.allow", "", |c, v| put(&mut c.query.allow, parse::parameters(v)))
        .on_reload()
        .env(&["JOBCACHE_QUERY_ALLOW"]),
    many("query.ignore", "", |c, v| put(&mut c.query.ignore, parse::parameters(v)))
        .on_reload()
        .env(&["JOBCACHE_QUERY_IGNORE"]),
    one("max_body", "1MiB", |c, v| put(&mut c.max_body, parse::size(v, 1..=64 * MIB)))
        .on_reload()
        .env(&["JOBCACHE_MAX_BODY"]),
    one("max_captured", "64MiB", |c, v| put(&mut c.max_captured, parse::size(v, MIB..=64 * GIB)))
        .env(&["JOBCACHE_MAX_CAPTURED"]),
    one("max_inspected", "16MiB", |c, v| {
        put(&mut c.max_inspected, parse::size(v, 4 * MIB..=64 * GIB))
    })
    .env(&["JOBCACHE_MAX_INSPECTED"]),
    one("max_flights", "10000", |c, v| put(&mut c.max_flights, parse::number(v, 1..=1_000_000)))
        .env(&["JOBCACHE_MAX_FLIGHTS"]),
    one("settle", "1s", |c, v| put(&mut c.settle, parse::time(v, Duration::ZERO..=MINUTE)))
        .flag("settle")
        .on_reload()
        .env(&["JOBCACHE_SETTLE"]),
    one("ignore_client_cache_control", "false", |c, v| {
        put(&mut c.ignore_client_cache_control, parse::switch(v))
    })
    .on_reload()
    .env(&["JOBCACHE_IGNORE_CLIENT_CACHE_CONTROL"]),
    one("near", "strict", |c, v| put(&mut c.near.mode, parse::near(v)))
        .flag("near")
        .env(&["JOBCACHE_NEAR"]),
    one("near_max_staleness", "1s", |c, v| {
        put(&mut c.near.max_staleness, parse::time(v, MS..=MINUTE))
    })
    .env(&["JOBCACHE_NEAR_MAX_STALENESS"]),
    one("near_max_bytes", "128MiB", |c, v| {
        put(&mut c.near.max_bytes, parse::size(v, MIB..=64 * GIB))
    })
    .env(&["JOBCACHE_NEAR_MAX_BYTES"]),
    one("near_tracking", "broadcast", |c, v| put(&mut c.near.tracking, parse::near_tracking(v)))
        .env(&["JOBCACHE_NEAR_TRACKING"]),
    one("access_log", "false", |c, v| put(&mut c.access_log, parse::switch(v)))
        .flag("access-log")
        .on_reload()
        .env(&["JOBCACHE_ACCESS_LOG"]),
    one("log", "info", |c, v| put(&mut c.log, log_directives::filter(v)))
        .flag("log")
        .on_reload()
        .env(&["JOBCACHE_LOG"]),
    one("log_format", "human", |c, v| put(&mut c.log_format, parse::log_format(v)))
        .flag("log-format")
        .env(&["JOBCACHE_LOG_FORMAT"]),
    one("drain_delay", "0s", |c, v| {
        put(&mut c.drain_delay, parse::time(v, Duration::ZERO..=FIVE_MINUTES))
    })
    .env(&["JOBCACHE_DRAIN_DELAY"]),
    one("drain_timeout", "25s", |c, v| {
        put(&mut c.drain_timeout, parse::time(v, Duration::ZERO..=HOUR))
    })
    .env(&["JOBCACHE_DRAIN_TIMEOUT"]),
    one("upstream.url", "http://127.0.0.1:8000", |c, v| put(&mut c.upstream.url, url::upstream(v)))
        .shown(Visibility::Origin)
        .flag("upstream")
        .env(&["JOBCACHE_UPSTREAM", "JOBCACHE_UPSTREAM_URL", "UPSTREAM_URL"]),
    one("upstream.tls.ca", "", |c, v| put(&mut c.upstream.tls.ca, parse::path(v)))
        .env(&["JOBCACHE_UPSTREAM_TLS_CA"]),
    one("upstream.tls.cert", "", |c, v| put(&mut c.upstream.tls.identity.cert, parse::path(v)))
        .env(&["JOBCACHE_UPSTREAM_TLS_CERT"]),
    one("upstream.tls.key", "", |c, v| put(&mut c.upstream.tls.identity.key, parse::path(v)))
        .env(&["JOBCACHE_UPSTREAM_TLS_KEY"]),
    one("upstream.tls.server_name", "", |c, v| {
        put(&mut c.upstream.tls.server_name, parse::server_name(v))
    })
    .env(&["JOBCACHE_UPSTREAM_TLS_SERVER_NAME"]),
    one("upstream.connect_timeout", "2s", |c, v| {
        put(&mut c.upstream.connect_timeout, parse::time(v, MS..=MINUTE))
    })
    .env(&["JOBCACHE_UPSTREAM_CONNECT_TIMEOUT"]),
    one("upstream.response_timeout", "60s", |c, v| {
        put(&mut c.upstream.response_timeout, parse::time(v, MS..=HOUR))
    })
    .env(&["JOBCACHE_UPSTREAM_RESPONSE_TIMEOUT"]),
    one("upstream.body_timeout", "300s", |c, v| {
        put(&mut c.upstream.body_timeout, parse::time(v, MS..=DAY))
    })
    .env(&["JOBCACHE_UPSTREAM_BODY_TIMEOUT"]),
    one("upstream.idle_timeout", "4s", |c, v| {
        put(&mut c.upstream.idle_timeout, parse::time(v, Duration::ZERO..=HOUR))
    })
    .env(&["JOBCACHE_UPSTREAM_IDLE_TIMEOUT"]),
    one("upstream.max_idle", "256", |c, v| {
        put(&mut c.upstream.max_idle, parse::number(v, 0..=65_536))
    })
    .env(&["JOBCACHE_UPSTREAM_MAX_IDLE"]),
    one("upstream.max_connections", "512", |c, v| {
        put(&mut c.upstream.max_connections, parse::number(v, 1..=65_536))
    })
    .env(&["JOBCACHE_UPSTREAM_MAX_CONNECTIONS"]),
    one("upstream.max_waiting", "10000", |c, v| {
        put(&mut c.upstream.max_waiting, parse::number(v, 0..=1_000_000))
    })
    .env(&["JOBCACHE_UPSTREAM_MAX_WAITING"]),
    one("store.url", "redis://127.0.0.1:6379", |c, v| put(&mut c.store.url, store_url::store(v)))
        .shown(Visibility::Url)
        .by_file()
        .flag("redis-url")
        .env(&["JOBCACHE_REDIS_URL", "REDIS_URL"]),
    one("store.username", "", |c, v| put(&mut c.store.login.username, parse::username(v)))
        .env(&["JOBCACHE_STORE_USERNAME"]),
    one("store.password", "", |c, v| put(&mut c.store.login.password, parse::password(v)))
        .shown(Visibility::Nothing)
        .env(&["JOBCACHE_STORE_PASSWORD"]),
    one("store.password_file", "", |c, v| put(&mut c.store.login.password_file, parse::path(v)))
        .env(&["JOBCACHE_STORE_PASSWORD_FILE"]),
    one("store.budget", "50ms", |c, v| put(&mut c.store.budget, parse::time(v, MS..=TEN_SECONDS)))
        .flag("store-budget")
        .env(&["JOBCACHE_STORE_BUDGET"]),
    one("store.prefix", "job_status:", |c, v| put(&mut c.store.prefix, parse::prefix(v)))
        .env(&["JOBCACHE_STORE_PREFIX"]),
    one("store.lease", "10s", |c, v| {
        put(&mut c.store.lease, parse::time(v, SECOND..=FIVE_MINUTES))
    })
    .env(&["JOBCACHE_STORE_LEASE"]),
    one("store.linger", "10s", |c, v| {
        put(&mut c.store.linger, parse::time(v, SECOND..=FIVE_MINUTES))
    })
    .env(&["JOBCACHE_STORE_LINGER"]),
    one("store.compress_above", "", |c, v| {
        put(&mut c.store.compress_above, parse::size(v, KIB..=64 * MIB).map(Some))
    })
    .on_reload()
    .env(&["JOBCACHE_STORE_COMPRESS_ABOVE"]),
    one("store.memory_max", "256MiB", |c, v| {
        put(&mut c.store.memory_max, parse::size(v, MIB..=64 * GIB))
    })
    .env(&["JOBCACHE_STORE_MEMORY_MAX"]),
    one("store.tls.ca", "", |c, v| put(&mut c.store.tls.ca, parse::path(v)))
        .env(&["JOBCACHE_STORE_TLS_CA"]),
    one("store.tls.cert", "", |c, v| put(&mut c.store.tls.identity.cert, parse::path(v)))
        .env(&["JOBCACHE_STORE_TLS_CERT"]),
    one("store.tls.key", "", |c, v| put(&mut c.store.tls.identity.key, parse::path(v)))
        .env(&["JOBCACHE_STORE_TLS_KEY"]),
    one("store.tls.server_name", "", |c, v| {
        put(&mut c.store.tls.server_name, parse::server_name(v))
    })
    .env(&["JOBCACHE_STORE_TLS_SERVER_NAME"]),
    one("store.sentinel.username", "", |c, v| {
        put(&mut c.store.sentinel.login.username, parse::username(v))
    })
    .env(&["JOBCACHE_STORE_SENTINEL_USERNAME"]),
    one("store.sentinel.password", "", |c, v| {
        put(&mut c.store.sentinel.login.password, parse::password(v))
    })
    .shown(Visibility::Nothing)
    .env(&["JOBCACHE_STORE_SENTINEL_PASSWORD"]),
    one("store.sentinel.password_file", "", |c, v| {
        put(&mut c.store.sentinel.login.password_file, parse::path(v))
    })
    .env(&["JOBCACHE_STORE_SENTINEL_PASSWORD_FILE"]),
    one("store.sentinel.tls", "", |c, v| {
        put(&mut c.store.sentinel.tls, parse::switch(v).map(Some))
    })
    .env(&["JOBCACHE_STORE_SENTINEL_TLS"]),
    one("ttl.default", "300s", |c, v| put(&mut c.ttl, parse::time(v, SECOND..=DAY)))
        .flag("ttl")
        .on_reload()
        .env(&["JOBCACHE_TTL"]),
    one("ttl.stated_only", "false", |c, v| put(&mut c.ttl_stated_only, parse::switch(v)))
        .on_reload()
        .env(&["JOBCACHE_TTL_STATED_ONLY"]),
    one("ttl.states.pointer", "/status", |c, v| put(&mut c.states.pointer, parse::pointer(v)))
        .on_reload()
        .env(&["JOBCACHE_TTL_STATES_POINTER"]),
    pairs("ttl.states.map", "", |c, v| put(&mut c.states.map, parse::states(v, SECOND..=DAY)))
        .on_reload()
        .env(&["JOBCACHE_TTL_STATES_MAP"]),
    one("server.workers", "0", |c, v| put(&mut c.server.workers, parse::number(v, 0..=1024)))
        .env(&["JOBCACHE_SERVER_WORKERS"]),
    one("server.max_connections", "10000", |c, v| {
        put(&mut c.server.max_connections, parse::number(v, 1..=1_000_000))
    })
    .env(&["JOBCACHE_SERVER_MAX_CONNECTIONS"]),
    one("server.max_requests", "20000", |c, v| {
        put(&mut c.server.max_requests, parse::number(v, 1..=1_000_000))
    })
    .env(&["JOBCACHE_SERVER_MAX_REQUESTS"]),
    one("server.header_timeout", "75s", |c, v| {
        put(&mut c.server.header_timeout, parse::time(v, MS..=FIVE_MINUTES))
    })
    .env(&["JOBCACHE_SERVER_HEADER_TIMEOUT"]),
    one("server.write_timeout", "60s", |c, v| {
        put(&mut c.server.write_timeout, parse::time(v, MS..=HOUR))
    })
    .env(&["JOBCACHE_SERVER_WRITE_TIMEOUT"]),
    one("server.min_upload_rate", "256B", |c, v| {
        put(&mut c.server.min_upload_rate, parse::size(v, 0..=MIB))
    })
    .env(&["JOBCACHE_SERVER_MIN_UPLOAD_RATE"]),
    one("server.max_headers", "100", |c, v| {
        put(&mut c.server.max_headers, parse::number(v, 16..=1024))
    })
    .env(&["JOBCACHE_SERVER_MAX_HEADERS"]),
    // The parser holds a head in a buffer of 408 KiB at most.
    one("server.max_header_bytes", "64KiB", |c, v| {
        put(&mut c.server.max_header_bytes, parse::size(v, KIB..=256 * KIB))
    })
    .env(&["JOBCACHE_SERVER_MAX_HEADER_BYTES"]),
    // The parser takes 65534 bytes at most.
    one("server.max_uri", "8KiB", |c, v| {
        put(&mut c.server.max_uri, parse::size(v, 256..=63 * KIB))
    })
    .env(&["JOBCACHE_SERVER_MAX_URI"]),
    one("server.max_streams", "200", |c, v| {
        put(&mut c.server.max_streams, parse::number(v, 1..=10_000))
    })
    .env(&["JOBCACHE_SERVER_MAX_STREAMS"]),
    one("server.max_pending_resets", "20", |c, v| {
        put(&mut c.server.max_pending_resets, parse::number(v, 1..=10_000))
    })
    .env(&["JOBCACHE_SERVER_MAX_PENDING_RESETS"]),
    one("server.max_faulty_streams", "1024", |c, v| {
        put(&mut c.server.max_faulty_streams, parse::number(v, 1..=1_000_000))
    })
    .env(&["JOBCACHE_SERVER_MAX_FAULTY_STREAMS"]),
    one("server.preserve_header_case", "false", |c, v| {
        put(&mut c.server.preserve_header_case, parse::switch(v))
    })
    .env(&["JOBCACHE_SERVER_PRESERVE_HEADER_CASE"]),
    one("server.reuse_port", "false", |c, v| put(&mut c.server.reuse_port, parse::switch(v)))
        .env(&["JOBCACHE_SERVER_REUSE_PORT"]),
    one("server.proxy_protocol", "false", |c, v| {
        put(&mut c.server.proxy_protocol, parse::switch(v))
    })
    .env(&["JOBCACHE_SERVER_PROXY_PROTOCOL"]),
    many("server.trusted_proxies", "0.0.0.0/0,::/0", |c, v| {
        put(&mut c.server.trusted_proxies, parse::networks(v))
    })
    .env(&["JOBCACHE_SERVER_TRUSTED_PROXIES"]),
    one("tls.cert", "", |c, v| put(&mut c.tls.cert, parse::path(v))).env(&["JOBCACHE_TLS_CERT"]),
    one("tls.key", "", |c, v| put(&mut c.tls.key, parse::path(v))).env(&["JOBCACHE_TLS_KEY"]),
    one("tls.renew_interval", "10s", |c, v| {
        put(&mut c.tls_renew_interval, parse::time(v, MS..=DAY))
    })
    .env(&["JOBCACHE_TLS_RENEW_INTERVAL"]),
    one("pending.limit", "10000", |c, v| {
        put(&mut c.pending.limit, parse::number(v, 1..=1_000_000))
    })
    .env(&["JOBCACHE_PENDING_LIMIT"]),
    one("pending.journal", "", |c, v| put(&mut c.pending.journal, parse::path(v)))
        .env(&["JOBCACHE_PENDING_JOURNAL"]),
    one("credentials.mode", "partition", |c, v| put(&mut c.credentials.mode, parse::mode(v)))
        .env(&["JOBCACHE_CREDENTIALS_MODE"]),
    many("credentials.headers", IDENTITY_HEADERS, |c, v| {
        put(&mut c.credentials.headers, parse::headers(v))
    })
    .env(&["JOBCACHE_CREDENTIALS_HEADERS"]),
    many("credentials.cookies", "", |c, v| put(&mut c.credentials.cookies, parse::cookies(v)))
        .env(&["JOBCACHE_CREDENTIALS_COOKIES"]),
    one("credentials.secret", "", |c, v| {
        put(&mut c.credentials.secret, parse::secret(v).map(Secret::new).map(Some))
    })
    .shown(Visibility::Nothing)
    .by_file()
    .env(&["JOBCACHE_CREDENTIALS_SECRET"]),
    one("credentials.audience", "256", |c, v| {
        put(&mut c.credentials.audience, parse::number(v, 1..=4096))
    })
    .env(&["JOBCACHE_CREDENTIALS_AUDIENCE"]),
    one("credentials.recheck", "", |c, v| {
        put(&mut c.credentials.recheck, parse::time(v, SECOND..=DAY).map(Some))
    })
    .env(&["JOBCACHE_CREDENTIALS_RECHECK"]),
    one("warm.file", "", |c, v| put(&mut c.warm.file, parse::path(v))).env(&["JOBCACHE_WARM_FILE"]),
    one("warm.list", "", |c, v| put(&mut c.warm.list, parse::target(v)))
        .env(&["JOBCACHE_WARM_LIST"]),
    one("warm.pointer", "/items/*/id", |c, v| put(&mut c.warm.pointer, parse::pointer(v)))
        .env(&["JOBCACHE_WARM_POINTER"]),
    many("warm.headers", "", |c, v| put(&mut c.warm.headers, parse::fields(v)))
        .shown(Visibility::Nothing)
        .by_file()
        .env(&["JOBCACHE_WARM_HEADERS"]),
    one("warm.authorization", "", |c, v| put(&mut c.warm.authorization, parse::field_value(v)))
        .shown(Visibility::Nothing)
        .by_file()
        .env(&["JOBCACHE_WARM_AUTHORIZATION"]),
    one("warm.rate", "20", |c, v| put(&mut c.warm.rate, parse::number(v, 1..=10_000)))
        .env(&["JOBCACHE_WARM_RATE"]),
    one("warm.max", "10000", |c, v| put(&mut c.warm.max, parse::number(v, 1..=100_000)))
        .env(&["JOBCACHE_WARM_MAX"]),
];

fn put<T>(field: &mut T, parsed: Result<T, String>) -> Result<(), String> {
    *field = parsed?;
    Ok(())
}

const fn one(
    key: &'static str,
    default: &'static str,
    set: fn(&mut Config, &str) -> Result<(), String>,
) -> SettingSpec {
    SettingSpec::new(key, default, Setter::One(set))
}

const fn many(key: &'static str, default: &'static str, set: SetItems) -> SettingSpec {
    SettingSpec::new(key, default, Setter::Many(set))
}

const fn words(key: &'static str, set: SetItems) -> SettingSpec {
    SettingSpec::new(key, "", Setter::Words(set))
}

const fn pairs(key: &'static str, default: &'static str, set: SetPairs) -> SettingSpec {
    SettingSpec::new(key, default, Setter::Pairs(set))
}

impl SettingSpec {
    const fn new(key: &'static str, default: &'static str, set: Setter) -> Self {
        let (flag, env, by_file) = (None, &[], false);
        let (applies, shown) = (ReloadClass::AtStart, Visibility::Plain);
        Self { key, default, flag, env, by_file, applies, shown, set }
    }

    const fn flag(self, name: &'static str) -> Self {
        Self { flag: Some(name), ..self }
    }

    const fn env(self, names: &'static [&'static str]) -> Self {
        Self { env: names, ..self }
    }

    const fn by_file(self) -> Self {
        Self { by_file: true, ..self }
    }

    const fn on_reload(self) -> Self {
        Self { applies: ReloadClass::OnReload, ..self }
    }

    const fn shown(self, shown: Visibility) -> Self {
        Self { shown, ..self }
    }

    /// Parses `value` into its field.
    pub(super) fn apply(&self, config: &mut Config, value: &RawValue) -> Result<(), String> {
        match (self.set, value) {
            (Setter::One(set), RawValue::One(text)) => set(config, text),
            (Setter::Many(set) | Setter::Words(set), RawValue::Many(items)) => set(config, items),
            (Setter::Words(set), RawValue::One(text)) => set(config, &members(text)),
            (Setter::Pairs(set), RawValue::Pairs(pairs)) => set(config, pairs),
            (Setter::One(_), _) => Err("must be one value, not a list".to_owned()),
            (Setter::Many(_), _) => Err("must be a list, such as [\"a\", \"b\"]".to_owned()),
            (Setter::Words(_), _) => Err("must be one value or a list of them".to_owned()),
            (Setter::Pairs(_), _) => Err("must be a table, such as { a = \"b\" }".to_owned()),
        }
    }

    /// Whether the keys of its table are the user's own.
    pub(super) fn takes_pairs(&self) -> bool {
        matches!(self.set, Setter::Pairs(_))
    }

    /// Text of one variable as a value: the members of lists and tables are separated by commas, those
    /// of lists that any character may be in by white space.
    pub(super) fn split(&self, text: &str) -> RawValue {
        let members = text.split(',').map(str::trim).filter(|member| !member.is_empty());
        match self.set {
            Setter::One(_) | Setter::Words(_) => RawValue::One(text.to_owned()),
            Setter::Many(_) => RawValue::Many(members.map(str::to_owned).collect()),
            Setter::Pairs(_) => RawValue::Pairs(members.map(pair).collect()),
        }
    }

    /// The value as TOML, with nothing in it that must not be shown.
    pub(super) fn show(&self, value: &RawValue) -> String {
        match (self.shown, value) {
            (Visibility::Plain, value) => value.to_string(),
            (Visibility::Url, RawValue::One(text)) => quoted(&url::redacted(text)),
            (Visibility::Origin, RawValue::One(text)) => quoted(&url::shown_origin(text)),
            (_, value) => self.hidden(value),
        }
    }

    /// How many there are may be seen: that tells whether an old secret is still good.
    fn hidden(&self, value: &RawValue) -> String {
        let count = match (self.set, value) {
            (Setter::Words(_), RawValue::One(text)) => members(text).len(),
            (Setter::Words(_), RawValue::Many(items)) => items.len(),
            _ => 1,
        };
        if count > 1 {
            RawValue::Many(vec![HIDDEN.to_owned(); count]).to_string()
        } else {
            quoted(HIDDEN)
        }
    }
}

impl fmt::Display for RawValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(text) => f.write_str(&bare_or_quoted(text)),
            Self::Many(items) => {
                let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Pairs(pairs) => {
                let pair =
                    |(key, text): &(String, String)| format!("{} = {}", quoted(key), quoted(text));
                write!(f, "{{ {} }}", pairs.iter().map(pair).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

fn members(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// `key=value`; the last `=` counts, and without one the value is missing.
fn pair(member: &str) -> (String, String) {
    let (key, text) = member.rsplit_once('=').unwrap_or((member, ""));
    (key.trim().to_owned(), text.trim().to_owned())
}

fn bare_or_quoted(text: &str) -> Cow<'_, str> {
    // TOML takes no leading zeros.
    let is_number = text.parse::<i64>().is_ok_and(|number| number.to_string() == text);
    let bare = text == "true" || text == "false" || is_number;
    if bare { Cow::Borrowed(text) } else { Cow::Owned(quoted(text)) }
}

/// Quoted, with control characters escaped: a value must not forge lines of a log.
pub(super) fn quoted(text: &str) -> String {
    format!("{text:?}")
}
