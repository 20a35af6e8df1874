//! What a server serves: the seam between `server` and those who answer.
//!
//! A server knows nothing of what it serves, and who answers knows nothing of connections. Beside the
//! usual call there is a second, for a request that repeats an earlier one but for its path: what was
//! made of the fields of that one, a recall, is then all that it takes. How the server comes to know
//! that fields are the same is its own affair; here they are.

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

use crate::{interim::Interim, transport::Peer};

/// Answers requests. A closure that does is one, and recalls nothing.
pub trait Service: Clone + Send + Sync + 'static {
    /// What is sent.
    type Body: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static;
    /// What is remembered of the fields of a request.
    type Recall: Send + 'static;

    /// Answers one request.
    fn serve(
        self,
        request: Request<Incoming>,
        client: Peer,
        interim: Interim,
    ) -> impl Future<Output = Answered<Self::Body, Self::Recall>> + Send + 'static;

    /// Answers a GET over HTTP/1.1 of this path, which has no query, from the peer and with the very
    /// fields that `recall` is of: writes the head to `head` and returns the body. An error says that
    /// it is to be served as any other, and then nothing is written.
    ///
    /// Pending, it is polled again for the same path by the same task, or the recall is dropped.
    fn poll_again(
        &self,
        recall: &mut Self::Recall,
        path: &str,
        head: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, Declined>>;
}

/// An answer, and what to remember of its request.
#[derive(Debug)]
pub struct Answered<B, R> {
    /// The answer.
    pub response: Response<B>,
    /// Where there is anything to be gained by it.
    pub recall: Option<R>,
}

/// What has become of a request that was not answered by what is recalled; also an extension of that
/// request, when it is served as any other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Declined {
    /// How long it has already waited for the store.
    pub waited: Duration,
    /// Whether there is to be more than an answer.
    pub lot: Lot,
}

/// Whether the lot has fallen on a request. It is drawn once for each, wherever that is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lot {
    /// It is yet to be drawn, if at all.
    #[default]
    NotDrawn,
    /// It has.
    Drawn,
    /// It has not.
    Lost,
}

impl<F, A, B> Service for F
where
    F: Fn(Request<Incoming>, Peer, Interim) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    type Body = B;
    type Recall = Infallible;

    fn serve(
        self,
        request: Request<Incoming>,
        client: Peer,
        interim: Interim,
    ) -> impl Future<Output = Answered<B, Infallible>> + Send + 'static {
        let answer = self(request, client, interim);
        async move { Answered { response: answer.await, recall: None } }
    }

    fn poll_again(
        &self,
        recall: &mut Infallible,
        _path: &str,
        _head: &mut Vec<u8>,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, Declined>> {
        match *recall {}
    }
}
