//! A collector for OTLP over HTTP with protobuf, with the faults that a test requests.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, body::Incoming, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1,
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use super::{SOON, eventually};

/// The collector's reaction to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CollectorMode {
    Takes,
    Answers(StatusCode),
    /// Reads the message and does not answer while in this mode.
    Hangs,
}

pub(crate) struct Collector {
    url: String,
    state: Arc<State>,
    accept: JoinHandle<()>,
}

struct State {
    mood: watch::Sender<CollectorMode>,
    spans: Mutex<Vec<Span>>,
    heads: Mutex<Vec<(Method, String, HeaderMap)>>,
}

/// A received span.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) kind: i32,
    pub(crate) failed: bool,
    pub(crate) fields: HashMap<String, String>,
    /// The ids of linked spans.
    pub(crate) links: Vec<String>,
    /// Resource attributes of the sender.
    pub(crate) resource: HashMap<String, String>,
    pub(crate) nanos: u64,
}

impl Span {
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("a bound listener"));
        let state = Arc::new(State {
            mood: watch::Sender::new(CollectorMode::Takes),
            spans: Mutex::default(),
            heads: Mutex::default(),
        });
        let accept = tokio::spawn(accept(listener, Arc::clone(&state)));
        Self { url, state, accept }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn mood(&self, mood: CollectorMode) {
        self.state.mood.send_replace(mood);
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.state.spans.lock().expect("no panic under the lock").clone()
    }

    /// Returns method, path and headers of each message.
    pub(crate) fn messages(&self) -> Vec<(Method, String, HeaderMap)> {
        self.state.heads.lock().expect("no panic under the lock").clone()
    }

    /// Waits until a trace has spans with these names, and returns its spans.
    pub(crate) async fn trace(&self, trace: &str, names: &[&str]) -> Vec<Span> {
        eventually(SOON, async || {
            let all = self.spans();
            let spans: Vec<_> = all.into_iter().filter(|span| span.trace == trace).collect();
            let there = names.iter().all(|name| spans.iter().any(|span| span.name == *name));
            if there { Ok(spans) } else { Err(spans) }
        })
        .await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        let service = service_fn(move |request| answer(Arc::clone(&state), request));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let message = body.collect().await?.to_bytes();
    let told = (head.method, head.uri.path().to_owned(), head.headers);
    state.heads.lock().expect("no panic under the lock").push(told);
    let mut mood = state.mood.subscribe();
    let current = *mood.borrow_and_update();
    match current {
        CollectorMode::Hangs => {
            let _ = mood.wait_for(|mood| *mood != CollectorMode::Hangs).await;
        }
        CollectorMode::Answers(status) => {
            let mut response = Response::default();
            *response.status_mut() = status;
            return Ok(response);
        }
        CollectorMode::Takes => {}
    }
    let message = ExportTraceServiceRequest::decode(message).expect("protobuf");
    let mut spans = state.spans.lock().expect("no panic under the lock");
    for resource_spans in message.resource_spans {
        let resource = fields(resource_spans.resource.unwrap_or_default().attributes);
        let all = resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(all.map(|sent| span(sent, &resource)));
    }
    Ok(Response::default())
}

fn span(sent: v1::Span, resource: &HashMap<String, String>) -> Span {
    Span {
        trace: hex(&sent.trace_id),
        id: hex(&sent.span_id),
        parent: hex(&sent.parent_span_id),
        name: sent.name,
        kind: sent.kind,
        failed: sent.status.is_some_and(|status| status.code == 2),
        fields: fields(sent.attributes),
        links: sent.links.iter().map(|link| hex(&link.span_id)).collect(),
        resource: resource.clone(),
        nanos: sent.end_time_unix_nano - sent.start_time_unix_nano,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn fields(attributes: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|field| (field.key, text(field.value))).collect()
}
