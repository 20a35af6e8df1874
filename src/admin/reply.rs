//! Responses of the admin listener: complete bodies, and the stream of `GET /events`.
//!
//! The stream has events as they happen, as server-sent events (SSE). Each event is one line of JSON. A
//! subscriber that reads too slowly loses the oldest events and gets their number; the process never
//! waits for it. The stream ends when a shutdown begins, and when a reload changes the secrets: a
//! client has to reconnect with a valid one.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::poll_fn};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Response, StatusCode,
    body::Frame,
    http::{
        HeaderValue,
        header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS},
    },
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::{
    observe::events::{
        Events,
        feed::{Event, MAX_SUBSCRIBERS, Subscription},
    },
    service::{Drain, until_drain},
};

/// A response of the admin listener.
pub type Reply = Response<ReplyBody>;

/// The body of a response.
pub type ReplyBody = UnsyncBoxBody<Bytes, Infallible>;

/// A complete body.
pub(super) fn complete(bytes: impl Into<Bytes>) -> ReplyBody {
    Full::new(bytes.into()).boxed_unsync()
}

/// A JSON response.
pub(super) fn json_reply(status: StatusCode, body: &impl Serialize) -> Reply {
    // Bodies hold strings, numbers, lists and maps with string keys, which never fail to serialize.
    let mut text = serde_json::to_vec(body).unwrap_or_default();
    text.push(b'\n');
    typed_reply(status, "application/json", complete(text))
}

/// A JSON response with an error.
pub(super) fn error_reply(status: StatusCode, error: &str) -> Reply {
    json_reply(status, &json!({ "error": error }))
}

/// A response of this content type that must not be cached, sniffed for another type, or embedded
/// by pages of other origins.
pub(super) fn typed_reply(status: StatusCode, media_type: &'static str, page: ReplyBody) -> Reply {
    let mut response = Response::new(page);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Browsers then drop the response if a page of another site asked for it, which could otherwise
    // occupy all places of the event stream.
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// A JSON response with `Retry-After`, in whole seconds, at least 1.
pub(super) fn retry_later(status: StatusCode, body: &impl Serialize, wait: Duration) -> Reply {
    let mut response = json_reply(status, body);
    let seconds = wait.as_millis().div_ceil(1000).max(1);
    // Digits are always a valid header value.
    if let Ok(seconds) = HeaderValue::from_str(&seconds.to_string()) {
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    response
}

pub(super) fn method_not_allowed(allowed: &'static str) -> Reply {
    let error = format!("method not allowed; this page accepts {allowed}");
    let mut response = error_reply(StatusCode::METHOD_NOT_ALLOWED, &error);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// Chunks that wait for the connection. Further events wait in the feed.
const QUEUED_CHUNKS: usize = 4;
/// Interval of comments that keep an idle stream alive.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Delay in ms before a browser reconnects.
const RETRY_MS: u32 = 2_000;

/// Answers with the stream. `Last-Event-ID` keeps a browser that reconnects from getting events
/// twice.
pub(super) fn event_stream(
    events: &Events,
    headers: &HeaderMap,
    leaving: &Drain,
    mut is_over: watch::Receiver<bool>,
) -> Reply {
    let last = headers.get("last-event-id").and_then(|last| last.to_str().ok()?.parse().ok());
    let Some(listener) = events.subscribe(last.unwrap_or(0)) else {
        let error =
            format!("{MAX_SUBSCRIBERS} clients already read events, which is the limit; close one");
        return error_reply(StatusCode::SERVICE_UNAVAILABLE, &error);
    };
    let (chunks, mut queued) = mpsc::channel(QUEUED_CHUNKS);
    let leaving = leaving.clone();
    tokio::spawn(async move {
        let mut drain = leaving.clone();
        tokio::select! {
            () = forward_events(listener, &chunks) => {}
            () = chunks.closed() => {}
            _ = is_over.wait_for(|is_over| *is_over) => {}
            () = until_drain(&mut drain) => {
                // Dropped if the queue is full: such a client sees the end of the stream instead.
                let _ = chunks.try_send(sse_message(None, &json!({ "what": "drain" })));
            }
        }
    });
    let frames = poll_fn(move |cx| queued.poll_recv(cx)).map(|chunk| Ok(Frame::data(chunk)));
    typed_reply(StatusCode::OK, "text/event-stream", StreamBody::new(frames).boxed_unsync())
}

/// Forwards events to the connection until it is closed.
async fn forward_events(mut listener: Subscription, chunks: &mpsc::Sender<Bytes>) {
    let mut first = format!("retry: {RETRY_MS}\n\n").into_bytes();
    for event in listener.recent.drain(..) {
        first.extend_from_slice(&encode_event(&event));
    }
    let mut chunk = Bytes::from(first);
    loop {
        if chunks.send(chunk).await.is_err() {
            return;
        }
        let heartbeat = Instant::now() + HEARTBEAT;
        chunk = tokio::select! {
            received = listener.receiver.recv() => match received {
                Ok(event) => encode_event(&event),
                Err(RecvError::Lagged(lost)) => sse_message(None, &json!({ "what": "lost", "events": lost })),
                Err(RecvError::Closed) => return,
            },
            () = sleep_until(heartbeat) => Bytes::from_static(b": alive\n\n"),
        };
    }
}

fn encode_event(event: &Event) -> Bytes {
    let mut object = json!({ "at_ms": event.at_ms });
    let mut put = |name: &str, value: Value| object[name] = value;
    match (event.what, &event.second) {
        (Some(what), _) => put("what", what.as_str().into()),
        (None, Some(second)) => {
            put("what", "second".into());
            for (outcome, count) in second.outcomes {
                put(outcome, count.into());
            }
            put("busiest", json!(second.busiest));
        }
        (None, None) => {}
    }
    if !event.why.is_empty() {
        put("why", event.why.into());
    }
    if let Some(by) = &event.by {
        put("by", by.as_ref().into());
    }
    if let Some(job) = &event.job {
        put("job", job.as_ref().into());
    } else if event.jobs > 0 {
        put("jobs", event.jobs.into());
    }
    sse_message(Some(event.number).filter(|number| *number > 0), &object)
}

/// One server-sent event. Only numbered events have an id.
fn sse_message(number: Option<u64>, data: &Value) -> Bytes {
    let id = number.map(|number| format!("id: {number}\n")).unwrap_or_default();
    format!("{id}data: {data}\n\n").into()
}
