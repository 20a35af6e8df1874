//! Hits for a client that repeats its header fields.
//!
//! A poller repeats its request every few seconds over one connection, and at most the path
//! differs. Everything that was derived from the fields of a request answered from this process
//! (that the cache may serve it, who is asking, and for what) holds for every later request with
//! the same fields. It is kept as a [`RepeatHit`].
//!
//! Everything that depends on the path is computed again: the route, the spelling of the id, the
//! fingerprint of the representation. Everything that depends on time is done again by the same
//! code that answers other hits: the lookup in this process, the audience check, and the barrier,
//! which is passed after this request arrived. So neither of the first two promises depends on kept
//! state.
//!
//! The fast path answers only such hits. Every other request is served from the beginning, as if
//! the fast path had not been tried. The same goes for requests that need more than their path:
//! conditions, a query, a host in the target, a line in the access log, a span, a comparison with
//! the upstream (`verify`).

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::{
    Request, Version,
    body::Incoming,
    http::{
        Method,
        header::{IF_MODIFIED_SINCE, IF_NONE_MATCH},
    },
};

use super::{proxy_context::ProxyContext, verify};
use crate::{
    cache::{Cache, LookupRequest, NearLookup, entry::coding::Coding},
    observe::events::{EventKind, HitSample},
    service::{FastPathMiss, RepeatFastPath, SampleDecision},
    transport::{ConnectionId, Peer},
};

/// State derived from the header fields of a request that was a hit in this process.
pub struct RepeatHit {
    lookup: LookupRequest,
    /// The content coding in which a hit is sent.
    coding: Coding,
    /// The lookup of the request that is being answered, if one is.
    near_lookup: Option<NearLookup>,
    /// Whether that request is compared with the upstream.
    decision: SampleDecision,
    /// The event sample of that request, if it is sampled.
    sample: Option<HitSample>,
    /// The cache of the configuration that this was made under. It is void under any other.
    cache: Arc<Cache>,
    /// The connection of the client. Once it is bound to a login, there are no hits for it.
    connection: Option<ConnectionId>,
}

impl RepeatHit {
    /// Returns what to keep from a request that was a hit in this process, unless a repeat of it
    /// needs more than its path.
    pub(super) fn of(
        context: &ProxyContext,
        request: &Request<Incoming>,
        lookup: LookupRequest,
        client: Peer,
    ) -> Option<Self> {
        let (uri, headers, config) = (request.uri(), request.headers(), &context.config);
        let repeatable = config.repeats_hits
            && *request.method() == Method::GET
            && request.version() == Version::HTTP_11
            && uri.authority().is_none()
            && uri.query().is_none()
            && !headers.contains_key(IF_NONE_MATCH)
            && !headers.contains_key(IF_MODIFIED_SINCE);
        repeatable.then(|| Self {
            lookup,
            coding: Coding::of_request(headers),
            near_lookup: None,
            decision: SampleDecision::Undecided,
            sample: None,
            cache: Arc::clone(&context.cache),
            connection: client.connection,
        })
    }

    /// Points the repeat at this path. Returns false if the path cannot be a hit.
    fn retarget(&mut self, context: &ProxyContext, path: &str) -> bool {
        if !Arc::ptr_eq(&self.cache, &context.cache) || path.len() > context.config.server.max_uri {
            return false;
        }
        let Some(job) = context.routes.job_at(path) else { return false };
        if context.cache.is_aside(job.prefix) {
            return false;
        }
        context.cache.retarget(&mut self.lookup, job, path);
        self.near_lookup = Some(NearLookup::default());
        self.sample = context.cache.events().sample();
        true
    }
}

impl RepeatFastPath for ProxyContext {
    type Repeat = RepeatHit;

    fn is_offered(&self) -> bool {
        self.config.server.repeat_fast_path
    }

    fn poll_repeat(
        &self,
        repeat: &mut RepeatHit,
        path: &str,
        head: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, FastPathMiss>> {
        let ProxyContext { config, cache, upstream, metrics, .. } = self;
        if repeat.near_lookup.is_none() {
            repeat.decision = verify::decide_sample(config.verify);
            // A sampled hit is compared with the upstream, which needs the fields of the request.
            if repeat.decision == SampleDecision::Sampled
                || upstream.bound.is_bound(repeat.connection)
                || !repeat.retarget(self, path)
            {
                let decision = repeat.decision;
                return Poll::Ready(Err(FastPathMiss { decision, ..FastPathMiss::default() }));
            }
        }
        let near_lookup = repeat.near_lookup.get_or_insert_default();
        let near = ready!(cache.reader.poll_lookup_near(&repeat.lookup, near_lookup, cx));
        let miss = FastPathMiss { waited: near_lookup.waited(), decision: repeat.decision };
        repeat.near_lookup = None;
        let (entry, now_ms) = near.map_err(|_| miss)?;
        let body = entry.write_hit(head, now_ms, repeat.coding).cloned().ok_or(miss)?;
        cache.metrics().near.count_lookup("hit");
        metrics.requests.count(EventKind::Hit, "");
        metrics.repeats.inc();
        cache.record_answer(&repeat.lookup, EventKind::Hit, "", repeat.sample.as_ref());
        Poll::Ready(Ok(body))
    }
}
