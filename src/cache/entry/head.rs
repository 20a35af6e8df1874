//! The head of an entry: one text, of which every answer is made.
//!
//! It is the head of a hit as hyper's server sends it over HTTP/1.1, to the byte, but for two numbers
//! that change with time. Who writes past hyper puts them in and writes it as it is. Where a map is
//! wanted it is made anew, with values that are parts of the text: a map that was kept would be several
//! times as large as all that it says. Nothing is kept twice; which lines are ours and which are stored
//! is told from the lines themselves.
//!
//! Headers that hyper does more with than to write them are not written past it, nor what has no
//! `Date`, which it would add: such an entry is left to it.

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

use super::{VIA_US, coding};

/// Headers that an answer may have beside those that are stored: `Content-Length`, `ETag`, `Age`, `Via`,
/// `Cache-Status`, and of what is compressed `Content-Encoding` and `Vary`.
pub(super) const ADDED: usize = 7;

/// What `Cache-Status` says of a hit (RFC 9211 2), but for the seconds.
pub(super) const HIT: &str = "jobcache; hit; ttl=";

/// Stands in every text, and is sent only where it is true.
const STATUS_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";
const BY_CODING: HeaderValue = HeaderValue::from_static("accept-encoding");
const COLON: &[u8] = b": ";
const LINE_END: &[u8] = b"\r\n";

/// A head, but for two numbers.
#[derive(Debug)]
pub(super) struct Head {
    text: Bytes,
    /// Where the numbers go.
    age_at: usize,
    ttl_at: usize,
    status: StatusCode,
    /// How many lines there are, for a map that need not grow.
    lines: u16,
    etag_is_ours: bool,
    vary_is_ours: bool,
    /// Whether hyper would send the text as it is.
    is_plain: bool,
}

/// Which of the forms of an entry a head is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The only one.
    Alone,
    /// As the upstream sent it, beside another.
    Identity,
    /// Compressed.
    Zstd,
}

/// The numbers of one answer, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seconds {
    pub(super) age: u64,
    pub(super) ttl: u64,
}

/// A line of a head.
#[derive(Clone, Debug)]
pub(super) struct Line<'t> {
    pub(super) name: &'t [u8],
    pub(super) value: &'t [u8],
    /// Where the value stands in the text.
    at: Range<usize>,
}

