//! Compares entries with the upstream's responses, for shadow mode and `verify`.
//!
//! A response that differs from an entry does not yet prove a fault of the cache. The job may have
//! changed after the entry was looked up, and its purge may still be on the way, because a purge
//! follows the commit. So a difference counts only if the same entry is still in the store after the
//! response, and still there after a grace period for the purge. Fences need no check: while a job is
//! fenced, it has no entry.
//!
//! A response is compared piece by piece as it arrives. Of its body, only the length and a digest are
//! kept. `proxy` reads the upstream and counts the results.

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use hyper::http::{HeaderName, StatusCode, response::Parts};
use tokio::time::sleep;
use tracing::warn;
use xxhash_rust::xxh3::Xxh3;

use super::{
    decide::LookupRequest,
    entry::{self, Entry},
    invalidate::Invalidator,
    shared_state::InvalidationSource,
};
use crate::{
    semantics::{
        identity::RouteIndex,
        labels::labels,
        policy::{self, NoStore, Policy, StoredHead},
    },
    store::{Key, Token},
};

/// Grace period for a purge to follow a commit that is already visible in the upstream.
const PURGE_GRACE: Duration = Duration::from_secs(2);

/// Greatest number of header names in a warning.
const MAX_NAMED_HEADERS: usize = 8;

labels! {
    /// The result of a comparison; a label of its metrics.
    pub enum ComparisonResult {
        /// The response of the upstream equals the entry.
        Same = "same",
        /// The response differs, and no purge or write has reported a change of the job.
        Different = "different",
        /// The upstream refuses the reader or has no such job, and no change was reported.
        Refused = "refused",
        /// The response differs, and the entry has been dropped meanwhile.
        Changed = "changed",
        /// The upstream gave no response or a server error, which proves nothing.
        Failed = "failed",
        /// The response was not complete or could not be compared, or the store could not be asked.
        Unchecked = "unchecked",
        /// Too many comparisons were under way.
        Skipped = "skipped",
    }
}

impl ComparisonResult {
    /// Whether the result does not depend on whether the entry is still in the store.
    fn is_immediate(self) -> bool {
        matches!(self, Self::Same | Self::Failed)
    }
}

/// Comparison of an entry that was, or would have been, served with the upstream's response to the
/// same request.
pub struct Comparison {
    key: Key,
    route: RouteIndex,
    entry: Arc<Entry>,
    status: StatusCode,
    /// Names of the headers that differ.
    differing_headers: Vec<HeaderName>,
    /// Why the response may not be stored, although the entry was.
    not_storable: Option<NoStore>,
    /// Length of the body received so far.
    received_bytes: usize,
    /// Digest of the body received so far, once it differs from that of the entry.
    other_body: Option<Box<Xxh3>>,
}

impl Comparison {
    /// Begins a comparison, before the response has arrived.
    pub fn new(request: &LookupRequest, entry: Arc<Entry>) -> Self {
        Self::of_key(request.key.clone(), request.place.route, entry)
    }

    /// Returns the route of the read that is compared.
    pub fn route(&self) -> RouteIndex {
        self.route
    }

    fn of_key(key: Key, route: RouteIndex, entry: Arc<Entry>) -> Self {
        Self {
            key,
            route,
            entry,
            status: StatusCode::BAD_GATEWAY,
            differing_headers: Vec::new(),
            not_storable: None,
            received_bytes: 0,
            other_body: None,
        }
    }

    /// Compares the head of the response to a GET without conditions. Returns whether the body has to
    /// be compared.
    ///
    /// Compares the stored headers and checks whether the response may be stored. A header that is not
    /// part of an entry, such as `Set-Cookie`, is not compared, but may make the response personal to
    /// one client. Lifetimes do not matter: they say nothing about whether the hit was right.
    pub(super) fn compare_head(&mut self, head: &Parts, policy: &Policy, now_ms: i64) -> bool {
        self.status = head.status;
        let comparable = head.status == self.entry.status();
        if comparable {
            let stored = StoredHead::of(head, &policy.volatile, now_ms);
            self.differing_headers =
                self.entry.stored_head().differing_headers(&stored, &policy.volatile);
            self.not_storable = policy::storable(head, policy).err();
        }
        comparable
    }

