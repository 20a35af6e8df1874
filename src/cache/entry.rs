//! An entry: a stored response, how it stands in the store, and how it is served.

pub mod coding;
mod head;
#[cfg(test)]
mod tests;

use std::{
    iter,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use hyper::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{AGE, CACHE_STATUS, DATE, ETAG, IF_NONE_MATCH, VARY, VIA},
    response,
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use self::{
    coding::Coding,
    head::{ADDED, Form, HIT, Head, Line, Seconds, numbered},
};
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
/// Of the meta of what is compressed, so that those who know no compression do not serve its bytes.
const CODED_VERSION: u8 = 2;

/// The end of the year 9999, past which there is no `Date`.
const LAST_DATE_MS: i64 = 253_402_300_799_000;

/// We, as the recipient of an HTTP/1.1 message (RFC 9110 7.6.3).
pub const VIA_US: HeaderValue = HeaderValue::from_static("1.1 jobcache");

/// A response that may be served to more than one request.
#[derive(Debug)]
pub struct Entry {
    head: Head,
    body: Bytes,
    /// As it stands in the store, where that is compressed.
    coded: Option<Box<Coded>>,
    /// When it was stored and how old it was then.
    stored_at_ms: i64,
    age_ms: i64,
    expires_at_ms: i64,
    audience: Audience,
    /// What it stands under in the store; empty before it does.
    generation: Box<str>,
}

/// The same answer in another coding.
#[derive(Debug)]
struct Coded {
    head: Head,
    body: Bytes,
}

/// `{job_status:<id>}:meta`. The store adds `expires_at_ms` when it stores it.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    v: u8,
    status: u16,
    /// Name and value; each byte of a value stands as the character of that number.
    headers: Vec<(String, String)>,
    /// xxh3-128 of the body as it is stored, in hexadecimal.
    digest: String,
    /// Where that is Zstandard, the length of what it is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zstd_of: Option<usize>,
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
        let mut headers = stored(&head.headers);
        // "A recipient with a clock that receives a response message without a Date header field MUST
        // record the time it was received and append a corresponding Date header field to the message's
        // header section if it is cached or forwarded downstream." RFC 9110 6.6.1
        headers.entry(DATE).or_insert_with(|| http_date(now_ms));
        Self {
            head: Head::new(head.status, headers, body.len(), || digest(&body)),
            body,
            coded: None,
            stored_at_ms: now_ms,
            age_ms: millis(freshness.age),
            expires_at_ms: now_ms.saturating_add(millis(freshness.ttl)),
            audience: Audience::of(pair, freshness.public, now_ms),
            generation: Box::default(),
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
        let version = if meta.zstd_of.is_some() { CODED_VERSION } else { VERSION };
        if meta.v != version {
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
        let mut headers = HeaderMap::try_with_capacity(meta.headers.len() + ADDED).ok()?;
        for (name, value) in &meta.headers {
            let value: Vec<u8> =
                value.chars().map(|c| u8::try_from(c).ok()).collect::<Option<_>>()?;
            let name: HeaderName = name.parse().ok()?;
            headers.append(name, HeaderValue::from_maybe_shared(Bytes::from(value)).ok()?);
        }
        let status = StatusCode::from_u16(meta.status).ok()?;
        let mut members = Vec::with_capacity(meta.audience.len());
        members.extend(meta.audience.iter().filter_map(|text| Member::parse(text)));
        let (head, body, coded) = match meta.zstd_of {
            None => (Head::new(status, headers, body.len(), || meta.digest), body, None),
            // Once for all who are given it; and what is no body of that length is found out here.
            Some(length) => {
                let whole = coding::decompress(&body, length)?;
                let form = |form, headers, length| {
                    Head::of(form, status, headers, length, || digest(&whole))
                };
                let head = form(Form::Identity, headers.clone(), length);
                let coded = Coded { head: form(Form::Zstd, headers, body.len()), body };
                (head, whole, Some(Box::new(coded)))
            }
        };
        Some(Self {
            head,
            body,
            coded,
            stored_at_ms: meta.stored_at_ms,
            age_ms: meta.age_ms,
            expires_at_ms: meta.expires_at_ms,
            audience: Audience { members: members.into(), public: meta.public },
            generation: meta.generation.into(),
        })
    }

    /// The body as it is to be stored, where it is to be compressed and gets smaller by it.
    pub fn compressed(&self) -> Option<Bytes> {
        let headers = self.head.fields(|_| true).collect();
        if coding::may_be_coded(&headers) { coding::compress(&self.body) } else { None }
    }

    /// What the store is given beside the body, or beside what it was [compressed](Entry::compressed) to:
    /// a JSON object without its closing brace.
    pub fn meta(&self, generation: &Token, epoch: &Epoch, compressed: Option<&Bytes>) -> String {
        let latin1 = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect();
        let line = |line: Line<'_>| (latin1(line.name), latin1(line.value));
        let meta = Meta {
            v: if compressed.is_some() { CODED_VERSION } else { VERSION },
            status: self.head.status().as_u16(),
            headers: self.head.stored().map(line).collect(),
            digest: digest(compressed.unwrap_or(&self.body)),
            zstd_of: compressed.map(|_| self.body.len()),
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

    /// The names of the headers by which an answer of the upstream differs from it, by the same rule.
    pub fn differing(&self, headers: &HeaderMap) -> Vec<HeaderName> {
        self.head.differing(&stored(headers))
    }

    /// The status that it is served with.
    pub fn status(&self) -> StatusCode {
        self.head.status()
    }

    /// When it expires, in ms since 1970 by the store's clock.
    pub fn expires_at_ms(&self) -> i64 {
        self.expires_at_ms
    }

    /// Bytes that it takes in memory: what is counted in a bounded cache.
    pub fn weight(&self) -> usize {
        /// Counts who shares an entry.
        const COUNTS: usize = 2 * size_of::<usize>();
        /// Counts who shares the bytes of a body or a text: made when the first does.
        const SHARED: usize = 3 * size_of::<usize>();
        let members = size_of_val(&self.audience.members[..]);
        let entry = allocated(COUNTS + size_of::<Self>());
        let shared =
            [self.head.len(), self.body.len()].map(|len| allocated(len) + allocated(SHARED));
        let parts = [members, self.generation.len()].map(allocated);
        let coded = self.coded.iter().flat_map(|coded| {
            let shared = [coded.head.len(), coded.body.len()];
            let shared = shared.map(|len| allocated(len) + allocated(SHARED));
            shared.into_iter().chain([allocated(size_of::<Coded>())])
        });
        entry + coded.sum::<usize>() + shared.into_iter().chain(parts).sum::<usize>()
    }

    /// The body, as the upstream sent it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The upstream's `ETag`, else ours.
    pub fn etag(&self) -> HeaderValue {
        self.head.etag()
    }

    /// Whether a client that shows these validators has it already.
    pub fn is_held_by(&self, request: &HeaderMap) -> bool {
        self.held_form(request).is_some()
    }

    /// Which form of it that client has. It need not be the one that it would be sent: they say the same.
    fn held_form(&self, request: &HeaderMap) -> Option<&Head> {
        if !request.contains_key(IF_NONE_MATCH) {
            return None;
        }
        let wanted = self.form(self.wanted(request)).0;
        let others = self.coded.iter().flat_map(|coded| [&self.head, &coded.head]);
        let mut heads = iter::once(wanted).chain(others);
        heads.find(|head| policy::not_modified(request, &head.etag()))
    }

    /// What a client is to be sent, as far as there is a choice.
    fn wanted(&self, request: &HeaderMap) -> Coding {
        if self.coded.is_some() { Coding::wanted(request) } else { Coding::Identity }
    }

    fn form(&self, coding: Coding) -> (&Head, &Bytes) {
        match (&self.coded, coding) {
            (Some(coded), Coding::Zstd) => (&coded.head, &coded.body),
            _ => (&self.head, &self.body),
        }
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
        let seconds = self.seconds(now_ms);
        let Some(held) = self.held_form(request) else {
            let (head, body) = self.form(self.wanted(request));
            return whole(method, head.status(), head.full(seconds), body);
        };
        let mut response = not_modified(held);
        response.headers_mut().insert(AGE, numbered("", seconds.age));
        response
    }

    /// The same for a hit, and says that it is one: with `Via` and `Cache-Status`.
    ///
    /// "The first member represents the cache closest to the origin server, and the last member
    /// represents the cache closest to the user" RFC 9211 2
    pub fn hit(&self, method: &Method, request: &HeaderMap, now_ms: i64) -> Response<Bytes> {
        let seconds = self.seconds(now_ms);
        let Some(held) = self.held_form(request) else {
            let (head, body) = self.form(self.wanted(request));
            return whole(method, head.status(), head.hit(seconds), body);
        };
        let mut response = not_modified(held);
        let headers = response.headers_mut();
        headers.insert(VIA, VIA_US);
        headers.insert(AGE, numbered("", seconds.age));
        headers.insert(CACHE_STATUS, numbered(HIT, seconds.ttl));
        response
    }

    /// Writes the head of [`Entry::hit`] as it answers a GET without conditions over HTTP/1.1, to the
    /// byte as hyper does, and returns the body, which follows. None where hyper would add to it: then
    /// nothing is written.
    pub fn spell_hit(&self, to: &mut Vec<u8>, now_ms: i64, coding: Coding) -> Option<&Bytes> {
        let (head, body) = self.form(coding);
        head.write(to, self.seconds(now_ms)).then_some(body)
    }

    /// RFC 9111 5.1: "The Age value is a non-negative integer, representing time in seconds."
    fn seconds(&self, now_ms: i64) -> Seconds {
        Seconds { age: self.age(now_ms).as_secs(), ttl: self.ttl(now_ms).as_secs() }
    }
}

fn whole(method: &Method, status: StatusCode, headers: HeaderMap, body: &Bytes) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    // "The HEAD method is identical to GET except that the server MUST NOT send content in the
    // response." RFC 9110 9.3.2
    if method != Method::HEAD {
        *response.body_mut() = body.clone();
    }
    response
}

/// RFC 9110 15.4.5: "The server generating a 304 response MUST generate any of the following
/// header fields that would have been sent in a 200 (OK) response to the same request:
/// Content-Location, Date, `ETag`, and Vary; Cache-Control and Expires." Of the rest it says that
/// a sender "SHOULD NOT generate representation metadata".
fn not_modified(held: &Head) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    let headers = response.headers_mut();
    for (name, value) in held.fields(|name| match name {
        b"cache-control" | b"content-location" | b"date" | b"expires" | b"vary" => true,
        _ => name.starts_with(b"access-control-"),
    }) {
        headers.append(name, value);
    }
    if let Some(vary) = held.added_vary() {
        headers.append(VARY, vary);
    }
    headers.insert(ETAG, held.etag());
    response
}

/// What is stored of these, with room for what is added.
fn stored(headers: &HeaderMap) -> HeaderMap {
    let mut stored = HeaderMap::with_capacity(headers.len() + ADDED);
    for (name, value) in headers.iter().filter(|(name, _)| policy::is_stored(name)) {
        stored.append(name, value.clone());
    }
    stored
}

/// A time of the store's clock, in the one form that may be sent (RFC 9110 5.6.7).
fn http_date(ms: i64) -> HeaderValue {
    let time = SystemTime::UNIX_EPOCH + duration(ms.min(LAST_DATE_MS));
    let date = httpdate::fmt_http_date(time);
    // Its letters, digits, spaces, comma and colons are always a valid value.
    HeaderValue::try_from(date).unwrap_or(HeaderValue::from_static(""))
}

/// What an allocator takes for so many bytes: it deals in steps of 16, and keeps its own 8 beside each.
pub fn allocated(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + 8).next_multiple_of(16) }
}

pub(super) fn digest(body: &[u8]) -> String {
    format!("{:032x}", xxh3_128(body))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn duration(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
