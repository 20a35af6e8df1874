//! Prefetch: reads a job into the cache before a client asks for it, and reads the list of jobs to
//! prefetch.
//!
//! A prefetch takes the same lease and the same flight as a client's read, so the same guarantees
//! hold: nothing is stored that a write or a purge has overtaken, clients that ask meanwhile join
//! the flight, and the entry is only for the credential and representation that it was read with.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    http::{header::CONTENT_ENCODING, request::Parts},
};
use tracing::error;

use super::{Proxy, lead::LeadTask};
use crate::{
    cache::{AbandonReason, FillResult, LeaderRead, Lookup, LookupRequest},
    config::CacheMode,
    semantics::{
        job_id::JobId,
        labels::labels,
        policy::{Bypass, NoStore},
        route::Route,
    },
    store::Budget,
    transport::Peer,
    upstream::{BodyError, UpstreamError},
};

/// The peer of a prefetch. Its host and scheme come from the configuration, so they are trusted.
const PREFETCH_PEER: Peer = Peer { ip: None, is_tls: false, is_trusted: true, connection: None };

labels! {
    /// The result of a prefetch.
    pub enum PrefetchOutcome {
        /// The job was read and stored.
        Stored = "stored",
        /// There was already an entry.
        Present = "present",
        /// Another read of the job was under way and brought a response.
        Joined = "joined",
        /// The upstream answered with another status than 200, below 500.
        Status = "status",
        /// The response may not be stored.
        Unstorable = "unstorable",
        /// The cache does not serve this read.
        Passed = "passed",
        /// A write is in flight, or was just answered.
        Fenced = "fenced",
        /// Another sidecar, or a caller here that does not share, is reading the job.
        Leased = "leased",
        /// The job changed during the read.
        Revoked = "revoked",
        /// The store was not available, or did not take the response.
        Store = "store",
        /// The upstream gave no whole response, or answered 5xx.
        Upstream = "upstream",
        /// A limit on shared reads or captured bytes was met, or the read that was joined brought
        /// nothing to share.
        Busy = "busy",
        /// The queue was full, or nothing reads it any more, as in a drain.
        Overflow = "overflow",
        /// The task failed, which is a bug in jobcache.
        Died = "died",
    }
}

impl PrefetchOutcome {
    /// Whether a later attempt may have another outcome.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Fenced | Self::Leased | Self::Revoked | Self::Store | Self::Upstream | Self::Busy
        )
    }
}

/// Why the list of jobs could not be read. The message continues a sentence about the upstream.
#[derive(Debug, thiserror::Error)]
pub enum JobListError {
    /// The upstream gave no response.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The response was cut off.
    #[error("its answer was cut off: {0}")]
    Broken(#[from] BodyError),
    /// The status is not 200. Redirects are not followed.
    #[error("it answered {0} instead of 200; check warm.list and warm.authorization")]
    Status(StatusCode),
    /// The response is compressed, although that was not requested.
    #[error("its answer is compressed, although no compression was requested")]
    Encoded,
    /// The response is larger than this many bytes.
    #[error("its answer is larger than {0} bytes; make warm.list ask for less")]
    TooLarge(usize),
}

impl Proxy {
    /// Whether the mode allows prefetches.
    pub fn allows_prefetch(&self) -> bool {
        self.context.config.mode != CacheMode::Off
    }

    /// Reads a job into the cache with these headers, unless it is already there.
    pub async fn prefetch(&self, id: &JobId, headers: &HeaderMap) -> PrefetchOutcome {
        if !self.allows_prefetch() {
            return PrefetchOutcome::Passed;
        }
        // The lookup may already take a lease, and readers would wait for it if the process ended
        // here. The token makes a drain wait.
        let _task = self.context.tasks.token();
        let Some((head, lookup)) = self.prefetch_request(id, headers) else {
            return PrefetchOutcome::Passed;
        };
        let mut budget = self.context.cache.budget();
        match self.context.cache.reader.lookup_for_prefetch(&lookup, &mut budget).await {
            None | Some(Lookup::Hit(_)) => PrefetchOutcome::Present,
            Some(Lookup::Lead(lead)) => self.lead_prefetch(*lead, head, budget).await,
            Some(Lookup::Join(flight, _)) => match flight.wait().await {
                Ok(_) => PrefetchOutcome::Joined,
                Err(_) => PrefetchOutcome::Busy,
            },
            Some(Lookup::Pass(why)) => passed_for(why),
        }
    }

