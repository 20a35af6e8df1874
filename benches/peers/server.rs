//! A bare hyper server that answers from memory: the baseline for hits, and the upstream of all
//! peers.
//!
//! The server is this program in a process of its own, so that its CPU time is not attributed to a
//! peer.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::{Result, cell::Size};

/// Path that returns the number of other requests answered.
pub(crate) const COUNT: &str = "/count";

/// Serves until the process is ended.
pub(crate) fn serve(address: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(accept(address))
}

async fn accept(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    let server = Arc::new(Server::new());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let response = server.answer(&request);
                async { Ok::<_, Infallible>(response) }
            });
            // A client that disconnects is not an error here.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

struct Server {
    small: Bytes,
    large: Bytes,
    answered: AtomicU64,
}

impl Server {
    fn new() -> Self {
        Self { small: body(Size::Small), large: body(Size::Large), answered: AtomicU64::new(0) }
    }

    /// The first digits of the id select the size of the body.
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if path == COUNT {
            return Response::new(self.answered.load(Ordering::Relaxed).to_string().into());
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
        let large = path.split('/').nth(2).is_some_and(|id| id.starts_with(Size::Large.prefix()));
        let body = if large { &self.large } else { &self.small };
        let mut response = Response::new(Full::new(body.clone()));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }
}

/// Returns a job as JSON, padded to the exact size.
fn body(size: Size) -> Bytes {
    let head = r#"{"id":"job","status":"converting","progress":42,"log":""#;
    let filler = "x".repeat(size.bytes() - head.len() - 2);
    Bytes::from(format!("{head}{filler}\"}}"))
}
