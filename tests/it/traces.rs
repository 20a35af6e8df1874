//! Spans on their way to a collector, and trace context passed through.

use std::time::Instant;

use hyper::{Method, StatusCode};

use crate::support::{
    Process, RedisServer, Reply, SOON, Upstream,
    collector::{Collector, CollectorMode, Span},
    eventually,
    upstream::Seen,
};

const X: &str = "/jobs/x1";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
const TRACESTATE: &str = "vendor=opaque,other=1";

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

struct Setup {
    process: Process,
    collector: Collector,
    upstream: Upstream,
    _redis: RedisServer,
}

impl Setup {
    async fn new(envs: &[(&str, &str)]) -> Self {
        Self::with(&[], envs).await
    }

    /// Starts a sidecar that sends spans soon after they end.
    async fn with(args: &[&str], envs: &[(&str, &str)]) -> Self {
        let collector = Collector::start().await;
        let fixed =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()), ("OTEL_BSP_SCHEDULE_DELAY", "20")];
        let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
        let process = sidecar(&redis, &upstream, args, &[&fixed[..], envs].concat()).await;
        Self { process, collector, upstream, _redis: redis }
    }

    async fn get(&self, path: &str, headers: &[(&'static str, &str)]) -> Reply {
        let request = self.process.client.request(Method::GET, path);
        headers
            .iter()
            .fold(request, |request, (name, value)| request.header(name, value))
            .send()
            .await
    }

    async fn exported(&self, outcome: &str) -> u64 {
        let name = format!("jobcache_spans_total{{outcome=\"{outcome}\"}}");
        self.process.admin.metric(&name).await
    }
}

async fn sidecar(
    redis: &RedisServer,
    upstream: &Upstream,
    args: &[&str],
    envs: &[(&str, &str)],
) -> Process {
    let (up, store) = (upstream.url(), redis.url());
    let fixed =
        ["--upstream", &up, "--redis-url", &store, "--settle", "0s", "--store-budget", "2s"];
    let process = Process::start(&[&fixed[..], args].concat(), envs).await;
    // Wait until the near cache serves.
    eventually(SOON, async || process.client.get("/jobs/warm-up1").await.is_hit()).await;
    upstream.forget_requests();
    process
}

#[track_caller]
fn named<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}: {spans:#?}"))
}

fn sent(upstream: &Upstream, path: &str) -> Seen {
    let all = upstream.requests();
    all.into_iter().find(|seen| seen.target.starts_with(path)).expect("a request")
}

fn header(seen: &Seen, name: &str) -> String {
    let all: Vec<_> =
        seen.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    all.join("|")
}

#[tokio::test]
async fn a_miss_is_a_trace_from_the_client_to_the_upstream() {
    let setup = Setup::new(&[("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")]).await;

    setup.get(X, &[("traceparent", TRACEPARENT), ("tracestate", TRACESTATE)]).await;

    let spans = setup.collector.trace(TRACE, &["GET /jobs/{id}", "fill", "flight", "GET"]).await;
    let request = named(&spans, "GET /jobs/{id}");
    assert_eq!((request.parent.as_str(), request.kind), (CALLER, SERVER));
    assert_eq!(request.field("http.request.method"), "GET");
    assert_eq!(request.field("http.route"), "/jobs/{id}");
    assert_eq!(request.field("http.response.status_code"), "200");
    assert_eq!((request.field("jobcache.outcome"), request.field("jobcache.detail")), ("miss", ""));
    assert_eq!(request.resource["service.name"], "jobcache");
    assert_eq!(request.resource["deployment.environment"], "test");
    let lookups: Vec<_> = spans.iter().filter(|span| span.name == "lookup").collect();
    assert!(lookups.iter().all(|lookup| lookup.parent == request.id), "{spans:#?}");
    for (layer, result) in [("near", "miss"), ("store", "lead")] {
        let lookup = lookups.iter().find(|lookup| lookup.field("jobcache.layer") == layer);
        assert_eq!(lookup.map(|lookup| lookup.field("jobcache.result")), Some(result), "{layer}");
    }
    let flight = named(&spans, "flight");
    assert_eq!(flight.parent, request.id);
    let exchange = named(&spans, "GET");
    assert_eq!((exchange.parent.as_str(), exchange.kind), (flight.id.as_str(), CLIENT));
    assert_eq!(exchange.field("http.response.status_code"), "200");
    let port = setup.upstream.url().rsplit(':').next().expect("a port").to_owned();
    assert_eq!(
        (exchange.field("server.address"), exchange.field("server.port")),
        ("127.0.0.1", &*port)
    );
    assert_eq!(named(&spans, "fill").parent, flight.id);
    assert_eq!(named(&spans, "fill").field("jobcache.result"), "stored");
    assert!(spans.iter().all(|span| span.nanos < 10_000_000_000), "{spans:#?}");
    let seen = sent(&setup.upstream, X);
    assert_eq!(header(&seen, "traceparent"), format!("00-{TRACE}-{}-01", exchange.id));
    assert_eq!(header(&seen, "tracestate"), TRACESTATE);
    let (method, path, headers) = setup.collector.messages().remove(0);
    assert_eq!((method, path.as_str()), (Method::POST, "/v1/traces"));
    assert_eq!(headers["content-type"], "application/x-protobuf");
}

