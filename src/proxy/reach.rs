//! Body rules: the jobs that the bodies of a write name, by the rules of `[[invalidate]]`.
//!
//! A rule looks at the beginning of a body, which is then sent on byte for byte. Jobs that a
//! request body names are known before the request is forwarded, so they are fenced like the jobs
//! of the path. Jobs that a response body names are invalidated before the response head is sent
//! on; the body is held back until then. Nothing here fails a write, except that a request body
//! without room in memory is refused. A body that a rule cannot read is counted and logged.
//!
//! `Location` and `Content-Location` of the response are not handled here but in `route`.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Response,
    body::Body as HttpBody,
    http::{
        header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, EXPECT},
        request,
    },
};
use serde_json::Value;
use tokio::time::timeout;
use tracing::warn;

use super::{
    body::Body,
    route::{
        Scope,
        rules::{MAX_NAMED, Rule, Side},
    },
};
use crate::{
    cache::key::JobId,
    limits::{Kept, Room, join},
    metrics::{Metrics, MissLabels},
    throttle::Throttle,
    upstream::{RequestBody, ResponseBody, UpstreamError},
};

/// Longest time to wait for an inspected body. Past it the body streams on without inspection.
const PATIENCE: Duration = Duration::from_secs(10);

/// Inspects the bodies of writes.
#[derive(Debug)]
pub(super) struct Inspector {
    warnings: Throttle,
    /// Limits the memory of the bodies that are being inspected.
    room: Arc<Room>,
    metrics: Arc<Metrics>,
}

/// Why a rule did not find every job that a body names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Miss {
    /// The body is larger than the rule allows.
    TooLarge,
    /// The body is compressed.
    Encoded,
    /// The body did not end in time.
    Slow,
    /// The quota for inspected bodies is used up.
    Memory,
    /// The body is not JSON, or is nested too deeply.
    NotJson,
    /// No pointer leads to an id.
    NotFound,
    /// The body names more jobs than may be invalidated at once. Only the first ones were.
    TooMany,
}

/// How a body without room in the quota is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    /// The body is not read on.
    Refuses,
    /// The body is read and counted all the same.
    Exceeds,
}

/// Why a request could not be inspected and is not forwarded.
#[derive(Debug)]
pub(super) enum Unread {
    /// The client broke off the body.
    Broken(UpstreamError),
    /// The quota has no room for the body.
    NoRoom,
}

impl From<UpstreamError> for Unread {
    fn from(error: UpstreamError) -> Self {
        Self::Broken(error)
    }
}

/// A response that was inspected.
#[derive(Debug)]
pub(super) struct Inspected {
    pub(super) response: Response<Body>,
    /// The jobs that the response body names.
    pub(super) jobs: Vec<JobId>,
}

impl Inspector {
    pub(super) fn new(room: Arc<Room>, metrics: Arc<Metrics>) -> Self {
        Self { warnings: Throttle::default(), room, metrics }
    }

    /// Adds the jobs that a request body names to what the write may change. Returns the body from
    /// its beginning. An error means that the client broke it off, or that there is no room for it.
    ///
    /// A body without room is refused rather than sent on without inspection: the jobs that it
    /// changes would stay cached for the whole TTL, and a client could cause that for others by
    /// sending bodies that use up the quota.
    pub(super) async fn request(
        &self,
        scope: &mut Scope,
        head: &mut request::Parts,
        mut body: RequestBody,
    ) -> Result<RequestBody, Unread> {
        if most(&scope.rules, Side::Response).is_some() {
            head.headers.remove(ACCEPT_ENCODING);
        }
        let Some(max) = most(&scope.rules, Side::Request) else { return Ok(body) };
        // The upstream cannot answer the expectation here: nothing is sent to it before the body
        // has been inspected.
        if readable(&head.headers, &body, max).is_ok() && body.begin() {
            head.headers.remove(EXPECT);
        }
        let mut read = Kept::new(&self.room);
        let full = Full::Refuses;
        let document = document(&head.headers, &mut body, max, full, &mut read).await;
        let document = document.map_err(UpstreamError::ClientGone)?;
        if document == Err(Miss::Memory) {
            return Err(Unread::NoRoom);
        }
        let named = self.named(&scope.rules, Side::Request, &document);
        let mut known: HashSet<JobId> = scope.jobs.iter().cloned().collect();
        scope.jobs.extend(named.into_iter().filter(|job| known.insert(job.clone())));
        Ok(body.resumed(read))
    }

