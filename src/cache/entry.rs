//! Entries: stored responses, the answers made from them, and how a later response compares with
//! one. The form of an entry in the store is in `meta`.

pub mod coding;
mod head;
mod meta;
#[cfg(test)]
mod tests;

pub(super) use self::meta::origin_of;
pub use self::meta::{EntryVersion, Reject};

use std::{
    iter,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use hyper::{
    header::{CACHE_CONTROL, HeaderName},
    http::{
        HeaderMap, HeaderValue, Method, Response, StatusCode,
        header::{AGE, CACHE_STATUS, ETAG, IF_NONE_MATCH, VARY, VIA},
    },
};
use xxhash_rust::xxh3::xxh3_128;

use self::{
    coding::Coding,
    head::{AnswerKind, HIT_STATUS, Head, HeadForm, HeadSeconds, VARY_BY_CODING, numbered},
};
use crate::{
    semantics::{
        audience::{Audience, Caller},
        headers::VIA_JOBCACHE,
        identity::IdentityHash,
        policy::{self, StatedLifetimes, StoredHead, stated_lifetimes},
    },
    store::Token,
};

/// Tolerance for lifetimes, in ms: HTTP counts seconds, and both `Date` and `Age` are rounded.
const TOLERANCE_MS: i64 = 2_000;

/// Greatest difference, in ms, between two readings of the store's clock at one moment, by this process or
/// another sidecar. Each is off by at most the round trip in which the clock was read.
pub const CLOCK_MARGIN_MS: i64 = 100;

/// A response that may be served to more than one request.
#[derive(Debug)]
pub struct Entry {
    head: Head,
    body: Bytes,
    /// The compressed form, if the store holds the entry compressed.
    compressed: Option<Box<CompressedForm>>,
    stored_at_ms: i64,
    /// Age at `stored_at_ms`.
    age_ms: i64,
    expires_at_ms: i64,
    audience: Audience,
    /// Token under which the entry was stored; empty until it is.
    generation: Box<str>,
    /// The change since which it was read, if it has replaced an entry.
    change: Option<Box<str>>,
    /// Hash of the API, route and job that the entry is of; zero until it is stored.
    pub(super) identity: IdentityHash,
}

/// Names a change of a job: the token of the first lease since the last invalidation. Reads with the
/// same name have no invalidation between them, although an entry may have replaced another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeId(Box<str>);

impl ChangeId {
    /// Returns the change that a lease begins.
    pub(super) fn of_lease(token: &Token) -> Self {
        Self(token.as_str().into())
    }
}

/// The compressed form of an entry.
#[derive(Debug)]
struct CompressedForm {
    head: Head,
    body: Bytes,
}

impl Entry {
    /// Creates an entry from a complete response that may be stored, or at least shared. `now_ms` is the time of the
    /// request for it, in ms since 1970 by the store's clock.
    pub fn new(
        response: StoredHead,
        body: Bytes,
        freshness: policy::Freshness,
        caller: Caller,
        now_ms: i64,
    ) -> Self {
        let StoredHead { status, headers, last_modified } = response;
        let mut head = Head::new(HeadForm::Only, status, headers, body.len(), || digest(&body));
        head.last_modified = last_modified;
        Self {
            head,
            body,
            compressed: None,
            stored_at_ms: now_ms,
            age_ms: millis(freshness.age),
            expires_at_ms: now_ms.saturating_add(millis(freshness.ttl)),
            audience: Audience::of(caller, freshness.public, now_ms),
            generation: Box::default(),
            change: None,
            identity: IdentityHash::default(),
        }
    }

    /// Returns the callers that the entry may be served to.
    pub fn audience(&self) -> &Audience {
        &self.audience
    }

    /// Returns the token under which the entry was stored.
    pub fn generation(&self) -> &str {
        &self.generation
    }

    /// Returns the change since which the entry was read.
    pub fn change(&self) -> ChangeId {
        ChangeId(self.change.clone().unwrap_or_else(|| self.generation.clone()))
    }

    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// Returns when the entry expires, in ms since 1970 by the store's clock.
    pub fn expires_at_ms(&self) -> i64 {
        self.expires_at_ms
    }

    /// Whether the response was shared without a lifetime, and so not stored.
    pub fn is_unstored(&self) -> bool {
        self.expires_at_ms <= self.stored_at_ms
    }

    /// Returns when the upstream was asked for the response, in ms since 1970 by the store's clock.
    pub fn asked_at_ms(&self) -> i64 {
        self.stored_at_ms
    }

    /// Returns the bytes of memory that the entry takes, for a bounded cache.
    pub fn weight(&self) -> usize {
        /// The reference counts of the `Arc` around an entry.
        const COUNTS: usize = 2 * size_of::<usize>();
        /// The shared state of a `Bytes`, which is allocated at its first clone.
        const SHARED: usize = 3 * size_of::<usize>();
        let shared = |bytes: &Bytes| allocated_bytes(bytes.len()) + allocated_bytes(SHARED);
        let compressed = self.compressed.as_deref().map_or(0, |CompressedForm { head, body }| {
            allocated_bytes(size_of::<CompressedForm>()) + shared(&head.text) + shared(body)
        });
        let entry = allocated_bytes(COUNTS + size_of::<Self>());
        let members = allocated_bytes(size_of_val(&self.audience.members[..]));
        let change = self.change.as_deref().map_or(0, str::len);
        let generation = allocated_bytes(self.generation.len()) + allocated_bytes(change);
        entry + members + generation + shared(&self.head.text) + shared(&self.body) + compressed
    }

    /// Returns the body as the upstream sent it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Returns the upstream's `ETag`, or a generated one if there is none and the response is one that
    /// conditions apply to.
    pub fn etag(&self) -> Option<HeaderValue> {
        self.head.etag()
    }

    /// Returns a strong entity tag that is made from the body.
    pub fn content_tag(&self) -> String {
        format!("\"{}\"", digest(&self.body))
    }

    /// Returns whether a client with these validators already has the entry.
    pub fn is_held_by(&self, request: &HeaderMap) -> bool {
        self.held_form(request).is_some()
    }

    /// Returns the head of the form that the client has. It may be another form than the client would
    /// be sent, because both have the same content.
    fn held_form(&self, request: &HeaderMap) -> Option<&Head> {
        // 304 says that the request "would have resulted in a 200 (OK) response if it were not for the
        // fact that the condition evaluated to false" RFC 9110 15.4.5. With any other status, a client
        // that has the same body with an earlier status would not learn of the change.
        if !request.contains_key(IF_NONE_MATCH) || !self.is_job() {
            return None;
        }
        let preferred = self.form(|| Coding::of_request(request)).0;
        let others = self.compressed.iter().flat_map(|coded| [&self.head, &coded.head]);
        let mut heads = iter::once(preferred).chain(others);
        heads.find(|head| head.etag().is_some_and(|etag| policy::not_modified(request, &etag)))
    }

    /// Returns the form for a client. The coding that it wants matters only if there is a choice.
    fn form(&self, coding: impl FnOnce() -> Coding) -> (&Head, &Bytes) {
        match &self.compressed {
            Some(coded) if coding() == Coding::Zstd => (&coded.head, &coded.body),
            _ => (&self.head, &self.body),
        }
    }

    /// Returns how long the entry may still be served.
    pub fn ttl(&self, now_ms: i64) -> Duration {
        duration(self.expires_at_ms.saturating_sub(now_ms))
    }

    /// Returns the age of the response.
    pub fn age(&self, now_ms: i64) -> Duration {
        duration(self.age_ms.saturating_add(now_ms.saturating_sub(self.stored_at_ms)))
    }

    /// Answers a GET or HEAD, with 304 if the client already has the entry. Adds neither `Via` nor
    /// `Cache-Status`.
    pub fn respond(&self, method: &Method, request: &HeaderMap, now_ms: i64) -> Response<Bytes> {
        self.answer(method, request, now_ms, AnswerKind::Fresh)
    }

    /// Answers a GET or HEAD with a hit: like [`Entry::respond`], with `Via` and `Cache-Status` added.
    ///
    /// "The first member represents the cache closest to the origin server, and the last member
    /// represents the cache closest to the user" RFC 9211 2
    pub fn hit(&self, method: &Method, request: &HeaderMap, now_ms: i64) -> Response<Bytes> {
        self.answer(method, request, now_ms, AnswerKind::Hit)
    }

    fn answer(
        &self,
        method: &Method,
        request: &HeaderMap,
        now_ms: i64,
        kind: AnswerKind,
    ) -> Response<Bytes> {
        // "the recipient cache SHOULD evaluate any applicable conditional header field preconditions
        // received in that request with respect to the corresponding validators contained within the
        // stored response" RFC 9111 4.3.2
        let seconds = self.seconds(now_ms);
        let Some(held) = self.held_form(request) else {
            let (head, body) = self.form(|| Coding::of_request(request));
            return full_response(method, head.status, head.headers(seconds, kind), body);
        };
        let mut response = not_modified(held);
        let headers = response.headers_mut();
        if kind == AnswerKind::Hit {
            headers.insert(VIA, VIA_JOBCACHE);
        }
        headers.insert(AGE, numbered("", seconds.age));
        if kind == AnswerKind::Hit {
            headers.insert(CACHE_STATUS, numbered(HIT_STATUS, seconds.ttl));
        }
        response
    }

    /// Writes the head with which [`Entry::hit`] answers a GET without conditions over HTTP/1.1, byte
    /// for byte as hyper does. Returns the body, which the caller has to send next. Writes nothing and
    /// returns `None` if hyper would add to the head.
    pub fn write_hit(&self, to: &mut Vec<u8>, now_ms: i64, coding: Coding) -> Option<&Bytes> {
        let (head, body) = self.form(|| coding);
        head.write(to, self.seconds(now_ms)).then_some(body)
    }

    /// RFC 9111 5.1: "The Age value is a non-negative integer, representing time in seconds."
    fn seconds(&self, now_ms: i64) -> HeadSeconds {
        HeadSeconds { age: self.age(now_ms).as_secs(), ttl: self.ttl(now_ms).as_secs() }
    }
}

/// How a later answer compares with an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// The answer is the same and lives as long or longer.
    Same,
    /// The answer is the same and lives shorter.
    ShorterLived,
    /// The body is the same, but these headers differ.
    OtherHeaders(Vec<HeaderName>),
    /// Status or body differ.
    OtherBody,
}

