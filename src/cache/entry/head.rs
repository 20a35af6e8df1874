//! The head of an entry: one text, from which the head of every answer is made.
//!
//! The text is the head of a hit exactly as hyper's server sends it over HTTP/1.1, except for two
//! numbers that change with time: `Age`, and the TTL in `Cache-Status`. The repeat fast path, which
//! bypasses hyper, inserts the numbers and writes the text as it is. For an answer through hyper, a
//! `HeaderMap` is built, with values that share the text: keeping a map would take several times the
//! memory of the text. Nothing is kept twice: the lines themselves show which of them jobcache has
//! added and which are stored.
//!
//! The text is not written directly if it has a header that hyper does more with than writing it, or
//! if it lacks `Date`, which hyper would add. Such entries are left to hyper.

#[cfg(test)]
mod tests;

use std::ops::Range;

use bytes::Bytes;
use hyper::http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        AGE, CACHE_CONTROL, CACHE_STATUS, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH,
        CONTENT_TYPE, DATE, ETAG, SERVER, TRAILER, TRANSFER_ENCODING, UPGRADE, VARY, VIA,
    },
};
use memchr::memchr;

use super::coding;
use crate::semantics::{headers::VIA_JOBCACHE, policy::LastModified};

/// Greatest number of headers that an answer may have in addition to the stored ones:
/// `Content-Length`, `ETag`, `Age`, `Via`, `Cache-Status`, and for a compressed entry
/// `Content-Encoding` and `Vary`.
pub(super) const MAX_ADDED_HEADERS: usize = 7;

/// `Cache-Status` of a hit (RFC 9211 2), without the seconds at its end.
pub(super) const HIT_STATUS: &str = "jobcache; hit; ttl=";

/// Part of every text. It is written only if the status is 200.
const STATUS_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";
/// "An origin server SHOULD generate a Vary header field on a cacheable response when it wishes that
/// response to be selectively reused for subsequent requests" RFC 9110 12.5.5. The same goes for a cache
/// that chooses between two forms.
pub(super) const VARY_BY_CODING: HeaderValue = HeaderValue::from_static("accept-encoding");
const COLON: &[u8] = b": ";
const LINE_END: &[u8] = b"\r\n";

/// The head of an entry, without the two numbers that change with time.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) text: Bytes,
    /// Position of the number of `Age` in the text.
    age_at: usize,
    /// Position of the TTL of `Cache-Status` in the text.
    ttl_at: usize,
    pub(super) status: StatusCode,
    /// Number of lines, so that a map need not grow.
    lines: u16,
    /// Whether `ETag` was added by jobcache.
    etag_is_added: bool,
    /// Whether the last `Vary` was added by jobcache.
    pub(super) vary_is_added: bool,
    /// Whether hyper would send exactly this text.
    is_writable: bool,
    /// Whether the upstream's `Last-Modified` is kept. It is here and not in the entry, because there it
    /// would take eight bytes more.
    pub(super) last_modified: LastModified,
}

/// The form of an entry that a head is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadForm {
    /// The body is as the upstream sent it, and there is no other form.
    Only,
    /// The body is as the upstream sent it, and there is also a compressed form.
    Identity,
    /// The body is compressed.
    Zstd,
}

/// Whether an answer is a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerKind {
    Hit,
    /// From an entry that was just read from the upstream for this request.
    Fresh,
}

/// The two numbers of an answer, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadSeconds {
    pub(super) age: u64,
    pub(super) ttl: u64,
}

/// A line of a head.
#[derive(Clone, Debug)]
pub(super) struct HeadLine<'t> {
    pub(super) name: &'t [u8],
    pub(super) value: &'t [u8],
    /// Position of the value in the text.
    at: Range<usize>,
}

impl HeadLine<'_> {
    /// Parses the name. Never returns `None`, because a text is made of valid names.
    fn field_name(&self) -> Option<HeaderName> {
        // The headers of nearly every answer come first: parsing a name takes ten times as long.
        Some(match self.name {
            b"age" => AGE,
            b"cache-control" => CACHE_CONTROL,
            b"cache-status" => CACHE_STATUS,
            b"content-length" => CONTENT_LENGTH,
            b"content-type" => CONTENT_TYPE,
            b"date" => DATE,
            b"etag" => ETAG,
            b"server" => SERVER,
            b"vary" => VARY,
            b"via" => VIA,
            name => return HeaderName::from_bytes(name).ok(),
        })
    }
}