    /// Finds the jobs that a response body names.
    pub(super) async fn response(
        &self,
        rules: &[Arc<Rule>],
        response: Response<ResponseBody>,
    ) -> Result<Inspected, UpstreamError> {
        let (head, mut body) = response.into_parts();
        let max = most(rules, Side::Response).filter(|_| !is_event_stream(&head.headers));
        let Some(max) = max else {
            let response = Response::from_parts(head, Body::Upstream(body));
            return Ok(Inspected { response, jobs: Vec::new() });
        };
        let mut read = Kept::new(&self.room);
        // The body is read while it holds its upstream connection permit, so the limit on those
        // bounds the memory too.
        let document = document(&head.headers, &mut body, max, Full::Exceeds, &mut read).await?;
        let is_error = head.status.is_client_error() || head.status.is_server_error();
        let jobs = match &document {
            // Most error responses name no job: that is not a fault of the rule.
            Err(_) if is_error => Vec::new(),
            Ok(value) if is_error => named_by(rules, Side::Response, value),
            document => self.named(rules, Side::Response, document),
        };
        let body = if read.is_empty() { Body::Upstream(body) } else { Body::Resumed(read, body) };
        Ok(Inspected { response: Response::from_parts(head, body), jobs })
    }

    /// Returns the jobs that a document names, and counts the misses.
    fn named(&self, rules: &[Arc<Rule>], side: Side, document: &Result<Value, Miss>) -> Vec<JobId> {
        let mut named = Vec::new();
        for rule in rules.iter().filter(|rule| rule.max_body(side).is_some()) {
            match document.as_ref().map(|document| rule.jobs(side, document)) {
                Err(why) => self.missed(rule, side, *why),
                Ok(jobs) if jobs.is_empty() => self.missed(rule, side, Miss::NotFound),
                Ok(jobs) => {
                    named.extend(jobs);
                    if named.len() > MAX_NAMED {
                        self.missed(rule, side, Miss::TooMany);
                    }
                }
            }
            named.truncate(MAX_NAMED);
        }
        named
    }

    fn missed(&self, rule: &Rule, side: Side, why: Miss) {
        let (rule, body, reason) = (rule.number(), side.as_str(), why.as_str());
        self.metrics.rule_misses.get_or_create(&MissLabels { body, reason }).inc();
        if let Some(suppressed) = self.warnings.admit(&format!("{rule} {body} {reason}")) {
            warn!(
                rule,
                body,
                reason,
                suppressed,
                "an [[invalidate]] rule did not find every job that a write changes; a job that it \
                 missed may be served until its TTL ends"
            );
        }
    }
}

impl Miss {
    fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::Encoded => "encoded",
            Self::Slow => "slow",
            Self::Memory => "memory",
            Self::NotJson => "not-json",
            Self::NotFound => "not-found",
            Self::TooMany => "too-many",
        }
    }
}

/// Returns the largest size that a rule reads of this body, if any rule reads it.
fn most(rules: &[Arc<Rule>], side: Side) -> Option<usize> {
    rules.iter().filter_map(|rule| rule.max_body(side)).max()
}

fn named_by(rules: &[Arc<Rule>], side: Side, document: &Value) -> Vec<JobId> {
    rules.iter().flat_map(|rule| rule.jobs(side, document)).take(MAX_NAMED).collect()
}

