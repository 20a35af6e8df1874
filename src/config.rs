//! Configuration: flag > environment > file > default.
//!
//! Every knob is one row of the table in [`knob`]: its names, its default, its limits and the field
//! it sets. Flags, environment and file are each read into `(knob, text, origin)`, the strongest
//! source of a knob wins, and only then is the text parsed. So a limit is written once, a message
//! can always name where the value came from, and all mistakes are reported at once (a derived
//! deserializer stops at the first and knows no line).
//!
//! It does not connect, resolve or bind anything: a name that does not resolve yet is no reason for
//! a sidecar not to start.

mod address;
mod changes;
mod constraints;
mod defaults;
mod env;
mod file;
mod invalidate_rules;
mod load;
mod log_directives;
mod parse;
mod setting_spec;
mod store_url;
mod suggest;
#[cfg(test)]
mod tests;
mod tls_files;
mod traces;
mod url;

use std::{fmt, path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::http::{HeaderName, Uri, uri::Authority};
use ipnet::IpNet;

pub use address::Address;
pub use changes::{OverriddenChange, SettingChange};
pub use invalidate_rules::InvalidateRule;
pub use load::{Flags, InvalidConfig, LoadedConfig};
pub use log_directives::{filter as log_filter, parsed as parsed_log_filter};
pub use setting_spec::{RawValue, ReloadClass, SettingSpec, setting};
pub use store_url::{ClusterSeeds, Sentinels, StoreLogin, StoreUrl};
pub use tls_files::{ClientTls, Identity, KeyPair};
pub use traces::TracesConfig;

use crate::pointer::Pointer;

/// Header fields that hyper parses without an allocation, and takes at most unless told otherwise.
pub const HEADERS_ON_STACK: usize = 100;

/// A checked configuration: every value is within its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where clients connect.
    pub listen: Address,
    /// Where operators and the purge webhook connect.
    pub admin: Address,
    /// Permissions of the sockets where either is a path, as of a file.
    pub unix_mode: u32,
    /// What clients are shown where `listen` speaks TLS; none = it does not.
    pub tls: KeyPair,
    /// How often the files of `tls` and `upstream.tls` are looked at.
    pub tls_renew_interval: Duration,
    /// Secrets of the purge webhook, the newest first, each as good as the others: for Standard Webhooks
    /// signatures and as bearer tokens. None = anybody may call.
    pub webhook_secret: Vec<Secret>,
    /// Purges that the webhook takes in a second.
    pub webhook_max_purges: usize,
    /// Calls without a right secret that an address may make in a minute before they are told to wait.
    pub webhook_max_failures: usize,
    /// What becomes of reads that the cache could answer.
    pub mode: CacheMode,
    /// How many of the hits are read from the upstream as well, and compared.
    pub verify: SampleRate,
    /// Path templates of the job resource, each with one `{id}` segment.
    pub routes: Vec<String>,
    /// Query strings of reads.
    pub query: QueryConfig,
    /// Longest time an entry is kept.
    pub ttl: Duration,
    /// What states no lifetime is not stored.
    pub ttl_stated_only: bool,
    /// Shorter times by the state of the job.
    pub states: StateTtlConfig,
    /// Largest body that is stored, in bytes.
    pub max_body: usize,
    /// Bytes of answers on their way into the cache that are held in memory at most.
    pub max_captured: usize,
    /// Bytes of writes that rules look into, and of purges, that are held in memory at most.
    pub max_inspected: usize,
    /// Upstream reads that others may share, at a time; further readers read for themselves.
    pub max_flights: usize,
    /// How long fills stay refused after a write was answered (upstreams that read from a replica).
    pub settle: Duration,
    /// Whether `Cache-Control` and `Pragma` of a request are ignored, but for `only-if-cached`.
    pub ignore_client_cache_control: bool,
    /// The layer in this process, in front of Redis.
    pub near: NearConfig,
    /// One INFO line a request.
    pub access_log: bool,
    /// Filter of the log, as `tracing_subscriber::EnvFilter` reads it.
    pub log: String,
    /// How its lines look.
    pub log_format: LogFormat,
    /// How long a shutdown goes on accepting, while it is not ready any more.
    pub drain_delay: Duration,
    /// How long a shutdown waits for requests in flight.
    pub drain_timeout: Duration,
    /// Limits of the client side.
    pub server: ServerConfig,
    /// The backend.
    pub upstream: UpstreamConfig,
    /// Where entries live.
    pub store: StoreConfig,
    /// Invalidations that the store has not confirmed.
    pub pending: PendingConfig,
    /// What marks a request as somebody's.
    pub credentials: CredentialsConfig,
    /// Where spans go; none = nowhere. Only the environment can say.
    pub traces: Option<TracesConfig>,
    /// Which jobs are read ahead of clients, and how.
    pub warm: WarmConfig,
    /// Which further jobs a write changes. Only the file can say.
    pub invalidate: Vec<InvalidateRule>,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// A JSON object.
    Json,
}