    /// Compares the next part of the body. Returns whether more of it has to be compared.
    pub fn compare_body_part(&mut self, data: &[u8]) -> bool {
        let rest = self.entry.body().get(self.received_bytes..).unwrap_or_default();
        if self.other_body.is_none() && !rest.starts_with(data) {
            let mut digest = Box::<Xxh3>::default();
            digest.update(&self.entry.body()[..self.received_bytes]);
            self.other_body = Some(digest);
        }
        if let Some(digest) = &mut self.other_body {
            digest.update(data);
        }
        self.received_bytes += data.len();
        self.received_bytes <= self.entry.body().len()
    }

    /// Returns the result once the response has ended, if it does not depend on whether the entry is
    /// still in the store.
    pub fn immediate_result(&self) -> Option<ComparisonResult> {
        Some(self.result()).filter(|result| result.is_immediate())
    }

    /// Returns the result for the case that the entry is still in the store.
    fn result(&self) -> ComparisonResult {
        match self.status {
            status if status == self.entry.status() => {
                let has_all = self.received_bytes == self.entry.body().len();
                let whole = has_all && self.other_body.is_none();
                let same =
                    whole && self.differing_headers.is_empty() && self.not_storable.is_none();
                if same { ComparisonResult::Same } else { ComparisonResult::Different }
            }
            status if status.is_server_error() => ComparisonResult::Failed,
            // 408 and 429 come from an overloaded gateway in front of the upstream. 304 is no answer
            // to a request without conditions.
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::NOT_MODIFIED => ComparisonResult::Failed,
            status if status.is_success() => ComparisonResult::Different,
            _ => ComparisonResult::Refused,
        }
    }
}

impl Invalidator {
    /// Concludes a comparison after the response has ended. Purges an entry that is wrong everywhere,
    /// with a warning.
    pub async fn conclude(self: &Arc<Self>, comparison: &Comparison) -> ComparisonResult {
        let result = comparison.result();
        if result.is_immediate() {
            return result;
        }
        let wrong_entries = &self.state.wrong_entries;
        let generation = Token::named(comparison.entry.generation());
        for pause in [Duration::ZERO, PURGE_GRACE] {
            sleep(pause).await;
            match self.is_still_stored(comparison).await {
                Some(true) => {}
                // A concurrent comparison has purged the entry because it was wrong.
                Some(false) if wrong_entries.count(&generation) > 0 => return result,
                Some(false) => return ComparisonResult::Changed,
                None => return ComparisonResult::Unchecked,
            }
        }
        if wrong_entries.add(generation) == 1 {
            self.warn_of_wrong_entry(comparison, result);
            let keys = vec![comparison.key.clone()];
            // A failure of the purge's task has been logged.
            let source = InvalidationSource::Comparison;
            let _ = self.purge_keys(keys, source, Some("evidence".into())).await;
        }
        result
    }

    /// Returns whether the store still has the entry; `None` if the store cannot tell.
    async fn is_still_stored(&self, comparison: &Comparison) -> Option<bool> {
        self.state.store.trust(&comparison.key).ok()?;
        let seen = self.state.store.read(&comparison.key, &mut self.config.budget()).await.ok()?;
        let Some(Ok(entry)) = Entry::decode(&seen) else { return Some(false) };
        Some(entry.generation() == comparison.entry.generation())
    }

    fn warn_of_wrong_entry(&self, comparison: &Comparison, result: ComparisonResult) {
        let Comparison { key, entry, status, differing_headers, received_bytes, .. } = comparison;
        let digest = match &comparison.other_body {
            Some(digest) => format!("{:032x}", digest.digest128()),
            None => entry::digest(&entry.body()[..*received_bytes]),
        };
        let warnings = &self.state.notes.wrong_entry_warnings;
        let Some(suppressed) = warnings.admit(key.main()) else { return };
        let names = differing_headers.iter().take(MAX_NAMED_HEADERS).map(HeaderName::as_str);
        warn!(
            job = self.config.id(key),
            outcome = result.as_str(),
            status = status.as_u16(),
            headers = names.collect::<Vec<_>>().join(", "),
            not_storable = comparison.not_storable.map_or("", NoStore::as_str),
            bytes = received_bytes,
            digest,
            stored_bytes = entry.body().len(),
            stored_digest = entry::digest(entry.body()),
            suppressed,
            "a cached entry differed from the API's answer and was dropped; either something changes \
             jobs without purging them, or the API does not always give the same answer"
        );
    }
}