/// Whether a body is an event stream, which ends only when there is nothing more to say.
fn is_event_stream(headers: &HeaderMap) -> bool {
    let is_sse = |value: &[u8]| value.to_ascii_lowercase().starts_with(b"text/event-stream");
    headers.get(CONTENT_TYPE).is_some_and(|value| is_sse(value.as_bytes()))
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    codings.any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

/// Whether a body can be inspected, as far as its head says.
fn readable<B: HttpBody>(headers: &HeaderMap, body: &B, max: usize) -> Result<(), Miss> {
    if is_encoded(headers) {
        return Err(Miss::Encoded);
    }
    if body.size_hint().lower() > max as u64 {
        return Err(Miss::TooLarge);
    }
    Ok(())
}

/// Parses a body of at most `max` bytes. `read` holds the frames that were read, also if this fails
/// or is dropped.
async fn document<B: HttpBody<Data = Bytes> + Unpin>(
    headers: &HeaderMap,
    body: &mut B,
    max: usize,
    full: Full,
    read: &mut Kept,
) -> Result<Result<Value, Miss>, B::Error> {
    if let Err(why) = readable(headers, body, max) {
        return Ok(Err(why));
    }
    let Ok(whole) = timeout(PATIENCE, read_whole(body, max, full, read)).await else {
        return Ok(Err(Miss::Slow));
    };
    if let Err(why) = whole? {
        return Ok(Err(why));
    }
    let text = join(read.data());
    // "implementations that parse JSON texts MAY ignore the presence of a byte order mark rather
    // than treating it as an error" RFC 8259 8.1. Some upstreams ignore it, so it is ignored here
    // too.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    Ok(serde_json::from_slice(text).map_err(|_| Miss::NotJson))
}

/// Reads a body that ends within `max` bytes and fits the quota. Cancel-safe: `read` holds the
/// frames that have come.
async fn read_whole<B: HttpBody<Data = Bytes> + Unpin>(
    body: &mut B,
    max: usize,
    full: Full,
    read: &mut Kept,
) -> Result<Result<(), Miss>, B::Error> {
    let mut left = max;
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let size = frame.data_ref().map_or(0, Bytes::len);
        if size > 0 || !frame.is_data() {
            // An empty frame carries nothing, and any number of them would count as zero bytes.
            match full {
                Full::Exceeds => read.push_past(frame),
                Full::Refuses if !read.push(frame) => return Ok(Err(Miss::Memory)),
                Full::Refuses => {}
            }
        }
        match left.checked_sub(size) {
            Some(rest) => left = rest,
            None => return Ok(Err(Miss::TooLarge)),
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use http_body_util::{Full as Whole, StreamBody};
    use hyper::body::Frame;
    use hyper::header::HeaderValue;
    use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

    use super::*;

    fn coded(coding: &'static str) -> HeaderMap {
        let pairs = [(CONTENT_ENCODING, HeaderValue::from_static(coding))];
        pairs.into_iter().filter(|_| !coding.is_empty()).collect()
    }

    fn kept(limit: usize) -> Kept {
        Kept::new(&Room::new(limit, Gauge::default(), Counter::default()))
    }

    #[track_caller]
    fn check(coding: &'static str, body: &'static str, want: Result<&str, Miss>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut read = kept(1 << 10);
        let mut whole = Whole::new(Bytes::from_static(body.as_bytes()));
        let (headers, full) = (coded(coding), Full::Refuses);
        let got = runtime.block_on(document(&headers, &mut whole, 8, full, &mut read)).unwrap();
        assert_eq!(got.map(|value| value.to_string()).as_deref(), want.as_deref(), "{body}");
    }

    #[test]
    fn a_body_is_parsed_within_its_bound() {
        check("", "{\"a\":1}", Ok("{\"a\":1}"));
        check("Identity", "[1]", Ok("[1]"));
        check("", "\u{feff}[1]", Ok("[1]"));
        check("", "[1,2,3] ", Ok("[1,2,3]"));
        check("", "[1,2,3]  ", Err(Miss::TooLarge));
        check("gzip", "[1]", Err(Miss::Encoded));
        for no_json in ["", "{", "a=1", "[[[[[[[["] {
            check("", no_json, Err(Miss::NotJson));
        }
    }

    #[tokio::test]
    async fn a_body_that_grows_too_large_is_kept_from_its_beginning() {
        let frames = ["[1,2,3", ",4,5,6", ",7]"]
            .map(|part| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(part.as_bytes()))));
        let mut body = StreamBody::new(futures_util::stream::iter(frames));
        let (headers, mut read) = (HeaderMap::new(), kept(1 << 10));

        let document = document(&headers, &mut body, 8, Full::Refuses, &mut read).await.unwrap();

        assert_eq!(document, Err(Miss::TooLarge));
        assert_eq!(read.data().collect::<Vec<_>>(), ["[1,2,3", ",4,5,6"]);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), ",7]");
    }

    #[tokio::test]
    async fn a_body_that_is_no_longer_waited_for_loses_nothing() {
        let first = Frame::data(Bytes::from_static(b"["));
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(first)]);
        let stream = futures_util::StreamExt::chain(first, futures_util::stream::pending());
        let (mut body, mut read) = (StreamBody::new(stream), kept(1 << 10));

        let reading = read_whole(&mut body, 8, Full::Refuses, &mut read);
        let late = timeout(Duration::from_millis(1), reading).await;

        assert!(late.is_err());
        assert_eq!(read.data().collect::<Vec<_>>(), ["["]);
    }

    #[tokio::test]
    async fn a_body_in_many_small_parts_takes_more_room_than_its_bytes() {
        for (full, want) in [(Full::Refuses, Err(Miss::Memory)), (Full::Exceeds, Ok(()))] {
            let parts = std::iter::repeat_n(Bytes::from_static(b"1"), 100).map(Frame::data);
            let parts = parts.map(Ok::<_, std::io::Error>);
            let mut body = StreamBody::new(futures_util::stream::iter(parts));
            let got = read_whole(&mut body, 100, full, &mut kept(1 << 10)).await.unwrap();
            assert_eq!(got, want, "{full:?}");
        }
    }
}
