//! `GET /events`: events as they happen, as server-sent events (SSE).
//!
//! Each event is one line of JSON. A subscriber that reads too slowly loses the oldest events and
//! gets their number; the process never waits for it. The stream ends when a shutdown begins, and
//! when a reload changes the secrets: a client has to reconnect with a valid one.

use std::time::Duration;

use bytes::Bytes;
use hyper::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc, watch},
    time::{Instant, sleep_until},
};

use super::reply::{Reply, ReplyBody, json_reply, typed_reply};
use crate::{
    drain::{Drain, until_drain},
    observe::events::{
        Events,
        feed::{Event, MAX_SUBSCRIBERS, Subscription},
        jobs::BusyJob,
    },
};

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
        return json_reply(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error }));
    };
    let (chunks, body) = mpsc::channel(QUEUED_CHUNKS);
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
    typed_reply(StatusCode::OK, "text/event-stream", ReplyBody::Stream(body))
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
            put("busiest", second.busiest.iter().map(busy_job_json).collect());
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

/// A busy job as JSON, for `/events` and `/status`.
pub(super) fn busy_job_json(job: &BusyJob) -> Value {
    json!({ "job": job.job, "requests": job.requests, "hits": job.hits })
}

/// One server-sent event. Only numbered events have an id.
fn sse_message(number: Option<u64>, data: &Value) -> Bytes {
    let id = number.map(|number| format!("id: {number}\n")).unwrap_or_default();
    format!("{id}data: {data}\n\n").into()
}
