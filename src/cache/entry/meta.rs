//! The form of an entry in the store: the meta, which is JSON, and the body, which may be compressed.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use super::{
    ChangeId, CompressedForm, Entry, coding, digest,
    head::{Head, HeadForm, HeadLine, MAX_ADDED_HEADERS},
};
use crate::{
    mutants::{self, Mutant},
    semantics::{
        audience::{Audience, AudienceMember},
        identity::Identity,
        policy::LastModified,
    },
    store::{Epoch, Seen, StoredValue, Token},
};

/// Version of the meta format. An entry with another version is not a hit.
const META_VERSION: u8 = 3;
/// Version of the meta of a response without a job: the meta has the body.
const CONTENT_META_VERSION: u8 = 5;
/// Version of the meta of a compressed entry. A sidecar without compression does not know it, so it
/// does not serve the compressed bytes.
const COMPRESSED_META_VERSION: u8 = 4;

/// Content of `{job_status:<id>}:meta`. The store adds `expires_at_ms` when it stores the meta.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Meta {
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
    /// The body in Base64, if the status says that it is not a job: an application that reads the key
    /// must not take it for one. Then the stored body is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    /// Token of the lease under which the entry was filled, or a new token if it replaced another one.
    generation: String,
    /// The generation of the first entry since the last invalidation, if that is not this one. Older
    /// sidecars ignore this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    change: Option<String>,
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
    /// Returns the version that a meta with these fields has. A sidecar without one of them rejects it.
    fn version(&self) -> u8 {
        match (&self.content, self.zstd_of) {
            (Some(_), _) => CONTENT_META_VERSION,
            (None, Some(_)) => COMPRESSED_META_VERSION,
            (None, None) => META_VERSION,
        }
    }

    fn identity(&self) -> Identity<'_> {
        Identity { api: &self.api, route: &self.route, id: &self.id }
    }

    fn header_map(&self) -> Option<HeaderMap> {
        let mut headers =
            HeaderMap::try_with_capacity(self.headers.len() + MAX_ADDED_HEADERS).ok()?;
        for (name, value) in &self.headers {
            let value: Vec<u8> =
                value.chars().map(|c| u8::try_from(c).ok()).collect::<Option<_>>()?;
            let name: HeaderName = name.parse().ok()?;
            headers.append(name, HeaderValue::from_maybe_shared(Bytes::from(value)).ok()?);
        }
        Some(headers)
    }
}

/// Returns API and route of a stored entry, for messages.
pub(in crate::cache) fn origin_of(seen: &Seen) -> Option<(String, String)> {
    let meta = serde_json::from_slice::<Meta>(&seen.stored.as_ref()?.meta).ok()?;
    Some((meta.api, meta.route))
}

/// What an entry is stored as.
#[derive(Clone, Copy)]
pub struct EntryVersion<'a> {
    /// Token under which it is stored.
    pub generation: &'a Token,
    /// Epoch of the store.
    pub epoch: &'a Epoch,
    /// The change since which the entry that it replaces was read, if it replaces one.
    pub change: Option<&'a ChangeId>,
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
    /// The entry was stored before a purge of all.
    Purged,
    /// The entry is of another API, route or job, which has the same key.
    Identity,
}

impl Entry {
    /// Decodes and verifies the value that the store holds; `None` if there is none.
    ///
    /// An entry is valid only if its body and expiry match the meta, and if it was stored in the epoch
    /// of the connection that read it. It may be of any API, route or job with this key.
    pub fn decode(seen: &Seen) -> Option<Result<Self, Reject>> {
        Some(Self::verify(seen, seen.stored.as_ref()?, None))
    }

    /// Decodes the value like [`Entry::decode`], and rejects an entry that is not of this identity.
    pub fn decode_of(seen: &Seen, identity: &Identity<'_>) -> Option<Result<Self, Reject>> {
        Some(Self::verify(seen, seen.stored.as_ref()?, Some(identity)))
    }

    fn verify(
        seen: &Seen,
        stored: &StoredValue,
        identity: Option<&Identity<'_>>,
    ) -> Result<Self, Reject> {
        if stored.meta.is_empty() {
            return Err(Reject::Foreign);
        }
        let meta: Meta = serde_json::from_slice(&stored.meta).map_err(|_| Reject::Corrupt)?;
        if meta.v != meta.version() {
            return Err(Reject::Corrupt);
        }
        let body = match &meta.content {
            Some(_) if !stored.body.is_empty() => return Err(Reject::Foreign),
            Some(content) => STANDARD.decode(content).map_err(|_| Reject::Corrupt)?.into(),
            None => stored.body.clone(),
        };
        let expires_as_stored = meta.expires_at_ms == stored.expires_at_ms;
        if !(expires_as_stored || mutants::is(Mutant::NoExpiryCheck))
            || meta.digest != digest(&body)
        {
            return Err(Reject::Foreign);
        }
        verify_epoch(&Epoch::named(&meta.epoch), &seen.epoch)?;
        if identity.is_some_and(|identity| *identity != meta.identity()) {
            return Err(Reject::Identity);
        }
        Self::from_meta(meta, body).ok_or(Reject::Corrupt)
    }