#[tokio::test]
async fn a_poller_that_repeats_itself_has_a_span_for_each_hit() {
    let setup = Setup::new(&[]).await;
    let client = &setup.process.client;
    eventually(SOON, async || client.get(X).await.is_hit()).await;
    let hits = || {
        let all = setup.collector.spans();
        all.iter().filter(|span| span.field("jobcache.outcome") == "hit").count()
    };
    let before = eventually(SOON, async || {
        let count = hits();
        (count > 0).then_some(count)
    })
    .await;

    for _ in 0..20 {
        assert!(client.get(X).await.is_hit());
    }

    eventually(SOON, async || if hits() >= before + 20 { Ok(()) } else { Err(hits()) }).await;
    assert_eq!(setup.process.admin.metric("jobcache_repeats_total").await, 0);
    let all = setup.collector.spans();
    let hit = all.iter().find(|span| span.field("jobcache.outcome") == "hit").unwrap();
    assert!(hit.parent.is_empty() && hit.trace.len() == 32, "{hit:?}");
}

#[tokio::test]
async fn a_write_and_a_purge_are_traced_to_their_invalidation() {
    let setup = Setup::new(&[]).await;

    let put = setup.process.client.request(Method::PUT, "/jobs/x1/state?token=hunter2").body("{}");
    put.header("traceparent", TRACEPARENT).header("authorization", "hunter2").send().await;
    let names = ["PUT /jobs/{id}", "PUT", "fence", "invalidate"];
    let spans = setup.collector.trace(TRACE, &names).await;
    let request = named(&spans, "PUT /jobs/{id}");
    assert_eq!((request.parent.as_str(), request.field("jobcache.outcome")), (CALLER, "write"));
    for name in ["PUT", "fence", "invalidate"] {
        assert_eq!(named(&spans, name).parent, request.id, "{name}");
    }
    assert_eq!(named(&spans, "invalidate").field("jobcache.result"), "confirmed");
    assert!(!format!("{spans:?}").contains("hunter2") && !format!("{spans:?}").contains("/x"));

    let other = "1af7651916cd43dd8448eb211c80319c";
    let purge = setup.process.admin.request(Method::POST, "/purge/a-special-job1");
    purge.header("traceparent", &format!("00-{other}-{CALLER}-01")).send().await;
    let spans = setup.collector.trace(other, &["POST /purge/{id}", "invalidate"]).await;
    let request = named(&spans, "POST /purge/{id}");
    assert_eq!(
        (request.parent.as_str(), request.field("http.response.status_code")),
        (CALLER, "200")
    );
    assert_eq!(named(&spans, "invalidate").parent, request.id);
    assert_eq!(named(&spans, "invalidate").field("jobcache.source"), "purge");
    assert!(!format!("{spans:?}").contains("a-special-job"));
}

