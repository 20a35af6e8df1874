//! Spans of requests, and trace context from clients and to the upstream.
//!
//! Each request has one span, with a child for each step that may take long: `lookup`, `flight`
//! with the exchange with the upstream and the `fill`, `fence`, and `invalidate`. Names and
//! attributes follow the semantic conventions of OpenTelemetry for HTTP. `jobcache.outcome` and
//! `jobcache.detail` use the words of the metrics, the access log and `Cache-Status`.
//!
//! All are `tracing` spans at level debug with their own target. With `log = "debug"`, log lines
//! show the spans that they belong to. If the environment names a collector, the spans are
//! exported, whatever the filter of the log says. Otherwise a span costs one atomic load.
//!
//! A span never contains ids (a path is given as its route template), query strings, credentials or
//! bodies. The span of a request ends when the head of the answer is sent.

use hyper::{
    HeaderMap, Method, Request, StatusCode, Version,
    http::{HeaderName, HeaderValue},
};
use opentelemetry::{
    Context,
    propagation::{Extractor, TextMapPropagator},
    trace::{SpanContext, TraceContextExt as _},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Level, Metadata, Span, debug_span, field::Empty, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Target of all spans.
const TARGET: &str = "jobcache::span";

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Whether this is one of our spans, and not a span of a library or a log event.
pub(crate) fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == TARGET
}

/// Whether spans can be enabled at all. Costs one atomic load.
fn is_enabled() -> bool {
    Level::DEBUG <= LevelFilter::current()
}

/// Creates the span of a request. Its parent is the span in the client's `traceparent`.
pub(crate) fn request<'r, B>(
    request: &Request<B>,
    scheme: &'static str,
    route: impl FnOnce() -> Option<&'r str>,
) -> Span {
    if !is_enabled() {
        return Span::none();
    }
    let method = known_method(request.method());
    let route = route();
    let span = debug_span!(
        target: TARGET,
        "request",
        otel.name = span_name(method, route),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        url.scheme = scheme,
        network.protocol.version = protocol_version(request.version()),
        jobcache.outcome = Empty,
        jobcache.detail = Empty,
        "error.type" = Empty,
    );
    if !span.is_disabled()
        && let Some(parent) = extract_parent(request.headers())
    {
        // Fails only if the span has begun, which it has not, or if spans are not exported, where a
        // parent has no use.
        let _ = span.set_parent(parent);
    }
    span
}

/// Records the outcome and the status of a request in the current span.
pub(crate) fn record_outcome(status: StatusCode, outcome: &str, detail: &str) {
    if !is_enabled() {
        return;
    }
    let span = Span::current();
    span.record("jobcache.outcome", outcome);
    if !detail.is_empty() {
        span.record("jobcache.detail", detail);
    }
    let cause = if outcome == "error" { detail } else { status.as_str() };
    set_status(&span, status, cause);
}

/// Records only the status, for requests that do not concern the cache.
pub(crate) fn record_status(status: StatusCode) {
    if is_enabled() {
        set_status(&Span::current(), status, status.as_str());
    }
}

/// Derives the status of a span from that of a response: "For HTTP status codes in the 5xx range
/// [..] span status MUST be set to Error" (semantic conventions for HTTP spans).
fn set_status(span: &Span, status: StatusCode, cause: &str) {
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        fail(span, cause);
    }
}

fn fail(span: &Span, cause: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", cause);
}

/// Creates the span of an exchange with the upstream. If the span is sampled, `traceparent` names
/// it as the parent for the upstream. Otherwise the client's fields stay unchanged.
pub(crate) fn upstream<B>(request: &mut Request<B>, authority: &str) -> Span {
    if !is_enabled() {
        return Span::none();
    }
    let method = known_method(request.method());
    // A unix socket has no port.
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
    let port = port.parse::<u16>().ok();
    let span = debug_span!(
        target: TARGET,
        "upstream",
        otel.name = method,
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = method,
        http.response.status_code = Empty,
        server.address = host,
        server.port = port,
        "error.type" = Empty,
    );
    if !span.is_disabled() {
        inject(&span.context().span().span_context().clone(), request.headers_mut());
    }
    span
}

