//! Configuration from flags, environment, file and defaults, in this order of precedence.
//!
//! Every setting is one entry of the table in [`settings`]: its names, its default, its limits, its
//! text for users and the field that it sets. Flags, environment and file are each read into
//! `(setting, text, origin)`, the strongest source of a setting wins, and only then is the text
//! parsed. So each limit is written once, a message always names the origin of the value, and all
//! mistakes are reported at once (a derived deserializer stops at the first and knows no line).
//!
//! This module does not connect, resolve or bind anything: a sidecar starts even if a name does not
//! resolve yet.

mod address;
mod connection_config;
mod constraints;
mod derived_settings;
mod file_tables;
mod invalidate_rules;
mod load;
mod memory_limit;
mod parse;
mod route_tables;
mod setter;
mod setting_documents;
mod setting_sources;
mod setting_spec;
mod settings;
mod store_config;
mod store_login;
mod store_url;
#[cfg(test)]
mod tests;
mod traces;
mod url_options;

use std::{path::PathBuf, time::Duration};

use hyper::http::{HeaderName, Uri};

pub use self::{
    address::ListenAddress,
    connection_config::{
        ClientTls, Endpoint, HEADERS_ON_STACK, Identity, KeyPair, ServerConfig, TlsVerify,
        UpstreamConfig,
    },
    file_tables::TableSpec,
    load::{Flags, InvalidConfig, LoadedConfig, OverriddenChange, ProcessFacts, SettingChange},
    memory_limit::MemoryLimit,
    parse::{log_filter, parsed_log_filter},
    setter::RawValue,
    setting_documents::{reference_toml, settings_page},
    setting_sources::FILE_TABLES,
    setting_spec::{FlagSpec, ReloadClass, SettingSection, SettingSpec},
    settings::{SECTIONS, setting, settings},
    store_config::{PendingConfig, SentinelConfig, StoreConfig},
    store_login::StoreLogin,
    store_url::{ClusterSeeds, Sentinels, StoreUrl},
    traces::TracesConfig,
};
pub use crate::semantics::job_id::Ids;
use crate::semantics::json_pointer::JsonPointer;
pub use crate::semantics::{
    push_config::{FinalStates, PushConfig, PushMode},
    settings::{
        ApiConfig, CredentialMode, CredentialsConfig, InvalidateRule, OnMiss, QueryConfig,
        RouteConfig, Secret, StateTtlConfig,
    },
};

/// A checked configuration: every value is within its limits.
///
/// The table of [`settings`] has the defaults and the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address for clients.
    pub listen: ListenAddress,
    /// Address for operators and the purge webhook.
    pub admin: ListenAddress,
    /// File permissions of the listening unix sockets.
    pub unix_mode: u32,
    /// Certificate for clients; without one `listen` speaks plain HTTP.
    pub tls: KeyPair,
    /// Interval at which the files of `tls`, `upstream.tls` and `store.tls` are checked for changes.
    pub tls_renew_interval: Duration,
    /// The purge webhook.
    pub webhook: WebhookConfig,
    /// What is logged.
    pub log: LogConfig,
    /// The end of the process.
    pub drain: DrainConfig,
    /// What the requests of the API mean.
    pub api: ApiConfig,
    /// What is cached, for which callers and for how long.
    pub cache: CachingConfig,
    /// Limits for clients.
    pub server: ServerConfig,
    /// The API's address and how it is reached.
    pub upstream: UpstreamConfig,
    /// Redis, or the store of this process.
    pub store: StoreConfig,
    /// Invalidations that the store has not confirmed.
    pub pending: PendingConfig,
    /// Destination of spans. It has no setting: only the variables of OpenTelemetry set it.
    pub traces: Option<TracesConfig>,
    /// Jobs that are read before a client asks.
    pub warm: WarmConfig,
    /// Answers that wait for the next version of a job.
    pub push: PushConfig,
}

impl Config {
    /// Returns the prefixes of keys: first `store.prefix`, then those of routes with one of their own.
    pub fn prefixes(&self) -> Vec<String> {
        let own = self.api.prefixes().into_iter().skip(1).map(str::to_owned);
        [self.store.prefix.clone()].into_iter().chain(own).collect()
    }
}

/// Who may purge, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookConfig {
    /// Secrets of the purge webhook, the newest first; all of them are accepted, for Standard
    /// Webhooks signatures and as bearer tokens. If it is empty, every caller may purge.
    pub secrets: Vec<Secret>,
    /// Purge calls per second.
    pub max_purges: usize,
    /// Calls per minute and address without a valid secret.
    pub max_failures: usize,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// One INFO line for each request.
    pub access: bool,
    /// Log filter in the syntax of `tracing_subscriber::EnvFilter`.
    pub filter: String,
    /// Format of a log line.
    pub format: LogFormat,
}

/// How long a shutdown takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainConfig {
    /// Time for which a shutdown still accepts connections while it reports not to be ready.
    pub delay: Duration,
    /// Time for which a shutdown then waits for running requests.
    pub timeout: Duration,
}

