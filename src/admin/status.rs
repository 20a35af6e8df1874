//! `GET /status`: how it goes, for people and for the status page; `GET /history`: how the last ten
//! minutes went, for its plots. Prometheus has `/metrics`.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::live::busy;
use crate::{
    cache::{
        Cache,
        policy::{Bypass, NoStore},
    },
    config::{self, Config, StoreUrl},
    metrics::{
        Evidence, Limit, Metrics, Reason,
        recent::{Look, Times, Totals},
    },
    store::{Node, Store},
};

/// The busiest jobs that are told.
const BUSIEST: usize = 20;
/// Between two points of the history, in seconds.
const STEP: usize = 2;
/// Windows, in seconds.
const WINDOWS: [(&str, usize); 2] = [("last_minute", 60), ("last_10_minutes", 600)];

/// How much there is of something.
type Used = fn(&Metrics) -> i64;

/// What the configuration says that is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    cache: config::CacheMode,
    store: &'static str,
    near: &'static str,
    credentials: &'static str,
    /// What there may be of each, and how much there is.
    limits: [(Limit, usize, Used); 7],
    near_bytes: usize,
}

impl Mode {
    pub(super) fn of(config: &Config) -> Self {
        let (server, upstream) = (&config.server, &config.upstream);
        Self {
            cache: config.mode,
            store: match config.store.url {
                StoreUrl::Memory => "memory",
                StoreUrl::Redis(_) | StoreUrl::Sentinel(_) => "redis",
                StoreUrl::Cluster(_) => "redis-cluster",
            },
            near: config.near.mode.as_str(),
            credentials: config.credentials.mode.as_str(),
            limits: [
                (Limit::Connections, server.max_connections, |m| m.connections.get()),
                (Limit::Requests, server.max_requests, |m| m.limits.requests.get()),
                (Limit::Flights, config.max_flights, |m| m.limits.flights.get()),
                (Limit::Captured, config.max_captured, |m| m.limits.captured.get()),
                (Limit::Inspected, config.max_inspected, |m| m.limits.inspected.get()),
                (Limit::UpstreamConnections, upstream.max_connections, |m| m.upstream.in_use.get()),
                (Limit::UpstreamWaiting, upstream.max_waiting, |m| m.upstream.waiting.get()),
            ],
            near_bytes: config.near.max_bytes,
        }
    }

    /// What the cache answers.
    pub(super) fn cache(&self) -> config::CacheMode {
        self.cache
    }
}

/// All of it.
pub(super) fn status(cache: &Cache, metrics: &Metrics, mode: &Mode, draining: bool) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": metrics.recent.uptime().as_secs(),
        "draining": draining,
        "mode": {
            "cache": mode.cache.as_str(),
            "store": mode.store,
            "near": mode.near,
            "credentials": mode.credentials,
        },
        "requests": requests(metrics),
        "reasons": reasons(metrics, |reason| reason.life),
        "reasons_last_minute": reasons(metrics, |reason| reason.last_minute),
        "shadow": evidence(|found| metrics.trials.shadow_count(found)),
        "verify": evidence(|found| metrics.trials.verify_count(found)),
        "latency_ms": latencies(metrics),
        "store": store(cache, metrics),
        "upstream": upstream(metrics),
        "near": {
            "entries": metrics.near.entries.get(),
            "bytes": metrics.near.bytes.get(),
            "max_bytes": mode.near_bytes,
        },
        "busiest": metrics.events.busiest(BUSIEST).iter().map(busy).collect::<Value>(),
        "limits": limits(metrics, mode),
    })
}

fn latencies(metrics: &Metrics) -> Value {
    let times = &metrics.recent;
    json!({
        "hit": latency(&times.hit_times),
        "miss": latency(&times.miss_times),
        "upstream": latency(&times.upstream_times),
        "store": latency(&times.store_times),
    })
}

fn store(cache: &Cache, metrics: &Metrics) -> Value {
    let store = cache.store();
    json!({
        "up": store.is_up(),
        "breaker": if store.is_up() { "closed" } else { "open" },
        "tracking": metrics.tracking_up.get() == 1,
        "pending_invalidations": store.pending(),
        "nodes": nodes(store),
    })
}

