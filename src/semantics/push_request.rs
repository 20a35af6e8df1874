//! Requests of clients that wait for the next version of a job.
//!
//! [`PushRequest::take`] reads such a request from the head of a read and makes an ordinary read of it.
//! The fields that it removes neither tell callers apart nor reach the API. A field that cannot be parsed is
//! left as it is: the read is then answered at once.
//!
//! Whether the client is held, and for which version, is decided elsewhere.

mod preferences;

use std::time::Duration;

use hyper::{
    HeaderMap, Method,
    header::{
        ACCEPT, CACHE_CONTROL, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
        IF_RANGE, IF_UNMODIFIED_SINCE, PRAGMA, RANGE, TE,
    },
};

use self::preferences::{list_members, take_wait};
use super::{
    headers::rewrite,
    push_config::{PushConfig, PushMode},
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Fields that would make the read for a stream less than a read of the whole job: the stream itself
/// decides what its client has already.
const NOT_FOR_STREAMS: [HeaderName; 9] = [
    CACHE_CONTROL,
    PRAGMA,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    RANGE,
    TE,
];

/// How a client wants to wait for the next version of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushRequest {
    /// One answer, as soon as the job has another entity tag than the one in `If-None-Match`.
    Poll {
        /// Time after which it is answered anyhow: whole seconds, at least one, at most
        /// `push.max_wait`.
        wait: Duration,
    },
    /// Each version as an event.
    Stream {
        /// The last version that the client has, as the id of its event.
        last_event_id: Option<String>,
    },
}

impl PushRequest {
    /// Takes the request to wait out of the headers of a read of a job. Does nothing while push is off.
    ///
    /// In any other mode, `Prefer: wait` and `Last-Event-ID` are removed from every read. For a stream,
    /// the headers become those of a plain read with `push.accept`. The other fields keep their order.
    pub fn take(config: &PushConfig, method: &Method, headers: &mut HeaderMap) -> Option<Self> {
        if config.mode == PushMode::Off {
            return None;
        }
        let wait = take_wait(headers);
        let last_event_id = take_last_event_id(headers);
        if *method != Method::GET {
            return None;
        }
        if config.mode.has_streams() && prefers_stream(headers) {
            become_plain_read(headers, &config.accept);
            return Some(Self::Stream { last_event_id });
        }
        // Answers state the time in whole seconds.
        let seconds = wait?.min(config.max_wait.as_secs());
        let is_held =
            config.mode.has_long_poll() && seconds > 0 && headers.contains_key(IF_NONE_MATCH);
        is_held.then_some(Self::Poll { wait: Duration::from_secs(seconds) })
    }
}

/// Removes `Last-Event-ID`. Browsers send it as UTF-8; any other value is no id of ours.
fn take_last_event_id(headers: &mut HeaderMap) -> Option<String> {
    let id = headers.get(LAST_EVENT_ID)?.as_bytes().to_vec();
    rewrite(headers, |name, value| (*name != LAST_EVENT_ID).then_some(value));
    String::from_utf8(id).ok().filter(|id| !id.is_empty())
}

/// Returns whether `Accept` names `text/event-stream`, and no other type with a higher weight.
fn prefers_stream(headers: &HeaderMap) -> bool {
    let (mut stream, mut other) = (0, 0);
    let lines = headers.get_all(ACCEPT).into_iter();
    for member in lines.flat_map(|line| list_members(line.as_bytes(), b',')) {
        let mut parts = list_members(member, b';');
        let media_type = parts.next().unwrap_or_default();
        let Some(weight) = weight(parts) else { continue };
        let is_stream = media_type.eq_ignore_ascii_case(b"text/event-stream");
        let highest = if is_stream { &mut stream } else { &mut other };
        *highest = weight.max(*highest);
    }
    stream > 0 && stream >= other
}

/// Returns the weight among the parameters of a member, in thousandths; 1 without any. `None` if it is
/// no weight.
fn weight<'v>(mut parameters: impl Iterator<Item = &'v [u8]>) -> Option<u16> {
    let q = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_at(parameter.iter().position(|&b| b == b'=')?);
        name.trim_ascii().eq_ignore_ascii_case(b"q").then(|| value[1..].trim_ascii())
    });
    let Some(q) = q else { return Some(1000) };
    // "qvalue = ( "0" [ "." 0*3DIGIT ] ) / ( "1" [ "." 0*3("0") ] )" RFC 9110 12.4.2
    let (whole, rest) = q.split_first()?;
    let digits = if rest.is_empty() { rest } else { rest.strip_prefix(b".")? };
    if digits.len() > 3 || !whole.is_ascii_digit() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let padded = digits.iter().chain(b"000").take(3);
    let weight = [whole].into_iter().chain(padded).fold(0, |sum, b| sum * 10 + u16::from(b - b'0'));
    (weight <= 1000).then_some(weight)
}

fn become_plain_read(headers: &mut HeaderMap, accept: &HeaderValue) {
    let mut accept = Some(accept.clone());
    rewrite(headers, |name, value| match name {
        name if *name == ACCEPT => accept.take(),
        name => (!NOT_FOR_STREAMS.contains(name)).then_some(value),
    });
}

#[cfg(test)]
mod tests;
