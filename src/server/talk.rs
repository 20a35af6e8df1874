//! One HTTP/1 connection between hyper and the service: the state that the two sides share, and the
//! layers of the stream.

use std::{convert::Infallible, future::Future, sync::Arc};

use hyper::{
    Request, Response, Version,
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use tokio::sync::SetOnce;

use super::{
    again::{Again, Desk},
    head::{Answering, Heard, Turns},
    mark,
};
use crate::{
    interim::{Interim, Lane, Wire},
    service::{Answered, Service},
    transport::Peer,
};

/// The state of one HTTP/1 connection.
pub(super) struct Talk<S: Service> {
    peer: Peer,
    service: S,
    lane: Arc<Lane>,
    pub(super) turns: Arc<Turns>,
    pub(super) desk: Arc<Desk<S::Recall>>,
    /// Set by the first request.
    pub(super) begun: SetOnce<()>,
}

/// The stream that hyper reads and writes.
pub(super) type Layers<I, S> = Again<Wire<Heard<I>>, S>;

impl<S: Service> Talk<S> {
    /// Wraps a new stream. Request heads may have up to `head_limit` bytes.
    pub(super) fn over<I>(
        stream: I,
        peer: Peer,
        service: S,
        head_limit: usize,
    ) -> (Self, Layers<I, S>) {
        let lane = Arc::new(Lane::default());
        let turns = Arc::new(Turns::within(head_limit));
        let desk = Arc::new(Desk::new(Arc::clone(&turns)));
        let stream = Wire::new(Heard::new(stream, Arc::clone(&turns)), Arc::clone(&lane));
        let stream = Again::new(stream, service.clone(), Arc::clone(&desk), head_limit);
        (Self { peer, service, lane, turns, desk, begun: SetOnce::new() }, stream)
    }

    /// Passes a request to the service and returns its response.
    pub(super) fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Answering<S::Body>>, Infallible>> + use<S> {
        mark(&self.begun);
        let turn = self.turns.begin(!request.body().is_end_stream());
        let number = self.turns.begun();
        let desk = Arc::clone(&self.desk);
        let may_switch = request.extensions().get::<OnUpgrade>().is_some();
        if let Some(miss) = desk.take(may_switch) {
            request.extensions_mut().insert(miss);
        }
        // "a server MUST NOT send a 1xx response to an HTTP/1.0 client" RFC 9110 15.2
        let takes_informational = request.version() == Version::HTTP_11;
        let informational = if takes_informational { self.lane.open() } else { Interim::default() };
        let answer = self.service.clone().serve(request, self.peer, informational.clone());
        async move {
            let Answered { response, recall: repeat } = answer.await;
            informational.close().await;
            if let Some(repeat) = repeat {
                desk.keep(number, repeat);
            }
            Ok(response.map(|body| Answering::new(body, turn)))
        }
    }
}
