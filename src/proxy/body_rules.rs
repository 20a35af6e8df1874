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
        WriteScope,
        invalidation_rules::{BodySide, InvalidationRule, MAX_NAMED},
    },
};
use crate::{
    cache::job_id::JobId,
    limits::{BufferedFrames, Quota, join},
    metrics::{Metrics, MissLabels},
    throttle::Throttle,
    upstream::{RequestBody, ResponseBody, UpstreamError},
};

/// Longest time to wait for an inspected body. Past it the body streams on without inspection.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Inspects the bodies of writes.
#[derive(Debug)]
pub(super) struct BodyInspector {
    warnings: Throttle,
    /// Limits the memory of the bodies that are being inspected.
    room: Arc<Quota>,
    metrics: Arc<Metrics>,
}

/// Why a rule did not find every job that a body names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RuleMiss {
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
enum WhenFull {
    /// The body is not read on.
    Refuse,
    /// The body is read and counted all the same.
    Exceed,
}

/// Why a request could not be inspected and is not forwarded.
#[derive(Debug)]
pub(super) enum InspectError {
    /// The client broke off the body.
    Broken(UpstreamError),
    /// The quota has no room for the body.
    NoRoom,
}

impl From<UpstreamError> for InspectError {
    fn from(error: UpstreamError) -> Self {
        Self::Broken(error)
    }
}

/// A response that was inspected.
#[derive(Debug)]
pub(super) struct InspectedResponse {
    pub(super) response: Response<Body>,
    /// The jobs that the response body names.
    pub(super) jobs: Vec<JobId>,
}

impl BodyInspector {
    pub(super) fn new(room: Arc<Quota>, metrics: Arc<Metrics>) -> Self {
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
        scope: &mut WriteScope,
        head: &mut request::Parts,
        mut body: RequestBody,
    ) -> Result<RequestBody, InspectError> {
        if max_inspected(&scope.rules, BodySide::Response).is_some() {
            head.headers.remove(ACCEPT_ENCODING);
        }
        let Some(max) = max_inspected(&scope.rules, BodySide::Request) else { return Ok(body) };
        // The upstream cannot answer the expectation here: nothing is sent to it before the body
        // has been inspected.
        if inspectable(&head.headers, &body, max).is_ok() && body.begin() {
            head.headers.remove(EXPECT);
        }
        let mut read = BufferedFrames::new(&self.room);
        let full = WhenFull::Refuse;
        let document = read_document(&head.headers, &mut body, max, full, &mut read).await;
        let document = document.map_err(UpstreamError::ClientGone)?;
        if document == Err(RuleMiss::Memory) {
            return Err(InspectError::NoRoom);
        }
        let named = self.named(&scope.rules, BodySide::Request, &document);
        let mut known: HashSet<JobId> = scope.jobs.iter().cloned().collect();
        scope.jobs.extend(named.into_iter().filter(|job| known.insert(job.clone())));
        Ok(body.resumed(read))
    }

    /// Finds the jobs that a response body names.
    pub(super) async fn response(
        &self,
        rules: &[Arc<InvalidationRule>],
        response: Response<ResponseBody>,
    ) -> Result<InspectedResponse, UpstreamError> {
        let (head, mut body) = response.into_parts();
        let max =
            max_inspected(rules, BodySide::Response).filter(|_| !is_event_stream(&head.headers));
        let Some(max) = max else {
            let response = Response::from_parts(head, Body::Upstream(body));
            return Ok(InspectedResponse { response, jobs: Vec::new() });
        };
        let mut read = BufferedFrames::new(&self.room);
        // The body is read while it holds its upstream connection permit, so the limit on those
        // bounds the memory too.
        let document =
            read_document(&head.headers, &mut body, max, WhenFull::Exceed, &mut read).await?;
        let is_error = head.status.is_client_error() || head.status.is_server_error();
        let jobs = match &document {
            // Most error responses name no job: that is not a fault of the rule.
            Err(_) if is_error => Vec::new(),
            Ok(value) if is_error => named_by(rules, BodySide::Response, value),
            document => self.named(rules, BodySide::Response, document),
        };
        let body = if read.is_empty() { Body::Upstream(body) } else { Body::Resumed(read, body) };
        Ok(InspectedResponse { response: Response::from_parts(head, body), jobs })
    }

    /// Returns the jobs that a document names, and counts the misses.
    fn named(
        &self,
        rules: &[Arc<InvalidationRule>],
        side: BodySide,
        document: &Result<Value, RuleMiss>,
    ) -> Vec<JobId> {
        let mut named = Vec::new();
        for rule in rules.iter().filter(|rule| rule.max_body(side).is_some()) {
            match document.as_ref().map(|document| rule.jobs(side, document)) {
                Err(why) => self.report_miss(rule, side, *why),
                Ok(jobs) if jobs.is_empty() => self.report_miss(rule, side, RuleMiss::NotFound),
                Ok(jobs) => {
                    named.extend(jobs);
                    if named.len() > MAX_NAMED {
                        self.report_miss(rule, side, RuleMiss::TooMany);
                    }
                }
            }
            named.truncate(MAX_NAMED);
        }
        named
    }

