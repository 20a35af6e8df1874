//! The boundary between `server` and the code that answers requests.
//!
//! A server knows nothing about what it serves, and a service knows nothing about connections. A
//! [`Service`] answers requests. Its part [`RepeatFastPath`] is for a request that repeats the header
//! fields of an earlier request and differs only in its path: then the service needs only what it
//! kept from the earlier fields. How the server finds out that the fields are the same is the
//! server's business; here they are the same.

use std::{
    convert::Infallible,
    future::Future,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
};

use crate::{
    informational::Informational,
    transport::{ConnectionId, Peer},
};

/// A service that answers requests. A closure that answers requests is a service without the fast path.
pub trait Service: RepeatFastPath + Clone + Send + Sync + 'static {
    /// The response body.
    type Body: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static;

    /// Answers one request.
    fn serve(
        self,
        request: Request<Incoming>,
        client: Peer,
        informational: Informational,
    ) -> impl Future<Output = Answered<Self::Body, Self::Repeat>> + Send + 'static;

    /// Registers an HTTP/1 connection. Its requests follow one another, and their peer carries the id.
    fn open_connection(&self) -> Option<ConnectionId> {
        None
    }

    /// Ends what belongs to a connection that is now closed.
    fn close_connection(&self, _connection: ConnectionId) {}
}

/// Answers requests that repeat the header fields of an earlier request of their connection.
pub trait RepeatFastPath {
    /// The state that is kept from the header fields of a request.
    type Repeat: Send + 'static;

    /// Whether a connection that begins now gets the fast path. Otherwise all of its requests are
    /// served the ordinary way.
    fn is_offered(&self) -> bool;

    /// Answers a GET over HTTP/1.1 for `path`, which has no query. The request comes from the same
    /// peer and has exactly the header fields that `repeat` was made from. Writes the response head
    /// to `head` and returns the body. An error means that the request must be served the ordinary
    /// way; nothing was written then.
    ///
    /// After `Pending` the same task polls again for the same path, or drops `repeat`.
    fn poll_repeat(
        &self,
        repeat: &mut Self::Repeat,
        path: &str,
        head: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, FastPathMiss>>;
}

/// An answer, and what to keep from its request.
#[derive(Debug)]
pub struct Answered<B, R> {
    /// The response to send.
    pub response: Response<B>,
    /// Set if a repeat of this request can be answered faster.
    pub repeat: Option<R>,
}

/// The result of a repeat that the fast path did not answer. It is also an extension of the request
/// when that is then served the ordinary way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastPathMiss {
    /// How long the request has already waited for the store.
    pub waited: Duration,
    /// Whether the request was sampled for a comparison with the upstream.
    pub decision: SampleDecision,
}

/// Whether a request is sampled. The decision is made once per request, wherever that is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SampleDecision {
    /// Not decided yet; it may never be.
    #[default]
    Undecided,
    /// The request is sampled.
    Sampled,
    /// The request is not sampled.
    NotSampled,
}

impl<F, A, B> Service for F
where
    F: Fn(Request<Incoming>, Peer, Informational) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    type Body = B;

    fn serve(
        self,
        request: Request<Incoming>,
        client: Peer,
        informational: Informational,
    ) -> impl Future<Output = Answered<B, Infallible>> + Send + 'static {
        let answer = self(request, client, informational);
        async move { Answered { response: answer.await, repeat: None } }
    }
}

impl<F, A> RepeatFastPath for F
where
    F: Fn(Request<Incoming>, Peer, Informational) -> A,
{
    type Repeat = Infallible;

    fn is_offered(&self) -> bool {
        false
    }

    fn poll_repeat(
        &self,
        repeat: &mut Infallible,
        _path: &str,
        _head: &mut Vec<u8>,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, FastPathMiss>> {
        match *repeat {}
    }
}
