//! The story of a cacheable read: from this process, from the store, or from the upstream for everybody
//! who waits.
//!
//! Where an answer may come from is decided in `cache`; the upstream read that others share goes on in
//! `lead`, and what shadow mode makes of it all in `shadow`.

use std::sync::Arc;

use hyper::{
    HeaderMap, Request, Response, StatusCode, Version,
    body::Incoming,
    http::{Method, request::Parts},
};
use tracing::Instrument as _;

use super::{
    Proxy,
    again::Recall,
    answer::{Answer, Stored, Verdict, refuse, refuse_with},
    body::Body,
    exchange::{Switch, prepare_response, relay},
    headers,
    lead::LeadTask,
};
use crate::{
    cache::{Abandoned, Ask, Lead, Lookup, Trial, entry::Entry, key::JobId, policy::Bypass},
    config::CacheMode,
    events::{Sample, What},
    interim::Interim,
    service::Declined,
    spans,
    store::Budget,
    transport::Peer,
    upstream::{Repeat, RequestBody},
};

impl Proxy {
    /// Answers a read of a job; one that is not near in a box, as in [`answer`](Proxy::answer).
    pub(super) async fn answer_read(
        self: &Arc<Self>,
        id: &JobId,
        request: Request<Incoming>,
        from: (Peer, Interim),
        sample: Option<&Sample>,
        recall: &mut Option<Recall>,
    ) -> Answer {
        let (ask, mut budget) = self.ask(id, &request);
        if self.mode == CacheMode::Shadow {
            let (ask, head) = (ask.alone(), request.into_parts().0);
            let answer = Box::pin(self.shadow(&ask, head, from, budget)).await;
            return self.told(&ask, answer, sample);
        }
        let look = self.cache.near(&ask, &mut budget);
        if let Some(found) = look.instrument(spans::lookup("near")).await {
            self.cache.answered(&ask, What::Hit, "", sample);
            return self.near_hit(found, ask, request, from.0, recall);
        }
        let head = request.into_parts().0;
        let answer = Box::pin(self.read(&ask, head, from, budget)).await;
        self.told(&ask, answer, sample)
    }

    /// Tells the job's events of an answer.
    fn told(&self, ask: &Ask, answer: Answer, sample: Option<&Sample>) -> Answer {
        let (what, why) = answer.verdict.event();
        self.cache.answered(ask, what, why, sample);
        answer
    }

    /// What a read asks for, and what it may wait for the store.
    fn ask(&self, id: &JobId, request: &Request<Incoming>) -> (Ask, Budget) {
        let ask = self.cache.ask(id, request.method(), request.uri(), request.headers());
        let mut budget = self.cache.budget();
        // Beneath hyper, for such a hit, in vain.
        if let Some(Declined { waited, .. }) = request.extensions().get() {
            budget.charge(*waited);
        }
        (ask, budget)
    }

    /// Answers from an entry in this process.
    fn near_hit(
        self: &Arc<Self>,
        (entry, now_ms): (Arc<Entry>, i64),
        ask: Ask,
        request: Request<Incoming>,
        client: Peer,
        recall: &mut Option<Recall>,
    ) -> Answer {
        let answer = hit(&entry, request.method(), request.headers(), now_ms);
        let drawn = self.is_drawn(request.method(), request.extensions());
        let trial = drawn.then(|| Trial::new(&ask, entry));
        *recall = self.recall(&request, ask);
        if let Some(trial) = trial {
            self.verify(trial, &request.into_parts().0, client);
        }
        answer
    }

    /// Answers a cacheable read that is not near.
    ///
    /// A store that is down or slow costs the client at most the store budget and a trip upstream,
    /// never an error.
    async fn read(
        self: &Arc<Self>,
        ask: &Ask,
        head: Parts,
        (client, interim): (Peer, Interim),
        mut budget: Budget,
    ) -> Answer {
        let span = spans::lookup("store");
        let lookup = self.cache.lookup(ask, &mut budget).instrument(span.clone()).await;
        spans::result(&span, lookup.as_str());
        drop(span);
        match lookup {
            Lookup::Hit(entry) => {
                let now_ms = self.cache.store().now_ms();
                let answer = hit(&entry, &head.method, &head.headers, now_ms);
                if self.is_drawn(&head.method, &head.extensions) {
                    self.verify(Trial::new(ask, entry), &head, client);
                }
                answer
            }
            Lookup::Lead(lead) => self.lead(*lead, head, (client, interim), budget).await,
            Lookup::Join(flight, why) => match flight.landed().await {
                Some(entry) => {
                    let verdict = Verdict::Miss { stored: Stored::Unsaid, collapsed: true, why };
                    self.metrics.flights_joined.inc();
                    let now_ms = self.cache.store().now_ms();
                    Answer { response: entry_response(&entry, &head, now_ms), verdict }
                }
                None => self.pass_read(head, client, interim, Bypass::Alone).await,
            },
            Lookup::Pass(Bypass::OnlyIfCached) => {
                refuse_with(StatusCode::GATEWAY_TIMEOUT, Bypass::OnlyIfCached.as_str())
            }
            Lookup::Pass(why) => self.pass_read(head, client, interim, why).await,
        }
    }

    /// Reads the upstream for everybody who waits for this job. The read is a task of its own: the
    /// client that began it may hang up, and the others get their answer all the same.
    pub(super) async fn lead(
        self: &Arc<Self>,
        lead: Lead,
        head: Parts,
        (client, interim): (Peer, Interim),
        budget: Budget,
    ) -> Answer {
        let why = lead.why();
        if self.superseded.is_told() {
            // It may be read for others by rules that no longer hold. One that is told later has its
            // lease from before the purge that comes with them.
            self.cache.abandon(lead, Abandoned::Superseded).await;
            return self.pass_read(head, client, interim, why.unwrap_or(Bypass::Alone)).await;
        }
        let mut request = self.for_fill(&head, client);
        relay(&mut request, &interim);
        let flight = spans::flight();
        lead.led_by(&flight);
        let (task, answered) = LeadTask::new(self, lead, head.clone(), budget);
        self.tasks.spawn(task.run(request).instrument(flight));
        match answered.await {
            Ok(answer) => answer,
            // The leader died. Reading once more is safe.
            Err(_) => self.pass_read(head, client, interim, why.unwrap_or(Bypass::Alone)).await,
        }
    }

    /// Forwards a read that the cache cannot answer, for this client alone.
    pub(super) async fn pass_read(
        &self,
        mut head: Parts,
        client: Peer,
        interim: Interim,
        why: Bypass,
    ) -> Answer {
        self.prepare_request(&mut head, client);
        let mut request = Request::from_parts(head, RequestBody::Empty);
        relay(&mut request, &interim);
        let sent = self.send(request, Repeat::IfSafe).await;
        match sent.and_then(|response| prepare_response(response, Switch::Unasked)) {
            Ok(response) => {
                Answer { response: response.map(Body::Upstream), verdict: Verdict::Pass(why) }
            }
            Err(error) => refuse(&error),
        }
    }
}

fn hit(entry: &Entry, method: &Method, headers: &HeaderMap, now_ms: i64) -> Answer {
    let response = entry.hit(method, headers, now_ms).map(Body::from);
    Answer { response, verdict: Verdict::Hit }
}

/// Answers from an entry that has just been read for it, with 304 where the client has it already.
pub(super) fn entry_response(entry: &Entry, head: &Parts, now_ms: i64) -> Response<Body> {
    let mut response = entry.respond(&head.method, &head.headers, now_ms).map(Body::from);
    headers::via(response.headers_mut(), Version::HTTP_11);
    response
}
