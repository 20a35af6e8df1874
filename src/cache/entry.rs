//! An entry: a stored response, how it stands in the store, and how it is served.

mod spelled;
#[cfg(test)]
mod tests;

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use hyper::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        self, AGE, CACHE_CONTROL, CACHE_STATUS, CONTENT_LENGTH, CONTENT_LOCATION, DATE, ETAG,
        EXPIRES, VARY, VIA,
    },
    response,
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use self::spelled::Spelled;
use super::{
    audience::{Audience, Member, Pair},
    policy,
};
use crate::{
    mutants::{self, Mutant},
    store::{Epoch, Seen, Token},
};

/// Of the meta format. An entry of another version is not a hit.
const VERSION: u8 = 1;

/// The end of the year 9999, past which there is no `Date`.
const LAST_DATE_MS: i64 = 253_402_300_799_000;

/// We, as the recipient of an HTTP/1.1 message (RFC 9110 7.6.3).
pub const VIA_US: HeaderValue = HeaderValue::from_static("1.1 jobcache");

/// Headers that an answer may have beside those that are stored: `Content-Length`, `ETag`, `Age`, `Via`
/// and `Cache-Status`.
const ADDED: usize = 5;

/// What `Cache-Status` says of a hit (RFC 9211 2), but for the seconds.
const HIT: &str = "jobcache; hit; ttl=";

/// A response that may be served to more than one request.
#[derive(Debug)]
pub struct Entry {
    head: Head,
    body: Bytes,
    /// When it was stored and how old it was then.
    stored_at_ms: i64,
    age_ms: i64,
    expires_at_ms: i64,
    audience: Audience,
    /// What it stands under in the store; empty before it does.
    generation: String,
}

#[derive(Debug)]
struct Head {
    status: StatusCode,
    headers: HeaderMap,
    etag: HeaderValue,
    /// The headers of a hit as text, from the first time that it is wanted; `None` where it cannot be.
    spelled: OnceLock<Option<Spelled>>,
}

/// `{job_status:<id>}:meta`. The store adds `expires_at_ms` when it stores it.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    v: u8,
    status: u16,
    /// Name and value; each byte of a value stands as the character of that number.
    headers: Vec<(String, String)>,
    /// xxh3-128 of the body, in hexadecimal.
    digest: String,
    /// The token of the lease under which it was filled.
    generation: String,
    stored_at_ms: i64,
    /// How old it was when it was stored.
    age_ms: i64,
    epoch: String,
    /// The upstream has waived the credential.
    #[serde(default)]
    public: bool,
    /// Pairs of credential and representation, in hexadecimal, each with its time.
    audience: Vec<String>,
    #[serde(default, skip_serializing)]
    expires_at_ms: i64,
}

/// Why a value in the store is not a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Somebody else wrote it: no meta, or a body or an expiry other than what meta tells of.
    Foreign,
    /// Ours, but not readable: another version, or damaged.
    Corrupt,
    /// Of another life of the server.
    Epoch,
}

