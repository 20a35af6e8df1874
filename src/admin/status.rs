//! The status page (`GET /`) and its data, as JSON: `GET /status`, and `GET /history` for the plots of
//! the last ten minutes. Prometheus uses `/metrics` instead.
//!
//! The page is one response with everything in it, so that it works where only this listener can be
//! reached. It contains no data: its script fetches `/status`, `/history` and `/events`, with the
//! webhook secret if one is configured. The page itself can therefore be open to all clients.
//!
//! Job ids come from clients. The script only ever inserts them as text, and the content security
//! policy enforces it: only the script with this hash runs, no string becomes markup
//! (`require-trusted-types-for`), and nothing is fetched from other hosts.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hmac_sha256::Hash;
use hyper::{
    StatusCode,
    http::{
        HeaderValue,
        header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY},
    },
};
use serde_json::{Map, Value, json};

use super::{
    admin_state::{AdminState, StatusSources},
    recent::{CounterSnapshot, ReasonCount, Recent},
    reply::{Reply, complete, typed_reply},
};
use crate::{
    cache::{Cache, ComparisonResult},
    config::{self, Config, StoreUrl},
    limits::Limit,
    observe::metrics::{Counters, RecentTimes},
    proxy::metrics::{PushMetrics, RequestTotals},
    store::{NodeStatus, Store},
    upstream::metrics::UpstreamMetrics,
};

/// Number of busiest jobs in `/status`.
const BUSIEST_JOBS: usize = 20;
/// Seconds between two points of the history.
const STEP_S: usize = 2;
/// Time windows and their length in seconds.
const WINDOWS_S: [(&str, usize); 2] = [("last_minute", 60), ("last_10_minutes", 600)];

/// Reads the current use of a limit.
type ReadUse = fn(&StatusSources, &Cache) -> i64;

/// Each limit with its value and its current use.
type LimitUses = [(Limit, usize, ReadUse); 9];

/// The part of the configuration that `/status` shows.
#[derive(Clone, Debug)]
pub(super) struct StatusConfig {
    pub(super) cache: config::CacheMode,
    pub(super) push: config::PushConfig,
    store: &'static str,
    near: &'static str,
    credentials: &'static str,
    limits: LimitUses,
    near_bytes: usize,
    routes: Arc<[String]>,
}

impl StatusConfig {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            cache: config.cache.mode,
            push: config.push.clone(),
            store: match config.store.url {
                StoreUrl::Memory => "memory",
                StoreUrl::Redis(_) | StoreUrl::Sentinel(_) => "redis",
                StoreUrl::Cluster(_) => "redis-cluster",
            },
            near: config.cache.near.mode.as_str(),
            credentials: config.cache.credentials.mode.as_str(),
            limits: limit_uses(config),
            near_bytes: config.cache.near.max_bytes,
            routes: config.api.routes().into_iter().map(|route| route.path).collect(),
        }
    }
}

fn limit_uses(config: &Config) -> LimitUses {
    let Config { server, upstream, push, .. } = config;
    let cache = &config.cache.limits;
    [
        (Limit::Connections, server.max_connections, |s, _| s.connections.get()),
        (Limit::Requests, server.max_requests, |s, _| s.proxy.in_flight.get()),
        (Limit::Waiting, push.max_waiting, |s, _| s.proxy.push.waiting.get()),
        (Limit::Flights, cache.max_flights, |_, cache| cache.metrics().flights.get()),
        (Limit::Captured, cache.max_captured, |_, cache| cache.metrics().captured.get()),
        (Limit::Inspected, cache.max_inspected, |s, _| s.proxy.inspected.get()),
        (Limit::UpstreamConnections, upstream.max_connections, |s, _| {
            s.upstream.connections.in_use.get()
        }),
        (Limit::UpstreamStreams, upstream.max_streams, |s, _| s.upstream.connections.streams.get()),
        (Limit::UpstreamWaiting, upstream.max_waiting, |s, _| s.upstream.connections.waiting.get()),
    ]
}

/// The body of `/status`.
pub(super) fn status(cache: &Cache, state: &AdminState, mode: &StatusConfig) -> Value {
    let StatusSources { proxy, upstream, recent, .. } = &state.status;
    let reason_counts = recent.reasons();
    let near = &cache.metrics().near;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": recent.uptime().as_secs(),
        "draining": *state.drain.borrow(),
        "mode": {
            "cache": mode.cache.as_str(),
            "store": mode.store,
            "near": mode.near,
            "credentials": mode.credentials,
        },
        "routes": *mode.routes,
        "requests": requests(recent, &proxy.requests.totals()),
        "reasons": reasons(&reason_counts, |reason| reason.total),
        "reasons_last_minute": reasons(&reason_counts, |reason| reason.last_minute),
        "shadow": comparison_counts(&proxy.comparisons.shadow),
        "verify": comparison_counts(&proxy.comparisons.verify),
        "latency_ms": latencies(recent),
        "push": push(&proxy.push, &mode.push),
        "silent_changes": silent_changes(cache),
        "aside": aside(cache),
        "store": store(cache),
        "upstream": upstream_use(upstream),
        "near": {
            "entries": near.entries.get(),
            "bytes": near.bytes.get(),
            "max_bytes": mode.near_bytes,
        },
        "busiest": state.events.busiest(BUSIEST_JOBS),
        "limits": limits(cache, state, mode),
    })
}