    /// Returns the request of a client that reads this job by the first route that has such keys, if
    /// that read is cacheable.
    fn prefetch_request(&self, id: &JobId, headers: &HeaderMap) -> Option<(Parts, LookupRequest)> {
        let uri: Uri = self.context.routes.path_of(id)?.parse().ok()?;
        let mut request = Request::new(());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        request.headers_mut().clone_from(headers);
        let cache = &self.context.cache;
        let Route::Read(job) = self.context.routes.classify(&request) else { return None };
        if cache.fingerprinter().must_bypass(headers) || cache.is_aside(job.prefix) {
            return None;
        }
        let lookup = cache.lookup_request(&job, &Method::GET, request.uri(), headers);
        Some((request.into_parts().0, lookup))
    }

    async fn lead_prefetch(
        &self,
        lead: LeaderRead,
        head: Parts,
        budget: Budget,
    ) -> PrefetchOutcome {
        let request = self.context.fill_request(&head, PREFETCH_PEER);
        // The answer is dropped, as for a client that has hung up.
        let read =
            LeadTask::spawn(&self.context, lead, (head, PREFETCH_PEER), request, budget).await;
        let Some((task, _)) = read else { return abandoned_for(AbandonReason::Superseded) };
        // The read runs to its end even during a drain, because clients may have joined it.
        match task.await {
            Ok(FillResult::Stored) => PrefetchOutcome::Stored,
            Ok(FillResult::Revoked) => PrefetchOutcome::Revoked,
            Ok(FillResult::Failed | FillResult::Unconfirmed) => PrefetchOutcome::Store,
            Ok(FillResult::Abandoned(why)) => abandoned_for(why),
            // A task that panicked has stored nothing.
            Err(error) => {
                error!(%error, "a prefetch task died");
                PrefetchOutcome::Died
            }
        }
    }

    /// Returns the list of jobs at this path and query, at most `max` bytes.
    pub async fn prefetch_list(
        &self,
        target: &Uri,
        headers: &HeaderMap,
        max: usize,
    ) -> Result<Bytes, JobListError> {
        let mut request = Request::new(());
        *request.uri_mut() = target.clone();
        request.headers_mut().clone_from(headers);
        let request = self.context.fill_request(&request.into_parts().0, PREFETCH_PEER);
        let (head, body) = self.context.exchange(request).await?.into_parts();
        if head.status != StatusCode::OK {
            return Err(JobListError::Status(head.status));
        }
        if head.headers.contains_key(CONTENT_ENCODING) {
            return Err(JobListError::Encoded);
        }
        let read = Limited::new(body, max).collect().await;
        let read = read.map_err(|error| match error.downcast::<BodyError>() {
            Ok(error) => JobListError::Broken(*error),
            Err(_) => JobListError::TooLarge(max),
        });
        Ok(read?.to_bytes())
    }
}

fn abandoned_for(why: AbandonReason) -> PrefetchOutcome {
    match why {
        AbandonReason::Unstorable(_, status) if status.is_server_error() => {
            PrefetchOutcome::Upstream
        }
        AbandonReason::Unstorable(NoStore::Status, _) => PrefetchOutcome::Status,
        AbandonReason::Unstorable(NoStore::Memory, _) => PrefetchOutcome::Busy,
        AbandonReason::Unstorable(..) => PrefetchOutcome::Unstorable,
        AbandonReason::Unanswered => PrefetchOutcome::Upstream,
        AbandonReason::Superseded => PrefetchOutcome::Revoked,
    }
}

fn passed_for(why: Bypass) -> PrefetchOutcome {
    match why {
        // Another writer keeps storing its own values under the key.
        Bypass::Foreign => PrefetchOutcome::Passed,
        Bypass::Fenced => PrefetchOutcome::Fenced,
        Bypass::Leased => PrefetchOutcome::Leased,
        Bypass::Flights => PrefetchOutcome::Busy,
        _ => PrefetchOutcome::Store,
    }
}
