//! Export of finished spans to a collector, over OTLP/HTTP with protobuf.
//!
//! A finished span goes into a bounded queue, or is dropped and counted if the queue is full.
//! Requests never wait for the collector. One task sends the spans in batches. If the collector is
//! down, hangs or answers 5xx, that task waits for its timeout while the queue fills. Nothing is
//! stored on disk: a batch that is not accepted in time is lost.

use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use opentelemetry::{Context, KeyValue, trace::TracerProvider as _};
use opentelemetry_proto::{
    tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tracing::{debug, info, warn};

use crate::{
    config::TracesConfig,
    observe::{
        metrics::{Counters, Registry},
        throttle::Throttle,
    },
    tls::{TlsError, TlsMetrics},
    upstream::collector::{Collector, CollectorReply},
};

/// Delay before the first retry; it doubles with each further retry.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Creates the tracer, and the export of its spans.
pub(super) fn pipeline(traces: &TracesConfig) -> (SdkTracer, SpanExport) {
    let (sender, spans) = mpsc::channel(traces.queue);
    // Counted before the registry exists. `failed`: the collector did not accept them; `dropped`: the
    // queue was full.
    let counts = Counters::new(["outcome"], [["exported"], ["failed"], ["dropped"]]);
    let queue = SpanQueue { sender, dropped: counts.handle(["dropped"]) };
    let resource = resource();
    let attributes = ResourceAttributesWithSchema::from(&resource);
    let provider =
        SdkTracerProvider::builder().with_resource(resource).with_span_processor(queue).build();
    let traces = traces.clone();
    (provider.tracer("jobcache"), SpanExport { spans, attributes, traces, counts })
}

/// The resource attributes from the environment. The default of `service.name` is `jobcache`.
fn resource() -> Resource {
    let builder = || {
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        Resource::builder().with_attribute(version)
    };
    let resource = builder().build();
    let unnamed = resource.iter().any(|(key, value)| {
        key.as_str() == "service.name" && value.as_str().starts_with("unknown_service")
    });
    if unnamed { builder().with_service_name("jobcache").build() } else { resource }
}

/// Puts finished spans into the queue. It runs on the thread that ended the span and must not
/// block.
#[derive(Debug)]
struct SpanQueue {
    sender: mpsc::Sender<SpanData>,
    dropped: Counter,
}

impl SpanProcessor for SpanQueue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.sender.try_send(span).is_err() {
            self.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The export of spans before it is started.
#[derive(Debug)]
pub struct SpanExport {
    spans: mpsc::Receiver<SpanData>,
    attributes: ResourceAttributesWithSchema,
    traces: TracesConfig,
    counts: Counters<1>,
}

/// The running export task.
#[derive(Debug)]
pub(crate) struct SpanExportTask {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl SpanExport {
    /// Registers the counts of spans, which are empty if none are exported.
    pub(crate) fn register(export: Option<&Self>, registry: &mut Registry) {
        let none = Counters::new(["outcome"], []);
        let counts = export.map_or(&none, |export| &export.counts);
        registry.add_counters("spans", "Spans for a collector by outcome", counts);
    }

    /// Starts the task. It also sends the spans that are already queued.
    pub(crate) fn start(
        self,
        tls_renew_interval: Duration,
        registry: &mut Registry,
    ) -> Result<SpanExportTask, TlsError> {
        let metrics = TlsMetrics::shared(registry);
        let collector = Collector::new(&self.traces, tls_renew_interval, metrics)?;
        info!(to = ?self.traces, "sending spans");
        let (stop, stopped) = oneshot::channel();
        let outlet = SpanSender {
            collector,
            export: self,
            reported_drops: 0,
            failure_warnings: Throttle::default(),
            drop_warnings: Throttle::default(),
        };
        Ok(SpanExportTask { stop, task: tokio::spawn(outlet.run(stopped)) })
    }
}

impl SpanExportTask {
    /// Sends the remaining spans within `limit`.
    pub(crate) async fn finish(mut self, limit: Duration) {
        let _ = self.stop.send(());
        if timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            warn!(?limit, "the collector did not accept the last spans in time; they are lost");
        }
    }
}

struct SpanSender {
    collector: Collector,
    export: SpanExport,
    /// Number of dropped spans that a warning has reported.
    reported_drops: u64,
    failure_warnings: Throttle,
    drop_warnings: Throttle,
}

impl SpanSender {
    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut batch = Vec::new();
        let mut due = Instant::now();
        loop {
            let room = self.export.traces.batch - batch.len();
            let was_empty = batch.is_empty();
            tokio::select! {
                received = self.export.spans.recv_many(&mut batch, room) => match received {
                    0 => break,
                    _ if was_empty => due = Instant::now() + self.export.traces.delay,
                    _ => {}
                },
                () = sleep_until(due), if !was_empty => {}
                // A dropped sender is a stop, too.
                _ = &mut stop => break,
            }
            if batch.len() >= self.export.traces.batch || Instant::now() >= due {
                self.deliver(std::mem::take(&mut batch)).await;
            }
        }
        loop {
            while batch.len() < self.export.traces.batch
                && let Ok(span) = self.export.spans.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            self.deliver(std::mem::take(&mut batch)).await;
        }
    }

    async fn deliver(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.export.attributes);
        let message = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let rejected = match self.send(message.into()).await {
            Ok(answer) => rejected_spans(&answer.body).min(count),
            Err(error) => {
                if let Some(suppressed) = self.failure_warnings.admit("failed") {
                    warn!(
                        error,
                        suppressed,
                        spans = count,
                        "the collector does not accept spans; they are lost"
                    );
                }
                count
            }
        };
        self.export.counts.add(["exported"], count - rejected);
        self.export.counts.add(["failed"], rejected);
        self.warn_of_dropped();
    }

    /// Warns of dropped spans. The queue does not warn itself, because it runs while a span ends.
    fn warn_of_dropped(&mut self) {
        let dropped = self.export.counts.get(["dropped"]);
        if dropped > self.reported_drops
            && let Some(suppressed) = self.drop_warnings.admit("dropped")
        {
            let spans = dropped - self.reported_drops;
            self.reported_drops = dropped;
            warn!(spans, suppressed, "spans were dropped, because the collector is too slow");
        }
    }

    /// Sends a message. Retries until it is accepted, fails for good, or times out.
    async fn send(&self, message: Bytes) -> Result<CollectorReply, String> {
        let end = Instant::now() + self.export.traces.timeout;
        let mut pause = FIRST_RETRY_DELAY;
        loop {
            let attempt = timeout_at(end, self.collector.post(message.clone())).await;
            let (error, wait) = match attempt {
                Ok(Ok(answer)) if answer.status.is_success() => return Ok(answer),
                Ok(Ok(answer)) => {
                    let wait = answer.retry_after.unwrap_or(pause).max(pause);
                    let wait = is_retryable(answer.status).then_some(wait);
                    (format!("the answer is {}", answer.status), wait)
                }
                Ok(Err(error)) => (error, Some(pause)),
                Err(_) => (format!("no answer within {:?}", self.export.traces.timeout), None),
            };
            match wait {
                Some(wait) if Instant::now() + wait < end => {
                    debug!(?wait, "retrying the export of spans");
                    sleep(wait).await;
                    pause *= 2;
                }
                _ => return Err(error),
            }
        }
    }
}

/// "The requests that receive a response status code listed in following table SHOULD be retried"
/// (OTLP specification, retryable response codes).
fn is_retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// Returns how many spans of an accepted message the collector rejected.
fn rejected_spans(body: &[u8]) -> u64 {
    let answer = ExportTraceServiceResponse::decode(body).unwrap_or_default();
    let partial = answer.partial_success.unwrap_or_default();
    u64::try_from(partial.rejected_spans).unwrap_or(0)
}