/// What becomes of reads that the cache could answer. Writes and purges invalidate in every mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// The cache answers them.
    #[default]
    On,
    /// The upstream answers each; the cache is filled all the same, and what it would have answered
    /// is compared.
    Shadow,
    /// The upstream answers each, and the cache is neither asked nor filled.
    Off,
}

impl CacheMode {
    /// The word that the configuration has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

/// A part of a whole, in millionths, so that shares can be told equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleRate(u32);

impl SampleRate {
    /// The whole, in millionths.
    pub const WHOLE: u32 = 1_000_000;

    /// So many millionths, and no more than the whole.
    pub fn of_millionths(millionths: u32) -> Self {
        Self(millionths.min(Self::WHOLE))
    }

    /// In millionths.
    pub fn millionths(self) -> u32 {
        self.0
    }
}

/// Query strings of reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryConfig {
    /// Names of parameters that do not change the answer.
    pub ignore: Vec<String>,
    /// Names of parameters that change its form.
    pub allow: Vec<String>,
}

/// How long entries are kept by the state of their job, told by the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateTtlConfig {
    /// Where the body tells it.
    pub pointer: Pointer,
    /// Each state, as text, and its time; none = states do not matter.
    pub map: Vec<(String, Duration)>,
}

/// Limits of the client side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Threads that serve; 0 = half of the CPUs that the process may use, and at least one.
    pub workers: usize,
    /// Client connections at a time; further ones wait in the listen backlog.
    pub max_connections: usize,
    /// Requests being answered at a time, over all connections; further ones are answered 503.
    pub max_requests: usize,
    /// From the end of one request to the end of the next one's head: how long an idle connection
    /// is kept, and how slowly a head may come. Longer than load balancers keep theirs (60 s), or
    /// they send requests into connections that we are closing.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what it is sent.
    pub write_timeout: Duration,
    /// Bytes a second that an upload has to bring on average until it is answered; 0 = none.
    pub min_upload_rate: usize,
    /// Header fields in a head, of requests and of the upstream's answers. Past 100 the parser
    /// takes memory from the heap for each head.
    pub max_headers: usize,
    /// Bytes in a head, of requests and of the upstream's answers.
    pub max_header_bytes: usize,
    /// Bytes in the path and query of a request.
    pub max_uri: usize,
    /// Requests at a time over one HTTP/2 connection.
    pub max_streams: usize,
    /// Streams of one HTTP/2 connection that were reset before we came to look at them.
    pub max_pending_resets: usize,
    /// Streams of one HTTP/2 connection that we reset for what was wrong with them.
    pub max_faulty_streams: usize,
    /// Whether the upstream sees header names as the client spells them, and not in lower case. It
    /// costs an allocation for each request, hits included.
    pub preserve_header_case: bool,
    /// Whether another process may listen on `listen` as well, to take over from this one.
    pub reuse_port: bool,
    /// Whether each connection begins with a header of the PROXY protocol, which tells who asks.
    pub proxy_protocol: bool,
    /// From whom that header, `Forwarded` and `X-Forwarded-*` are taken. Who comes by a unix socket
    /// is trusted.
    pub trusted_proxies: Vec<IpNet>,
}

/// The backend and how patient we are with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// `http://host[:port]`, `https://host[:port]` or `unix:/path`, without a path of requests.
    pub url: String,
    /// Where that is `https`.
    pub tls: ClientTls,
    /// TCP connect.
    pub connect_timeout: Duration,
    /// From the last byte of the request sent to the response head.
    pub response_timeout: Duration,
    /// Between two parts of a response body.
    pub body_timeout: Duration,
    /// How long an unused connection is kept: shorter than the upstream's keep-alive (uvicorn: 5 s).
    pub idle_timeout: Duration,
    /// Unused connections kept at most.
    pub max_idle: usize,
    /// Requests to the upstream at a time, each over a connection of its own, upgrades included;
    /// further ones wait for `connect_timeout`.
    pub max_connections: usize,
    /// How many may wait so at a time.
    pub max_waiting: usize,
}

/// Where entries live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Which store, and where.
    pub url: StoreUrl,
    /// Who we are there, where the URL does not say.
    pub login: StoreLogin,
    /// Where the URL's scheme says that TLS is spoken.
    pub tls: ClientTls,
    /// Of the sentinels, where the URL names some.
    pub sentinel: SentinelConfig,
    /// Before the job id in the key.
    pub prefix: String,
    /// What the store may cost one request, over all its operations.
    pub budget: Duration,
    /// Life of the right to fill.
    pub lease: Duration,
    /// How long fills stay refused after a write of unknown outcome.
    pub linger: Duration,
    /// Bodies of more bytes are compressed; none = no body is.
    pub compress_above: Option<usize>,
    /// Bytes of bodies the embedded store keeps at most.
    pub memory_max: usize,
}

