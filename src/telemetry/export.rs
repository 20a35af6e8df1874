//! Spans on their way out: from the end of a span to the collector that takes it, over OTLP/HTTP with
//! protobuf.
//!
//! A span that ends is put into a bounded queue, or dropped and counted; nothing a request does ever
//! waits for the collector. One task takes them out in batches. A collector that is down, hangs or
//! answers 5xx costs that task its timeout, and the queue fills meanwhile. Nothing is kept on disk, and
//! a batch that was not taken in time is lost.

use std::{sync::Arc, time::Duration};

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
    metrics::{Metrics, OutcomeLabels, SpanCounts},
    throttle::Throttle,
    tls::TlsError,
    upstream::collector::{Answer, Collector, Unanswered},
};

/// Before a message is sent a second time; doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Where spans end, and what makes them.
pub(super) fn pipeline(traces: &TracesConfig) -> (SdkTracer, Export) {
    let (sender, spans) = mpsc::channel(traces.queue);
    let counts = SpanCounts::default();
    let [exported, failed, dropped] = ["exported", "failed", "dropped"]
        .map(|outcome| counts.get_or_create_owned(&OutcomeLabels { outcome }));
    let queue = Queue { sender, dropped: dropped.clone() };
    let resource = resource();
    let attributes = ResourceAttributesWithSchema::from(&resource);
    let provider =
        SdkTracerProvider::builder().with_resource(resource).with_span_processor(queue).build();
    let tallies = Tallies { exported, failed, dropped };
    let traces = traces.clone();
    (provider.tracer("jobcache"), Export { spans, attributes, traces, counts, tallies })
}

/// Who we are: what the environment says, else `jobcache`.
fn resource() -> Resource {
    let known = || {
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        Resource::builder().with_attribute(version)
    };
    let resource = known().build();
    let unnamed = resource.iter().any(|(key, value)| {
        key.as_str() == "service.name" && value.as_str().starts_with("unknown_service")
    });
    if unnamed { known().with_service_name("jobcache").build() } else { resource }
}

/// Takes spans that have ended, in the midst of what ended them.
#[derive(Debug)]
struct Queue {
    sender: mpsc::Sender<SpanData>,
    dropped: Counter,
}

impl SpanProcessor for Queue {
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

#[derive(Debug)]
struct Tallies {
    exported: Counter,
    failed: Counter,
    dropped: Counter,
}

/// What is to be sent, before there is anything to send it.
#[derive(Debug)]
pub struct Export {
    spans: mpsc::Receiver<SpanData>,
    attributes: ResourceAttributesWithSchema,
    traces: TracesConfig,
    counts: SpanCounts,
    tallies: Tallies,
}

/// The task that sends.
#[derive(Debug)]
pub(crate) struct Exporting {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Export {
    /// To be shown among the metrics.
    pub(crate) fn counts(&self) -> SpanCounts {
        self.counts.clone()
    }

    /// Sends what ends from now on, and what has ended before.
    pub(crate) fn start(self, metrics: &Arc<Metrics>) -> Result<Exporting, TlsError> {
        let collector = Collector::new(&self.traces, metrics)?;
        info!(to = ?self.traces, "sending spans");
        let (stop, stopped) = oneshot::channel();
        let Self { spans, attributes, traces, tallies, .. } = self;
        let outlet = Outlet {
            collector,
            attributes,
            traces,
            tallies,
            dropped: 0,
            failures: Throttle::default(),
            drops: Throttle::default(),
        };
        Ok(Exporting { stop, task: tokio::spawn(outlet.run(spans, stopped)) })
    }
}

impl Exporting {
    /// Sends what is left, for so long at most.
    pub(crate) async fn finish(mut self, limit: Duration) {
        let _ = self.stop.send(());
        if timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            warn!(?limit, "the collector did not take the last spans in time; they are lost");
        }
    }
}

struct Outlet {
    collector: Collector,
    attributes: ResourceAttributesWithSchema,
    traces: TracesConfig,
    tallies: Tallies,
    /// Those that were warned of.
    dropped: u64,
    failures: Throttle,
    drops: Throttle,
}

impl Outlet {
    async fn run(mut self, mut spans: mpsc::Receiver<SpanData>, mut stop: oneshot::Receiver<()>) {
        let mut batch = Vec::new();
        let mut due = Instant::now();
        loop {
            let room = self.traces.batch - batch.len();
            let was_empty = batch.is_empty();
            tokio::select! {
                came = spans.recv_many(&mut batch, room) => match came {
                    0 => break,
                    _ if was_empty => due = Instant::now() + self.traces.delay,
                    _ => {}
                },
                () = sleep_until(due), if !was_empty => {}
                // Dropped without a word it is a stop as well.
                _ = &mut stop => break,
            }
            if batch.len() >= self.traces.batch || Instant::now() >= due {
                self.deliver(std::mem::take(&mut batch)).await;
            }
        }
        loop {
            while batch.len() < self.traces.batch
                && let Ok(span) = spans.try_recv()
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
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.attributes);
        let message = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let rejected = match self.send(message.into()).await {
            Ok(answer) => rejected(&answer.body).min(count),
            Err(error) => {
                if let Some(suppressed) = self.failures.admit("failed") {
                    warn!(
                        error,
                        suppressed,
                        spans = count,
                        "the collector takes no spans; they are lost"
                    );
                }
                count
            }
        };
        self.tallies.exported.inc_by(count - rejected);
        self.tallies.failed.inc_by(rejected);
        self.tell_dropped();
    }

    /// The queue cannot tell: it is called in the midst of the work of others.
    fn tell_dropped(&mut self) {
        let dropped = self.tallies.dropped.get();
        if dropped > self.dropped
            && let Some(suppressed) = self.drops.admit("dropped")
        {
            let spans = dropped - self.dropped;
            self.dropped = dropped;
            warn!(spans, suppressed, "spans were dropped: more ended than the collector takes");
        }
    }

    /// Sends a message until it is taken, cannot be, or its time is over.
    async fn send(&self, message: Bytes) -> Result<Answer, String> {
        let end = Instant::now() + self.traces.timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let tried = timeout_at(end, self.collector.post(message.clone())).await;
            let wait = match &tried {
                Ok(Ok(answer)) if answer.status.is_success() => None,
                Ok(Ok(answer)) if may_pass(answer.status) => {
                    Some(answer.retry_after.unwrap_or(pause).max(pause))
                }
                Ok(Err(_)) => Some(pause),
                Ok(Ok(_)) | Err(_) => None,
            };
            match wait {
                Some(wait) if Instant::now() + wait < end => {
                    debug!(?wait, "the collector is asked again");
                    sleep(wait).await;
                    pause *= 2;
                }
                _ => return self.outcome(tried),
            }
        }
    }

    fn outcome(
        &self,
        tried: Result<Result<Answer, Unanswered>, tokio::time::error::Elapsed>,
    ) -> Result<Answer, String> {
        match tried {
            Ok(Ok(answer)) if answer.status.is_success() => Ok(answer),
            Ok(Ok(answer)) => Err(format!("it answers {}", answer.status)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.traces.timeout)),
        }
    }
}

/// "The requests that receive a response status code listed in following table SHOULD be retried"
/// (OTLP specification, retryable response codes).
fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// How many spans of a message that was taken were not.
fn rejected(body: &[u8]) -> u64 {
    let answer = ExportTraceServiceResponse::decode(body).unwrap_or_default();
    let partly = answer.partial_success.unwrap_or_default();
    u64::try_from(partly.rejected_spans).unwrap_or(0)
}
