//! Tools for operators: `/metrics`, the dashboard and the alerts under `config/`, and what
//! `docs/metrics.md` says about each metric, all compared with a scrape of a real sidecar.

mod alerts;
mod dashboard;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use hyper::Method;
use serde_json::Value;

use crate::support::{
    SOON, Setup, eventually,
    promql::{Exposition, classic},
    promtool::approves,
};

const X: &str = "/jobs/x1";

/// Returns the metrics of a sidecar after a read, a hit, a write, a purge and a pass.
async fn scrape(setup: &Setup) -> String {
    setup.hit(X).await;
    setup.sidecar.put(X).await;
    setup.get("/other").await;
    setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;
    setup.sidecar.admin.get("/metrics").await.text().to_owned()
}

async fn exposition() -> Exposition {
    Exposition::parse(&scrape(&Setup::new().await).await)
}

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).expect("a file")
}

#[track_caller]
fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is not a list"))
}

#[track_caller]
fn text(value: &Value) -> &str {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is not a string"));
    assert!(!text.is_empty());
    text
}

/// Returns the pages in which label values are documented.
fn vocabulary() -> String {
    ["metrics", "operations", "troubleshooting"]
        .map(|page| read(&format!("docs/{page}.md")))
        .concat()
}

/// Returns the metrics that `docs/metrics.md` documents, and their labels.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let page = read("docs/metrics.md");
    // Every second part is between backticks.
    let spans = page.split('`').skip(1).step_by(2);
    let metrics =
        spans.filter(|span| span.starts_with("jobcache_") || span.starts_with("process_"));
    let metric = |span: &str| {
        let (name, labels) = span.split_once('{').unwrap_or((span, "}"));
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        (name.to_owned(), labels.map(str::to_owned).collect())
    };
    metrics.map(metric).collect()
}

#[tokio::test]
async fn the_store_in_memory_times_its_operations_as_redis_does() {
    let setup = Setup::with(|config| config.store.url = jobcache::config::StoreUrl::Memory).await;
    scrape(&setup).await;
    for op in ["read", "lease", "fill", "begin", "end"] {
        let name = format!("jobcache_store_operation_seconds_count{{op=\"{op}\"}}");
        assert!(setup.sidecar.admin.metric(&name).await > 0, "{op}");
    }
}

#[tokio::test]
async fn the_page_of_metrics_names_every_metric_that_there_is_and_no_other() {
    assert_eq!(documented(), exposition().await.families());
}

#[tokio::test]
async fn what_the_process_takes_is_told_as_every_exporter_does() {
    let setup = Setup::new().await;
    let value = |scrape: &str, name: &str| -> f64 {
        let line = scrape.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {scrape}"))
    };
    let first = scrape(&setup).await;
    let resident = value(&first, "process_resident_memory_bytes");
    assert!(resident > 1e6 && resident < value(&first, "process_virtual_memory_bytes"));
    let open = value(&first, "process_open_fds");
    assert!(open > 3.0 && open < value(&first, "process_max_fds"), "{open}");
    assert!(value(&first, "process_threads") >= 1.0);
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs_f64();
    let age = now - value(&first, "process_start_time_seconds");
    assert!((0.0..60.0).contains(&age), "{age} s old");
    // The counters need some time to rise.
    eventually(SOON, async || {
        let later = scrape(&setup).await;
        value(&later, "process_cpu_seconds_total") > value(&first, "process_cpu_seconds_total")
            && value(&later, "jobcache_runtime_parks_total")
                > value(&first, "jobcache_runtime_parks_total")
            && value(&later, "jobcache_runtime_busy_seconds_total")
                > value(&first, "jobcache_runtime_busy_seconds_total")
    })
    .await;
}

/// Returns whether the store is up, whether the breaker is open, and how often it has opened.
async fn breaker(setup: &Setup) -> [u64; 3] {
    let reply = setup.sidecar.admin.get("/metrics").await;
    ["jobcache_store_up", "jobcache_breaker_open ", "jobcache_breaker_openings_total"].map(|name| {
        let lines = reply.text().lines().filter(|line| line.starts_with(name));
        let numbers = lines.map(|line| line.rsplit(' ').next().expect("a value").parse::<u64>());
        numbers.map(|number| number.expect("a number")).sum()
    })
}

#[tokio::test]
async fn the_breaker_is_open_while_redis_is_away_and_each_opening_is_counted() {
    let mut setup = Setup::new().await;
    assert_eq!(breaker(&setup).await, [1, 0, 0]);
    for times in 1..3 {
        setup.redis.kill();
        eventually(SOON, async || {
            setup.get(X).await;
            breaker(&setup).await == [0, 1, times]
        })
        .await;
        setup.redis.restart_empty().await;
        setup.hit(X).await;
        assert_eq!(breaker(&setup).await, [1, 0, times]);
    }
}

#[tokio::test]
async fn promtool_has_nothing_to_say_against_the_names() {
    let setup = Setup::new().await;
    approves(&["check", "metrics"], &classic(&scrape(&setup).await));
}