impl Head {
    /// Creates the head of one of the forms of an entry. `length` is that of the body in this form.
    /// `ETag` is the upstream's, or else a strong one made from the digest of the body as the upstream
    /// sent it.
    pub(super) fn new(
        form: HeadForm,
        status: StatusCode,
        mut headers: HeaderMap,
        length: usize,
        digest: impl FnOnce() -> String,
    ) -> Self {
        let etag_is_added = !headers.contains_key(ETAG) && status == StatusCode::OK;
        let made = etag_is_added.then(|| made_etag(&digest()));
        let etag = headers.get(ETAG).cloned().or(made);
        headers.insert(CONTENT_LENGTH, length.into());
        let is_coded = form == HeadForm::Zstd;
        let coded = |etag| if is_coded { coding::compressed_etag(&etag) } else { etag };
        if let Some(etag) = etag.map(coded) {
            headers.insert(ETAG, etag);
        }
        if is_coded {
            headers.insert(CONTENT_ENCODING, coding::ZSTD);
        }
        let vary_is_added = form != HeadForm::Only && !varies_by_coding(&headers);
        if vary_is_added {
            headers.append(VARY, VARY_BY_CODING);
        }
        headers.insert(AGE, HeaderValue::from_static(""));
        headers.append(VIA, VIA_JOBCACHE);
        headers.append(CACHE_STATUS, HeaderValue::from_static(HIT_STATUS));
        let (text, age_at, ttl_at) = text_of(&headers);
        let is_writable = status == StatusCode::OK && length > 0 && is_plain(&headers);
        // A map holds at most 2^15 headers.
        let lines = u16::try_from(headers.len()).unwrap_or(0);
        Self {
            text,
            age_at,
            ttl_at,
            status,
            lines,
            etag_is_added,
            vary_is_added,
            is_writable,
            last_modified: LastModified::Kept,
        }
    }

    /// Returns the headers of an answer. Only a hit has the `Via` and `Cache-Status` of jobcache.
    pub(super) fn headers(&self, seconds: HeadSeconds, kind: AnswerKind) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(self.lines.into());
        for line in self.lines() {
            let stays = kind == AnswerKind::Hit
                || !matches!(line.name, b"via" | b"cache-status")
                || !self.is_added(&line);
            if stays {
                self.append_line(&mut headers, &line, seconds);
            }
        }
        headers
    }

    fn append_line(&self, headers: &mut HeaderMap, line: &HeadLine<'_>, seconds: HeadSeconds) {
        let Some(name) = line.field_name() else { return };
        let value = if line.at.start == self.age_at {
            numbered("", seconds.age)
        } else if line.at.end == self.ttl_at {
            numbered(HIT_STATUS, seconds.ttl)
        } else {
            self.value(line)
        };
        headers.append(name, value);
    }

    /// Writes the head of a hit. Returns false and writes nothing if hyper would do more than that.
    pub(super) fn write(&self, to: &mut Vec<u8>, seconds: HeadSeconds) -> bool {
        if !self.is_writable {
            return false;
        }
        let age = (self.age_at, seconds.age);
        let ttl = (self.ttl_at, seconds.ttl);
        let places = if age < ttl { [age, ttl] } else { [ttl, age] };
        to.reserve(self.text.len() + 2 * DIGITS);
        let mut from = 0;
        for (place, number) in places {
            to.extend_from_slice(&self.text[from..place]);
            let mut digits = [0; DIGITS];
            let start = write_number(&mut digits, number);
            to.extend_from_slice(&digits[start..]);
            from = place;
        }
        to.extend_from_slice(&self.text[from..]);
        true
    }

    /// Returns the value of a line, without its number.
    pub(super) fn value(&self, line: &HeadLine<'_>) -> HeaderValue {
        // Conversion never fails: a text is made of valid values.
        HeaderValue::from_maybe_shared(self.text.slice(line.at.clone()))
            .unwrap_or(HeaderValue::from_static(""))
    }

    /// Returns the upstream's `ETag`, or a generated one if there is none and the status is 2xx.
    pub(super) fn etag(&self) -> Option<HeaderValue> {
        self.lines().find(|line| line.name == b"etag").map(|line| self.value(&line))
    }

    /// Returns the stored headers with a `selected` name.
    pub(super) fn fields(
        &self,
        selected: impl Fn(&[u8]) -> bool,
    ) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let lines = self.stored().filter(move |line| selected(line.name));
        lines.filter_map(|line| Some((line.field_name()?, self.value(&line))))
    }

    /// Returns the lines of the stored headers.
    pub(super) fn stored(&self) -> impl Iterator<Item = HeadLine<'_>> {
        self.lines().filter(|line| !self.is_added(line))
    }

    /// Returns whether a line was added by [`Head::new`]. Lines with the same name are next to each
    /// other, and the added one is the last of them.
    fn is_added(&self, line: &HeadLine<'_>) -> bool {
        match line.name {
            b"age" | b"content-length" => true,
            b"etag" => self.etag_is_added,
            b"cache-status" => line.at.end == self.ttl_at,
            b"vary" if self.vary_is_added => {
                !self.text[line.at.end + LINE_END.len()..].starts_with(b"vary: ")
            }
            b"via" => !self.text[line.at.end + LINE_END.len()..].starts_with(b"via: "),
            _ => false,
        }
    }

    /// Iterates over the lines. No name contains a colon, no value contains a line end, and there is no
    /// colon after the last line.
    fn lines(&self) -> impl Iterator<Item = HeadLine<'_>> {
        let mut from = STATUS_LINE.len();
        std::iter::from_fn(move || {
            let rest = &self.text[from..];
            let (name, value) = rest.split_at(memchr(b':', rest)?);
            let value = value.get(COLON.len()..)?;
            let value = &value[..memchr(b'\r', value)?];
            let start = from + name.len() + COLON.len();
            let at = start..start + value.len();
            from = at.end + LINE_END.len();
            Some(HeadLine { name, value, at })
        })
    }
}