    fn report_miss(&self, rule: &InvalidationRule, side: BodySide, why: RuleMiss) {
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

impl RuleMiss {
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
fn max_inspected(rules: &[Arc<InvalidationRule>], side: BodySide) -> Option<usize> {
    rules.iter().filter_map(|rule| rule.max_body(side)).max()
}

fn named_by(rules: &[Arc<InvalidationRule>], side: BodySide, document: &Value) -> Vec<JobId> {
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
fn inspectable<B: HttpBody>(headers: &HeaderMap, body: &B, max: usize) -> Result<(), RuleMiss> {
    if is_encoded(headers) {
        return Err(RuleMiss::Encoded);
    }
    if body.size_hint().lower() > max as u64 {
        return Err(RuleMiss::TooLarge);
    }
    Ok(())
}

/// Parses a body of at most `max` bytes. `read` holds the frames that were read, also if this fails
/// or is dropped.
async fn read_document<B: HttpBody<Data = Bytes> + Unpin>(
    headers: &HeaderMap,
    body: &mut B,
    max: usize,
    full: WhenFull,
    read: &mut BufferedFrames,
) -> Result<Result<Value, RuleMiss>, B::Error> {
    if let Err(why) = inspectable(headers, body, max) {
        return Ok(Err(why));
    }
    let Ok(whole) = timeout(INSPECT_TIMEOUT, read_whole(body, max, full, read)).await else {
        return Ok(Err(RuleMiss::Slow));
    };
    if let Err(why) = whole? {
        return Ok(Err(why));
    }
    let text = join(read.data());
    // "implementations that parse JSON texts MAY ignore the presence of a byte order mark rather
    // than treating it as an error" RFC 8259 8.1. Some upstreams ignore it, so it is ignored here
    // too.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    Ok(serde_json::from_slice(text).map_err(|_| RuleMiss::NotJson))
}

/// Reads a body that ends within `max` bytes and fits the quota. Cancel-safe: `read` holds the
/// frames that have come.
async fn read_whole<B: HttpBody<Data = Bytes> + Unpin>(
    body: &mut B,
    max: usize,
    full: WhenFull,
    read: &mut BufferedFrames,
) -> Result<Result<(), RuleMiss>, B::Error> {
    let mut left = max;
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let size = frame.data_ref().map_or(0, Bytes::len);
        if size > 0 || !frame.is_data() {
            // An empty frame carries nothing, and any number of them would count as zero bytes.
            match full {
                WhenFull::Exceed => read.force_push(frame),
                WhenFull::Refuse if !read.push(frame) => return Ok(Err(RuleMiss::Memory)),
                WhenFull::Refuse => {}
            }
        }
        match left.checked_sub(size) {
            Some(rest) => left = rest,
            None => return Ok(Err(RuleMiss::TooLarge)),
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

    fn kept(limit: usize) -> BufferedFrames {
        BufferedFrames::new(&Quota::new(limit, Gauge::default(), Counter::default()))
    }

    #[track_caller]
    fn check(coding: &'static str, body: &'static str, want: Result<&str, RuleMiss>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut read = kept(1 << 10);
        let mut whole = Whole::new(Bytes::from_static(body.as_bytes()));
        let (headers, full) = (coded(coding), WhenFull::Refuse);
        let got =
            runtime.block_on(read_document(&headers, &mut whole, 8, full, &mut read)).unwrap();
        assert_eq!(got.map(|value| value.to_string()).as_deref(), want.as_deref(), "{body}");
    }

    #[test]
    fn a_body_is_parsed_within_its_bound() {
        check("", "{\"a\":1}", Ok("{\"a\":1}"));
        check("Identity", "[1]", Ok("[1]"));
        check("", "\u{feff}[1]", Ok("[1]"));
        check("", "[1,2,3] ", Ok("[1,2,3]"));
        check("", "[1,2,3]  ", Err(RuleMiss::TooLarge));
        check("gzip", "[1]", Err(RuleMiss::Encoded));
        for no_json in ["", "{", "a=1", "[[[[[[[["] {
            check("", no_json, Err(RuleMiss::NotJson));
        }
    }

    #[tokio::test]
    async fn a_body_that_grows_too_large_is_kept_from_its_beginning() {
        let frames = ["[1,2,3", ",4,5,6", ",7]"]
            .map(|part| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(part.as_bytes()))));
        let mut body = StreamBody::new(futures_util::stream::iter(frames));
        let (headers, mut read) = (HeaderMap::new(), kept(1 << 10));

        let document =
            read_document(&headers, &mut body, 8, WhenFull::Refuse, &mut read).await.unwrap();

        assert_eq!(document, Err(RuleMiss::TooLarge));
        assert_eq!(read.data().collect::<Vec<_>>(), ["[1,2,3", ",4,5,6"]);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), ",7]");
    }

    #[tokio::test]
    async fn a_body_that_is_no_longer_waited_for_loses_nothing() {
        let first = Frame::data(Bytes::from_static(b"["));
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(first)]);
        let stream = futures_util::StreamExt::chain(first, futures_util::stream::pending());
        let (mut body, mut read) = (StreamBody::new(stream), kept(1 << 10));

        let reading = read_whole(&mut body, 8, WhenFull::Refuse, &mut read);
        let late = timeout(Duration::from_millis(1), reading).await;

        assert!(late.is_err());
        assert_eq!(read.data().collect::<Vec<_>>(), ["["]);
    }

    #[tokio::test]
    async fn a_body_in_many_small_parts_takes_more_room_than_its_bytes() {
        for (full, want) in [(WhenFull::Refuse, Err(RuleMiss::Memory)), (WhenFull::Exceed, Ok(()))]
        {
            let parts = std::iter::repeat_n(Bytes::from_static(b"1"), 100).map(Frame::data);
            let parts = parts.map(Ok::<_, std::io::Error>);
            let mut body = StreamBody::new(futures_util::stream::iter(parts));
            let got = read_whole(&mut body, 100, full, &mut kept(1 << 10)).await.unwrap();
            assert_eq!(got, want, "{full:?}");
        }
    }
}
