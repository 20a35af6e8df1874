//! Entries: stored responses, with their format in the store and the answers made from them.

pub mod coding;
mod head;
mod likeness;
#[cfg(test)]
mod tests;

use std::{iter, time::Duration};

use bytes::Bytes;
use hyper::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{AGE, CACHE_STATUS, ETAG, IF_NONE_MATCH, VARY, VIA},
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

pub use self::likeness::Likeness;
use self::{
    coding::Coding,
    head::{HIT_STATUS, Head, HeadForm, HeadLine, HeadSeconds, MAX_ADDED_HEADERS, numbered},
};
use crate::{
    mutants::{self, Mutant},
    semantics::{
        audience::{Audience, AudienceMember, Caller},
        headers::VIA_JOBCACHE,
        identity::{Identity, IdentityHash},
        policy::{self, LastModified, StoredHead},
    },
    store::{Epoch, Seen, Token},
};

/// Version of the meta format. An entry with another version is not a hit.
const META_VERSION: u8 = 3;
/// Version of the meta of a compressed entry. A sidecar without compression does not know it, so it
/// does not serve the compressed bytes.
const COMPRESSED_META_VERSION: u8 = 4;

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
    /// Hash of what the entry is of; zero until it is stored.
    identity: IdentityHash,
}

/// The compressed form of an entry.
#[derive(Debug)]
struct CompressedForm {
    head: Head,
    body: Bytes,
}

/// Content of `{job_status:<id>}:meta`. The store adds `expires_at_ms` when it stores the meta.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    v: u8,
    /// Name of the API, template of the route, and text of its variable.
    api: String,
    route: String,
    id: String,
    status: u16,
    /// Names and values. Each byte of a value is written as the character with that number (Latin-1).
    headers: Vec<(String, String)>,
    /// xxh3-128 of the body as stored, in hexadecimal.
    digest: String,
    /// Length of the uncompressed body, if the stored body is Zstandard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zstd_of: Option<usize>,
    /// Token of the lease under which the entry was filled, or a new token if it replaced another one.
    generation: String,
    stored_at_ms: i64,
    /// Age at `stored_at_ms`.
    age_ms: i64,
    epoch: String,
    /// Whether the upstream has waived the credential.
    #[serde(default)]
    public: bool,
    /// Whether `Last-Modified` was left out because it was the time of the answer. Older sidecars
    /// ignore this field: to them such an entry has no `Last-Modified`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    drops_last_modified: bool,
    /// Members of the audience: callers in hexadecimal, each with its time.
    audience: Vec<String>,
    #[serde(default, skip_serializing)]
    expires_at_ms: i64,
}

impl Meta {
    fn identity(&self) -> Identity<'_> {
        Identity { api: &self.api, route: &self.route, id: &self.id }
    }
}

/// Returns API and route of a stored entry, for messages.
pub(super) fn origin_of(seen: &Seen) -> Option<(String, String)> {
    let meta = serde_json::from_slice::<Meta>(&seen.stored.as_ref()?.meta).ok()?;
    Some((meta.api, meta.route))
}

/// Why a value in the store is not a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Another program wrote it: there is no meta, or body or expiry do not match the meta.
    Foreign,
    /// The meta cannot be used: it has another version or is damaged.
    Corrupt,
    /// The entry was stored in another epoch of the server.
    Epoch,
    /// The entry is of another API, route or job, which has the same key.
    Identity,
}

