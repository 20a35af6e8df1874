//! Accepts connections and serves HTTP/1 and HTTP/2 (prior knowledge) on them, until told to drain.
//!
//! It knows nothing of what is served: proxy and admin are services that it is given.

mod again;
mod aside;
mod fault;
mod head;
pub mod listen;
mod preface;
mod proxy_protocol;
mod stall;
mod talk;

use std::{
    convert::Infallible,
    future::{Future as _, poll_fn},
    io,
    net::IpAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SetOnce, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};
use tokio_util::either::Either;
use tracing::{debug, warn};

use self::{
    aside::Aside,
    fault::Fault,
    listen::Listener,
    preface::{Protocol, Rewound, sniff},
    proxy_protocol::Source,
    stall::{Read, Streams, Taken},
    talk::Talk,
};
use crate::{
    config::{self, HEADERS_ON_STACK},
    interim::Interim,
    metrics::{KindLabels, Limit, Metrics},
    service::Service,
    tls::Renewed,
    transport::{Peer, Remote, Socket, prepare},
};

/// After a failed accept (out of file descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// For the answer to the ping that an HTTP/2 client is sent when it has said nothing for
/// `server.header_timeout`.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection that has said nothing yet may take to do so during a drain: its request may
/// be on its way, and to who has just connected a close without an answer is a failure.
const FIRST_WORDS: Duration = Duration::from_millis(500);

/// Serves one listener.
pub struct Server {
    listener: Listener,
    protocols: Protocols,
    max_connections: usize,
    metrics: Arc<Metrics>,
}

/// How a connection is served once its protocol is known, and how long it may take to tell.
#[derive(Clone)]
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    limit: Duration,
    write_limit: Duration,
    max_streams: usize,
    /// Bytes of a head.
    head_limit: usize,
    tls: Option<Arc<Renewed<ServerConfig>>>,
    proxies: Proxies,
}

/// Who may tell us who asks, and how.
#[derive(Clone, Debug)]
struct Proxies {
    trusted: Arc<[IpNet]>,
    /// Whether each connection begins with a header of the PROXY protocol.
    protocol: bool,
}

impl Proxies {
    fn trusts(&self, remote: Remote) -> bool {
        // To a unix socket connects whom its permissions let.
        remote.is_none_or(|remote| {
            let ip = remote.ip().to_canonical();
            self.trusted.iter().any(|network| network.contains(&ip))
        })
    }
}

/// The bytes of a connection. What a client does not take is seen below TLS, which takes more.
type Wire = Either<Taken<Socket>, Box<TlsStream<Taken<Socket>>>>;

/// A connection, and what is known of it.
struct Opened {
    protocol: Protocol,
    stream: Rewound<Wire>,
    peer: Peer,
}

/// Tells servers to stop accepting.
pub type Drain = watch::Receiver<bool>;

impl Server {
    /// Prepares to serve.
    pub fn new(
        listener: impl Into<Listener>,
        config: &config::ServerConfig,
        metrics: Arc<Metrics>,
    ) -> Self {
        let limit = config.header_timeout;
        let mut http1 = http1::Builder::new();
        // Its own limit for heads costs every request; ours is in `head`.
        http1
            .header_read_timeout(None)
            .preserve_header_case(config.preserve_header_case)
            .max_buf_size(config.buffer())
            .max_header_size(config.max_header_bytes);
        // Said at all, it moves the parser's memory to the heap.
        if config.max_headers > HEADERS_ON_STACK {
            http1.max_headers(config.max_headers);
        }
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(limit)
            .keep_alive_timeout(PING_TIMEOUT.min(limit))
            .max_concurrent_streams(u32::try_from(config.max_streams).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(config.max_pending_resets)
            .max_local_error_reset_streams(config.max_faulty_streams)
            .max_send_buf_size(config.buffer())
            .max_header_list_size(u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX));
        let (write_limit, max_streams) = (config.write_timeout, config.max_streams);
        let trusted = config.trusted_proxies.iter().copied().collect();
        let proxies = Proxies { trusted, protocol: config.proxy_protocol };
        let head_limit = config.max_header_bytes;
        let protocols = Protocols {
            http1,
            http2,
            limit,
            write_limit,
            max_streams,
            head_limit,
            tls: None,
            proxies,
        };
        let max_connections = config.max_connections;
        Self { listener: listener.into(), protocols, max_connections, metrics }
    }