/// Returns the `ETag` of an entry whose response had none.
fn made_etag(digest: &str) -> HeaderValue {
    // Conversion never fails: the value is hexadecimal digits in quotes.
    HeaderValue::try_from(format!("\"{digest}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Returns whether hyper writes these headers as they are, and adds none.
fn is_plain(headers: &HeaderMap) -> bool {
    let special = [CONNECTION, TRAILER, TRANSFER_ENCODING, UPGRADE];
    headers.contains_key(DATE) && !special.iter().any(|name| headers.contains_key(name))
}

/// Returns whether `Vary` of the upstream lists `Accept-Encoding`.
fn varies_by_coding(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(VARY).into_iter();
    let mut names = lines.flat_map(|line| line.as_bytes().split(|b| *b == b','));
    names.any(|name| name.trim_ascii().eq_ignore_ascii_case(VARY_BY_CODING.as_bytes()))
}

/// Returns the text of the headers of a hit, and the positions of the numbers of `Age` and of the last
/// member of `Cache-Status`, which is jobcache's.
fn text_of(headers: &HeaderMap) -> (Bytes, usize, usize) {
    let line_length = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + COLON.len() + value.len() + LINE_END.len()
    };
    let lines: usize = headers.iter().map(line_length).sum();
    // The exact capacity, because the text is kept.
    let mut text = Vec::with_capacity(STATUS_LINE.len() + lines + LINE_END.len());
    text.extend_from_slice(STATUS_LINE);
    let (mut age_at, mut ttl_at) = (0, 0);
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), COLON, value.as_bytes()] {
            text.extend_from_slice(part);
        }
        match *name {
            AGE => age_at = text.len(),
            CACHE_STATUS => ttl_at = text.len(),
            _ => {}
        }
        text.extend_from_slice(LINE_END);
    }
    text.extend_from_slice(LINE_END);
    (text.into(), age_at, ttl_at)
}

/// Digits of the greatest `u64`.
const DIGITS: usize = 20;

/// Writes a number at the end of a buffer, which must be long enough. Returns where the number begins.
fn write_number(buffer: &mut [u8], mut number: u64) -> usize {
    let mut start = buffer.len();
    loop {
        start -= 1;
        // The remainder is below ten, so the cast loses nothing.
        buffer[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return start;
        }
    }
}

/// Returns a value made of a text and a number at its end.
pub(super) fn numbered(text: &'static str, number: u64) -> HeaderValue {
    let mut value = [0; HIT_STATUS.len() + DIGITS];
    let start = write_number(&mut value, number) - text.len();
    value[start..][..text.len()].copy_from_slice(text.as_bytes());
    // Conversion never fails: the value is a constant text and digits.
    HeaderValue::from_bytes(&value[start..]).unwrap_or(HeaderValue::from_static(""))
}