impl Entry {
    /// Makes an entry of a complete response that may be stored.
    pub fn new(
        head: &response::Parts,
        body: Bytes,
        freshness: policy::Freshness,
        pair: Pair,
        now_ms: i64,
    ) -> Self {
        let mut headers: HeaderMap = head
            .headers
            .iter()
            .filter(|(name, _)| policy::is_stored(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        // "A recipient with a clock that receives a response message without a Date header field MUST
        // record the time it was received and append a corresponding Date header field to the message's
        // header section if it is cached or forwarded downstream." RFC 9110 6.6.1
        headers.entry(DATE).or_insert_with(|| http_date(now_ms));
        Self {
            head: Head::new(head.status, headers, || digest(&body)),
            body,
            stored_at_ms: now_ms,
            age_ms: millis(freshness.age),
            expires_at_ms: now_ms.saturating_add(millis(freshness.ttl)),
            audience: Audience::of(pair, freshness.public, now_ms),
            generation: String::new(),
        }
    }

    /// Reads and verifies what the store holds: it counts only if body and expiry are those that
    /// meta tells of, in the epoch of the connection that read it.
    pub fn decode(seen: &Seen) -> Option<Result<Self, Reject>> {
        let stored = seen.stored.as_ref()?;
        if stored.meta.is_empty() {
            return Some(Err(Reject::Foreign));
        }
        let Ok(meta) = serde_json::from_slice::<Meta>(&stored.meta) else {
            return Some(Err(Reject::Corrupt));
        };
        if meta.v != VERSION {
            return Some(Err(Reject::Corrupt));
        }
        let expires_as_stored = meta.expires_at_ms == stored.expires_at_ms;
        if !(expires_as_stored || mutants::is(Mutant::NoExpiryCheck))
            || meta.digest != digest(&stored.body)
        {
            return Some(Err(Reject::Foreign));
        }
        if meta.epoch != seen.epoch.as_str() && !mutants::is(Mutant::NoEpoch) {
            return Some(Err(Reject::Epoch));
        }
        Some(Self::from_meta(meta, stored.body.clone()).ok_or(Reject::Corrupt))
    }

    fn from_meta(meta: Meta, body: Bytes) -> Option<Self> {
        let mut headers = HeaderMap::with_capacity(meta.headers.len());
        for (name, value) in &meta.headers {
            let value: Vec<u8> =
                value.chars().map(|c| u8::try_from(c).ok()).collect::<Option<_>>()?;
            let name: HeaderName = name.parse().ok()?;
            headers.append(name, HeaderValue::from_maybe_shared(Bytes::from(value)).ok()?);
        }
        Some(Self {
            head: Head::new(StatusCode::from_u16(meta.status).ok()?, headers, || meta.digest),
            body,
            stored_at_ms: meta.stored_at_ms,
            age_ms: meta.age_ms,
            expires_at_ms: meta.expires_at_ms,
            audience: Audience {
                members: meta.audience.iter().filter_map(|text| Member::parse(text)).collect(),
                public: meta.public,
            },
            generation: meta.generation,
        })
    }

    /// What the store is given beside the body: a JSON object without its closing brace.
    pub fn meta(&self, generation: &Token, epoch: &Epoch) -> String {
        let latin1 =
            |value: &HeaderValue| value.as_bytes().iter().map(|b| char::from(*b)).collect();
        let meta = Meta {
            v: VERSION,
            status: self.head.status.as_u16(),
            headers: self
                .head
                .headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), latin1(value)))
                .collect(),
            digest: digest(&self.body),
            generation: generation.as_str().to_owned(),
            stored_at_ms: self.stored_at_ms,
            age_ms: self.age_ms,
            epoch: epoch.as_str().to_owned(),
            public: self.audience.public,
            audience: self.audience.members.iter().map(Member::to_string).collect(),
            expires_at_ms: 0,
        };
        // A struct of strings and numbers always serializes.
        let mut json = serde_json::to_string(&meta).unwrap_or_default();
        json.pop();
        json
    }

    /// Who may be given it.
    pub fn audience(&self) -> &Audience {
        &self.audience
    }

    /// The token under which it was stored.
    pub fn generation(&self) -> &str {
        &self.generation
    }

    /// Whether another read has brought the same: body and every stored header but `Date`.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.head.is_same_as(&other.head)
            && self.body == other.body
            && self.audience.public == other.audience.public
    }

    /// When it expires, in ms since 1970 by the store's clock.
    pub fn expires_at_ms(&self) -> i64 {
        self.expires_at_ms
    }

    /// Bytes that it takes in memory, roughly: what is counted in a bounded cache.
    pub fn weight(&self) -> usize {
        /// Of a header in a map beside its bytes: its slot, what counts who has them, what an allocator
        /// keeps of each.
        const EACH: usize = 208;
        /// Of the lines that a hit has beside those that are stored.
        const OURS: usize = 200;
        let headers = self.head.headers.iter();
        // Twice: as they are, and spelled.
        let headers = headers.map(|(name, value)| EACH + name.as_str().len() + 2 * value.len());
        let members = size_of_val(&self.audience.members[..]);
        let parts = self.body.len() + members + self.generation.len();
        size_of::<Self>() + parts + headers.sum::<usize>() + OURS
    }

    /// The body, as it stands in the store.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The upstream's `ETag`, else ours.
    pub fn etag(&self) -> &HeaderValue {
        &self.head.etag
    }

    /// Whether a client that shows these validators has it already.
    pub fn is_held_by(&self, request: &HeaderMap) -> bool {
        policy::not_modified(request, &self.head.etag)
    }

    /// How long it may still be served.
    pub fn ttl(&self, now_ms: i64) -> Duration {
        duration(self.expires_at_ms.saturating_sub(now_ms))
    }

    /// How old it is.
    pub fn age(&self, now_ms: i64) -> Duration {
        duration(self.age_ms.saturating_add(now_ms.saturating_sub(self.stored_at_ms)))
    }

    /// Answers a GET or HEAD, with 304 where the client has it already. Nothing is said of how the
    /// entry came here.
    pub fn respond(&self, method: &Method, request: &HeaderMap, now_ms: i64) -> Response<Bytes> {
        // "the recipient cache SHOULD evaluate any applicable conditional header field preconditions
        // received in that request with respect to the corresponding validators contained within the
        // stored response" RFC 9111 4.3.2
        let mut response = if self.is_held_by(request) {
            self.not_modified()
        } else {
            self.whole(method, self.head.full(self.body.len()))
        };
        self.tell_age(response.headers_mut(), now_ms);
        response
    }

    /// The same for a hit, and says that it is one: with `Via` and `Cache-Status`.
    ///
    /// "The first member represents the cache closest to the origin server, and the last member
    /// represents the cache closest to the user" RFC 9211 2
    pub fn hit(&self, method: &Method, request: &HeaderMap, now_ms: i64) -> Response<Bytes> {
        let mut response = if self.is_held_by(request) {
            let mut response = self.not_modified();
            response.headers_mut().append(VIA, VIA_US);
            response
        } else {
            self.whole(method, self.head.hit(self.body.len()))
        };
        let headers = response.headers_mut();
        self.tell_age(headers, now_ms);
        let told = numbered(HIT, self.ttl(now_ms).as_secs());
        match headers.entry(CACHE_STATUS) {
            header::Entry::Occupied(mut lines) => {
                if let Some(place) = lines.iter_mut().next_back() {
                    *place = told;
                }
            }
            header::Entry::Vacant(place) => drop(place.insert(told)),
        }
        response
    }

    /// Writes the head of [`Entry::hit`] as it answers a GET without conditions over HTTP/1.1, to the
    /// byte as hyper does; the body follows. False where hyper would add to it: then nothing is written.
    pub fn spell_hit(&self, to: &mut Vec<u8>, now_ms: i64) -> bool {
        let head = &self.head;
        let spell = || Spelled::new(head.status, &head.hit(self.body.len()));
        let spelled = head.spelled.get_or_init(spell);
        let Some(spelled) = spelled.as_ref().filter(|_| !self.body.is_empty()) else {
            return false;
        };
        spelled.write(to, self.age(now_ms).as_secs(), self.ttl(now_ms).as_secs());
        true
    }

    /// RFC 9111 5.1: "The Age value is a non-negative integer, representing time in seconds."
    fn tell_age(&self, headers: &mut HeaderMap, now_ms: i64) {
        headers.insert(AGE, numbered("", self.age(now_ms).as_secs()));
    }

    fn whole(&self, method: &Method, headers: HeaderMap) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = self.head.status;
        *response.headers_mut() = headers;
        // "The HEAD method is identical to GET except that the server MUST NOT send content in the
        // response." RFC 9110 9.3.2
        if method != Method::HEAD {
            *response.body_mut() = self.body.clone();
        }
        response
    }

    /// RFC 9110 15.4.5: "The server generating a 304 response MUST generate any of the following
    /// header fields that would have been sent in a 200 (OK) response to the same request:
    /// Content-Location, Date, `ETag`, and Vary; Cache-Control and Expires." Of the rest it says that
    /// a sender "SHOULD NOT generate representation metadata".
    fn not_modified(&self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        let kept = self.head.headers.iter().filter(|(name, _)| {
            [CACHE_CONTROL, CONTENT_LOCATION, DATE, EXPIRES, VARY].contains(name)
                || name.as_str().starts_with("access-control-")
        });
        for (name, value) in kept {
            response.headers_mut().append(name, value.clone());
        }
        response.headers_mut().insert(ETAG, self.head.etag.clone());
        response
    }
}

