//! The table of all settings, one file for each group of them, and what is made from it: the default
//! configuration, and the known name that is nearest to an unknown one.
//!
//! Each group is a [`SettingSection`]. To add a setting, add its field to the configuration, a
//! placeholder to `unset` and one entry to a section, then renew the documents: a test names the
//! commands. The order here is the order of `config/jobcache.toml`, in which the top level has to come
//! before the first table.

mod cache_settings;
mod connection_settings;
mod credential_settings;
mod process_settings;
mod push_settings;
mod store_settings;

use std::{net::SocketAddr, time::Duration};

use hyper::http::HeaderValue;

use super::{
    ApiConfig, CacheLimits, CacheMode, CachingConfig, ClientTls, Config, CredentialMode,
    CredentialsConfig, DrainConfig, FinalStates, Ids, KeyPair, LifetimeConfig, LogConfig,
    LogFormat, NearConfig, NearMode, NearTracking, PendingConfig, PushConfig, PushMode,
    ResponsesConfig, SampleRate, SentinelConfig, ServerConfig, SettingSpec, StateTtlConfig,
    StoreConfig, StoreLogin, StoreUrl, UpstreamConfig, WarmConfig, WebhookConfig,
    setting_spec::SettingSection,
};
use crate::semantics::json_pointer::JsonPointer;

pub(super) use self::credential_settings::IDENTITY_HEADERS;

/// All settings, by section.
pub static SECTIONS: [SettingSection; 22] = [
    process_settings::LISTENERS,
    process_settings::WEBHOOK,
    cache_settings::CACHE,
    cache_settings::NEAR,
    process_settings::LOG,
    process_settings::SHUTDOWN,
    cache_settings::QUERY,
    connection_settings::UPSTREAM,
    connection_settings::UPSTREAM_TLS,
    store_settings::STORE,
    connection_settings::STORE_TLS,
    store_settings::SENTINEL,
    cache_settings::TTL,
    cache_settings::STATES,
    connection_settings::SERVER,
    connection_settings::SERVER_TLS,
    store_settings::PENDING,
    credential_settings::CREDENTIALS,
    cache_settings::RESPONSES,
    cache_settings::WARM,
    push_settings::PUSH,
    push_settings::FINAL_STATES,
];

/// Every setting, in the order of the documents.
pub fn settings() -> impl Iterator<Item = &'static SettingSpec> {
    SECTIONS.iter().flat_map(|section| section.settings)
}

/// The setting with the given key.
pub fn setting(key: &str) -> Option<&'static SettingSpec> {
    settings().find(|spec| spec.key == key)
}

/// The key of the file that `unknown` most likely stands for.
pub(super) fn nearest_key(unknown: &str) -> Option<&'static str> {
    let names = settings().flat_map(|spec| aliases(spec).map(move |alias| (alias, spec.key)));
    nearest(unknown, names)
}

/// The key of the top level that `unknown` equals except for its table: in a file, everything after
/// `[table]` belongs to that table.
pub(super) fn top_level_key(unknown: &str) -> Option<&'static str> {
    let (_, name) = unknown.rsplit_once('.')?;
    settings().map(|spec| spec.key).find(|key| *key == name)
}

/// The variable that `unknown` most likely stands for.
pub(super) fn nearest_variable(unknown: &str) -> Option<String> {
    let names = settings().flat_map(|spec| {
        let own = spec.variables();
        let derived = aliases(spec).map(|alias| format!("JOBCACHE_{}", alias.to_uppercase()));
        let all: Vec<_> = own.iter().cloned().chain(derived).collect();
        all.into_iter().map(move |name| (name, own[0].clone()))
    });
    nearest(unknown, names)
}

/// Names that people try for a setting: its key, the key without its dots, and its flag.
fn aliases(spec: &SettingSpec) -> impl Iterator<Item = String> {
    let flag = spec.flag.map(|flag| snake(flag.name));
    [Some(spec.key.to_owned()), Some(snake(spec.key)), flag].into_iter().flatten()
}

fn snake(name: &str) -> String {
    name.replace(['.', '-'], "_")
}