fn latencies(recent: &Recent) -> Value {
    let [hit, miss, upstream, store] = recent.times.each_ref().map(|times| latency(times));
    json!({ "hit": hit, "miss": miss, "upstream": upstream, "store": store })
}

fn upstream_use(upstream: &UpstreamMetrics) -> Value {
    let UpstreamMetrics { up, connections, .. } = upstream;
    json!({
        "up": up.get() == 1,
        "in_use": connections.in_use.get(),
        "streams": connections.streams.get(),
        "waiting": connections.waiting.get(),
        "idle": connections.idle.get(),
    })
}

fn store(cache: &Cache) -> Value {
    let store = cache.store();
    json!({
        "up": store.is_up(),
        "breaker": if store.is_breaker_open() { "open" } else { "closed" },
        "tracking": store.metrics().tracking.up.get() == 1,
        "problem": store.problem().map(|problem| json!({
            "kind": problem.diagnosis.as_str(),
            "commands": problem.commands,
            "remedy": problem.remedy,
        })),
        "pending_invalidations": store.pending(),
        // With what other processes with the same setting have not confirmed.
        "journal": store.journal().map(|journal| json!({
            "path": journal.path.to_string_lossy(),
            "siblings": journal.siblings,
            "sibling_invalidations": journal.sibling_invalidations,
        })),
        "nodes": nodes(store),
    })
}

/// Clients that wait, and the news that they got.
fn push(metrics: &PushMetrics, config: &config::PushConfig) -> Value {
    json!({
        "mode": config.mode.as_str(),
        "held_polls": metrics.held_polls.get(),
        "open_streams": metrics.open_streams.get(),
        "topics": metrics.topics.get(),
        "delivered": metrics.delivered(),
        "delivery_ms": latency(&metrics.recent),
        "woken": metrics.woken.get(),
        "rechecks": metrics.rechecks.get(),
        "refused": metrics.refused.get(),
        "max_waiting": config.max_waiting,
    })
}

/// Jobs that changed without a purge, in all and by route.
fn silent_changes(cache: &Cache) -> Value {
    json!({ "total": cache.metrics().silent_changes.get(), "routes": cache.silent_changes() })
}

/// The prefixes with jobs that the application caches itself, so that their reads pass.
fn aside(cache: &Cache) -> Value {
    let aside = cache.prefixes_aside().into_iter();
    aside.map(|(prefix, left)| json!({ "prefix": prefix, "left_s": left.as_secs() })).collect()
}

/// The masters of a cluster; empty if the store is not a cluster.
fn nodes(store: &Store) -> Value {
    let node = |node: &NodeStatus| {
        json!({
            "address": node.address,
            "slots": node.slots,
            "up": node.up,
            "tracked": node.tracked,
        })
    };
    store.nodes().iter().map(node).collect()
}

/// The body of `/history`: counts per step of the last ten minutes, and the 99th percentiles at the
/// end of each step.
pub(super) fn history(recent: &Recent) -> Value {
    let steps = recent.steps(STEP_S);
    let counts = |count: fn(&RequestTotals) -> u64| {
        steps.iter().map(|step| count(&step.totals)).collect::<Value>()
    };
    let p99 = |kind: usize| {
        let kind = |step: &CounterSnapshot| step.p99.get(kind).copied().flatten().map(millis);
        steps.iter().map(kind).collect::<Value>()
    };
    json!({
        "step_s": STEP_S,
        "hit": counts(|totals| totals.hits),
        "miss": counts(|totals| totals.misses),
        "pass": counts(|totals| totals.passes),
        "saved": counts(RequestTotals::saved),
        "p99_ms": { "hit": p99(0), "miss": p99(1), "upstream": p99(2), "store": p99(3) },
    })
}

/// Requests since the start and in each window, by outcome.
fn requests(recent: &Recent, now: &RequestTotals) -> Value {
    let mut windows = Map::new();
    windows.insert("life".into(), request_counts(now));
    for (name, seconds) in WINDOWS_S {
        let counts = request_counts(&now.since(&recent.totals_before(seconds)));
        windows.insert(name.into(), counts);
    }
    windows.into()
}