/// What is cached, for which callers and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachingConfig {
    /// Whether reads are answered from the cache.
    pub mode: CacheMode,
    /// Share of the hits that are also read from the upstream and compared.
    pub verify: SampleRate,
    /// How long entries live.
    pub lifetimes: LifetimeConfig,
    /// How much memory the cache takes.
    pub limits: CacheLimits,
    /// Time after a write is answered during which fills are refused (for upstreams that read from
    /// a replica).
    pub settle: Duration,
    /// `Cache-Control` and `Pragma` of requests are ignored, except `only-if-cached`.
    pub ignore_client_cache_control: bool,
    /// Entries in this process.
    pub near: NearConfig,
    /// Identity of callers.
    pub credentials: CredentialsConfig,
    /// Comparison of responses.
    pub responses: ResponsesConfig,
}

/// How long entries live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifetimeConfig {
    /// Longest lifetime of an entry.
    pub ttl: Duration,
    /// Responses that state no lifetime are not stored.
    pub stated_only: bool,
    /// Shorter lifetimes by the state of the job.
    pub states: StateTtlConfig,
}

/// Limits of the memory and the upstream reads of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Largest body that is stored, in bytes.
    pub max_body: usize,
    /// Memory for answers that are on their way into the cache, in bytes.
    pub max_captured: usize,
    /// Memory for bodies that rules read, in bytes; the bodies of purges have as much again.
    pub max_inspected: usize,
    /// Upstream reads that several clients may share at a time.
    pub max_flights: usize,
}

/// Format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Human,
    /// One JSON object.
    Json,
}

/// Whether reads are answered from the cache. Writes and purges invalidate in every mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Hits are answered from the cache.
    #[default]
    On,
    /// The upstream answers every read. The cache is filled all the same, and what it would have
    /// answered is compared.
    Shadow,
    /// The upstream answers every read, and the cache is neither read nor filled.
    Off,
}

impl CacheMode {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

/// Entries in this process, in front of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearConfig {
    /// When an entry may be used.
    pub mode: NearMode,
    /// Largest age of the last confirmation in [`NearMode::Bounded`].
    pub max_staleness: Duration,
    /// Memory for the entries, in bytes.
    pub max_bytes: usize,
    /// Changes that Redis reports.
    pub tracking: NearTracking,
}

/// Changes in Redis that are reported to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearTracking {
    /// The changes of every job.
    Broadcast,
    /// The changes of jobs that this process has read since their last change.
    Keys,
}

/// When an entry in this process may be used without asking Redis for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearMode {
    /// After Redis has answered a `PING` that was sent after the request arrived, so that nothing
    /// older than the guarantee allows is served. Requests share the `PING`.
    Strict,
    /// While the last such answer is young enough.
    Bounded,
    /// Never: each hit asks Redis.
    Off,
}

impl NearMode {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Bounded => "bounded",
            Self::Off => "off",
        }
    }
}

/// Share of a whole in millionths, so that rates compare exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleRate(u32);

impl SampleRate {
    /// The whole, in millionths.
    pub const WHOLE: u32 = 1_000_000;

    /// A share of `millionths`, capped at the whole.
    pub fn of_millionths(millionths: u32) -> Self {
        Self(millionths.min(Self::WHOLE))
    }

    /// The share in millionths.
    pub fn millionths(self) -> u32 {
        self.0
    }
}

/// How responses are compared, and what of them is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponsesConfig {
    /// Names of headers, in lower case, that are neither stored nor compared, in addition to the
    /// built-in list.
    pub volatile: Vec<String>,
}

/// Beginnings of the names of headers that carry meaning, and whole names.
const MEANING_PREFIXES: [&str; 4] = ["access-control-", "content-", "cross-origin-", "sec-"];
const MEANING_NAMES: &str = "\
    accept-patch accept-ranges age allow authentication-info authorization cache-control \
    cdn-cache-control clear-site-data connection cookie date etag expires link location pragma \
    preference-applied proxy-authenticate referrer-policy refresh retry-after set-cookie \
    strict-transport-security surrogate-control trailer transfer-encoding upgrade vary \
    www-authenticate x-content-type-options x-frame-options";

/// Returns whether clients or jobcache act on a response header, so that it may not be left out of an
/// answer. `name` is in lower case.
pub fn carries_meaning(name: &str) -> bool {
    MEANING_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || MEANING_NAMES.split(' ').any(|known| known == name)
}

/// Jobs that are read before a client asks, and the requests that read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmConfig {
    /// File of ids that are read at the start.
    pub file: Option<PathBuf>,
    /// Path and query at the upstream of a list of jobs that are read at the start.
    pub list: Option<Uri>,
    /// Place of the ids in that list.
    pub pointer: JsonPointer,
    /// Header fields of the reads; values may be secret.
    pub headers: Vec<(HeaderName, Secret)>,
    /// `Authorization` of the reads.
    pub authorization: Option<Secret>,
    /// Reads per second.
    pub rate: usize,
    /// Jobs that may wait to be read.
    pub max: usize,
}
