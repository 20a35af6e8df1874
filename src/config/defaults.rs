//! The default configuration, made from the default texts of the table of settings.

use std::{net::SocketAddr, time::Duration};

use super::{
    CacheMode, ClientTls, Config, CredentialMode, CredentialsConfig, KeyPair, LogFormat,
    NearConfig, NearMode, NearTracking, PendingConfig, QueryConfig, ResponsesConfig, SampleRate,
    SentinelConfig, ServerConfig, StateTtlConfig, StoreConfig, StoreLogin, StoreUrl,
    UpstreamConfig, WarmConfig, settings,
};
use crate::semantics::json_pointer::JsonPointer;

impl Default for Config {
    fn default() -> Self {
        with_defaults(unset(Placeholder::ZERO))
    }
}

fn with_defaults(mut config: Config) -> Config {
    for spec in settings().filter(|spec| !spec.default.is_empty()) {
        let applied = spec.apply(&mut config, &spec.split(spec.default));
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
        Config::default().credentials
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
        webhook_secret: Vec::new(),
        webhook_max_purges: number,
        webhook_max_failures: number,
        mode: if switch { CacheMode::Shadow } else { CacheMode::Off },
        verify: SampleRate::of_millionths(u32::from(switch)),
        api: None,
        routes: Vec::new(),
        query: QueryConfig::default(),
        ttl: time,
        ttl_stated_only: switch,
        states: StateTtlConfig { pointer: JsonPointer::members([]), map: Vec::new() },
        max_body: number,
        max_captured: number,
        max_inspected: number,
        max_flights: number,
        settle: time,
        ignore_client_cache_control: switch,
        near: near(placeholder),
        access_log: switch,
        log: String::new(),
        log_format: if switch { LogFormat::Human } else { LogFormat::Json },
        drain_delay: time,
        drain_timeout: time,
        server: server(placeholder),
        upstream: upstream(placeholder),
        store: store(placeholder),
        pending: PendingConfig { limit: number, journal: None },
        credentials: credentials(placeholder),
        traces: None,
        responses: ResponsesConfig::default(),
        warm: warm(placeholder),
        invalidate: Vec::new(),
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
        max_waiting: number,
    }
}

fn store(Placeholder { number, time, .. }: Placeholder) -> StoreConfig {
    StoreConfig {
        url: StoreUrl::Memory,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_passes_its_own_limits() {
        for spec in settings().filter(|spec| !spec.default.is_empty()) {
            let applied = spec.apply(&mut Config::default(), &spec.split(spec.default));
            assert_eq!(applied, Ok(()), "{}", spec.key);
        }
    }

    #[test]
    fn no_placeholder_remains_in_the_default() {
        let other = Placeholder { number: 7, time: Duration::from_secs(7), switch: true };
        assert_eq!(with_defaults(unset(other)), Config::default());
    }
}