    /// Speaks TLS, if there is something to speak it with.
    #[must_use]
    pub(crate) fn with_tls(mut self, tls: Option<Arc<Renewed<ServerConfig>>>) -> Self {
        self.protocols.tls = tls;
        self
    }

    /// Takes each connection as it comes, though clients of another listener are told of by the PROXY
    /// protocol.
    #[must_use]
    pub(crate) fn without_proxy_protocol(mut self) -> Self {
        self.protocols.proxies.protocol = false;
        self
    }

    /// Serves until `drain` turns, then waits up to `deadline` for the requests in flight.
    pub async fn run(self, mut drain: Drain, deadline: Duration, service: impl Service) {
        let places = Arc::new(Semaphore::new(self.max_connections));
        // Dropped at the end, it closes the connections that are left.
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                // A place first: what has none waits in the listen backlog.
                let place = self.place(&places).await;
                (place, self.listener.accept().await)
            };
            let (place, (socket, remote)) = tokio::select! {
                (place, accepted) = accepted => match accepted {
                    Ok(accepted) => (place, accepted),
                    Err(error) => { pause(&error).await; continue }
                },
                Some(_ended) = connections.join_next() => continue,
                () = until_drain(&mut drain) => break,
            };
            let open = Open::new(&self.metrics);
            let connection = self.protocols.connection(socket, remote, open, &drain, &service);
            connections.spawn(async move {
                connection.await;
                drop(place);
            });
        }
        let waiting = self.listener.close().unwrap_or_else(|error| {
            warn!(%error, "cannot take the connections that wait in the listen backlog");
            Vec::new()
        });
        for (socket, remote) in waiting {
            let open = Open::new(&self.metrics);
            connections.spawn(self.protocols.connection(socket, remote, open, &drain, &service));
        }
        let ended = async { while connections.join_next().await.is_some() {} };
        if timeout(deadline, ended).await.is_err() {
            let open = connections.len();
            warn!(connections = open, "drain deadline passed; closing what is left");
            connections.shutdown().await;
        }
    }

    async fn place(&self, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, AcquireError> {
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Ok(place);
        }
        self.metrics.limits.hit(Limit::Connections);
        Arc::clone(places).acquire_owned().await
    }
}

impl Protocols {
    /// What serves one connection to its end.
    fn connection<S: Service>(
        &self,
        socket: Socket,
        remote: Remote,
        open: Open,
        drain: &Drain,
        service: &S,
    ) -> impl Future<Output = ()> + Send + use<S> {
        let (protocols, service, drain) = (self.clone(), service.clone(), drain.clone());
        async move {
            if let Err(error) = protocols.serve(socket, remote, drain, service, &open.0).await {
                debug!(%error, "client connection ended");
                open.fault(&error);
            }
        }
    }

    /// Serves one connection to its end.
    async fn serve(
        self,
        socket: Socket,
        remote: Remote,
        mut drain: Drain,
        service: impl Service,
        metrics: &Arc<Metrics>,
    ) -> Result<(), Fault> {
        let opened = tokio::select! {
            opened = timeout(self.limit, self.open(socket, remote)) => opened,
            () = said_nothing(&mut drain) => return Ok(()),
        };
        let Opened { protocol, stream, peer } = opened.map_err(|_| Fault::Silent(self.limit))??;
        match protocol {
            Protocol::Http1 => self.serve_http1(stream, drain, peer, service).await?,
            Protocol::Http2 => self.serve_http2(stream, drain, peer, service, metrics).await?,
        }
        Ok(())
    }

    /// Comes to know who has connected and what it speaks.
    async fn open(&self, socket: Socket, remote: Remote) -> Result<Opened, Fault> {
        if let Err(error) = prepare(&socket) {
            debug!(%error, "cannot prepare a connection");
        }
        let mut socket = Taken::within(self.write_limit, socket);
        let (ip, is_trusted) = self.source(&mut socket, remote).await?;
        let peer = Peer { ip, is_tls: self.tls.is_some(), is_trusted };
        let stream = match &self.tls {
            None => Wire::Left(socket),
            Some(tls) => {
                let acceptor = TlsAcceptor::from(tls.current());
                let stream = acceptor.accept(socket).await.map_err(Fault::Tls)?;
                Wire::Right(Box::new(stream))
            }
        };
        let (protocol, stream) = sniff(stream).await?;
        Ok(Opened { protocol, stream, peer })
    }