fn upstream(metrics: &Metrics) -> Value {
    let upstream = &metrics.upstream;
    json!({
        "up": upstream.up.get() == 1,
        "in_use": upstream.in_use.get(),
        "waiting": upstream.waiting.get(),
        "idle": upstream.idle.get(),
    })
}

/// The masters of a cluster; none where the store is no cluster.
fn nodes(store: &Store) -> Value {
    let node = |node: &Node| {
        json!({
            "address": node.address,
            "slots": node.slots,
            "up": node.up,
            "tracked": node.tracked,
        })
    };
    store.nodes().iter().map(node).collect()
}

/// What was counted in each step of the last ten minutes, and the 99th percentiles at its end.
pub(super) fn history(metrics: &Metrics) -> Value {
    let steps = metrics.recent.steps(STEP);
    let counts =
        |of: fn(&Totals) -> u64| steps.iter().map(|step| of(&step.totals)).collect::<Value>();
    let p99 = |kind: usize| {
        let kind = |step: &Look| step.p99.get(kind).copied().flatten().map(ms);
        steps.iter().map(kind).collect::<Value>()
    };
    json!({
        "step_s": STEP,
        "hit": counts(|totals| totals.hits),
        "miss": counts(|totals| totals.misses),
        "pass": counts(|totals| totals.passes),
        "saved": counts(Totals::saved),
        "p99_ms": { "hit": p99(0), "miss": p99(1), "upstream": p99(2), "store": p99(3) },
    })
}

/// Since the process began, and lately.
fn requests(metrics: &Metrics) -> Value {
    let now = metrics.totals();
    let mut windows = Map::new();
    windows.insert("life".into(), counted(&now));
    for (name, seconds) in WINDOWS {
        windows.insert(name.into(), counted(&now.since(&metrics.recent.before(seconds))));
    }
    windows.into()
}

fn counted(totals: &Totals) -> Value {
    let Totals { hits, misses, joined, passes, others, writes, errors } = *totals;
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

/// Comparisons with the upstream by what they came to.
fn evidence(count: impl Fn(Evidence) -> u64) -> Value {
    let counts =
        Evidence::ALL.iter().map(|found| (found.as_str().to_owned(), count(*found).into()));
    Value::Object(counts.collect())
}

/// Why reads were not hits, by the words of `Cache-Status`; only what there was.
fn reasons(metrics: &Metrics, times: fn(&Reason) -> u64) -> Value {
    let reasons = metrics.reasons();
    let of = |outcome: &str| -> Map<String, Value> {
        let these = reasons.iter().filter(|reason| reason.outcome == outcome && times(reason) > 0);
        these.map(|reason| (reason.why.to_owned(), times(reason).into())).collect()
    };
    json!({ "miss": of("miss"), "pass": of("pass") })
}

/// The outcomes and reasons that there are, for [`Metrics::watch`].
pub fn outcomes() -> impl Iterator<Item = (&'static str, &'static str)> {
    let bypass = || Bypass::ALL.iter().map(|why| why.as_str());
    // A word that is both is told once.
    let no_store = NoStore::ALL.iter().map(|why| why.as_str());
    let no_store = no_store.filter(move |why| bypass().all(|other| other != *why));
    let miss = bypass().chain(no_store).map(|why| ("miss", why));
    miss.chain(bypass().map(|why| ("pass", why)))
}

/// Of the last one to two minutes, right within an eighth.
fn latency(times: &Times) -> Value {
    let ms = |part| times.quantile(part).map(ms);
    json!({ "p50": ms(0.5), "p99": ms(0.99), "samples": times.count() })
}

/// Not by seconds, whose digits would show.
fn ms(took: Duration) -> f64 {
    f64::from(u32::try_from(took.as_micros()).unwrap_or(u32::MAX)) / 1e3
}

/// What is in use of each limit, by the name of its setting.
fn limits(metrics: &Metrics, mode: &Mode) -> Value {
    let told = mode.limits.iter().map(|&(limit, most, used)| {
        let met = metrics.limits.counter(limit).get();
        let told = json!({ "used": used(metrics), "limit": most, "times_met": met });
        (limit.as_str().to_owned(), told)
    });
    told.collect::<Map<_, _>>().into()
}