/// Comparison with later answers.
///
/// A caller is admitted to an entry if the upstream gave it the same status, body and headers. Numbers
/// that only count the time down are no difference: lifetimes are compared as the time at which they
/// end. The entry keeps its own end, so the later answer must live at least as long.
impl Entry {
    /// Compares the entry with a later answer. `volatile` has the configured names of headers that are
    /// not compared.
    pub fn likeness(&self, later: &Self, volatile: &[HeaderName]) -> Likeness {
        if self.status() != later.status() || self.body != later.body {
            return Likeness::OtherBody;
        }
        let (own_head, later_head) = (self.stored_head(), later.stored_head());
        let mut names = own_head.differing_headers(&later_head, volatile);
        // `s-maxage` is a lifetime, but it also waives the credential.
        let is_public_alike = self.audience.public == later.audience.public;
        if !is_public_alike && names.is_empty() {
            names.push(CACHE_CONTROL);
        }
        if !names.is_empty() {
            return Likeness::OtherHeaders(names);
        }
        let ends = self.ends_ms(&own_head).into_iter().zip(later.ends_ms(&later_head));
        let is_shorter = |(own, later): (i64, i64)| later.saturating_add(TOLERANCE_MS) < own;
        if ends.into_iter().any(is_shorter) { Likeness::ShorterLived } else { Likeness::Same }
    }