    /// Who has connected, and whether what it says of others is believed. Whoever passes on bytes alone
    /// passes on the headers of those who made them, so these are judged by the source that it names.
    async fn source(
        &self,
        socket: &mut Taken<Socket>,
        remote: Remote,
    ) -> Result<(Option<IpAddr>, bool), Fault> {
        let trusted = self.proxies.trusts(remote);
        let source = match self.proxies.protocol {
            false => Source::Connection,
            true if !trusted => return Err(Fault::Untrusted),
            true => proxy_protocol::read(socket).await?,
        };
        Ok(match source {
            Source::Connection => (remote.map(|remote| remote.ip()), trusted),
            Source::Client(client) => (Some(client.ip()), self.proxies.trusts(Some(client))),
            Source::Unknown => (None, false),
        })
    }

    async fn serve_http1<I, S>(
        self,
        stream: I,
        mut drain: Drain,
        peer: Peer,
        service: S,
    ) -> Result<(), Fault>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service,
    {
        let (talk, stream) = Talk::over(stream, peer, service, self.head_limit);
        let answer = service_fn(|request| talk.answer(request));
        let connection = self.http1.serve_connection(TokioIo::new(stream), answer);
        let mut connection = pin!(connection.with_upgrades());
        let mut overdue = pin!(talk.turns.overdue(self.limit));
        let mut overdue = Aside::new(overdue.as_mut());
        let mut leave = pin!(last_words(&mut drain, &talk.begun));
        let mut leave = Aside::new(leave.as_mut());
        let mut leaving = false;
        poll_fn(|cx| {
            if overdue.poll(cx).is_some() {
                return Poll::Ready(Err(Fault::Silent(self.limit)));
            }
            if leave.poll(cx).is_some() {
                talk.desk.leave();
                leaving = true;
            }
            loop {
                // What is answered beneath hyper is nothing to it, and would be cut off.
                if leaving && !talk.desk.is_busy() {
                    // Lets the request in flight end, and takes no further ones.
                    connection.as_mut().graceful_shutdown();
                    leaving = false;
                }
                let ended = connection.as_mut().poll(cx).map_err(Fault::from);
                if ended.is_ready() || !leaving || talk.desk.is_busy() {
                    return ended;
                }
            }
        })
        .await
    }

    async fn serve_http2<I, S>(
        self,
        stream: I,
        mut drain: Drain,
        peer: Peer,
        service: S,
        metrics: &Arc<Metrics>,
    ) -> hyper::Result<()>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service,
    {
        let begun = Arc::new(SetOnce::new());
        let first = Arc::clone(&begun);
        let limit = self.write_limit;
        let streams = Streams::new(self.max_streams, metrics);
        let service = service_fn(move |request| {
            mark(&first);
            let stream = streams.another();
            let answer = service.clone().serve(request, peer, Interim::default());
            async move {
                let response = answer.await.response;
                Ok::<_, Infallible>(response.map(|body| Read::within(limit, body, stream)))
            }
        });
        let mut connection = pin!(self.http2.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = last_words(&mut drain, &begun) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    }
}

async fn pause(error: &io::Error) {
    warn!(%error, "cannot accept a connection; is the limit of open files too low?");
    sleep(ACCEPT_PAUSE).await;
}

/// Also when the one who would tell us is gone.
async fn until_drain(drain: &mut Drain) {
    let _ = drain.wait_for(|drain| *drain).await;
}

/// Until a drain has gone on for long enough to take a silent connection for an idle one.
async fn said_nothing(drain: &mut Drain) {
    until_drain(drain).await;
    sleep(FIRST_WORDS).await;
}

/// Returns once a drain has begun and the connection has had a request, or has had time for one: hyper
/// closes one that has had none, also while it reads the first head.
async fn last_words(drain: &mut Drain, begun: &SetOnce<()>) {
    until_drain(drain).await;
    let _ = timeout(FIRST_WORDS, begun.wait()).await;
}

/// Notes that a connection has had a request.
fn mark(begun: &SetOnce<()>) {
    if !begun.initialized() {
        let _ = begun.set(());
    }
}

/// Counts a connection while it is open.
struct Open(Arc<Metrics>);

impl Open {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self(Arc::clone(metrics))
    }

    fn fault(&self, fault: &Fault) {
        let kind = fault.as_str();
        self.0.connection_errors.get_or_create(&KindLabels { kind }).inc();
        fault.limit().inspect(|&limit| self.0.limits.hit(limit));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}
