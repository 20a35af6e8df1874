//! Hits for who sends the same fields again.
//!
//! A poller repeats its request every few seconds over one connection, and only the path differs, if
//! at all. All that is made of the fields of a request that was answered from this process (that it may
//! be read from the cache, who asks, what it asks for) holds for every later one with the same fields,
//! and is kept as a [`Recall`]. What depends on the path is done anew: the route, the spelling of the
//! id, the print of the representation. What depends on time is done anew by the very code that
//! answers other hits: the look into this process, its audience, and the barrier, which is passed
//! after this request came. So neither of the first two promises rests on anything that is remembered.
//!
//! It answers nothing else: whatever is no hit here is served from the beginning, as if it had not been
//! asked. Neither is what would need more than the path of a request: conditions, a query, a host in
//! the target, a line in the access log, a span, a comparison with the upstream (`verify`).

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

use super::Proxy;
use crate::{
    cache::{Ask, Cache, Look, entry::coding::Coding},
    events::{Sample, What},
    service::{Declined, Lot},
};

/// What the fields of a request have come to.
#[derive(Debug)]
pub struct Recall {
    ask: Ask,
    /// Of what is compressed.
    coding: Coding,
    /// Of the request that is being answered.
    look: Option<Look>,
    /// Of the same.
    lot: Lot,
    /// Of the same, if it is looked at.
    sample: Option<Sample>,
    /// Whose configuration it was made under; it is void under another.
    cache: Arc<Cache>,
}

impl Proxy {
    /// What to remember of a request that was a hit in this process.
    pub(super) fn recall(&self, request: &Request<Incoming>, ask: Ask) -> Option<Recall> {
        let (uri, headers) = (request.uri(), request.headers());
        let repeatable = !self.access_log
            && !self.traced
            && *request.method() == Method::GET
            && request.version() == Version::HTTP_11
            && uri.authority().is_none()
            && uri.query().is_none()
            && !headers.contains_key(IF_NONE_MATCH)
            && !headers.contains_key(IF_MODIFIED_SINCE);
        repeatable.then(|| {
            let coding = Coding::wanted(headers);
            let (lot, cache) = (Lot::NotDrawn, Arc::clone(&self.cache));
            Recall { ask, coding, look: None, lot, sample: None, cache }
        })
    }

    /// Makes a recall one of this path, if there may be a hit.
    fn aim(&self, recall: &mut Recall, path: &str) -> bool {
        if !Arc::ptr_eq(&recall.cache, &self.cache) || path.len() > self.limits.max_uri {
            return false;
        }
        let Some(id) = self.routes.job_at(path) else { return false };
        self.cache.turn(&mut recall.ask, id, path);
        recall.look = Some(Look::default());
        recall.sample = self.metrics.events.sample();
        true
    }

    /// [`Service::poll_again`](crate::service::Service::poll_again).
    pub fn poll_again(
        &self,
        recall: &mut Recall,
        path: &str,
        head: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, Declined>> {
        if recall.look.is_none() {
            recall.lot = self.draw();
            // To be compared with the upstream, which takes the fields of the request.
            if recall.lot == Lot::Drawn || !self.aim(recall, path) {
                return Poll::Ready(Err(Declined { lot: recall.lot, ..Declined::default() }));
            }
        }
        let look = recall.look.get_or_insert_default();
        let near = ready!(self.cache.poll_near(&recall.ask, look, cx));
        let hit = near
            .ok()
            .and_then(|(entry, now_ms)| entry.spell_hit(head, now_ms, recall.coding).cloned());
        let Some(body) = hit else {
            let declined = Declined { waited: look.waited(), lot: recall.lot };
            recall.look = None;
            return Poll::Ready(Err(declined));
        };
        recall.look = None;
        self.metrics.near.lookup("hit");
        self.metrics.request("hit", "");
        self.metrics.near.repeats.inc();
        self.cache.answered(&recall.ask, What::Hit, "", recall.sample.as_ref());
        Poll::Ready(Ok(body))
    }
}