/// Records how an exchange ended: with a status, or with a reason if there was no response.
pub(crate) fn record_exchange(span: &Span, ended: Result<StatusCode, &str>) {
    if span.is_disabled() {
        return;
    }
    match ended {
        Ok(status) => {
            span.record("http.response.status_code", status.as_u16());
            // "[..] for HTTP client span [4xx too] MUST be set to Error"
            if status.is_client_error() || status.is_server_error() {
                fail(span, status.as_str());
            }
        }
        Err(why) => fail(span, why),
    }
}

/// A lookup of an entry, in this process (`near`) or in the store.
pub(crate) fn lookup(layer: &'static str) -> Span {
    debug_span!(target: TARGET, "lookup", jobcache.layer = layer, jobcache.result = Empty)
}

/// A read of the upstream that other requests may share.
pub(crate) fn flight() -> Span {
    debug_span!(target: TARGET, "flight")
}

/// Storing the answer of a flight.
pub(crate) fn fill() -> Span {
    debug_span!(target: TARGET, "fill", jobcache.result = Empty)
}

/// Fencing jobs before a write.
pub(crate) fn fence() -> Span {
    debug_span!(target: TARGET, "fence")
}

/// Invalidating jobs because of `source`, as a child of `parent`.
pub(crate) fn invalidate(parent: &Span, source: &'static str) -> Span {
    debug_span!(
        target: TARGET,
        parent: parent,
        "invalidate",
        jobcache.source = source,
        jobcache.result = Empty,
    )
}

/// Records the result of a lookup, a fill or an invalidation.
pub(crate) fn record_result(span: &Span, result: &'static str) {
    span.record("jobcache.result", result);
}

/// Returns the current span, or a disabled one if spans are off.
pub(crate) fn current() -> Span {
    if is_enabled() { Span::current() } else { Span::none() }
}

/// Links the current span to a span of another request whose result it shares.
pub(crate) fn follows_from(other: &Span) {
    if !other.is_disabled() {
        Span::current().follows_from(other);
    }
}

/// Returns the id of the current trace if it is sampled.
pub(crate) fn trace_id() -> Option<String> {
    if !is_enabled() {
        return None;
    }
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    span.is_sampled().then(|| span.trace_id().to_string())
}

fn span_name(method: &str, route: Option<&str>) -> String {
    // For unknown methods "{method} MUST be replaced with HTTP".
    let method = if method == OTHER_METHOD { "HTTP" } else { method };
    route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}"))
}

/// Stands for unknown methods, because clients can invent any number of them.
const OTHER_METHOD: &str = "_OTHER";

fn known_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "TRACE" => "TRACE",
        "CONNECT" => "CONNECT",
        _ => OTHER_METHOD,
    }
}

fn protocol_version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// Returns the trace context of the client. "If the vendor failed to parse traceparent, it MUST NOT
/// attempt to parse tracestate" (W3C Trace Context 4.3). Several `traceparent` lines count as a
/// failure.
fn extract_parent(headers: &HeaderMap) -> Option<Context> {
    let mut lines = headers.get_all(TRACEPARENT).iter();
    let (Some(_), None) = (lines.next(), lines.next()) else { return None };
    let context = TraceContextPropagator::new()
        .extract_with_context(&Context::new(), &HeaderExtractor(headers));
    context.span().span_context().is_valid().then_some(context)
}

/// Removes the trace context from a request that is not part of the client's trace.
pub(crate) fn remove_trace_context(headers: &mut HeaderMap) {
    headers.remove(TRACEPARENT);
    headers.remove(TRACESTATE);
}

struct HeaderExtractor<'h>(&'h HeaderMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Writes `traceparent` for the upstream if the span is sampled. `tracestate` belongs to a trace:
/// it stays if the span continues the client's trace, and is removed otherwise.
fn inject(span: &SpanContext, headers: &mut HeaderMap) {
    if !span.is_sampled() {
        return;
    }
    let continued = extract_parent(headers)
        .is_some_and(|parent| parent.span().span_context().trace_id() == span.trace_id());
    let text =
        format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8());
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(TRACEPARENT, value);
    }
    if !continued {
        headers.remove(TRACESTATE);
    }
}
