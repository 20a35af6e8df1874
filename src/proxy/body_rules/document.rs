//! Reads the beginning of a body, and parses it.
//!
//! The upstream may read a body differently. Where a body has two readings, it is parsed all the
//! same, and [`ParsedBody::doubt`] says why the ids in it may not be all.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    HeaderMap,
    body::Body as HttpBody,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue},
};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    limits::{BufferedFrames, join},
    semantics::labels::labels,
};

/// Longest time to wait for an inspected body. Past it the body streams on without inspection.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(10);

labels! {
    /// Why a rule did not find every job that a body names.
    pub(super) enum RuleMiss {
        /// The body is larger than the rule allows.
        TooLarge = "too-large",
        /// The body is compressed.
        Encoded = "encoded",
        /// The body did not end in time.
        Slow = "slow",
        /// The quota for inspected bodies is used up.
        Memory = "memory",
        /// The body is not JSON, or is nested too deeply.
        NotJson = "not-json",
        /// The content type of a request is not that of JSON, so the upstream may read something else.
        ContentType = "content-type",
        /// A member occurs twice in an object, and parsers differ in which one they take.
        Ambiguous = "ambiguous",
        /// The response is an event stream, which is not held back.
        EventStream = "event-stream",
        /// No pointer leads to an id.
        NotFound = "not-found",
        /// A pointer leads to a value that is not an id.
        NotId = "not-id",
        /// The body names more jobs than may be invalidated at once. Only the first ones were.
        TooMany = "too-many",
    }
}

/// How a body without room in the quota is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// The body is not read on.
    Refuse,
    /// The body is read and counted all the same.
    Exceed,
}

/// A parsed body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ParsedBody {
    pub(super) value: Value,
    /// Why the upstream may read it differently.
    pub(super) doubt: Option<RuleMiss>,
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    codings.any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

/// Whether a body can be inspected, as far as its head says.
pub(super) fn inspectable<B: HttpBody>(
    headers: &HeaderMap,
    body: &B,
    max: usize,
) -> Result<(), RuleMiss> {
    if is_encoded(headers) {
        return Err(RuleMiss::Encoded);
    }
    if body.size_hint().lower() > max as u64 {
        return Err(RuleMiss::TooLarge);
    }
    Ok(())
}

/// Parses a body of at most `max` bytes; `None` if it is empty. `read` holds the frames that were
/// read, also if this fails or is dropped.
pub(super) async fn read_document<B: HttpBody<Data = Bytes> + Unpin>(
    headers: &HeaderMap,
    body: &mut B,
    max: usize,
    full: WhenFull,
    read: &mut BufferedFrames,
) -> Result<Result<Option<ParsedBody>, RuleMiss>, B::Error> {
    if body.is_end_stream() {
        return Ok(Ok(None));
    }
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
    Ok(if text.is_empty() { Ok(None) } else { parse(&text).map(Some) })
}

/// Parses JSON. Of two members with one name the last one counts, as in most parsers.
fn parse(text: &[u8]) -> Result<ParsedBody, RuleMiss> {
    // "implementations that parse JSON texts MAY ignore the presence of a byte order mark rather
    // than treating it as an error" RFC 8259 8.1. Some upstreams ignore it, so it is ignored here
    // too.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let value = serde_json::from_slice(text).map_err(|_| RuleMiss::NotJson)?;
    let is_ambiguous = members(&value) < members_in_text(text);
    Ok(ParsedBody { value, doubt: is_ambiguous.then_some(RuleMiss::Ambiguous) })
}

/// Returns how many members the objects in a value have. A name that occurs twice counts once.
fn members(value: &Value) -> usize {
    match value {
        Value::Object(object) => object.len() + object.values().map(members).sum::<usize>(),
        Value::Array(elements) => elements.iter().map(members).sum(),
        _ => 0,
    }
}

/// Returns how many members a JSON text has: each has a colon outside of strings.
fn members_in_text(text: &[u8]) -> usize {
    let (mut colons, mut in_string, mut is_escaped) = (0, false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => in_string = !in_string,
            b':' if !in_string => colons += 1,
            _ => {}
        }
    }
    colons
}

/// Whether every content type of a request lets the upstream read it as JSON in UTF-8. A form may
/// be JSON as well, and name other jobs: `{"id":17,"x":"&id=18"}`.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_TYPE).iter().all(is_json_type)
}

