//! `GET /events`: what happens, as it happens, as server-sent events.
//!
//! Each is a line of JSON. One who reads too slowly loses the oldest and is told how many; the process
//! never waits for him. The stream ends when a shutdown begins, and when other secrets are in force: who
//! may still listen asks again with one of them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc, watch},
    time::{Instant, sleep_until},
};

use super::page::{Page, Reply, reply, typed};
use crate::{
    events::{
        feed::{Event, LISTENERS, Listener},
        jobs::Busy,
    },
    metrics::Metrics,
    server::Drain,
};

/// Parts that wait for the connection to take them; events wait in the feed.
const PARTS: usize = 4;
/// Between two signs of life while nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a browser that lost the stream waits before it asks again, in ms.
const RETRY_MS: u32 = 2_000;

/// Answers with the stream. A browser that comes back is not told again what it knows.
pub(super) fn stream(
    metrics: &Arc<Metrics>,
    headers: &HeaderMap,
    leaving: &Drain,
    mut is_over: watch::Receiver<bool>,
) -> Reply {
    let last = headers.get("last-event-id").and_then(|last| last.to_str().ok()?.parse().ok());
    let Some(listener) = metrics.events.listen(last.unwrap_or(0)) else {
        let error = format!("{LISTENERS} listen already, which is as many as may");
        return reply(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error }));
    };
    let (parts, page) = mpsc::channel(PARTS);
    let leaving = leaving.clone();
    tokio::spawn(async move {
        let mut told = leaving.clone();
        let left = async {
            let _ = told.wait_for(|leaving| *leaving).await;
        };
        tokio::select! {
            () = tell(listener, &parts) => {}
            () = parts.closed() => {}
            _ = is_over.wait_for(|is_over| *is_over) => {}
            () = left => {
                // If there is room for it: who reads nothing sees the end of the stream.
                let _ = parts.try_send(line(None, &json!({ "what": "drain" })));
            }
        }
    });
    typed(StatusCode::OK, "text/event-stream", Page::Live(page))
}

/// Sends what a listener is told; returns when nobody reads it any more.
async fn tell(mut listener: Listener, parts: &mpsc::Sender<Bytes>) {
    let mut first = format!("retry: {RETRY_MS}\n\n").into_bytes();
    for event in listener.before.drain(..) {
        first.extend_from_slice(&shown(&event));
    }
    let mut part = Bytes::from(first);
    loop {
        if parts.send(part).await.is_err() {
            return;
        }
        let heartbeat = Instant::now() + HEARTBEAT;
        part = tokio::select! {
            told = listener.told.recv() => match told {
                Ok(event) => shown(&event),
                Err(RecvError::Lagged(lost)) => line(None, &json!({ "what": "lost", "events": lost })),
                Err(RecvError::Closed) => return,
            },
            () = sleep_until(heartbeat) => Bytes::from_static(b": alive\n\n"),
        };
    }
}

fn shown(event: &Event) -> Bytes {
    let mut told = json!({ "at_ms": event.at_ms });
    let mut put = |name: &str, value: Value| told[name] = value;
    match (event.what, &event.second) {
        (Some(what), _) => put("what", what.as_str().into()),
        (None, Some(second)) => {
            put("what", "second".into());
            for (outcome, count) in second.outcomes {
                put(outcome, count.into());
            }
            put("busiest", second.busiest.iter().map(busy).collect());
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
    line(Some(event.number).filter(|number| *number > 0), &told)
}

/// A job that is asked for, also for `/status`.
pub(super) fn busy(job: &Busy) -> Value {
    json!({ "job": job.job, "requests": job.requests, "hits": job.hits })
}

fn line(number: Option<u64>, told: &Value) -> Bytes {
    let id = number.map(|number| format!("id: {number}\n")).unwrap_or_default();
    format!("{id}data: {told}\n\n").into()
}
