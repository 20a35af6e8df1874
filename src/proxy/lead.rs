//! The read of the upstream that many readers wait for.
//!
//! It is a task of its own, so that the client that began it may hang up. Every way out of it either
//! lands the flight or abandons it; a panic drops the [`Lead`], which does the latter.

use std::{pin::pin, sync::Arc, time::Duration};

use hyper::{
    Request, Response, StatusCode,
    http::{
        header::{CONTENT_LENGTH, ETAG, TRANSFER_ENCODING},
        request, response,
    },
};
use tokio::{sync::oneshot, time::timeout};
use tracing::{Instrument as _, Span};

use super::{
    Proxy,
    answer::{Answer, Stored, Verdict, refuse},
    body::{Beside, Body, Captured, Tee, capture, capture_beside},
    exchange::{Switch, prepare_response},
    read::entry_response,
};
use crate::{
    cache::{
        Abandoned, Landed, Lead,
        entry::Entry,
        policy::{Bypass, Freshness, NoStore},
    },
    config::CacheMode,
    spans,
    store::{Budget, Fill},
    upstream::{Repeat, RequestBody, ResponseBody},
};

/// How long others wait for a body that streams.
const STREAM_PATIENCE: Duration = Duration::from_millis(250);

/// What became of such a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Became {
    /// It is in the store.
    Stored,
    /// The job changed meanwhile.
    Revoked,
    /// The store did not take it.
    Unstored,
    /// It may not be stored; with the status of the response.
    Unstorable(NoStore, StatusCode),
    /// The upstream gave no answer, or none that was whole.
    Failed,
}

/// One such read.
pub(super) struct LeadTask {
    proxy: Arc<Proxy>,
    lead: Lead,
    why: Option<Bypass>,
    /// The request of the client that began it.
    asked: request::Parts,
    budget: Budget,
    answer: oneshot::Sender<Answer>,
}

