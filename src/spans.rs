//! The spans of a request, and trace context in and out.
//!
//! One span a request, and beneath it one for each thing that may take long: `lookup`, `flight` with
//! the exchange with the upstream and the `fill`, `fence`, `invalidate`. Names and attributes follow the
//! semantic conventions of OpenTelemetry for HTTP; `jobcache.outcome` and `jobcache.detail` are the
//! words of the metrics, the access log and `Cache-Status`.
//!
//! They are `tracing` spans at debug under a target of their own: with `log = "debug"` lines of the
//! log tell in which they were written, and where the environment names a collector they go there,
//! whatever the log lets pass. Else a span costs the look at one atomic.
//!
//! Never in a span: ids (a path is told by its route), query strings, credentials, bodies. A request's
//! span ends when the head of its answer is sent.

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

/// Of every span.
const TARGET: &str = "jobcache::span";

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Whether what `tracing` asks about is one of our spans.
pub(crate) fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == TARGET
}

/// Whether there may be any.
fn may_be() -> bool {
    Level::DEBUG <= LevelFilter::current()
}

/// The span of a request. Its parent is the one that the client names.
pub fn request<'r, B>(
    request: &Request<B>,
    scheme: &'static str,
    route: impl FnOnce() -> Option<&'r str>,
) -> Span {
    if !may_be() {
        return Span::none();
    }
    let (method, route) = (known(request.method()), route());
    let span = debug_span!(
        target: TARGET,
        "request",
        otel.name = name(method, route),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        url.scheme = scheme,
        network.protocol.version = version(request.version()),
        jobcache.outcome = Empty,
        jobcache.detail = Empty,
        "error.type" = Empty,
    );
    if !span.is_disabled()
        && let Some(parent) = parent(request.headers())
    {
        // It has not begun, and where nothing is exported there is nothing to be the child of.
        let _ = span.set_parent(parent);
    }
    span
}

/// Tells the span of this request what became of it.
pub fn answered(status: StatusCode, outcome: &str, detail: &str) {
    if !may_be() {
        return;
    }
    let span = Span::current();
    span.record("jobcache.outcome", outcome);
    if !detail.is_empty() {
        span.record("jobcache.detail", detail);
    }
    let cause = if outcome == "error" { detail } else { status.as_str() };
    conclude(&span, status, cause);
}

/// The same where there is nothing to say of the cache.
pub fn replied(status: StatusCode) {
    if may_be() {
        conclude(&Span::current(), status, status.as_str());
    }
}

/// Sets the status of a span by that of a response: "For HTTP status codes in the 5xx range [..] span
/// status MUST be set to Error" (semantic conventions for HTTP spans).
fn conclude(span: &Span, status: StatusCode, cause: &str) {
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        fail(span, cause);
    }
}

fn fail(span: &Span, cause: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", cause);
}

/// The span of an exchange with the upstream, which is told of it: where it is recorded, it is the
/// parent of what the upstream does. Else the client's word stays as it came.
pub fn upstream<B>(request: &mut Request<B>, authority: &str) -> Span {
    if !may_be() {
        return Span::none();
    }
    let method = known(request.method());
    // None has a port where it is a unix socket.
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
        pass_on(&span.context().span().span_context().clone(), request.headers_mut());
    }
    span
}

/// Tells such a span how it ended: with this status, or for this reason without one.
pub fn exchanged(span: &Span, ended: Result<StatusCode, &str>) {
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

/// A look for an entry, in this process (`near`) or in the store.
pub fn lookup(layer: &'static str) -> Span {
    debug_span!(target: TARGET, "lookup", jobcache.layer = layer, jobcache.result = Empty)
}

/// A read of the upstream that others may share.
pub fn flight() -> Span {
    debug_span!(target: TARGET, "flight")
}

/// Storing what it brought.
pub fn fill() -> Span {
    debug_span!(target: TARGET, "fill", jobcache.result = Empty)
}

/// Fencing jobs before a write.
pub fn fence() -> Span {
    debug_span!(target: TARGET, "fence")
}

/// Forgetting jobs, for this reason, as part of `parent`.
pub fn invalidate(parent: &Span, source: &'static str) -> Span {
    debug_span!(
        target: TARGET,
        parent: parent,
        "invalidate",
        jobcache.source = source,
        jobcache.result = Empty,
    )
}

/// Tells a span what it came to.
pub fn result(span: &Span, result: &'static str) {
    span.record("jobcache.result", result);
}

/// The span that is entered; a disabled one where there are none.
pub fn current() -> Span {
    if may_be() { Span::current() } else { Span::none() }
}

/// That this request was answered by what happened in another's.
pub fn follow(other: &Span) {
    if !other.is_disabled() {
        Span::current().follows_from(other);
    }
}

/// The trace that is exported of what happens here, if there is one.
pub fn trace_id() -> Option<String> {
    if !may_be() {
        return None;
    }
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    span.is_sampled().then(|| span.trace_id().to_string())
}

fn name(method: &str, route: Option<&str>) -> String {
    // "{method} MUST be replaced with HTTP" where it is not known.
    let method = if method == OTHER { "HTTP" } else { method };
    route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}"))
}

/// What stands for methods that are not in the standards: there may be any number of them.
const OTHER: &str = "_OTHER";

fn known(method: &Method) -> &'static str {
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
        _ => OTHER,
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// What the client names. "If the vendor failed to parse traceparent, it MUST NOT attempt to parse
/// tracestate" (W3C Trace Context 4.3), and of several lines none is the one.
fn parent(headers: &HeaderMap) -> Option<Context> {
    let mut lines = headers.get_all(TRACEPARENT).iter();
    let (Some(_), None) = (lines.next(), lines.next()) else { return None };
    let context =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Fields(headers));
    context.span().span_context().is_valid().then_some(context)
}

/// Takes what a client names out of a request that is no part of its trace.
pub fn forget(headers: &mut HeaderMap) {
    headers.remove(TRACEPARENT);
    headers.remove(TRACESTATE);
}

struct Fields<'h>(&'h HeaderMap);

impl Extractor for Fields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Names a span to the upstream, if it is exported. `tracestate` belongs to the trace: it stays as it
/// came if the trace is the client's, and goes with another trace.
fn pass_on(span: &SpanContext, headers: &mut HeaderMap) {
    if !span.is_sampled() {
        return;
    }
    let continued = parent(headers)
        .is_some_and(|theirs| theirs.span().span_context().trace_id() == span.trace_id());
    let text =
        format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8());
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(TRACEPARENT, value);
    }
    if !continued {
        headers.remove(TRACESTATE);
    }
}
