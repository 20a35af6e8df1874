//! What a knob is where nobody says otherwise. A test holds these, the table of knobs and
//! `config/jobcache.toml` together.

use std::{net::SocketAddr, time::Duration};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    CacheMode, ClientTls, Config, CredentialMode, CredentialsConfig, HEADERS_ON_STACK, KeyPair,
    LogFormat, NearConfig, NearMode, NearTracking, PendingConfig, QueryConfig, SampleRate,
    SentinelConfig, ServerConfig, StateTtlConfig, StoreConfig, StoreLogin, StoreUrl,
    UpstreamConfig, WarmConfig,
};
use crate::pointer::Pointer;

/// Headers that mark a request as somebody's unless configured otherwise: what clients send
/// (`Authorization`, `Cookie`, API keys), and what gateways write once they know the caller
/// (oauth2-proxy and nginx `auth_request`, Authelia and Apache `Remote-*`, home-grown `X-User-Id`).
/// One too many costs hits; one too few shows a job to a stranger.
pub(super) const IDENTITY_HEADERS: &str = "authorization,proxy-authorization,cookie,x-api-key,api-key,apikey,x-auth-token,x-access-token,\
    x-session-token,x-session-id,\
    x-user-id,x-tenant-id,remote-user,remote-groups,remote-email,remote-name,x-remote-user,\
    x-webauth-user,x-authentik-username,x-forwarded-user,x-forwarded-email,x-forwarded-groups,\
    x-forwarded-preferred-username,x-forwarded-access-token,x-forwarded-client-cert,\
    x-auth-request-user,x-auth-request-email,x-auth-request-groups,\
    x-auth-request-preferred-username,x-auth-request-access-token,cf-access-jwt-assertion,\
    cf-access-authenticated-user-email,x-amzn-oidc-data,x-amzn-oidc-identity,\
    x-amzn-oidc-accesstoken,x-goog-iap-jwt-assertion,x-goog-authenticated-user-email,\
    x-goog-authenticated-user-id,x-ms-client-principal,x-ms-client-principal-id,\
    x-ms-client-principal-name";

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)).into(),
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)).into(),
            unix_mode: 0o660,
            tls: KeyPair::default(),
            tls_renew_interval: Duration::from_secs(10),
            webhook_secret: Vec::new(),
            webhook_max_purges: 5_000,
            webhook_max_failures: 60,
            mode: CacheMode::On,
            verify: SampleRate::default(),
            routes: vec!["/jobs/{id}".to_owned(), "/api/v1/jobs/{id}".to_owned()],
            query: QueryConfig::default(),
            ttl: Duration::from_mins(5),
            ttl_stated_only: false,
            states: StateTtlConfig::default(),
            max_body: 1 << 20,
            max_captured: 64 << 20,
            max_inspected: 16 << 20,
            max_flights: 10_000,
            settle: Duration::from_secs(1),
            ignore_client_cache_control: false,
            near: NearConfig::default(),
            access_log: false,
            log: "info".to_owned(),
            log_format: LogFormat::Human,
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(25),
            server: ServerConfig::default(),
            upstream: UpstreamConfig::default(),
            store: StoreConfig::default(),
            pending: PendingConfig::default(),
            credentials: CredentialsConfig::default(),
            traces: None,
            warm: WarmConfig::default(),
            invalidate: Vec::new(),
        }
    }
}

impl Default for StateTtlConfig {
    fn default() -> Self {
        Self { pointer: Pointer::member("status"), map: Vec::new() }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            workers: 0,
            max_connections: 10_000,
            max_requests: 20_000,
            header_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_mins(1),
            min_upload_rate: 256,
            max_headers: HEADERS_ON_STACK,
            max_header_bytes: 64 << 10,
            max_uri: 8 << 10,
            max_streams: 200,
            max_pending_resets: 20,
            max_faulty_streams: 1024,
            preserve_header_case: false,
            reuse_port: false,
            proxy_protocol: false,
            trusted_proxies: vec![Ipv4Net::default().into(), Ipv6Net::default().into()],
        }
    }
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8000".to_owned(),
            tls: ClientTls::default(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_mins(1),
            body_timeout: Duration::from_mins(5),
            idle_timeout: Duration::from_secs(4),
            max_idle: 256,
            max_connections: 512,
            max_waiting: 10_000,
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: StoreUrl::Redis("redis://127.0.0.1:6379".to_owned()),
            login: StoreLogin::default(),
            tls: ClientTls::default(),
            sentinel: SentinelConfig::default(),
            prefix: "job_status:".to_owned(),
            budget: Duration::from_millis(50),
            lease: Duration::from_secs(10),
            linger: Duration::from_secs(10),
            compress_above: None,
            memory_max: 256 << 20,
        }
    }
}

impl Default for NearConfig {
    fn default() -> Self {
        Self {
            mode: NearMode::Strict,
            max_staleness: Duration::from_secs(1),
            max_bytes: 128 << 20,
            tracking: NearTracking::Broadcast,
        }
    }
}

impl Default for PendingConfig {
    fn default() -> Self {
        Self { limit: 10_000, journal: None }
    }
}

impl Default for CredentialsConfig {
    fn default() -> Self {
        Self {
            mode: CredentialMode::Partition,
            headers: IDENTITY_HEADERS.split(',').map(str::to_owned).collect(),
            cookies: Vec::new(),
            secret: None,
            audience: 256,
            recheck: None,
        }
    }
}

impl Default for WarmConfig {
    fn default() -> Self {
        // The page of a list as FastAPI and Spring paginate it: both are objects with `items`.
        Self {
            file: None,
            list: None,
            pointer: Pointer::members(["items", "*", "id"]),
            headers: Vec::new(),
            authorization: None,
            rate: 20,
            max: 10_000,
        }
    }
}