impl Head {
    /// The upstream's `ETag`, else a strong one from the digest of the body.
    fn new(status: StatusCode, headers: HeaderMap, digest: impl FnOnce() -> String) -> Self {
        let etag = headers.get(ETAG).cloned().unwrap_or_else(|| {
            // Hexadecimal digits in quotes are always a valid value.
            HeaderValue::try_from(format!("\"{}\"", digest()))
                .unwrap_or(HeaderValue::from_static("\"\""))
        });
        Self { status, headers, etag, spelled: OnceLock::new() }
    }

    /// The headers of a 200.
    fn full(&self, length: usize) -> HeaderMap {
        // With room for all that is added to them: a map that grew would be moved.
        let mut full = HeaderMap::with_capacity(self.headers.len() + ADDED);
        for (name, value) in &self.headers {
            full.append(name, value.clone());
        }
        full.insert(CONTENT_LENGTH, length.into());
        full.insert(ETAG, self.etag.clone());
        full
    }

    /// The headers of a hit, with places for `Age` and our member of `Cache-Status`.
    fn hit(&self, length: usize) -> HeaderMap {
        let mut hit = self.full(length);
        hit.insert(AGE, HeaderValue::from_static("0"));
        hit.append(VIA, VIA_US);
        hit.append(CACHE_STATUS, HeaderValue::from_static(HIT));
        hit
    }

