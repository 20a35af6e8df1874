//! The parts of a cache hit, each measured alone, then a whole hit against the embedded store.
//!
//! Not measured here: the kernel and hyper (reading the request, writing the answer) and the round
//! trip to Redis. The benchmark `peers` measures everything together.
#![allow(missing_docs, reason = "criterion's macros write public functions")]
#![allow(clippy::expect_used, reason = "criterion's functions cannot fail otherwise")]
#![allow(clippy::print_stdout, reason = "the benchmark fingerprinter sizes of compressed bodies")]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hyper::{
    Request, Response,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT},
    http::request::Parts,
};
use jobcache::{
    cache::{Cache, FillResult, Lookup, entry::Entry},
    config::{Config, StoreUrl},
    observe::metrics::Registry,
    semantics::{
        audience::Fingerprinter,
        route::{Route, Routes},
    },
    store::{CredentialKey, Key, Seen},
};
use tokio::runtime::Runtime;

/// Body sizes: a plain status, and a status with a log.
const SIZES: [usize; 2] = [600, 16 * 1024];
/// Sizes of bodies that are compressed.
const LARGE: [usize; 2] = [16 * 1024, 64 * 1024];
const ID: &str = "00000000-0000-4000-8000-000000000001";

criterion_group! {
    name = hit_path;
    config = Criterion::default().without_plots();
    targets = head, entry, compression, whole
}
criterion_main!(hit_path);

/// Benchmarks the parts that do not depend on the body.
fn head(criterion: &mut Criterion) {
    let (config, routes, request) = (config(), routes(), poll());
    criterion.bench_function("classify route", |bench| {
        bench.iter(|| routes.classify(black_box(&request)));
    });
    let (head, ()) = request.into_parts();
    let (fingerprinter, key) =
        (Fingerprinter::new(&config.cache.credentials), CredentialKey::new([7; 32]));
    criterion.bench_function("fingerprint pair", |bench| {
        bench.iter(|| fingerprinter.caller(&key, &head.uri, black_box(&head.headers)));
    });
}

/// Benchmarks the parts that depend on the body.
fn entry(criterion: &mut Criterion) {
    let runtime = runtime();
    let (head, ()) = poll().into_parts();
    let mut group = criterion.benchmark_group("entry");
    for size in SIZES {
        let seen = runtime.block_on(Stage::new(size)).seen;
        group.bench_with_input(BenchmarkId::new("decode", size), &seen, |bench, seen| {
            bench.iter(|| Entry::decode(black_box(seen)));
        });
        let entry = Entry::decode(&seen).and_then(Result::ok).expect("a valid stored entry");
        group.bench_with_input(BenchmarkId::new("respond", size), &entry, |bench, entry| {
            bench.iter(|| entry.hit(&head.method, black_box(&head.headers), seen.now_ms));
        });
    }
    group.finish();
}

/// Benchmarks the cost of `store.compress_above`: a miss compresses once, and each read from Redis
/// decompresses once.
fn compression(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("compression");
    for size in LARGE {
        let body = job_with_steps(size);
        let plain = runtime.block_on(Stage::of(&config(), body.clone())).seen;
        let entry = Entry::decode(&plain).and_then(Result::ok).expect("a valid stored entry");
        let small = entry.compress().expect("JSON compresses well");
        println!("{} bytes are stored as {}", body.len(), small.len());
        group.bench_with_input(BenchmarkId::new("compress", size), &entry, |bench, entry| {
            bench.iter(|| black_box(entry).compress());
        });
        let mut config = config();
        config.store.compress_above = Some(1024);
        let coded = runtime.block_on(Stage::of(&config, body)).seen;
        for (name, seen) in [("decode plain", &plain), ("decode compressed", &coded)] {
            group.bench_with_input(BenchmarkId::new(name, size), seen, |bench, seen| {
                bench.iter(|| Entry::decode(black_box(seen)));
            });
        }
    }
    group.finish();
}