impl Entry {
    /// Creates an entry from a complete response that may be stored. `now_ms` is the time of the
    /// request for it, in ms since 1970 by the store's clock.
    pub fn new(
        response: StoredHead,
        body: Bytes,
        freshness: policy::Freshness,
        caller: Caller,
        now_ms: i64,
    ) -> Self {
        let StoredHead { status, headers, last_modified } = response;
        let mut head = Head::new(status, headers, body.len(), || digest(&body));
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
            identity: IdentityHash::default(),
        }
    }

    /// Decodes and verifies the value that the store holds; `None` if there is none.
    ///
    /// An entry is valid only if its body and expiry match the meta, and if it was stored in the epoch
    /// of the connection that read it. It may be of any API, route or job with this key.
    pub fn decode(seen: &Seen) -> Option<Result<Self, Reject>> {
        Self::decode_any(seen, None)
    }

    /// Decodes the value like [`Entry::decode`], and rejects an entry that is not of this identity.
    pub fn decode_of(seen: &Seen, identity: &Identity<'_>) -> Option<Result<Self, Reject>> {
        Self::decode_any(seen, Some(identity))
    }

    fn decode_any(seen: &Seen, identity: Option<&Identity<'_>>) -> Option<Result<Self, Reject>> {
        let stored = seen.stored.as_ref()?;
        if stored.meta.is_empty() {
            return Some(Err(Reject::Foreign));
        }
        let Ok(meta) = serde_json::from_slice::<Meta>(&stored.meta) else {
            return Some(Err(Reject::Corrupt));
        };
        let version = if meta.zstd_of.is_some() { COMPRESSED_META_VERSION } else { META_VERSION };
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
        if identity.is_some_and(|identity| *identity != meta.identity()) {
            return Some(Err(Reject::Identity));
        }
        Some(Self::from_meta(meta, stored.body.clone()).ok_or(Reject::Corrupt))
    }

    fn from_meta(meta: Meta, body: Bytes) -> Option<Self> {
        let identity = meta.identity().hash();
        let mut headers =
            HeaderMap::try_with_capacity(meta.headers.len() + MAX_ADDED_HEADERS).ok()?;
        for (name, value) in &meta.headers {
            let value: Vec<u8> =
                value.chars().map(|c| u8::try_from(c).ok()).collect::<Option<_>>()?;
            let name: HeaderName = name.parse().ok()?;
            headers.append(name, HeaderValue::from_maybe_shared(Bytes::from(value)).ok()?);
        }
        let status = StatusCode::from_u16(meta.status).ok()?;
        let mut members = Vec::with_capacity(meta.audience.len());
        members.extend(meta.audience.iter().filter_map(|text| AudienceMember::parse(text)));
        let (mut head, body, coded) = match meta.zstd_of {
            None => (Head::new(status, headers, body.len(), || meta.digest), body, None),
            // Decompressed once for all clients. This also detects a body with another length.
            Some(length) => {
                let whole = coding::decompress(&body, length)?;
                let head = |form, headers, length| {
                    Head::of_form(form, status, headers, length, || digest(&whole))
                };
                let identity = head(HeadForm::Identity, headers.clone(), length);
                let coded =
                    CompressedForm { head: head(HeadForm::Zstd, headers, body.len()), body };
                (identity, whole, Some(Box::new(coded)))
            }
        };
        if meta.drops_last_modified {
            head.last_modified = LastModified::Dropped;
        }
        Some(Self {
            head,
            body,
            compressed: coded,
            stored_at_ms: meta.stored_at_ms,
            age_ms: meta.age_ms,
            expires_at_ms: meta.expires_at_ms,
            audience: Audience { members: members.into(), public: meta.public },
            generation: meta.generation.into(),
            identity,
        })
    }

    /// Compresses the body for the store; `None` if it may not be compressed or gets no smaller.
    pub fn compress(&self) -> Option<Bytes> {
        let headers = self.head.fields(|_| true).collect();
        if coding::may_be_compressed(&headers) { coding::compress(&self.body) } else { None }
    }

    /// Returns the meta for the store: a JSON object without its closing brace. `compressed` is the
    /// [compressed](Entry::compress) body, if that is stored.
    pub fn meta(
        &self,
        identity: &Identity<'_>,
        generation: &Token,
        epoch: &Epoch,
        compressed: Option<&Bytes>,
    ) -> String {
        self.meta_for(&self.audience.members, identity, generation, epoch, compressed)
    }

    /// Returns the same for other callers than the one that the entry was read for.
    pub fn meta_for(
        &self,
        members: &[AudienceMember],
        identity: &Identity<'_>,
        generation: &Token,
        epoch: &Epoch,
        compressed: Option<&Bytes>,
    ) -> String {
        let latin1 = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect();
        let line = |line: HeadLine<'_>| (latin1(line.name), latin1(line.value));
        let meta = Meta {
            v: if compressed.is_some() { COMPRESSED_META_VERSION } else { META_VERSION },
            api: identity.api.to_owned(),
            route: identity.route.to_owned(),
            id: identity.id.to_owned(),
            status: self.head.status().as_u16(),
            headers: self.head.stored().map(line).collect(),
            digest: digest(compressed.unwrap_or(&self.body)),
            zstd_of: compressed.map(|_| self.body.len()),
            generation: generation.as_str().to_owned(),
            stored_at_ms: self.stored_at_ms,
            age_ms: self.age_ms,
            epoch: epoch.as_str().to_owned(),
            public: self.audience.public,
            drops_last_modified: self.head.last_modified == LastModified::Dropped,
            audience: members.iter().map(AudienceMember::to_string).collect(),
            expires_at_ms: 0,
        };
        // Serialization never fails: the struct holds only strings and numbers.
        let mut json = serde_json::to_string(&meta).unwrap_or_default();
        json.pop();
        json
    }

    /// Returns the callers that the entry may be served to.
    pub fn audience(&self) -> &Audience {
        &self.audience
    }

    /// Returns the hash of the API, route and job that the entry is of.
    pub fn identity(&self) -> IdentityHash {
        self.identity
    }

    /// Returns the token under which the entry was stored.
    pub fn generation(&self) -> &str {
        &self.generation
    }

    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        self.head.status()
    }

    /// Returns when the entry expires, in ms since 1970 by the store's clock.
    pub fn expires_at_ms(&self) -> i64 {
        self.expires_at_ms
    }

    /// Returns the bytes of memory that the entry takes, for a bounded cache.
    pub fn weight(&self) -> usize {
        /// The reference counts of the `Arc` around an entry.
        const COUNTS: usize = 2 * size_of::<usize>();
        /// The shared state of a `Bytes`, which is allocated at its first clone.
        const SHARED: usize = 3 * size_of::<usize>();
        let members = size_of_val(&self.audience.members[..]);
        let entry = allocated_bytes(COUNTS + size_of::<Self>());
        let shared = [self.head.len(), self.body.len()]
            .map(|len| allocated_bytes(len) + allocated_bytes(SHARED));
        let parts = [members, self.generation.len()].map(allocated_bytes);
        let coded = self.compressed.iter().flat_map(|coded| {
            let shared = [coded.head.len(), coded.body.len()];
            let shared = shared.map(|len| allocated_bytes(len) + allocated_bytes(SHARED));
            shared.into_iter().chain([allocated_bytes(size_of::<CompressedForm>())])
        });
        entry + coded.sum::<usize>() + shared.into_iter().chain(parts).sum::<usize>()
    }

    /// Returns the body as the upstream sent it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Returns the upstream's `ETag`, or a generated one if there is none.
    pub fn etag(&self) -> HeaderValue {
        self.head.etag()
    }

    /// Returns whether a client with these validators already has the entry.
    pub fn is_held_by(&self, request: &HeaderMap) -> bool {
        self.held_form(request).is_some()
    }

    /// Returns the head of the form that the client has. It may be another form than the client would
    /// be sent, because both have the same content.
    fn held_form(&self, request: &HeaderMap) -> Option<&Head> {
        if !request.contains_key(IF_NONE_MATCH) {
            return None;
        }
        let wanted = self.form(self.wanted_coding(request)).0;
        let others = self.compressed.iter().flat_map(|coded| [&self.head, &coded.head]);
        let mut heads = iter::once(wanted).chain(others);
        heads.find(|head| policy::not_modified(request, &head.etag()))
    }

    /// Returns the coding that the client wants, if there is a choice.
    fn wanted_coding(&self, request: &HeaderMap) -> Coding {
        if self.compressed.is_some() { Coding::of_request(request) } else { Coding::Identity }
    }

    fn form(&self, coding: Coding) -> (&Head, &Bytes) {
        match (&self.compressed, coding) {
            (Some(coded), Coding::Zstd) => (&coded.head, &coded.body),
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
        // "the recipient cache SHOULD evaluate any applicable conditional header field preconditions
        // received in that request with respect to the corresponding validators contained within the
        // stored response" RFC 9111 4.3.2
        let seconds = self.seconds(now_ms);
        let Some(held) = self.held_form(request) else {
            let (head, body) = self.form(self.wanted_coding(request));
            return full_response(method, head.status(), head.plain_headers(seconds), body);
        };
        let mut response = not_modified(held);
        response.headers_mut().insert(AGE, numbered("", seconds.age));
        response
    }

    /// Answers a GET or HEAD with a hit: like [`Entry::respond`], with `Via` and `Cache-Status` added.
    ///
    /// "The first member represents the cache closest to the origin server, and the last member
    /// represents the cache closest to the user" RFC 9211 2
    pub fn hit(&self, method: &Method, request: &HeaderMap, now_ms: i64) -> Response<Bytes> {
        let seconds = self.seconds(now_ms);
        let Some(held) = self.held_form(request) else {
            let (head, body) = self.form(self.wanted_coding(request));
            return full_response(method, head.status(), head.hit_headers(seconds), body);
        };
        let mut response = not_modified(held);
        let headers = response.headers_mut();
        headers.insert(VIA, VIA_JOBCACHE);
        headers.insert(AGE, numbered("", seconds.age));
        headers.insert(CACHE_STATUS, numbered(HIT_STATUS, seconds.ttl));
        response
    }

    /// Writes the head with which [`Entry::hit`] answers a GET without conditions over HTTP/1.1, byte
    /// for byte as hyper does. Returns the body, which the caller has to send next. Writes nothing and
    /// returns `None` if hyper would add to the head.
    pub fn write_hit(&self, to: &mut Vec<u8>, now_ms: i64, coding: Coding) -> Option<&Bytes> {
        let (head, body) = self.form(coding);
        head.write(to, self.seconds(now_ms)).then_some(body)
    }

    /// RFC 9111 5.1: "The Age value is a non-negative integer, representing time in seconds."
    fn seconds(&self, now_ms: i64) -> HeadSeconds {
        HeadSeconds { age: self.age(now_ms).as_secs(), ttl: self.ttl(now_ms).as_secs() }
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
    if let Some(vary) = held.added_vary() {
        headers.append(VARY, vary);
    }
    headers.insert(ETAG, held.etag());
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