    /// `Date` says when a response was made, not what it says: two reads of an unchanged job differ
    /// in it.
    fn is_same_as(&self, other: &Self) -> bool {
        let names = |head: &Self| head.headers.keys().filter(|name| **name != DATE).count();
        let same_lines = |name: &HeaderName| {
            self.headers.get_all(name).iter().eq(other.headers.get_all(name).iter())
        };
        self.status == other.status
            && self.etag == other.etag
            && names(self) == names(other)
            && self.headers.keys().filter(|name| **name != DATE).all(same_lines)
    }
}

/// A time of the store's clock, in the one form that may be sent (RFC 9110 5.6.7).
fn http_date(ms: i64) -> HeaderValue {
    let time = SystemTime::UNIX_EPOCH + duration(ms.min(LAST_DATE_MS));
    let date = httpdate::fmt_http_date(time);
    // Its letters, digits, spaces, comma and colons are always a valid value.
    HeaderValue::try_from(date).unwrap_or(HeaderValue::from_static(""))
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
fn numbered(text: &'static str, number: u64) -> HeaderValue {
    let mut value = [0; HIT.len() + DIGITS];
    let start = write_number(&mut value, number) - text.len();
    value[start..][..text.len()].copy_from_slice(text.as_bytes());
    // Text of ours and digits are always a valid value.
    HeaderValue::from_bytes(&value[start..]).unwrap_or(HeaderValue::from_static(""))
}

fn digest(body: &[u8]) -> String {
    format!("{:032x}", xxh3_128(body))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn duration(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
