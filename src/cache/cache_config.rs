//! The configuration of the cache, parsed: what jobs and callers are called, and which responses are
//! stored for how long.

use std::time::Duration;

use hyper::http::HeaderMap;

use super::flight::CoalesceKey;
use crate::{
    config,
    semantics::{
        audience::{Caller, Fingerprinter},
        identity::{Identity, RouteIndex, Scopes},
        job_id::JobId,
        policy::{Policy, RequestDirectives},
    },
    store::{Budget, IdentityHash, Key},
};

/// Margin that is added to the upstream's response timeout, so that a fence outlives its write.
const FENCE_MARGIN: Duration = Duration::from_secs(10);

/// The configuration of requests, responses and times. A reload replaces it.
#[derive(Debug)]
pub(super) struct CacheConfig {
    pub(super) fingerprinter: Fingerprinter,
    pub(super) policy: Policy,
    pub(super) settings: CacheSettings,
}

#[derive(Debug)]
pub(super) struct CacheSettings {
    pub(super) prefix: String,
    pub(super) scopes: Scopes,
    /// Total time that one request may wait for the store.
    pub(super) store_budget: Duration,
    pub(super) settle: Duration,
    pub(super) linger: Duration,
    /// Time after which the fence of a write falls by itself if it is not renewed.
    pub(super) fence_ttl: Duration,
    /// Longest time after the response head of a write for which its fence stands until the bodies
    /// have ended.
    pub(super) body_fence_time: Duration,
    pub(super) max_audience: usize,
    pub(super) ignore_client_cache_control: bool,
    pub(super) compress_above: Option<usize>,
}

impl CacheConfig {
    pub(super) fn new(config: &config::Config) -> Self {
        let fingerprinter =
            Fingerprinter::new(&config.credentials).with_query(config.query.clone());
        Self {
            policy: policy(config, &fingerprinter),
            fingerprinter,
            settings: CacheSettings::from_config(config),
        }
    }

    /// Returns a new budget: the total time that one request may wait for the store.
    pub(super) fn budget(&self) -> Budget {
        Budget::new(self.settings.store_budget)
    }

    /// Returns the name of a job for people: its key without the prefix.
    pub(super) fn id<'k>(&self, key: &'k Key) -> &'k str {
        let name = key.main();
        name.strip_prefix(self.settings.prefix.as_str()).unwrap_or(name)
    }

    pub(super) fn coalesce_key(&self, caller: Caller, identity: IdentityHash) -> CoalesceKey {
        CoalesceKey { caller: self.fingerprinter.coalesce_key(caller), identity }
    }

    /// Returns what an entry under a key is of, for requests at this route.
    pub(super) fn identity<'i>(&'i self, key: &'i Key, route: RouteIndex) -> Identity<'i> {
        self.settings.scopes.identity(route, self.id(key))
    }

    pub(super) fn directives(&self, headers: &HeaderMap) -> RequestDirectives {
        let directives = RequestDirectives::of(headers);
        if self.settings.ignore_client_cache_control {
            directives.without_advisory()
        } else {
            directives
        }
    }

    pub(super) fn key(&self, id: &JobId) -> Key {
        Key::new(&self.settings.prefix, id.as_str())
    }
}

impl CacheSettings {
    fn from_config(config: &config::Config) -> Self {
        Self {
            prefix: config.store.prefix.clone(),
            scopes: Scopes::new(config.api.as_deref(), &config.routes),
            store_budget: config.store.budget,
            settle: config.settle,
            linger: config.store.linger,
            fence_ttl: config.upstream.response_timeout + FENCE_MARGIN,
            body_fence_time: config.upstream.response_timeout,
            max_audience: config.credentials.audience,
            ignore_client_cache_control: config.ignore_client_cache_control,
            compress_above: config.store.compress_above,
        }
    }
}

fn policy(config: &config::Config, fingerprinter: &Fingerprinter) -> Policy {
    Policy {
        ttl: config.ttl,
        stated_only: config.ttl_stated_only,
        max_body: config.max_body,
        vary: fingerprinter.covered_headers().to_vec(),
        ignored: fingerprinter.ignored_headers().to_vec(),
        state_ttls: Some(config.states.clone()),
        cookies: config.credentials.cookies.clone(),
        // Parsing never fails: the names were checked when the configuration was loaded.
        volatile: config.responses.volatile.iter().filter_map(|name| name.parse().ok()).collect(),
    }
}