fn request_counts(totals: &RequestTotals) -> Value {
    let RequestTotals { hits, misses, joined, passes, others, writes, errors } = *totals;
    json!({
        "hit": hits,
        "miss": misses,
        "pass": passes,
        "other": others,
        "write": writes,
        "error": errors,
        "collapsed": joined,
        "reads": totals.reads(),
        "saved": totals.saved(),
        "hit_ratio": totals.hit_ratio(),
    })
}

/// Comparisons with the upstream by result.
fn comparison_counts(counts: &Counters<1>) -> Value {
    let results = ComparisonResult::WORDS.into_iter();
    let counts = results.map(|result| (result.to_owned(), counts.get([result]).into()));
    counts.collect::<Map<_, _>>().into()
}

/// Reasons why reads were not hits, in the words of `Cache-Status`. Reasons that did not occur are
/// left out.
fn reasons(reasons: &[ReasonCount], times: fn(&ReasonCount) -> u64) -> Value {
    let reasons_of = |outcome: &str| -> Map<String, Value> {
        let these = reasons.iter().filter(|reason| reason.outcome == outcome && times(reason) > 0);
        these.map(|reason| (reason.reason.to_owned(), times(reason).into())).collect()
    };
    json!({ "miss": reasons_of("miss"), "pass": reasons_of("pass") })
}

/// Latencies of the last one to two minutes, with an error of at most one eighth.
fn latency(times: &RecentTimes) -> Value {
    let ms = |part| times.quantile(part).map(millis);
    json!({ "p50": ms(0.5), "p99": ms(0.99), "samples": times.count() })
}

/// Milliseconds, from whole microseconds so that the number has at most three decimals.
fn millis(took: Duration) -> f64 {
    f64::from(u32::try_from(took.as_micros()).unwrap_or(u32::MAX)) / 1e3
}

/// The use of each limit, by the name of its setting. Those of push are left out while it is off.
fn limits(cache: &Cache, state: &AdminState, mode: &StatusConfig) -> Value {
    let is_on = mode.push.mode != config::PushMode::Off;
    let limits = mode.limits.iter().filter(|(limit, ..)| is_on || *limit != Limit::Waiting);
    let limits = limits.map(|&(limit, max, used)| {
        let met = state.metrics.limits.counter(limit).get();
        let used = used(&state.status, cache);
        let usage = json!({ "used": used, "limit": max, "times_met": met });
        (limit.as_str().to_owned(), usage)
    });
    limits.collect::<Map<_, _>>().into()
}

const HTML: &str = include_str!("status_page/index.html");
const STYLE: &str = include_str!("status_page/style.css");
/// The files form one script. Each may use what the files before it define.
const SCRIPT: &str = concat!(
    include_str!("status_page/shared.js"),
    include_str!("status_page/fetch_json.js"),
    include_str!("status_page/plots.js"),
    include_str!("status_page/status.js"),
    include_str!("status_page/comparison.js"),
    include_str!("status_page/explain_job.js"),
    include_str!("status_page/event_stream.js"),
    include_str!("status_page/refresh.js"),
);

/// The complete status page.
#[derive(Debug)]
pub(super) struct StatusPage {
    page: Bytes,
    policy: HeaderValue,
}

impl StatusPage {
    pub(super) fn new() -> Self {
        let page = HTML
            .replacen("<style></style>", &format!("<style>{STYLE}</style>"), 1)
            .replacen("<script></script>", &format!("<script>{SCRIPT}</script>"), 1);
        let policy = HeaderValue::from_str(&content_security_policy())
            // Cannot fail, because the policy is ASCII. The fallback disables the page.
            .unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"));
        Self { page: page.into(), policy }
    }

    pub(super) fn reply(&self) -> Reply {
        let page = complete(self.page.clone());
        let mut response = typed_reply(StatusCode::OK, "text/html; charset=utf-8", page);
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }
}

/// The content security policy. The only image is the icon, which is a `data:` URL.
fn content_security_policy() -> String {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Hash::hash(text.as_bytes())));
    let (script, style) = (hash(SCRIPT), hash(STYLE));
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::policy::{Bypass, NoStore};

    #[test]
    fn the_page_and_the_documentation_say_what_each_reason_means() {
        let documentation = include_str!("../../docs/troubleshooting.md");
        for why in Bypass::WORDS.into_iter().chain(NoStore::WORDS) {
            let entries = [format!("\n  {why}: ["), format!("\n  '{why}': [")];
            assert!(entries.iter().any(|entry| SCRIPT.contains(entry)), "{why} is not explained");
            let is_documented = [format!("`{why}`"), format!("detail={why}`")];
            assert!(is_documented.iter().any(|word| documentation.contains(word)), "{why}");
        }
    }

    #[test]
    fn every_part_has_its_place_in_the_page() {
        let page = String::from_utf8(StatusPage::new().page.into()).unwrap();
        for part in [STYLE, SCRIPT] {
            assert_eq!(page.matches(part).count(), 1);
        }
        assert!(!SCRIPT.contains("</script") && !STYLE.contains("</style"));
    }
}