/// Returns a job with a log of its steps. The times and checksums in it are practically random.
fn job_with_steps(size: usize) -> Bytes {
    const NAMES: [&str; 4] = ["extract", "transform", "validate", "upload"];
    let mut json = format!("{{\"id\":\"{ID}\",\"status\":\"running\",\"steps\":[");
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for step in 0.. {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        let (name, minute, ms) = (NAMES[step % 4], noise % 60, noise >> 8 & 0x3ff);
        let line = format!(
            "{{\"step\":{step},\"name\":\"{name}\",\"at\":\"2026-11-24T10:{minute:02}:00Z\",\
             \"took_ms\":{ms},\"checksum\":\"{noise:016x}\",\"ok\":true}},"
        );
        if json.len() + line.len() > size {
            break;
        }
        json.push_str(&line);
    }
    json.pop();
    Bytes::from(json + "]}")
}

/// Benchmarks a whole hit with the embedded store, from request head to answer head.
fn whole(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("whole hit, embedded store");
    for size in SIZES {
        let stage = runtime.block_on(Stage::new(size));
        group.bench_function(BenchmarkId::from_parameter(size), |bench| {
            bench.iter_custom(|times| {
                runtime.block_on(async {
                    let started = Instant::now();
                    for _ in 0..times {
                        black_box(stage.hit().await);
                    }
                    started.elapsed()
                })
            });
        });
    }
    group.finish();
}

/// A cache that holds one job.
struct Stage {
    routes: Routes,
    cache: Cache,
    request: Request<()>,
    head: Parts,
    /// The stored form of that job.
    seen: Seen,
}

impl Stage {
    async fn new(size: usize) -> Self {
        Self::of(&config(), Bytes::from(vec![b'x'; size])).await
    }

    async fn of(config: &Config, body: Bytes) -> Self {
        let registry = &mut Registry::default();
        let cache = Cache::open(config, registry, Arc::default()).expect("an embedded store");
        let (head, ()) = poll().into_parts();
        fill(&cache, &head, body).await;
        let key = Key::new(&config.store.prefix, ID);
        let seen =
            cache.store().read(&key, &mut cache.budget()).await.expect("an answer from memory");
        Self { routes: routes(), cache, request: poll(), head, seen }
    }

    async fn hit(&self) -> Response<Bytes> {
        let Route::Read(job) = self.routes.classify(&self.request) else {
            unreachable!("a poll is a read")
        };
        let Parts { method, uri, headers, .. } = &self.head;
        let ask = self.cache.lookup_request(&job, method, uri, headers);
        let Lookup::Hit(entry) = self.cache.reader.lookup(&ask, &mut self.cache.budget()).await
        else {
            unreachable!("the TTL outlasts the benchmark")
        };
        let now_ms = self.cache.store().now_ms();
        entry.hit(method, headers, now_ms)
    }
}

/// Stores a response to the polling request, as a miss does.
async fn fill(cache: &Cache, head: &Parts, body: Bytes) {
    let Route::Read(job) = routes().classify(&poll()) else { unreachable!("a poll is a read") };
    let ask = cache.lookup_request(&job, &head.method, &head.uri, &head.headers);
    let Lookup::Lead(lead) = cache.reader.lookup(&ask, &mut cache.budget()).await else {
        unreachable!("there is no other client")
    };
    let response = Response::builder().header(CONTENT_TYPE, "application/json").body(());
    let (response, ()) = response.expect("a valid response").into_parts();
    let freshness =
        cache.filler.freshness(&response, lead.route()).expect("a plain 200 may be stored");
    let published = cache.filler.publish(*lead, &response, body, freshness);
    assert_eq!(cache.filler.fill(published).await, FillResult::Stored);
}

/// Returns a poll as a browser sends it, with a token.
fn poll() -> Request<()> {
    Request::get(format!("/jobs/{ID}"))
        .header(HOST, "api.internal")
        .header(
            USER_AGENT,
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        )
        .header(ACCEPT, "application/json")
        .header(AUTHORIZATION, format!("Bearer {}", "t".repeat(180)))
        .body(())
        .expect("a valid request")
}

fn routes() -> Routes {
    Routes::parse(&config().api.paths).expect("the defaults are templates")
}

/// Returns the default configuration with the embedded store and a TTL that outlasts the benchmark.
fn config() -> Config {
    let mut config = Config::default();
    config.cache.lifetimes.ttl = Duration::from_hours(24);
    config.store.url = StoreUrl::Memory;
    config
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
