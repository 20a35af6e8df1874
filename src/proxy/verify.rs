//! Hits that are read from the upstream as well, behind the back of the client that was given one.
//!
//! Which ones is drawn by lot, each for itself. The client has its answer by then. The read is made of
//! the same request as a fill would be, with the same credentials, but fills nothing and is shared with
//! nobody: what it brings is compared and forgotten. It is bounded in number, and in time.

use std::{future::Future, sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::{
    Method, Request,
    http::{Extensions, request},
};
use prometheus_client::metrics::counter::Counter;
use tokio::time::timeout;

use super::{
    Proxy,
    exchange::{Switch, prepare_response},
};
use crate::{
    cache::Trial,
    config::SampleRate,
    limits::Room,
    metrics::{Evidence, Metrics},
    service::{Declined, Lot},
    spans,
    transport::Peer,
    upstream::{Repeat, RequestBody},
};

/// Comparisons behind the back of a client at a time. Past it they are skipped, so that no share of the
/// hits, however large, is more of a load to the upstream than this many readers are.
const TRIALS: usize = 32;

/// For the upstream's answer, to its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// For that many. What is skipped has a count of its own.
pub(super) fn room(metrics: &Metrics) -> Arc<Room> {
    Room::new(TRIALS, metrics.trials.under_way.clone(), Counter::default())
}

impl Proxy {
    /// Draws a lot for a hit, if any are to be compared.
    pub(super) fn draw(&self) -> Lot {
        match self.verify.millionths() {
            0 => Lot::NotDrawn,
            share if fastrand::u32(..SampleRate::WHOLE) < share => Lot::Drawn,
            _ => Lot::Lost,
        }
    }

    /// Whether this hit is to be compared. The lot may have been drawn before it came here.
    pub(super) fn is_drawn(&self, method: &Method, extensions: &Extensions) -> bool {
        if self.verify == SampleRate::default() || *method != Method::GET {
            return false;
        }
        let lot = match extensions.get() {
            None | Some(Declined { lot: Lot::NotDrawn, .. }) => self.draw(),
            Some(Declined { lot, .. }) => *lot,
        };
        lot == Lot::Drawn
    }

    /// Has a hit compared with what the upstream answers to this request.
    pub(super) fn verify(self: &Arc<Self>, trial: Trial, head: &request::Parts, client: Peer) {
        let Some(place) = self.trials.take(1) else {
            return self.metrics.trials.verify(Evidence::Skipped);
        };
        let (proxy, mut request) = (Arc::clone(self), self.for_fill(head, client));
        // The client's trace ends with its answer, of which this is no part.
        spans::forget(request.headers_mut());
        self.aside(async move {
            let evidence = match timeout(PATIENCE, proxy.try_hit(trial, request)).await {
                Ok(Some(trial)) => proxy.cache.conclude(&trial).await,
                Ok(None) | Err(_) => Evidence::Failed,
            };
            proxy.metrics.trials.verify(evidence);
            drop(place);
        });
    }

    /// Hears the upstream; none if it gives no whole answer.
    async fn try_hit(&self, mut trial: Trial, request: Request<RequestBody>) -> Option<Trial> {
        let sent = self.send(request, Repeat::IfSafe).await;
        let response = prepare_response(sent.ok()?, Switch::Unasked).ok()?;
        let (head, mut body) = response.into_parts();
        let mut matters = trial.head(&head, &self.cache);
        while matters && let Some(frame) = body.frame().await {
            matters = frame.ok()?.data_ref().is_none_or(|data| trial.part(data));
        }
        Some(trial)
    }

    /// Starts what proves nothing that a drain would have to wait for.
    pub(super) fn aside(&self, task: impl Future<Output = ()> + Send + 'static) {
        let leaving = self.leaving.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = leaving.cancelled() => {}
            }
        });
    }
}
