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
    header_timeout::{ProgressBody, ProgressStream, RequestProgress},
    mark_begun,
    repeat_fast_path::{RepeatFastPath, RepeatStream},
};
use crate::{
    informational::{Informational, InformationalIo, InformationalQueue},
    service::{Answered, Service},
    transport::Peer,
};

/// The state of one HTTP/1 connection.
pub(super) struct Http1Conn<S: Service> {
    peer: Peer,
    service: S,
    informational: Arc<InformationalQueue>,
    pub(super) progress: Arc<RequestProgress>,
    pub(super) fast_path: Arc<RepeatFastPath<S::Repeat>>,
    /// Set by the first request.
    pub(super) begun: SetOnce<()>,
}

/// The stream that hyper reads and writes.
pub(super) type Http1Io<I, S> = RepeatStream<InformationalIo<ProgressStream<I>>, S>;

impl<S: Service> Http1Conn<S> {
    /// Wraps a new stream. Request heads may have up to `head_limit` bytes.
    pub(super) fn new<I>(
        stream: I,
        peer: Peer,
        service: S,
        head_limit: usize,
    ) -> (Self, Http1Io<I, S>) {
        let lane = Arc::new(InformationalQueue::default());
        let turns = Arc::new(RequestProgress::new(head_limit));
        let desk = Arc::new(RepeatFastPath::new(Arc::clone(&turns)));
        let stream = InformationalIo::new(
            ProgressStream::new(stream, Arc::clone(&turns)),
            Arc::clone(&lane),
        );
        let stream = RepeatStream::new(stream, service.clone(), Arc::clone(&desk), head_limit);
        (
            Self {
                peer,
                service,
                informational: lane,
                progress: turns,
                fast_path: desk,
                begun: SetOnce::new(),
            },
            stream,
        )
    }

    /// Passes a request to the service and returns its response.
    pub(super) fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<ProgressBody<S::Body>>, Infallible>> + use<S> {
        mark_begun(&self.begun);
        let turn = self.progress.begin(!request.body().is_end_stream());
        let number = self.progress.begun();
        let desk = Arc::clone(&self.fast_path);
        let may_switch = request.extensions().get::<OnUpgrade>().is_some();
        if let Some(miss) = desk.request_taken(may_switch) {
            request.extensions_mut().insert(miss);
        }
        // "a server MUST NOT send a 1xx response to an HTTP/1.0 client" RFC 9110 15.2
        let takes_informational = request.version() == Version::HTTP_11;
        let informational =
            if takes_informational { self.informational.open() } else { Informational::default() };
        let answer = self.service.clone().serve(request, self.peer, informational.clone());
        async move {
            let Answered { response, repeat } = answer.await;
            informational.close().await;
            if let Some(repeat) = repeat {
                desk.keep(number, repeat);
            }
            Ok(response.map(|body| ProgressBody::new(body, turn)))
        }
    }
}