#[tokio::test]
async fn who_joins_a_flight_is_linked_to_it() {
    let setup = Setup::new(&[]).await;
    let leases = "jobcache_store_operation_seconds_count{op=\"lease\"}";
    let before = setup.process.admin.metric(leases).await;
    let gate = setup.upstream.hold(Method::GET, X);
    let other = "1af7651916cd43dd8448eb211c80319c";
    let two = format!("00-{other}-{CALLER}-01");
    let (one, two) = ([("traceparent", TRACEPARENT)], [("traceparent", two.as_str())]);

    let (leader, follower, ()) = tokio::join!(
        setup.get(X, &one),
        async {
            gate.arrived(1).await;
            setup.get(X, &two).await
        },
        async {
            gate.arrived(1).await;
            let joined = async || {
                // The second request learns of the first one's lease, and joins it at once.
                let leases = setup.process.admin.metric(leases).await;
                (leases == before + 2).then_some(()).ok_or(leases)
            };
            eventually(SOON, joined).await;
            gate.release();
        }
    );

    assert_eq!((leader.status, follower.status), (StatusCode::OK, StatusCode::OK));
    let leaders = setup.collector.trace(TRACE, &["flight", "GET /jobs/{id}"]).await;
    let followers = setup.collector.trace(other, &["GET /jobs/{id}"]).await;
    assert_eq!(named(&followers, "GET /jobs/{id}").links, [named(&leaders, "flight").id.clone()]);
    assert!(!followers.iter().any(|span| span.name == "flight"), "{followers:#?}");
}

#[tokio::test]
async fn without_a_collector_the_trace_context_of_the_client_stays_as_it_came() {
    let odd = "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01-later";
    let collector = Collector::start().await;
    for (envs, says) in [
        (&[][..], ""),
        (&[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "always_on")][..], ""),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()), ("OTEL_SDK_DISABLED", "true")][..],
            "",
        ),
        (
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ][..],
            "grpc is not supported",
        ),
    ] {
        let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
        let process = sidecar(&redis, &upstream, &[], envs).await;
        for (path, value) in [("/jobs/a1", TRACEPARENT), ("/jobs/b1", odd), ("/other", UNSAMPLED)] {
            let get = process.client.request(Method::GET, path).header("tracestate", TRACESTATE);
            get.header("traceparent", value).send().await;
            let seen = sent(&upstream, path);
            assert_eq!(
                (header(&seen, "traceparent"), header(&seen, "tracestate")),
                (value.into(), TRACESTATE.into())
            );
        }
        let put = process.client.request(Method::PUT, X).header("traceparent", TRACEPARENT);
        put.send().await;
        assert_eq!(header(&sent(&upstream, X), "traceparent"), TRACEPARENT);
        process.client.get("/jobs/c1").await;
        assert_eq!(header(&sent(&upstream, "/jobs/c1"), "traceparent"), "");
        let log = process.stderr();
        assert!(log.contains(says) && !log.contains("sending spans"), "{envs:?}: {log}");
    }
    assert!(collector.messages().is_empty());
}

#[tokio::test]
async fn a_trace_that_is_not_sampled_passes_untouched() {
    let setup = Setup::new(&[]).await;
    setup.get("/jobs/a1", &[("traceparent", UNSAMPLED), ("tracestate", TRACESTATE)]).await;
    let seen = sent(&setup.upstream, "/jobs/a1");
    assert_eq!(header(&seen, "traceparent"), UNSAMPLED);
    assert_eq!(header(&seen, "tracestate"), TRACESTATE);

    // Dropped spans would have arrived before this one.
    setup.get("/jobs/b1", &[]).await;
    eventually(SOON, async || setup.collector.spans().iter().any(|span| span.name == "fill")).await;
    assert!(setup.collector.spans().iter().all(|span| span.trace != TRACE));

    let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")];
    let none = Setup::new(&ratio).await;
    none.get(X, &[]).await;
    none.get("/jobs/y1", &[("traceparent", TRACEPARENT)]).await;
    assert_eq!(header(&sent(&none.upstream, X), "traceparent"), "");
    assert_eq!(header(&sent(&none.upstream, "/jobs/y1"), "traceparent"), TRACEPARENT);
    assert!(none.collector.messages().is_empty());
}

#[tokio::test]
async fn a_trace_context_that_cannot_be_read_begins_a_new_trace_without_the_old_state() {
    let setup = Setup::new(&[]).await;
    setup.get("/jobs/a1", &[("traceparent", "nonsense"), ("tracestate", TRACESTATE)]).await;
    setup
        .get(
            "/jobs/b1",
            &[
                ("traceparent", TRACEPARENT),
                ("traceparent", TRACEPARENT),
                ("tracestate", TRACESTATE),
            ],
        )
        .await;
    for path in ["/jobs/a1", "/jobs/b1"] {
        let seen = sent(&setup.upstream, path);
        let context = header(&seen, "traceparent");
        assert!(context.len() == 55 && context.ends_with("-01"), "{context}");
        assert!(!context.contains(TRACE), "{context}");
        assert_eq!(header(&seen, "tracestate"), "");
    }
}

