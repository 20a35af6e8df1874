//! Minimal proxies made of hyper parts: the least cost of forwarding, for each way to pool upstream
//! connections.
//!
//! Requests and answers pass unchanged. The proxies add and remove no header field, count nothing,
//! have no timeouts, and do not handle upstream failures. The cost of a complete proxy beyond these
//! is its own; the cost of these beyond nginx is hyper's.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use clap::ValueEnum;
use hyper::{
    Request, Response, Uri,
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1::{self, SendRequest},
    service::service_fn,
};
use hyper_util::{
    client::{legacy, pool::cache},
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::{TcpListener, TcpStream};
use tower_service::Service;

use crate::Result;

/// How upstream connections are pooled.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Client {
    /// In a list, with the most recently used first
    Own,
    /// In `hyper_util::client::legacy`
    Legacy,
    /// In `hyper_util::client::pool::cache`
    Pool,
}

impl Client {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Legacy => "legacy",
            Self::Pool => "pool",
        }
    }
}

/// An answer with a body that holds its connection until the end.
type Answer<G> = Pin<Box<dyn Future<Output = Result<Response<Held<G>>>> + Send>>;

/// Forwards until the process is ended.
pub(crate) fn serve(listen: SocketAddr, upstream: SocketAddr, client: Client) -> Result<()> {
    // jobcache has as many threads on two CPUs.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        match client {
            Client::Own => accept(listener, own(upstream)).await,
            Client::Legacy => accept(listener, legacy(upstream)).await,
            Client::Pool => accept(listener, pool(upstream)).await,
        }
    })
}

async fn accept<S, G>(listener: TcpListener, send: S) -> Result<()>
where
    S: Fn(Request<Incoming>) -> Answer<G> + Clone + Send + 'static,
    G: Send + Unpin + 'static,
{
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let send = service_fn(send.clone());
        tokio::spawn(async move {
            let stream = TokioIo::new(stream);
            // A client that disconnects is not an error here.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, send).await;
        });
    }
}

async fn connect(upstream: SocketAddr) -> Result<SendRequest<Incoming>> {
    let stream = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

type Idle = Arc<Mutex<Vec<SendRequest<Incoming>>>>;

/// A connection in use, which returns to the pool at the end of the exchange.
struct InUse {
    sender: Option<SendRequest<Incoming>>,
    idle: Idle,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(self.sender.take());
    }
}

fn own(upstream: SocketAddr) -> impl Fn(Request<Incoming>) -> Answer<InUse> + Clone {
    let idle = Idle::default();
    move |request| {
        let idle = Arc::clone(&idle);
        Box::pin(async move {
            let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut sender = match kept {
                Some(sender) if sender.is_ready() => sender,
                _ => connect(upstream).await?,
            };
            let response = sender.send_request(request).await?;
            let in_use = InUse { sender: Some(sender), idle };
            Ok(response.map(|body| Held { body, _held: in_use }))
        })
    }
}

fn legacy(upstream: SocketAddr) -> impl Fn(Request<Incoming>) -> Answer<()> + Clone {
    let client = legacy::Client::builder(TokioExecutor::new()).build_http::<Incoming>();
    move |mut request| {
        let client = client.clone();
        Box::pin(async move {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            *request.uri_mut() = Uri::try_from(format!("http://{upstream}{path}"))?;
            let response = client.request(request).await?;
            Ok(response.map(|body| Held { body, _held: () }))
        })
    }
}

/// A connection as a `tower` service.
struct Connection(SendRequest<Incoming>);

impl Service<Request<Incoming>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

#[derive(Clone, Copy)]
struct Connector(SocketAddr);

impl Service<()> for Connector {
    type Response = Connection;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Connection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let upstream = self.0;
        Box::pin(async move { Ok(Connection(connect(upstream).await?)) })
    }
}

fn pool(upstream: SocketAddr) -> impl Fn(Request<Incoming>) -> Answer<Box<dyn Send>> + Clone {
    let cache = cache::builder().executor(TokioExecutor::new()).build(Connector(upstream));
    move |request| {
        let mut cache = cache.clone();
        Box::pin(async move {
            poll_fn(|cx| cache.poll_ready(cx)).await?;
            let mut connection = cache.call(()).await?;
            poll_fn(|cx| connection.poll_ready(cx)).await?;
            let response = connection.call(request).await?;
            // The type cannot be named.
            let held: Box<dyn Send> = Box::new(connection);
            Ok(response.map(|body| Held { body, _held: held }))
        })
    }
}

/// A body that holds its connection.
struct Held<G> {
    body: Incoming,
    _held: G,
}

impl<G: Unpin> Body for Held<G> {
    type Data = bytes::Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Self::Data>>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
