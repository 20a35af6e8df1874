//! The story of a read in shadow mode: the cache does all that it does in service, but answers nothing.
//!
//! It is looked into, filled and invalidated, so that what it would have served can be compared with
//! what the upstream answers to the very reader. Each reader has a read of its own: nobody waits for
//! another's, and no answer is made here. What is compared or stored is asked for whole and uncompressed,
//! as in service; whatever else comes from the upstream comes as if there were no cache.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::{
    Method, Response,
    body::{Body as HttpBody, Frame},
    http::request::Parts,
};
use tracing::Instrument as _;

use super::{
    Proxy,
    answer::{Answer, Verdict, refuse},
    body::Body,
    exchange::{Switch, prepare_response, relay},
};
use crate::{
    cache::{Ask, Lookup, Trial, policy::Bypass},
    interim::Interim,
    metrics::Evidence,
    spans,
    store::Budget,
    transport::Peer,
    upstream::{BodyError, Repeat, ResponseBody},
};

impl Proxy {
    /// Answers a cacheable read from the upstream. `ask` is of a reader who waits for nobody.
    pub(super) async fn shadow(
        self: &Arc<Self>,
        ask: &Ask,
        head: Parts,
        (client, interim): (Peer, Interim),
        mut budget: Budget,
    ) -> Answer {
        let near = self.cache.near(ask, &mut budget).instrument(spans::lookup("near"));
        let found = if let Some((entry, _)) = near.await {
            Lookup::Hit(entry)
        } else {
            self.cache.lookup(ask, &mut budget).instrument(spans::lookup("store")).await
        };
        match found {
            Lookup::Hit(_) if head.method != Method::GET => {
                // Many answer a HEAD otherwise than a GET, and there is no body to compare.
                self.metrics.trials.shadow(Evidence::Unchecked);
                self.pass_read(head, client, interim, Bypass::ShadowHit).await
            }
            Lookup::Hit(entry) => {
                self.compare(Trial::new(ask, entry), &head, (client, interim)).await
            }
            Lookup::Lead(lead) => self.lead(*lead, head, (client, interim), budget).await,
            Lookup::Join(..) => self.pass_read(head, client, interim, Bypass::Shadow).await,
            Lookup::Pass(why) => self.pass_read(head, client, interim, why).await,
        }
    }

    /// Answers what would have been a hit, and compares it on its way.
    async fn compare(
        self: &Arc<Self>,
        mut trial: Trial,
        head: &Parts,
        (client, interim): (Peer, Interim),
    ) -> Answer {
        let mut request = self.for_fill(head, client);
        relay(&mut request, &interim);
        let sent = self.send(request, Repeat::IfSafe).await;
        match sent.and_then(|response| prepare_response(response, Switch::Unasked)) {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let matters = trial.head(&head, &self.cache);
                let body = if matters && !body.is_end_stream() {
                    let (proxy, trial) = (Arc::clone(self), Some(trial));
                    Body::Tried(Box::new(Tried { body, trial, proxy }))
                } else {
                    self.conclude_shadow(trial);
                    Body::Upstream(body)
                };
                let response = Response::from_parts(head, body);
                Answer { response, verdict: Verdict::Pass(Bypass::ShadowHit) }
            }
            Err(error) => {
                self.metrics.trials.shadow(Evidence::Failed);
                refuse(&error)
            }
        }
    }

    /// The answer has ended. What is no plain matter is judged while the client goes on.
    fn conclude_shadow(self: &Arc<Self>, trial: Trial) {
        if let Some(plain) = trial.plain() {
            return self.metrics.trials.shadow(plain);
        }
        let Some(place) = self.trials.take(1) else {
            return self.metrics.trials.shadow(Evidence::Skipped);
        };
        let proxy = Arc::clone(self);
        self.aside(async move {
            let evidence = proxy.cache.conclude(&trial).await;
            proxy.metrics.trials.shadow(evidence);
            drop(place);
        });
    }
}

/// A body that is compared with an entry while it is sent on.
pub struct Tried {
    body: ResponseBody,
    /// Until it has ended.
    trial: Option<Trial>,
    proxy: Arc<Proxy>,
}

impl Tried {
    /// What is still to come.
    pub(super) fn rest(&self) -> &ResponseBody {
        &self.body
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(trial), Some(data)) = (&mut self.trial, frame.data_ref()) {
                    trial.part(data);
                }
                // Who sends it may not ask for more.
                if self.body.is_end_stream() {
                    self.conclude();
                }
            }
            None => self.conclude(),
            Some(Err(_)) => self.give_up(Evidence::Failed),
        }
        Poll::Ready(frame)
    }

    fn conclude(&mut self) {
        if let Some(trial) = self.trial.take() {
            self.proxy.conclude_shadow(trial);
        }
    }

    fn give_up(&mut self, evidence: Evidence) {
        if self.trial.take().is_some() {
            self.proxy.metrics.trials.shadow(evidence);
        }
    }
}

impl Drop for Tried {
    /// The client has hung up.
    fn drop(&mut self) {
        self.give_up(Evidence::Unchecked);
    }
}

impl fmt::Debug for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tried").field("trial", &self.trial).finish_non_exhaustive()
    }
}
