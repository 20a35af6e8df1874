//! Reads for no client: a job, so that it is in the cache when one asks, and the list of those to read.
//!
//! A job is read as for a client, by the same lease and the same flight, so all that holds for those
//! reads holds for these: nothing is stored that a write or a purge has overtaken, who asks meanwhile
//! joins, and the entry is for the credential and representation that it was read with, for nobody
//! else.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    body::Body as _,
    http::{header::CONTENT_ENCODING, request::Parts},
};
use tracing::{Instrument as _, error};

use super::{
    Proxy,
    exchange::{Switch, prepare_response},
    lead::{Became, LeadTask},
    route::Route,
};
use crate::{
    cache::{Abandoned, Ahead, Lead, key::JobId, policy::Bypass, policy::NoStore},
    config::CacheMode,
    spans,
    store::Budget,
    transport::Peer,
    upstream::{BodyError, Repeat, UpstreamError},
};

/// Who asks. What it says of the host and the scheme is configured, and believed.
const OURSELVES: Peer = Peer { ip: None, is_tls: false, is_trusted: true };

/// What a read ahead came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was read and stored.
    Stored,
    /// There was an entry already.
    Present,
    /// A client's read was under way.
    Joined,
    /// The upstream did not answer 200.
    Status,
    /// The response may not be stored.
    Unstorable,
    /// It is no read that is cached.
    Passed,
    /// A write is in flight, or was just answered.
    Fenced,
    /// Another sidecar reads it.
    Leased,
    /// The job changed while it was read.
    Revoked,
    /// The store cannot be asked, or did not take it.
    Store,
    /// The upstream gave no answer, or said that it cannot now.
    Upstream,
    /// As many reads are shared as may be, or what was shared could not be.
    Busy,
    /// There was no room for it among those that wait, or nobody reads any more, as in a drain.
    Overflow,
    /// It died, which is a fault of ours.
    Died,
}

impl Outcome {
    /// The word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Present => "present",
            Self::Joined => "joined",
            Self::Status => "status",
            Self::Unstorable => "unstorable",
            Self::Passed => "passed",
            Self::Fenced => "fenced",
            Self::Leased => "leased",
            Self::Revoked => "revoked",
            Self::Store => "store",
            Self::Upstream => "upstream",
            Self::Busy => "busy",
            Self::Overflow => "overflow",
            Self::Died => "died",
        }
    }

    /// Whether it may be another one in a while.
    pub fn passes(self) -> bool {
        matches!(
            self,
            Self::Fenced | Self::Leased | Self::Revoked | Self::Store | Self::Upstream | Self::Busy
        )
    }
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum Unlisted {
    /// The upstream gave no answer.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// It broke off within one.
    #[error("its answer broke off: {0}")]
    Broken(#[from] BodyError),
    /// It did not answer 200; a redirect is not followed.
    #[error("it answered {0}; a 200 is needed, look at warm.list and warm.authorization")]
    Status(StatusCode),
    /// The answer is compressed though that was not asked for.
    #[error("its answer is compressed, which was not asked for")]
    Encoded,
    /// The answer is larger than is read.
    #[error("its answer is larger than {0} bytes; let warm.list ask for less")]
    TooLarge(usize),
}

impl Proxy {
    /// Whether anything is to be read ahead.
    pub fn reads_ahead(&self) -> bool {
        self.mode != CacheMode::Off
    }

    /// Reads a job into the cache with these headers, unless it is there.
    pub async fn read_ahead(self: &Arc<Self>, id: &JobId, headers: &HeaderMap) -> Outcome {
        if !self.reads_ahead() {
            return Outcome::Passed;
        }
        // Already the look may take a lease, for which others would wait if it ended there.
        let _waited_for = self.tasks.token();
        let Some((head, id)) = self.head_ahead(id, headers) else { return Outcome::Passed };
        let ask = self.cache.ask(&id, &head.method, &head.uri, &head.headers);
        let mut budget = self.cache.budget();
        match self.cache.look_ahead(&ask, &mut budget).await {
            Ahead::Present => Outcome::Present,
            Ahead::Lead(lead) => self.lead_ahead(*lead, head, budget).await,
            Ahead::Join(flight) => match flight.landed().await {
                Some(_) => Outcome::Joined,
                None => Outcome::Busy,
            },
            Ahead::Wait(why) => delayed_by(why),
            Ahead::Never => Outcome::Passed,
        }
    }

    /// A client's head for this job, by the first route, if that is a read that is cached.
    fn head_ahead(&self, id: &JobId, headers: &HeaderMap) -> Option<(Parts, JobId)> {
        let uri: Uri = self.routes.path_of(id).parse().ok()?;
        let mut request = Request::new(());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        request.headers_mut().clone_from(headers);
        let Route::Read(id) = self.routes.classify(&request) else { return None };
        (!self.cache.is_personal(headers)).then(|| (request.into_parts().0, id))
    }

    async fn lead_ahead(self: &Arc<Self>, lead: Lead, head: Parts, budget: Budget) -> Outcome {
        if self.superseded.is_told() {
            // As a client's: it would be read by rules that no longer hold.
            self.cache.abandon(lead, Abandoned::Superseded).await;
            return Outcome::Revoked;
        }
        let request = self.for_fill(&head, OURSELVES);
        // Nobody waits for the answer, as for that of a client that has hung up.
        let flight = spans::flight();
        lead.led_by(&flight);
        let (task, _) = LeadTask::new(self, lead, head, budget);
        // It ends though we are told to stop: who has joined waits for it.
        match self.tasks.spawn(task.run(request).instrument(flight)).await {
            Ok(Became::Stored) => Outcome::Stored,
            Ok(Became::Revoked) => Outcome::Revoked,
            Ok(Became::Unstored) => Outcome::Store,
            Ok(Became::Unstorable(_, status)) if status.is_server_error() => Outcome::Upstream,
            Ok(Became::Unstorable(NoStore::Status, _)) => Outcome::Status,
            Ok(Became::Unstorable(NoStore::Memory, _)) => Outcome::Busy,
            Ok(Became::Unstorable(..)) => Outcome::Unstorable,
            Ok(Became::Failed) => Outcome::Upstream,
            // It has stored nothing.
            Err(error) => {
                error!(%error, "a read ahead died");
                Outcome::Died
            }
        }
    }

    /// Reads the list of jobs at this path and query, at most `max` bytes of it.
    pub async fn list(
        &self,
        target: &Uri,
        headers: &HeaderMap,
        max: usize,
    ) -> Result<Bytes, Unlisted> {
        let mut request = Request::new(());
        *request.uri_mut() = target.clone();
        request.headers_mut().clone_from(headers);
        let request = self.for_fill(&request.into_parts().0, OURSELVES);
        let response = self.send(request, Repeat::IfSafe).await?;
        let (head, mut body) = prepare_response(response, Switch::Unasked)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(Unlisted::Status(head.status));
        }
        if head.headers.contains_key(CONTENT_ENCODING) {
            return Err(Unlisted::Encoded);
        }
        let mut read = BytesMut::new();
        while !body.is_end_stream() {
            let Some(frame) = body.frame().await else { break };
            let data = frame?.into_data().unwrap_or_default();
            if read.len() + data.len() > max {
                return Err(Unlisted::TooLarge(max));
            }
            read.extend_from_slice(&data);
        }
        Ok(read.freeze())
    }
}

fn delayed_by(why: Bypass) -> Outcome {
    match why {
        Bypass::Fenced => Outcome::Fenced,
        Bypass::Leased => Outcome::Leased,
        Bypass::Flights => Outcome::Busy,
        _ => Outcome::Store,
    }
}