impl LeadTask {
    /// The task, and where its client gets the answer.
    pub(super) fn new(
        proxy: &Arc<Proxy>,
        lead: Lead,
        asked: request::Parts,
        budget: Budget,
    ) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let why = lead.why();
        (Self { proxy: Arc::clone(proxy), lead, why, asked, budget, answer }, answered)
    }

    /// Reads the upstream, answers the client and everybody who joined, and stores what may be.
    pub(super) async fn run(mut self, request: Request<RequestBody>) -> Became {
        self.lead.turn().await;
        let sent = self.proxy.send(request, Repeat::IfSafe).await;
        let framed = sent.as_ref().is_ok_and(is_framed);
        let response = match sent.and_then(|response| prepare_response(response, Switch::Unasked)) {
            Ok(response) => response,
            Err(error) => return self.fail(refuse(&error)).await,
        };
        let (head, body) = response.into_parts();
        match self.proxy.cache.storable(&head) {
            // RFC 9112 6.3: "Since there is no way to distinguish a successfully completed,
            // close-delimited response message from a partially received message interrupted by
            // network failure".
            Ok(_) if !framed => {
                self.share_nothing(head, Body::Upstream(body), NoStore::Unframed).await
            }
            Err(why) => self.share_nothing(head, Body::Upstream(body), why).await,
            Ok(freshness) if head.headers.contains_key(CONTENT_LENGTH) => {
                self.take_whole(head, body, freshness).await
            }
            Ok(freshness) => self.take_streaming(head, body, freshness).await,
        }
    }

    /// A body of known length is there soon after its head: the client gets it once it is stored.
    async fn take_whole(
        self,
        head: response::Parts,
        body: ResponseBody,
        freshness: Freshness,
    ) -> Became {
        match capture(body, self.proxy.cache.max_body(), self.proxy.cache.captured()).await {
            Captured::Whole(body) => {
                let Self { proxy, lead, why, asked, budget, answer } = self;
                let landed = proxy.cache.land(lead, &head, body, freshness);
                let entry = Arc::clone(&landed.entry);
                store_then(&proxy, landed, budget, |stored| {
                    let response = if proxy.mode == CacheMode::Shadow {
                        Response::from_parts(head, Body::from(entry.body().clone()))
                    } else if entry.is_held_by(&asked.headers) {
                        entry_response(&entry, &asked, proxy.cache.store().now_ms())
                    } else {
                        as_it_came(head, &entry)
                    };
                    let verdict = Verdict::Miss { stored, collapsed: false, why };
                    let _ = answer.send(Answer { response, verdict });
                })
                .await
            }
            Captured::Unstorable(body, why) => self.share_nothing(head, body, why).await,
            Captured::Broken(error) => self.fail(refuse(&error.into())).await,
        }
    }

    /// A body of unknown length may take long: the client gets each part as it comes.
    async fn take_streaming(
        self,
        head: response::Parts,
        body: ResponseBody,
        freshness: Freshness,
    ) -> Became {
        let Self { proxy, lead, why, answer, .. } = self;
        let (tee, client_end) = Tee::new(proxy.cache.captured());
        let response = Response::from_parts(head.clone(), Body::Tee(client_end));
        let verdict = Verdict::Miss { stored: Stored::Unsaid, collapsed: false, why };
        let _ = answer.send(Answer { response, verdict });
        let captured = {
            let mut capture = pin!(capture_beside(body, proxy.cache.max_body(), &tee));
            if let Ok(captured) = timeout(STREAM_PATIENCE, &mut capture).await {
                captured
            } else {
                lead.vacate();
                capture.await
            }
        };
        match captured {
            Beside::Whole(body) if !body.is_empty() => {
                let landed = proxy.cache.land(lead, &head, body, freshness);
                store_then(&proxy, landed, proxy.cache.budget(), |_| tee.finish()).await
            }
            Beside::Whole(_) => {
                tee.finish();
                proxy.cache.abandon(lead, Abandoned::Unstorable(NoStore::Empty)).await;
                Became::Unstorable(NoStore::Empty, head.status)
            }
            Beside::Unstorable(why) => {
                proxy.cache.abandon(lead, Abandoned::Unstorable(why)).await;
                Became::Unstorable(why, head.status)
            }
            Beside::Broken => {
                proxy.cache.abandon(lead, Abandoned::Unanswered).await;
                Became::Failed
            }
        }
    }

    async fn share_nothing(self, head: response::Parts, body: Body, why: NoStore) -> Became {
        let status = head.status;
        let response = Response::from_parts(head, body);
        let verdict = Verdict::Miss { stored: Stored::No(why), collapsed: false, why: self.why };
        let _ = self.answer.send(Answer { response, verdict });
        self.proxy.cache.abandon(self.lead, Abandoned::Unstorable(why)).await;
        Became::Unstorable(why, status)
    }

    async fn fail(self, answer: Answer) -> Became {
        let _ = self.answer.send(answer);
        self.proxy.cache.abandon(self.lead, Abandoned::Unanswered).await;
        Became::Failed
    }
}

/// The upstream's answer for the client that it was read for: with every header, also those that
/// an entry does not keep. An `ETag` is added where there was none, for the client to show again.
fn as_it_came(mut head: response::Parts, entry: &Entry) -> Response<Body> {
    head.headers.entry(ETAG).or_insert_with(|| entry.etag());
    Response::from_parts(head, Body::from(entry.body().clone()))
}

/// Whether the end of the body is told from the end of the connection.
fn is_framed(response: &Response<ResponseBody>) -> bool {
    [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| response.headers().contains_key(name))
}

/// Stores what has landed, and tells the span of it.
async fn filled(proxy: &Proxy, landed: Landed, span: Span) -> Option<Fill> {
    let filled = proxy.cache.fill(landed).await;
    spans::result(
        &span,
        match filled {
            Some(Fill::Stored) => "stored",
            Some(Fill::Revoked) => "revoked",
            None => "not-stored",
        },
    );
    filled
}

/// Stores what has landed, and calls `then` when that is done or the budget is spent.
async fn store_then(
    proxy: &Proxy,
    landed: Landed,
    budget: Budget,
    then: impl FnOnce(Stored),
) -> Became {
    let span = spans::fill();
    let mut fill = Box::pin(filled(proxy, landed, span.clone()).instrument(span));
    let filled = if let Ok(filled) = timeout(budget.left(), &mut fill).await {
        then(if filled == Some(Fill::Stored) { Stored::Yes } else { Stored::Unsaid });
        filled
    } else {
        then(Stored::Unsaid);
        fill.await
    };
    match filled {
        Some(Fill::Stored) => Became::Stored,
        Some(Fill::Revoked) => Became::Revoked,
        None => Became::Unstored,
    }
}