/// How sentinels are spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentinelConfig {
    /// Who we are there. What is told to Redis is not told to them.
    pub login: StoreLogin,
    /// Whether they speak TLS; none = as Redis does.
    pub tls: Option<bool>,
}

/// The layer in this process, in front of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearConfig {
    /// When what it holds may be used.
    pub mode: NearMode,
    /// How old the news of changes may be in [`NearMode::Bounded`].
    pub max_staleness: Duration,
    /// Bytes that its entries take at most.
    pub max_bytes: usize,
    /// Of which changes Redis tells it.
    pub tracking: NearTracking,
}

/// Of which changes in Redis this process is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearTracking {
    /// Of those of every job.
    Broadcast,
    /// Of those of the jobs that it has read since they changed last.
    Keys,
}

/// When an entry in this process may be used though Redis was not asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearMode {
    /// Once Redis has answered a `PING` that was sent after the request came, so that nothing older
    /// than the guarantee allows is served. Requests share the `PING`.
    Strict,
    /// While the last such answer is young enough.
    Bounded,
    /// Never: each hit asks Redis.
    Off,
}

impl NearMode {
    /// The word that the configuration has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Bounded => "bounded",
            Self::Off => "off",
        }
    }
}

/// Invalidations that the store has not confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingConfig {
    /// Ids at most; past it reads in the slot of each bypass the cache until a purge of all is confirmed.
    pub limit: usize,
    /// A file that they are kept in, synced, to survive a restart.
    pub journal: Option<PathBuf>,
}

/// What marks a request as somebody's, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsConfig {
    /// How requests that carry one are treated.
    pub mode: CredentialMode,
    /// Header names, lower case.
    pub headers: Vec<String>,
    /// Names of the cookies that count; all of them where there are none.
    pub cookies: Vec<String>,
    /// Keys the fingerprints; without one the store keeps a key for all sidecars.
    pub secret: Option<Secret>,
    /// Audience pairs of an entry at most.
    pub audience: usize,
    /// How long after the upstream has served an entry to a pair it is believed to still do so; none
    /// = as long as the entry is kept.
    pub recheck: Option<Duration>,
}

/// How requests that carry a credential are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialMode {
    /// Each is given only what the upstream has served to it.
    Partition,
    /// All are given the same: a gateway in front has authorised them.
    Shared,
    /// They pass uncached.
    Bypass,
}

impl CredentialMode {
    /// The word that the configuration has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::Shared => "shared",
            Self::Bypass => "bypass",
        }
    }
}

/// Which jobs are read before a client asks, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmConfig {
    /// A file of ids that are read at the start.
    pub file: Option<PathBuf>,
    /// Path and query of a list of jobs at the upstream, whose jobs are read at the start.
    pub list: Option<Uri>,
    /// Where in that list the ids are.
    pub pointer: Pointer,
    /// What the reads say beside their path; values may be secret.
    pub headers: Vec<(HeaderName, Secret)>,
    /// Their `Authorization`.
    pub authorization: Option<Secret>,
    /// Reads a second at most.
    pub rate: usize,
    /// Jobs that wait to be read at most.
    pub max: usize,
}

/// A secret that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`, unchecked: the limits of a configured secret are those of its knob.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that compares or signs with it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The key of Standard Webhooks signatures made with it. One that begins with `whsec_` is base64, any
    /// other is taken as it is; none, if it is no base64 after all.
    pub fn key(&self) -> Option<Vec<u8>> {
        match self.0.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).ok(),
            None => Some(self.0.clone().into_bytes()),
        }
    }
}

/// Where the upstream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP, to `host:port`.
    Tcp(String),
    /// TLS over TCP.
    Tls {
        /// `host:port`, to connect to.
        authority: String,
        /// The name to ask for and to find in the certificate.
        name: String,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl ServerConfig {
    /// Bytes that a connection may buffer in each direction: room for a head and for what TCP takes at
    /// once. It is what a client that stops reading makes us hold.
    pub fn buffer(&self) -> usize {
        self.max_header_bytes + (64 << 10)
    }
}

impl UpstreamConfig {
    /// Where it is, with the default port of its scheme where it names none.
    pub fn endpoint(&self) -> Endpoint {
        if let Some(path) = self.url.strip_prefix("unix:") {
            return Endpoint::Unix(PathBuf::from(path));
        }
        let (port, rest) = match self.url.strip_prefix("https://") {
            Some(rest) => (443, rest),
            None => (80, self.url.trim_start_matches("http://")),
        };
        let given = rest.trim_end_matches('/');
        let parsed = given.parse::<Authority>().ok();
        let authority = match &parsed {
            Some(parsed) if parsed.port().is_none() => format!("{given}:{port}"),
            _ => given.to_owned(),
        };
        if port == 80 {
            return Endpoint::Tcp(authority);
        }
        let host = parsed.as_ref().map_or(given, Authority::host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = self.tls.server_name.clone().unwrap_or_else(|| host.to_owned());
        Endpoint::Tls { authority, name }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