impl Line<'_> {
    /// `None` never comes: a text is made of valid names only.
    fn field_name(&self) -> Option<HeaderName> {
        // Those of nearly every answer first: to parse a name takes ten times as long.
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
    /// Of what is stored and the length of the body. The `ETag` is the upstream's, else a strong one from
    /// the digest of the body as the upstream sent it.
    pub(super) fn new(
        status: StatusCode,
        headers: HeaderMap,
        length: usize,
        digest: impl FnOnce() -> String,
    ) -> Self {
        Self::of(Form::Alone, status, headers, length, digest)
    }

    /// The same for one of the forms.
    pub(super) fn of(
        form: Form,
        status: StatusCode,
        mut headers: HeaderMap,
        length: usize,
        digest: impl FnOnce() -> String,
    ) -> Self {
        let theirs = headers.get(ETAG).cloned();
        let etag_is_ours = theirs.is_none();
        let etag = theirs.unwrap_or_else(|| {
            // Hexadecimal digits in quotes are always a valid value.
            HeaderValue::try_from(format!("\"{}\"", digest()))
                .unwrap_or(HeaderValue::from_static("\"\""))
        });
        headers.insert(CONTENT_LENGTH, length.into());
        let etag = if form == Form::Zstd { coding::tag(&etag) } else { etag };
        headers.insert(ETAG, etag);
        if form == Form::Zstd {
            headers.insert(CONTENT_ENCODING, coding::NAME);
        }
        // "An origin server SHOULD generate a Vary header field on a cacheable response when it wishes
        // that response to be selectively reused for subsequent requests" RFC 9110 12.5.5: whoever
        // chooses between forms is in its place.
        let vary_is_ours = form != Form::Alone && !varies_by_coding(&headers);
        if vary_is_ours {
            headers.append(VARY, BY_CODING);
        }
        headers.insert(AGE, HeaderValue::from_static(""));
        headers.append(VIA, VIA_US);
        headers.append(CACHE_STATUS, HeaderValue::from_static(HIT));
        let (text, age_at, ttl_at) = spell(&headers);
        let special = [CONNECTION, TRAILER, TRANSFER_ENCODING, UPGRADE];
        let is_plain = status == StatusCode::OK
            && length > 0
            && headers.contains_key(DATE)
            && !special.iter().any(|name| headers.contains_key(name));
        // No map holds more than 2^15.
        let lines = u16::try_from(headers.len()).unwrap_or(0);
        Self { text, age_at, ttl_at, status, lines, etag_is_ours, vary_is_ours, is_plain }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// Bytes of the text.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// The headers of a hit.
    pub(super) fn hit(&self, seconds: Seconds) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(self.lines.into());
        for line in self.lines() {
            self.put(&mut headers, &line, seconds);
        }
        headers
    }

    /// The headers of an answer that does not say how the entry came here.
    pub(super) fn full(&self, seconds: Seconds) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(self.lines.into());
        for line in self.lines() {
            let told = self.is_ours(&line) && matches!(line.name, b"via" | b"cache-status");
            if !told {
                self.put(&mut headers, &line, seconds);
            }
        }
        headers
    }

    fn put(&self, headers: &mut HeaderMap, line: &Line<'_>, seconds: Seconds) {
        let Some(name) = line.field_name() else { return };
        let value = if line.at.start == self.age_at {
            numbered("", seconds.age)
        } else if line.at.end == self.ttl_at {
            numbered(HIT, seconds.ttl)
        } else {
            self.value(line)
        };
        headers.append(name, value);
    }

    /// Writes the head of a hit. False where hyper would do more than that: then nothing is written.
    pub(super) fn write(&self, to: &mut Vec<u8>, seconds: Seconds) -> bool {
        if !self.is_plain {
            return false;
        }
        let (age, ttl) = ((self.age_at, seconds.age), (self.ttl_at, seconds.ttl));
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

    /// The value of a line, without its number.
    pub(super) fn value(&self, line: &Line<'_>) -> HeaderValue {
        // A text is made of valid values only.
        HeaderValue::from_maybe_shared(self.text.slice(line.at.clone()))
            .unwrap_or(HeaderValue::from_static(""))
    }

    /// The upstream's `ETag`, else ours.
    pub(super) fn etag(&self) -> HeaderValue {
        let line = self.lines().find(|line| line.name == b"etag");
        // There is one in every text.
        line.map_or(HeaderValue::from_static(""), |line| self.value(&line))
    }

    /// The `Vary` that is not the upstream's.
    pub(super) fn added_vary(&self) -> Option<HeaderValue> {
        self.vary_is_ours.then_some(BY_CODING)
    }

    /// The stored headers whose names are wanted.
    pub(super) fn fields(
        &self,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let lines = self.stored().filter(move |line| wanted(line.name));
        lines.filter_map(|line| Some((line.field_name()?, self.value(&line))))
    }

    /// The lines that are stored.
    pub(super) fn stored(&self) -> impl Iterator<Item = Line<'_>> {
        self.lines().filter(|line| !self.is_ours(line))
    }

    /// Whether a line is one of those that [`Head::new`] adds. Lines of one name are next to each other,
    /// and ours is the last of its name.
    fn is_ours(&self, line: &Line<'_>) -> bool {
        match line.name {
            b"age" | b"content-length" => true,
            b"etag" => self.etag_is_ours,
            b"cache-status" => line.at.end == self.ttl_at,
            b"vary" if self.vary_is_ours => {
                !self.text[line.at.end + LINE_END.len()..].starts_with(b"vary: ")
            }
            b"via" => !self.text[line.at.end + LINE_END.len()..].starts_with(b"via: "),
            _ => false,
        }
    }

    /// No name holds a colon and no value a line end; after the empty line there is no colon any more.
    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let mut from = STATUS_LINE.len();
        std::iter::from_fn(move || {
            let rest = &self.text[from..];
            let (name, value) = rest.split_at(memchr(b':', rest)?);
            let value = value.get(COLON.len()..)?;
            let value = &value[..memchr(b'\r', value)?];
            let start = from + name.len() + COLON.len();
            let at = start..start + value.len();
            from = at.end + LINE_END.len();
            Some(Line { name, value, at })
        })
    }

    /// Whether two say the same.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        self.status == other.status
            && self.etag() == other.etag()
            && self.differing(&other.fields(|_| true).collect()).is_empty()
    }

    /// The names by which these differ from what is stored. `Date` says when a response was made, not
    /// what it says: two reads of an unchanged job differ in it.
    pub(super) fn differing(&self, theirs: &HeaderMap) -> Vec<HeaderName> {
        let ours: HeaderMap = self.fields(|_| true).collect();
        let only_theirs = theirs.keys().filter(|name| !ours.contains_key(*name));
        let names = ours.keys().chain(only_theirs).filter(|name| **name != DATE);
        let differs =
            |name: &&HeaderName| !ours.get_all(*name).iter().eq(theirs.get_all(*name).iter());
        names.filter(differs).cloned().collect()
    }
}

/// Whether the upstream has said that the answer depends on `Accept-Encoding`.
fn varies_by_coding(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(VARY).into_iter();
    let mut names = lines.flat_map(|line| line.as_bytes().split(|b| *b == b','));
    names.any(|name| name.trim_ascii().eq_ignore_ascii_case(BY_CODING.as_bytes()))
}

/// The text of the headers of a hit, and where the numbers of `Age` and of our member of `Cache-Status`,
/// the last, are to be put in.
fn spell(headers: &HeaderMap) -> (Bytes, usize, usize) {
    let line_length = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + COLON.len() + value.len() + LINE_END.len()
    };
    let lines: usize = headers.iter().map(line_length).sum();
    // No byte more: it is kept.
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

/// Digits of the greatest number.
const DIGITS: usize = 20;

/// Writes a number at the end of a buffer that is long enough, and says where it begins.
fn write_number(buffer: &mut [u8], mut number: u64) -> usize {
    let mut start = buffer.len();
    loop {
        start -= 1;
        // Below ten, so nothing is lost.
        buffer[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return start;
        }
    }
}

/// A text with a number at its end.
pub(super) fn numbered(text: &'static str, number: u64) -> HeaderValue {
    let mut value = [0; HIT.len() + DIGITS];
    let start = write_number(&mut value, number) - text.len();
    value[start..][..text.len()].copy_from_slice(text.as_bytes());
    // Text of ours and digits are always a valid value.
    HeaderValue::from_bytes(&value[start..]).unwrap_or(HeaderValue::from_static(""))
}