#[tokio::test]
async fn an_error_is_told_by_the_span_and_the_access_log_names_its_trace() {
    let setup = Setup::with(&["--access-log", "--log-format", "json"], &[]).await;
    setup.upstream.set("x1", 503, "{}");
    setup.get(X, &[("traceparent", TRACEPARENT)]).await;

    let spans = setup.collector.trace(TRACE, &["GET /jobs/{id}", "GET"]).await;
    let request = named(&spans, "GET /jobs/{id}");
    assert!(request.failed && named(&spans, "GET").failed, "{spans:#?}");
    assert_eq!((request.field("error.type"), request.field("jobcache.detail")), ("503", "status"));
    let log = setup.process.stderr();
    let line = log.lines().find(|line| line.contains(TRACE)).expect("a line of this trace");
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert_eq!((&line["trace_id"], &line["message"]), (&TRACE.into(), &"request".into()));
}

#[tokio::test]
async fn the_standard_variables_name_service_headers_and_endpoint() {
    let collector = Collector::start().await;
    let own = format!("{}/custom/traces", collector.url());
    let setup = Setup::new(&[
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &own),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2"),
        ("OTEL_SERVICE_NAME", "jobs-cache"),
    ])
    .await;

    setup.get(X, &[("traceparent", TRACEPARENT)]).await;

    let spans = collector.trace(TRACE, &["GET /jobs/{id}"]).await;
    assert_eq!(spans[0].resource["service.name"], "jobs-cache");
    let (_, path, headers) = collector.messages().remove(0);
    assert_eq!(
        (path.as_str(), headers["authorization"].to_str().unwrap()),
        ("/custom/traces", "Bearer hunter2")
    );
    assert!(setup.collector.messages().is_empty());
    assert!(!setup.process.stderr().contains("hunter2"), "{}", setup.process.stderr());
}

#[tokio::test]
async fn a_collector_that_hangs_or_fails_delays_no_request() {
    for mood in [CollectorMode::Hangs, CollectorMode::Answers(StatusCode::SERVICE_UNAVAILABLE)] {
        let envs = [
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "600"),
        ];
        let setup = Setup::new(&envs).await;
        setup.collector.mood(mood);
        let begun = Instant::now();
        for _ in 0..100 {
            setup.get("/other", &[]).await;
        }
        // A hundred times the export timeout would be a minute.
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());

        eventually(SOON, async || {
            let (dropped, failed) =
                (setup.exported("dropped").await, setup.exported("failed").await);
            (dropped > 0 && failed > 0).then_some(()).ok_or((dropped, failed))
        })
        .await;
        let warned = |what: &str| setup.process.stderr().matches(what).count();
        eventually(SOON, async || {
            warned("does not accept spans") == 1 && warned("were dropped") == 1
        })
        .await;

        setup.collector.mood(CollectorMode::Takes);
        eventually(SOON, async || {
            setup.get("/other", &[]).await;
            setup.exported("exported").await > 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_shutdown_sends_the_last_spans_and_waits_for_a_hung_collector_not_for_long() {
    let mut setup = Setup::new(&[("OTEL_BSP_SCHEDULE_DELAY", "3600000")]).await;
    setup.get(X, &[("traceparent", TRACEPARENT)]).await;
    assert!(setup.collector.messages().is_empty());
    setup.process.terminate();
    assert_eq!(setup.process.wait().await.code(), Some(0), "{}", setup.process.stderr());
    setup.collector.trace(TRACE, &["GET /jobs/{id}", "fill"]).await;

    let mut setup = Setup::new(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000")]).await;
    setup.collector.mood(CollectorMode::Hangs);
    setup.get(X, &[]).await;
    setup.process.terminate();
    // The timeout of the collector is an hour, and this wait ends long before.
    assert_eq!(setup.process.wait().await.code(), Some(0), "{}", setup.process.stderr());
    assert!(setup.process.stderr().contains("last spans"), "{}", setup.process.stderr());
}
