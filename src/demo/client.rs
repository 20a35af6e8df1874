//! The HTTP client of the simulated frontends and of the pipeline.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    net::TcpStream,
    time::{error::Elapsed, timeout},
};

/// Time limit from connecting to the last byte of the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of one server.
pub(super) struct Client {
    address: SocketAddr,
    sender: Option<http1::SendRequest<Full<Bytes>>>,
}

/// Reason why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    #[error("the exchange failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("no answer in time")]
    Timeout(#[from] Elapsed),
    #[error("the answer {0} is no stream of events")]
    NoStream(StatusCode),
}

pub(super) type DemoAnswer = Result<Response<Bytes>, ClientError>;

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    /// Sends a request and reads the whole answer. Opens a new connection if the last one is
    /// closed.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> DemoAnswer {
        timeout(ANSWER_TIMEOUT, self.exchange(request)).await?
    }

    /// Keeps the connection only after a complete answer: a broken connection, or one with an
    /// unread answer, cannot be used again.
    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> DemoAnswer {
        let mut sender = match self.sender.take() {
            Some(sender) if !sender.is_closed() => sender,
            _ => self.connect().await?,
        };
        sender.ready().await?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        self.sender = Some(sender);
        Ok(Response::from_parts(head, body))
    }

    /// Sends a request over a new connection. The answer has no end that could be waited for.
    pub(super) async fn open(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, ClientError> {
        let exchange = async { Ok(self.connect().await?.send_request(request).await?) };
        timeout(ANSWER_TIMEOUT, exchange).await?
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, ClientError> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends when the sender is dropped. The sender reports its errors.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// The part of an answer that a frontend reads.
#[derive(Deserialize)]
pub(super) struct JobStatus {
    pub(super) version: u64,
}