pub(super) fn nearest<N>(unknown: &str, names: impl Iterator<Item = (String, N)>) -> Option<N> {
    // One slip in a short name, three in a long one; with more it is another word.
    let slips = 1 + unknown.len() / 10;
    names
        .map(|(alias, name)| (strsim::damerau_levenshtein(unknown, &alias), name))
        .filter(|(distance, _)| *distance <= slips)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

impl Default for Config {
    fn default() -> Self {
        with_defaults(unset(Placeholder::ZERO))
    }
}

fn with_defaults(mut config: Config) -> Config {
    for spec in settings().filter(|spec| !spec.default.is_empty()) {
        let applied = spec.setter.apply(&mut config, &spec.setter.split(spec.default));
        // A test applies every default, so this cannot fail in a build that passed it.
        debug_assert!(applied.is_ok(), "the default of {}: {applied:?}", spec.key);
    }
    config
}

impl Default for ServerConfig {
    fn default() -> Self {
        Config::default().server
    }
}

impl Default for CredentialsConfig {
    fn default() -> Self {
        Config::default().cache.credentials
    }
}

/// A configuration that nothing has set yet.
///
/// Empty lists and `None` remain where a setting has no default. Everything else is a placeholder that
/// the table replaces. A test makes a default from other placeholders too: if one of them remained,
/// the two would differ.
fn unset(placeholder @ Placeholder { number, time, switch }: Placeholder) -> Config {
    let anywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    Config {
        listen: anywhere.into(),
        admin: anywhere.into(),
        unix_mode: 0,
        tls: KeyPair::default(),
        tls_renew_interval: time,
        webhook: WebhookConfig { secrets: Vec::new(), max_purges: number, max_failures: number },
        log: LogConfig {
            access: switch,
            filter: String::new(),
            format: if switch { LogFormat::Human } else { LogFormat::Json },
        },
        drain: DrainConfig { delay: time, timeout: time },
        api: ApiConfig {
            ids: if switch { Ids::Opaque } else { Ids::Auto },
            ..ApiConfig::default()
        },
        cache: cache(placeholder),
        server: server(placeholder),
        upstream: upstream(placeholder),
        store: store(placeholder),
        pending: PendingConfig { limit: number, journal: None },
        traces: None,
        warm: warm(placeholder),
        push: push(placeholder),
    }
}

/// Values that no setting keeps.
#[derive(Clone, Copy)]
struct Placeholder {
    number: usize,
    time: Duration,
    switch: bool,
}

impl Placeholder {
    const ZERO: Self = Self { number: 0, time: Duration::ZERO, switch: false };
}

fn cache(placeholder @ Placeholder { number, time, switch }: Placeholder) -> CachingConfig {
    let states = StateTtlConfig { pointer: JsonPointer::members([]), map: Vec::new() };
    CachingConfig {
        mode: if switch { CacheMode::Shadow } else { CacheMode::Off },
        verify: SampleRate::of_millionths(u32::from(switch)),
        lifetimes: LifetimeConfig { ttl: time, stated_only: switch, states },
        limits: CacheLimits {
            max_body: number,
            max_captured: number,
            max_inspected: number,
            max_flights: number,
        },
        settle: time,
        ignore_client_cache_control: switch,
        near: near(placeholder),
        credentials: credentials(placeholder),
        responses: ResponsesConfig::default(),
    }
}

fn near(Placeholder { number, time, switch }: Placeholder) -> NearConfig {
    NearConfig {
        mode: if switch { NearMode::Bounded } else { NearMode::Off },
        max_staleness: time,
        max_bytes: number,
        tracking: if switch { NearTracking::Broadcast } else { NearTracking::Keys },
    }
}

fn server(Placeholder { number, time, switch }: Placeholder) -> ServerConfig {
    ServerConfig {
        workers: number,
        max_connections: number,
        max_requests: number,
        header_timeout: time,
        write_timeout: time,
        min_upload_rate: number,
        max_headers: number,
        max_header_bytes: number,
        max_uri: number,
        max_streams: number,
        max_pending_resets: number,
        max_faulty_streams: number,
        preserve_header_case: switch,
        repeat_fast_path: switch,
        reuse_port: switch,
        proxy_protocol: switch,
        trusted_proxies: Vec::new(),
    }
}

fn upstream(Placeholder { number, time, .. }: Placeholder) -> UpstreamConfig {
    UpstreamConfig {
        url: String::new(),
        tls: ClientTls::default(),
        connect_timeout: time,
        response_timeout: time,
        body_timeout: time,
        idle_timeout: time,
        max_idle: number,
        max_connections: number,
        max_streams: number,
        max_age: time,
        max_waiting: number,
    }
}

fn store(Placeholder { number, time, .. }: Placeholder) -> StoreConfig {
    StoreConfig {
        url: StoreUrl::Memory,
        client_name: None,
        login: StoreLogin::default(),
        tls: ClientTls::default(),
        sentinel: SentinelConfig::default(),
        prefix: String::new(),
        budget: time,
        lease: time,
        linger: time,
        reconnect_grace: time,
        compress_above: None,
        memory_max: number,
    }
}

fn credentials(Placeholder { number, switch, .. }: Placeholder) -> CredentialsConfig {
    CredentialsConfig {
        mode: if switch { CredentialMode::Shared } else { CredentialMode::Bypass },
        headers: Vec::new(),
        ignore: Vec::new(),
        cookies: Vec::new(),
        secret: None,
        audience: number,
        recheck: None,
    }
}

fn warm(Placeholder { number, .. }: Placeholder) -> WarmConfig {
    WarmConfig {
        file: None,
        list: None,
        pointer: JsonPointer::members([]),
        headers: Vec::new(),
        authorization: None,
        rate: number,
        max: number,
    }
}

fn push(Placeholder { number, time, switch }: Placeholder) -> PushConfig {
    PushConfig {
        mode: if switch { PushMode::All } else { PushMode::Sse },
        accept: HeaderValue::from_static(""),
        max_wait: time,
        max_reads: number,
        recheck: time,
        max_waiting: number,
        final_states: FinalStates { pointer: JsonPointer::members([]), values: Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_passes_its_own_limits() {
        for spec in settings().filter(|spec| !spec.default.is_empty()) {
            let applied =
                spec.setter.apply(&mut Config::default(), &spec.setter.split(spec.default));
            assert_eq!(applied, Ok(()), "{}", spec.key);
        }
    }

    #[test]
    fn no_placeholder_remains_in_the_default() {
        let other = Placeholder { number: 7, time: Duration::from_secs(7), switch: true };
        assert_eq!(with_defaults(unset(other)), Config::default());
    }
}
