//! One HTTP/1 connection between hyper and the service: what passes between the two, and the layers
//! of its stream.

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

/// What is said over a connection.
pub(super) struct Talk<S: Service> {
    peer: Peer,
    service: S,
    lane: Arc<Lane>,
    pub(super) turns: Arc<Turns>,
    pub(super) desk: Arc<Desk<S::Recall>>,
    /// Set with its first request.
    pub(super) begun: SetOnce<()>,
}

/// The stream that hyper is given.
pub(super) type Layers<I, S> = Again<Wire<Heard<I>>, S>;

impl<S: Service> Talk<S> {
    /// Over a stream that nothing has been said on, with heads of so many bytes.
    pub(super) fn over<I>(
        stream: I,
        peer: Peer,
        service: S,
        head_limit: usize,
    ) -> (Self, Layers<I, S>) {
        let (lane, turns) = (Arc::new(Lane::default()), Arc::new(Turns::within(head_limit)));
        let desk = Arc::new(Desk::new(Arc::clone(&turns)));
        let stream = Wire::new(Heard::new(stream, Arc::clone(&turns)), Arc::clone(&lane));
        let stream = Again::new(stream, service.clone(), Arc::clone(&desk), head_limit);
        (Self { peer, service, lane, turns, desk, begun: SetOnce::new() }, stream)
    }

    /// Has a request answered.
    pub(super) fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Answering<S::Body>>, Infallible>> + use<S> {
        mark(&self.begun);
        let turn = self.turns.begin(!request.body().is_end_stream());
        let (number, desk) = (self.turns.begun(), Arc::clone(&self.desk));
        let may_switch = request.extensions().get::<OnUpgrade>().is_some();
        if let Some(declined) = desk.take(may_switch) {
            request.extensions_mut().insert(declined);
        }
        // "a server MUST NOT send a 1xx response to an HTTP/1.0 client" RFC 9110 15.2
        let takes_interim = request.version() == Version::HTTP_11;
        let interim = if takes_interim { self.lane.open() } else { Interim::default() };
        let answer = self.service.clone().serve(request, self.peer, interim.clone());
        async move {
            let Answered { response, recall } = answer.await;
            interim.close().await;
            if let Some(recall) = recall {
                desk.keep(number, recall);
            }
            Ok(response.map(|body| Answering::new(body, turn)))
        }
    }
}