    /// Returns the head of the response as it is stored.
    pub fn stored_head(&self) -> StoredHead {
        StoredHead {
            status: self.head.status,
            headers: self.head.fields(|_| true).collect(),
            last_modified: self.head.last_modified,
        }
    }

    /// Returns when the entry ends here, in other shared caches, and in the caches of clients, in ms
    /// since 1970. A client is sent the lifetime that the response states, which may be longer than
    /// the TTL. If none is stated, the TTL stands for it.
    fn ends_ms(&self, head: &StoredHead) -> [i64; 3] {
        let stored_at = Duration::from_millis(u64::try_from(self.stored_at_ms).unwrap_or(0));
        let stated = stated_lifetimes(&head.headers, SystemTime::UNIX_EPOCH + stored_at);
        let StatedLifetimes { shared, private } = stated.unwrap_or_default();
        let end = |lifetime: Option<Duration>| {
            let born_ms = self.stored_at_ms.saturating_sub(self.age_ms);
            lifetime.map_or(self.expires_at_ms, |time| born_ms.saturating_add(millis(time)))
        };
        [self.expires_at_ms, end(shared), end(private)]
    }
}

fn full_response(
    method: &Method,
    status: StatusCode,
    headers: HeaderMap,
    body: &Bytes,
) -> Response<Bytes> {
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

/// Creates a 304 response.
///
/// RFC 9110 15.4.5: "The server generating a 304 response MUST generate any of the following
/// header fields that would have been sent in a 200 (OK) response to the same request:
/// Content-Location, Date, `ETag`, and Vary; Cache-Control and Expires." About other headers it says
/// that a sender "SHOULD NOT generate representation metadata".
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
    if held.vary_is_added {
        headers.append(VARY, VARY_BY_CODING);
    }
    headers.extend(held.etag().map(|etag| (ETAG, etag)));
    response
}

/// Returns the memory that an allocator takes for so many bytes: it adds 8 bytes of its own and rounds
/// up to a multiple of 16.
pub fn allocated_bytes(bytes: usize) -> usize {
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
