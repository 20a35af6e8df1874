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
mod changes;
mod constraints;
mod defaults;
mod env;
mod file;
mod invalidate_rules;
mod layers;
mod load;
mod log_directives;
mod near_config;
mod parse;
mod raw_value;
mod reference_toml;
mod responses_config;
mod sample_rate;
mod server_config;
mod setter;
mod setting_spec;
mod settings;
mod settings_page;
mod store_config;
mod store_url;
mod suggest;
#[cfg(test)]
mod tests;
mod tls_files;
mod trace_variables;
mod traces;
mod upstream_config;
mod url;
mod value_bounds;
mod warm_config;

use std::time::Duration;

pub use address::ListenAddress;
pub use changes::{OverriddenChange, SettingChange};
pub use invalidate_rules::rule_keys;
pub use load::{Flags, InvalidConfig, LoadedConfig};
pub use log_directives::{filter as log_filter, parsed as parsed_log_filter};
pub use near_config::{NearConfig, NearMode, NearTracking};
pub use raw_value::RawValue;
pub use reference_toml::reference_toml;
pub use responses_config::{ResponsesConfig, carries_meaning};
pub use sample_rate::SampleRate;
pub use server_config::{HEADERS_ON_STACK, ServerConfig};
pub use setting_spec::{FlagSpec, ReloadClass, SettingSection, SettingSpec};
pub use settings::{SECTIONS, setting, settings};
pub use settings_page::settings_page;
pub use store_config::{PendingConfig, SentinelConfig, StoreConfig};
pub use store_url::{ClusterSeeds, Sentinels, StoreLogin, StoreUrl};
pub use tls_files::{ClientTls, Identity, KeyPair};
pub use traces::TracesConfig;
pub use upstream_config::{Endpoint, UpstreamConfig};
pub use warm_config::WarmConfig;

pub use crate::semantics::settings::{
    CredentialMode, CredentialsConfig, InvalidateRule, OnMiss, QueryConfig, Secret, StateTtlConfig,
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
    /// Secrets of the purge webhook, the newest first; all of them are accepted, for Standard
    /// Webhooks signatures and as bearer tokens. If it is empty, every caller may purge.
    pub webhook_secret: Vec<Secret>,
    /// Purge calls per second.
    pub webhook_max_purges: usize,
    /// Calls per minute and address without a valid secret.
    pub webhook_max_failures: usize,
    /// Whether reads are answered from the cache.
    pub mode: CacheMode,
    /// Share of the hits that are also read from the upstream and compared.
    pub verify: SampleRate,
    /// Name of the API, for APIs that share a Redis.
    pub api: Option<String>,
    /// Path templates of the job resource, each with one `{id}` segment.
    pub routes: Vec<String>,
    /// Query parameters of reads.
    pub query: QueryConfig,
    /// Longest lifetime of an entry.
    pub ttl: Duration,
    /// Responses that state no lifetime are not stored.
    pub ttl_stated_only: bool,
    /// Shorter lifetimes by the state of the job.
    pub states: StateTtlConfig,
    /// Largest body that is stored, in bytes.
    pub max_body: usize,
    /// Memory for answers that are on their way into the cache, in bytes.
    pub max_captured: usize,
    /// Memory for bodies that rules read, in bytes; the bodies of purges have as much again.
    pub max_inspected: usize,
    /// Upstream reads that several clients may share at a time.
    pub max_flights: usize,
    /// Time after a write is answered during which fills are refused (for upstreams that read from
    /// a replica).
    pub settle: Duration,
    /// `Cache-Control` and `Pragma` of requests are ignored, except `only-if-cached`.
    pub ignore_client_cache_control: bool,
    /// Entries in this process.
    pub near: NearConfig,
    /// One INFO line for each request.
    pub access_log: bool,
    /// Log filter in the syntax of `tracing_subscriber::EnvFilter`.
    pub log: String,
    /// Format of a log line.
    pub log_format: LogFormat,
    /// Time for which a shutdown still accepts connections while it reports not to be ready.
    pub drain_delay: Duration,
    /// Time for which a shutdown then waits for running requests.
    pub drain_timeout: Duration,
    /// Limits for clients.
    pub server: ServerConfig,
    /// The API.
    pub upstream: UpstreamConfig,
    /// Redis, or the store of this process.
    pub store: StoreConfig,
    /// Invalidations that the store has not confirmed.
    pub pending: PendingConfig,
    /// Identity of callers.
    pub credentials: CredentialsConfig,
    /// Comparison of responses.
    pub responses: ResponsesConfig,
    /// Destination of spans. It has no setting: only the variables of OpenTelemetry set it.
    pub traces: Option<TracesConfig>,
    /// Jobs that are read before a client asks.
    pub warm: WarmConfig,
    /// Further jobs that a write changes. It has no setting: only the file can hold these tables.
    pub invalidate: Vec<InvalidateRule>,
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
