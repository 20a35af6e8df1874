//! Streams of events: `GET` with `Accept: text/event-stream`.
//!
//! A stream begins with the current version, unless the client has it already, and goes on with every
//! later one. It ends after a final state of the job, when the upstream refuses the job, and in a
//! drain. A client reconnects by itself (WHATWG HTML, "Server-sent events"), with the id of the last
//! version that it has seen.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Response, StatusCode,
    body::Frame,
    http::{
        header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, VARY},
        request::Parts,
    },
};
use tokio::time::sleep;

use super::topic::{Accepts, Update, Version, VersionSource, Waiter};
use crate::{
    cache::entry::Entry,
    config::FinalStates,
    limits::GaugeGuard,
    proxy::{
        answer::{Answer, Verdict, entry_response},
        body::Body,
        proxy_context::ProxyContext,
    },
    semantics::event_stream,
};

/// Pause between comments. Proxies in front of jobcache end connections that are silent for a minute.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Least and greatest time after which clients reconnect that a drain has ended.
const RECONNECT_MS: std::ops::Range<u64> = 500..3_000;

/// nginx buffers responses unless this header says no.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers with a stream of events. A first version that cannot be an event is answered as it is, and
/// `None` means that there is no version that can be shared.
pub(super) async fn answer(
    context: &Arc<ProxyContext>,
    head: &Parts,
    mut waiter: Waiter,
    last_event_id: Option<String>,
) -> Option<Answer> {
    let current = waiter.look(Accepts::Entries).await?;
    if !is_event(&current.entry) {
        let response = entry_response(&current.entry, head, context.cache.store().now_ms());
        let verdict = Verdict::Miss { filled: None, collapsed: true, why: None };
        return Some(Answer::new(response, verdict));
    }
    let mut response = Response::new(Body::Full(Bytes::new()));
    set_headers(&mut response, &current.entry);
    let is_known =
        last_event_id.is_some_and(|id| event_stream::is_same_tag(&id, &tag(&current.entry)));
    let mut events = EventBody {
        context: Arc::clone(context),
        waiter,
        last: current.body_hash,
        ready: VecDeque::new(),
        is_over: false,
        _held: context.push.metrics.hold_stream(),
    };
    // A comment at once, so that every proxy passes the head on.
    events.ready.push_back(event_stream::comment());
    if !is_known {
        events.deliver(&current);
    }
    events.end_if_final(&current);
    let body = StreamBody::new(stream::unfold(events, |mut events| async move {
        let bytes = events.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), events))
    }));
    *response.body_mut() = Body::watched(body.map_err(|never| match never {}));
    Some(Answer::new(response, Verdict::Held { is_hit: current.source == VersionSource::Cache }))
}

/// The events of one stream.
struct EventBody {
    context: Arc<ProxyContext>,
    waiter: Waiter,
    /// Hash of the version that the client has. The version itself may be large.
    last: u128,
    /// What is sent before the next update is waited for.
    ready: VecDeque<Bytes>,
    is_over: bool,
    _held: GaugeGuard,
}

impl EventBody {
    /// Returns the next bytes; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if self.is_over {
                return None;
            }
            let update = tokio::select! {
                biased;
                update = self.waiter.next() => update,
                () = sleep(HEARTBEAT) => return Some(event_stream::comment()),
            };
            self.take(update);
        }
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Version(version) if self.last == version.body_hash => {}
            Update::Version(version) if is_event(&version.entry) => {
                self.deliver(&version);
                self.context.push.metrics.count_event(&version);
                self.last = version.body_hash;
                self.end_if_final(&version);
            }
            Update::Version(version) => self.fail(version.entry.status()),
            Update::Refused(status) => self.fail(status),
            Update::Over => {
                let pause = Duration::from_millis(fastrand::u64(RECONNECT_MS));
                self.ready.push_back(event_stream::retry(pause));
                self.is_over = true;
            }
        }
    }

    fn deliver(&mut self, version: &Version) {
        // `is_event` has checked that the body is text.
        let data = String::from_utf8_lossy(version.entry.body());
        self.ready.push_back(event_stream::event(&tag(&version.entry), &data));
    }

    fn end_if_final(&mut self, version: &Version) {
        let FinalStates { pointer, values } = &self.context.push.config.final_states;
        if event_stream::is_final(version.entry.body(), pointer, values) {
            self.ready.push_back(event_stream::end());
            self.is_over = true;
        }
    }

    fn fail(&mut self, status: StatusCode) {
        self.ready.push_back(event_stream::error(status.as_u16()));
        self.is_over = true;
    }
}

/// Whether an entry can be sent as an event.
fn is_event(entry: &Entry) -> bool {
    entry.status().is_success() && std::str::from_utf8(entry.body()).is_ok()
}

/// Returns the id of a version.
fn tag(entry: &Entry) -> String {
    let tag = entry.etag().and_then(|tag| tag.to_str().ok().map(str::to_owned));
    tag.unwrap_or_else(|| entry.content_tag())
}

/// Sets the head of a stream. Other sites may read it if they may read the job.
fn set_headers(response: &mut Response<Body>, entry: &Entry) {
    let headers = response.headers_mut();
    let stored = entry.stored_head().headers;
    for (name, value) in &stored {
        if name.as_str().starts_with("access-control-") || name == VARY {
            headers.append(name, value.clone());
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
}