    pub(super) fn from_meta(meta: Meta, body: Bytes) -> Option<Self> {
        let identity = meta.identity().hash();
        let headers = meta.header_map()?;
        let status = StatusCode::from_u16(meta.status).ok()?;
        let mut members = Vec::with_capacity(meta.audience.len());
        members.extend(meta.audience.iter().filter_map(|text| AudienceMember::parse(text)));
        let (mut head, body, coded) = match meta.zstd_of {
            None => {
                (Head::new(HeadForm::Only, status, headers, body.len(), || meta.digest), body, None)
            }
            // Decompressed once for all clients. This also detects a body with another length.
            Some(length) => {
                let whole = coding::decompress(&body, length)?;
                let head = |form, headers, length| {
                    Head::new(form, status, headers, length, || digest(&whole))
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
            change: meta.change.map(Into::into),
            identity,
        })
    }

    /// Compresses the body for the store; `None` if it may not be compressed or gets no smaller.
    pub fn compress(&self) -> Option<Bytes> {
        let headers = self.head.fields(|_| true).collect();
        let may_be_compressed = self.is_job() && coding::may_be_compressed(&headers);
        if may_be_compressed { coding::compress(&self.body) } else { None }
    }

    /// Returns the body for the store: the [compressed](Entry::compress) one if there is one, and
    /// nothing if the status says that the body is not a job.
    pub fn stored_body<'e>(&'e self, compressed: Option<&'e Bytes>) -> &'e Bytes {
        static NOTHING: Bytes = Bytes::new();
        if self.is_job() { compressed.unwrap_or(&self.body) } else { &NOTHING }
    }

    /// Whether the body is a job, as the status says.
    pub fn is_job(&self) -> bool {
        self.head.status == StatusCode::OK
    }

    /// Returns the meta for the store: a JSON object without its closing brace. `compressed` is the
    /// [compressed](Entry::compress) body, if that is stored.
    pub fn meta(
        &self,
        members: &[AudienceMember],
        identity: &Identity<'_>,
        version: EntryVersion<'_>,
        compressed: Option<&Bytes>,
    ) -> String {
        let EntryVersion { generation, epoch, change } = version;
        let latin1 = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect();
        let line = |line: HeadLine<'_>| (latin1(line.name), latin1(line.value));
        let mut meta = Meta {
            v: META_VERSION,
            api: identity.api.to_owned(),
            route: identity.route.to_owned(),
            id: identity.id.to_owned(),
            status: self.head.status.as_u16(),
            headers: self.head.stored().map(line).collect(),
            digest: digest(compressed.unwrap_or(&self.body)),
            zstd_of: compressed.map(|_| self.body.len()),
            content: (!self.is_job()).then(|| STANDARD.encode(&self.body)),
            generation: generation.as_str().to_owned(),
            change: change.map(|change| change.0.to_string()),
            stored_at_ms: self.stored_at_ms,
            age_ms: self.age_ms,
            epoch: epoch.as_str().to_owned(),
            public: self.audience.public,
            drops_last_modified: self.head.last_modified == LastModified::Dropped,
            audience: members.iter().map(AudienceMember::to_string).collect(),
            expires_at_ms: 0,
        };
        meta.v = meta.version();
        // Serialization never fails: the struct holds only strings and numbers.
        let mut json = serde_json::to_string(&meta).unwrap_or_default();
        json.pop();
        json
    }
}

fn verify_epoch(stored: &Epoch, current: &Epoch) -> Result<(), Reject> {
    if stored.server() != current.server() && !mutants::is(Mutant::NoEpoch) {
        return Err(Reject::Epoch);
    }
    let is_purged = stored != current;
    if is_purged && !mutants::is(Mutant::NoEpoch) && !mutants::is(Mutant::NoPurgeToken) {
        return Err(Reject::Purged);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any program that can write to the store can write a meta.
    #[test]
    fn more_headers_than_a_map_holds_are_refused() {
        let headers = vec![("x".to_owned(), String::new()); 1 << 15];
        let meta = Meta {
            v: META_VERSION,
            api: String::new(),
            route: String::new(),
            id: String::new(),
            status: 200,
            headers,
            digest: digest(b"{}"),
            zstd_of: None,
            content: None,
            generation: String::new(),
            change: None,
            stored_at_ms: 0,
            age_ms: 0,
            epoch: String::new(),
            public: false,
            drops_last_modified: false,
            audience: vec![],
            expires_at_ms: 0,
        };
        assert!(Entry::from_meta(meta, Bytes::from("{}")).is_none());
    }
}