fn is_json_type(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    let text = text.to_ascii_lowercase();
    let mut parts = text.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    // The last two say nothing of the format. Webhooks and browsers send JSON as such.
    let is_json = essence.ends_with("/json")
        || essence.ends_with("+json")
        || matches!(essence, "" | "application/x-json" | "text/plain" | "application/octet-stream");
    let charset = |parameter: &str| {
        let charset = parameter.strip_prefix("charset=").map(|name| name.trim_matches('"'));
        charset.is_none_or(|name| matches!(name, "utf-8" | "utf8" | "us-ascii" | "ascii"))
    };
    is_json && parts.all(charset)
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
    use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
    use tokio::time::Instant;

    use super::*;
    use crate::limits::Quota;

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
        let got = got.map(|document| document.map_or_else(String::new, |it| it.value.to_string()));
        assert_eq!(got.as_deref(), want.as_deref(), "{body}");
    }

    #[test]
    fn a_body_is_parsed_within_its_bound() {
        check("", "{\"a\":1}", Ok("{\"a\":1}"));
        check("Identity", "[1]", Ok("[1]"));
        check("", "\u{feff}[1]", Ok("[1]"));
        check("", "[1,2,3] ", Ok("[1,2,3]"));
        check("", "[1,2,3]  ", Err(RuleMiss::TooLarge));
        check("gzip", "[1]", Err(RuleMiss::Encoded));
        check("", "", Ok(""));
        check("gzip", "", Ok(""));
        for no_json in ["{", "a=1", "[[[[[[[["] {
            check("", no_json, Err(RuleMiss::NotJson));
        }
    }

    #[test]
    fn what_another_parser_may_accept_is_not_json_here() {
        for text in [
            "{\"id\":NaN}",
            "{\"id\":17,\"x\":-Infinity}",
            "{\"id\":17,\"x\":\"\\ud800\"}",
            "{\"id\":17,\"x\":1e999}",
            "{'id':17}",
            "{\"id\":17,}",
            "{\"id\":17}{}",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(RuleMiss::NotJson), "{text}");
        }
        assert_eq!(parse(b"{\"id\":\"\xff\"}"), Err(RuleMiss::NotJson));
        let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(parse(&utf16), Err(RuleMiss::NotJson));
    }

    #[test]
    fn a_member_that_occurs_twice_is_a_doubt() {
        for (text, value, doubt) in [
            (r#"{"id":17,"id":18}"#, r#"{"id":18}"#, Some(RuleMiss::Ambiguous)),
            (r#"[{"a":{"b":1,"b":1}}]"#, r#"[{"a":{"b":1}}]"#, Some(RuleMiss::Ambiguous)),
            (r#"{"a":1,"b":{"a":-1},"c":[1.5,true,null,"x"]}"#, "", None),
        ] {
            let value = if value.is_empty() { text } else { value };
            let value = serde_json::from_str(value).unwrap();
            assert_eq!(parse(text.as_bytes()), Ok(ParsedBody { value, doubt }), "{text}");
        }
    }

    #[track_caller]
    fn check_type(content_type: &'static str, want: bool) {
        let value = HeaderValue::from_static(content_type);
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, value)]);
        assert_eq!(is_json(&headers), want, "{content_type}");
    }

    #[test]
    fn a_content_type_says_whether_the_upstream_reads_json() {
        assert!(is_json(&HeaderMap::new()));
        check_type("application/json", true);
        check_type("Application/JSON; charset=\"UTF-8\"", true);
        check_type("application/merge-patch+json;q=1", true);
        check_type("text/plain;charset=UTF-8", true);
        check_type("application/json; charset=utf-16", false);
        check_type("application/x-www-form-urlencoded", false);
        check_type("multipart/form-data; boundary=x", false);
        check_type("application/yaml", false);
        check_type("application/json-seq", false);
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

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_is_slow_after_ten_seconds() {
        let frames = futures_util::stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
        let (headers, mut read, started) = (HeaderMap::new(), kept(1 << 10), Instant::now());

        let mut body = StreamBody::new(frames);
        let document = read_document(&headers, &mut body, 8, WhenFull::Refuse, &mut read).await;

        assert_eq!(document.unwrap(), Err(RuleMiss::Slow));
        assert_eq!(started.elapsed().as_secs(), 10);
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
