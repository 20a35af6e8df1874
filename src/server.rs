//! Accepts connections and serves HTTP/1 and HTTP/2 on them until a drain begins. The protocol is
//! detected from the first bytes.
//!
//! The server knows nothing about what it serves: the proxy and the admin interface are services
//! that the caller passes in.

mod connection_error;
mod detect;
mod header_timeout;
mod http1_conn;
pub mod listen;
mod open_connection;
mod proxy_protocol;
mod repeat_fast_path;
mod side_task;
mod write_timeout;

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
    connection_error::ConnectionError,
    detect::{ClientProtocol, RewoundStream, detect},
    http1_conn::Http1Conn,
    listen::Listener,
    open_connection::OpenConnection,
    proxy_protocol::ProxySource,
    side_task::SideTask,
    write_timeout::{StreamCounter, WriteTimeoutBody, WriteTimeoutStream},
};
use crate::{
    config::{self, HEADERS_ON_STACK},
    informational::Informational,
    observe::metrics::{KindLabels, Limit, Metrics},
    service::Service,
    tls::Renewed,
    transport::{Peer, RemoteAddress, Socket, prepare},
};

/// Pause after a failed accept. The likely cause is that no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Time limit for the answer to the ping that an HTTP/2 client gets after it has sent nothing for
/// `server.header_timeout`.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that a drain gives a connection that has sent nothing yet. Its request may be on its way,
/// and a client that has just connected would see the close as an error.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);

/// A server for one listener.
pub struct Server {
    listener: Listener,
    connections: ConnectionServer,
    max_connections: usize,
    metrics: Arc<Metrics>,
}

/// The settings that every connection of a server is served with.
#[derive(Clone)]
struct ConnectionServer {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    header_timeout: Duration,
    write_timeout: Duration,
    max_streams: usize,
    /// Largest request head, in bytes.
    max_header_bytes: usize,
    tls: Option<Arc<Renewed<ServerConfig>>>,
    proxies: TrustedProxies,
}

/// The peers that are trusted to name the client, and whether they do so by the PROXY protocol.
#[derive(Clone, Debug)]
struct TrustedProxies {
    networks: Arc<[IpNet]>,
    /// Whether each connection begins with a PROXY protocol header.
    use_proxy_protocol: bool,
}

impl TrustedProxies {
    fn trusts(&self, remote: RemoteAddress) -> bool {
        // The permissions of a unix socket decide who can connect to it, so every peer is trusted.
        remote.is_none_or(|remote| {
            let ip = remote.ip().to_canonical();
            self.networks.iter().any(|network| network.contains(&ip))
        })
    }
}

/// The byte stream of a connection. The write timeout is below TLS, because TLS accepts more bytes
/// than the client has read.
type ServerIo = Either<WriteTimeoutStream<Socket>, Box<TlsStream<WriteTimeoutStream<Socket>>>>;

/// An accepted connection: its protocol, its stream and its peer.
struct AcceptedConnection {
    protocol: ClientProtocol,
    stream: RewoundStream<ServerIo>,
    peer: Peer,
}

/// Becomes true when servers must stop accepting connections.
pub type Drain = watch::Receiver<bool>;

impl Server {
    /// Creates a server. It accepts no connection before [`run`](Self::run).
    pub fn new(
        listener: impl Into<Listener>,
        config: &config::ServerConfig,
        metrics: Arc<Metrics>,
    ) -> Self {
        let limit = config.header_timeout;
        let mut http1 = http1::Builder::new();
        // hyper's own header timeout has a cost for every request. `header_timeout` implements one
        // that has none.
        http1
            .header_read_timeout(None)
            .preserve_header_case(config.preserve_header_case)
            .max_buf_size(config.buffer())
            .max_header_size(config.max_header_bytes);
        // Even a call with the default value moves the parser's memory to the heap.
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
        let write_limit = config.write_timeout;
        let max_streams = config.max_streams;
        let trusted = config.trusted_proxies.iter().copied().collect();
        let proxies =
            TrustedProxies { networks: trusted, use_proxy_protocol: config.proxy_protocol };
        let head_limit = config.max_header_bytes;
        let connections = ConnectionServer {
            http1,
            http2,
            header_timeout: limit,
            write_timeout: write_limit,
            max_streams,
            max_header_bytes: head_limit,
            tls: None,
            proxies,
        };
        let max_connections = config.max_connections;
        Self { listener: listener.into(), connections, max_connections, metrics }
    }

    /// Serves TLS if there is a configuration for it.
    #[must_use]
    pub(crate) fn with_tls(mut self, tls: Option<Arc<Renewed<ServerConfig>>>) -> Self {
        self.connections.tls = tls;
        self
    }

    /// Expects no PROXY protocol header, even if `server.proxy_protocol` is set for the clients'
    /// listener.
    #[must_use]
    pub(crate) fn without_proxy_protocol(mut self) -> Self {
        self.connections.proxies.use_proxy_protocol = false;
        self
    }

    /// Serves until `drain` becomes true, then waits up to `deadline` for the requests in flight.
    pub async fn run(self, mut drain: Drain, deadline: Duration, service: impl Service) {
        let permits = Arc::new(Semaphore::new(self.max_connections));
        // Dropping the set at the end closes the connections that are left.
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                // Take a permit first: a connection without one waits in the listen backlog.
                let permit = self.acquire_permit(&permits).await;
                (permit, self.listener.accept().await)
            };
            let (permit, (socket, remote)) = tokio::select! {
                (permit, accepted) = accepted => match accepted {
                    Ok(accepted) => (permit, accepted),
                    Err(error) => { pause_after_accept_error(&error).await; continue }
                },
                Some(_ended) = connections.join_next() => continue,
                () = until_drain(&mut drain) => break,
            };
            let open = ConnectionGuard::new(&self.metrics);
            let connection = self.connections.connection(socket, remote, open, &drain, &service);
            connections.spawn(async move {
                connection.await;
                drop(permit);
            });
        }
        let backlog = self.listener.close().unwrap_or_else(|error| {
            warn!(%error, "cannot accept the connections that wait in the listen backlog");
            Vec::new()
        });
        for (socket, remote) in backlog {
            let open = ConnectionGuard::new(&self.metrics);
            connections.spawn(self.connections.connection(socket, remote, open, &drain, &service));
        }
        let ended = async { while connections.join_next().await.is_some() {} };
        if timeout(deadline, ended).await.is_err() {
            let open = connections.len();
            warn!(connections = open, "drain deadline passed; closing the remaining connections");
            connections.shutdown().await;
        }
    }

    async fn acquire_permit(
        &self,
        permits: &Arc<Semaphore>,
    ) -> Result<OwnedSemaphorePermit, AcquireError> {
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Ok(permit);
        }
        self.metrics.limits.count_hit(Limit::Connections);
        Arc::clone(permits).acquire_owned().await
    }
}

impl ConnectionServer {
    /// Returns a future that serves one connection to its end and counts its error, if any.
    fn connection<S: Service>(
        &self,
        socket: Socket,
        remote: RemoteAddress,
        open: ConnectionGuard,
        drain: &Drain,
        service: &S,
    ) -> impl Future<Output = ()> + Send + use<S> {
        let (protocols, service, drain) = (self.clone(), service.clone(), drain.clone());
        async move {
            if let Err(error) = protocols.serve(socket, remote, drain, service, &open.0).await {
                debug!(%error, "client connection ended");
                open.record_error(&error);
            }
        }
    }

    /// Serves one connection to its end.
    async fn serve(
        self,
        socket: Socket,
        remote: RemoteAddress,
        mut drain: Drain,
        service: impl Service,
        metrics: &Arc<Metrics>,
    ) -> Result<(), ConnectionError> {
        let opened = tokio::select! {
            opened = timeout(self.header_timeout, self.accept(socket, remote)) => opened,
            () = silent_during_drain(&mut drain) => return Ok(()),
        };
        let AcceptedConnection { protocol, stream, peer } =
            opened.map_err(|_| ConnectionError::Timeout(self.header_timeout))??;
        match protocol {
            ClientProtocol::Http1 => self.serve_http1(stream, drain, peer, service).await?,
            ClientProtocol::Http2 => {
                self.serve_http2(stream, drain, peer, service, metrics).await?;
            }
        }
        Ok(())
    }

    /// Determines the peer and the protocol of a new connection.
    async fn accept(
        &self,
        socket: Socket,
        remote: RemoteAddress,
    ) -> Result<AcceptedConnection, ConnectionError> {
        if let Err(error) = prepare(&socket) {
            debug!(%error, "cannot set the options of a client socket");
        }
        let mut socket = WriteTimeoutStream::new(self.write_timeout, socket);
        let (ip, is_trusted) = self.client_address(&mut socket, remote).await?;
        let peer = Peer { ip, is_tls: self.tls.is_some(), is_trusted, connection: None };
        let stream = match &self.tls {
            None => ServerIo::Left(socket),
            Some(tls) => {
                let acceptor = TlsAcceptor::from(tls.current());
                let stream = acceptor.accept(socket).await.map_err(ConnectionError::Tls)?;
                ServerIo::Right(Box::new(stream))
            }
        };
        let (protocol, stream) = detect(stream).await?;
        Ok(AcceptedConnection { protocol, stream, peer })
    }

    /// Returns the client's address, and whether its forwarding headers are trusted.
    ///
    /// A load balancer that forwards bytes also forwards the headers of its clients. So these
    /// headers are judged by the client address that the PROXY protocol states, not by the address
    /// of the balancer.
    async fn client_address(
        &self,
        socket: &mut WriteTimeoutStream<Socket>,
        remote: RemoteAddress,
    ) -> Result<(Option<IpAddr>, bool), ConnectionError> {
        let trusted = self.proxies.trusts(remote);
        let source = match self.proxies.use_proxy_protocol {
            false => ProxySource::Connection,
            true if !trusted => return Err(ConnectionError::UntrustedPeer),
            true => proxy_protocol::read(socket).await?,
        };
        Ok(match source {
            ProxySource::Connection => (remote.map(|remote| remote.ip()), trusted),
            ProxySource::Client(client) => (Some(client.ip()), self.proxies.trusts(Some(client))),
            ProxySource::Unknown => (None, false),
        })
    }

    async fn serve_http1<I, S>(
        self,
        stream: I,
        mut drain: Drain,
        peer: Peer,
        service: S,
    ) -> Result<(), ConnectionError>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service,
    {
        let open = OpenConnection::new(&service);
        let peer = Peer { connection: open.id(), ..peer };
        let (conn, stream) = Http1Conn::new(stream, peer, service, self.max_header_bytes);
        let answer = service_fn(|request| conn.answer(request));
        let connection = self.http1.serve_connection(TokioIo::new(stream), answer);
        let mut connection = pin!(connection.with_upgrades());
        let mut overdue = pin!(conn.progress.header_overdue(self.header_timeout));
        let mut overdue = SideTask::new(overdue.as_mut());
        let mut may_close = pin!(ready_to_close(&mut drain, &conn.begun));
        let mut may_close = SideTask::new(may_close.as_mut());
        let mut close_pending = false;
        poll_fn(|cx| {
            if overdue.poll(cx).is_some() {
                return Poll::Ready(Err(ConnectionError::Timeout(self.header_timeout)));
            }
            if may_close.poll(cx).is_some() {
                conn.fast_path.close();
                close_pending = true;
            }
            loop {
                // hyper does not see a request that the fast path is answering, and would cut it
                // off.
                if close_pending && !conn.fast_path.is_busy() {
                    // Lets the request in flight end, and accepts no further ones.
                    connection.as_mut().graceful_shutdown();
                    close_pending = false;
                }
                let ended = connection.as_mut().poll(cx).map_err(ConnectionError::from);
                if ended.is_ready() || !close_pending || conn.fast_path.is_busy() {
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
        let first_request = Arc::clone(&begun);
        let limit = self.write_timeout;
        let streams = StreamCounter::new(self.max_streams, metrics);
        let service = service_fn(move |request| {
            mark_begun(&first_request);
            let stream = streams.open();
            let answer = service.clone().serve(request, peer, Informational::default());
            async move {
                let response = answer.await.response;
                Ok::<_, Infallible>(response.map(|body| WriteTimeoutBody::new(limit, body, stream)))
            }
        });
        let mut connection = pin!(self.http2.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = ready_to_close(&mut drain, &begun) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    }
}

async fn pause_after_accept_error(error: &io::Error) {
    warn!(%error, "cannot accept a connection; the limit of open files may be too low");
    sleep(ACCEPT_PAUSE).await;
}

/// Waits for a drain. Also returns when the sender is dropped.
async fn until_drain(drain: &mut Drain) {
    let _ = drain.wait_for(|drain| *drain).await;
}

/// Returns when a drain has lasted so long that a connection that has sent nothing counts as idle.
async fn silent_during_drain(drain: &mut Drain) {
    until_drain(drain).await;
    sleep(FIRST_REQUEST_GRACE).await;
}

/// Returns when a drain has begun and the connection has had a request, or enough time for one. An
/// earlier shutdown would make hyper close a connection that has had no request, even while it
/// reads the first head.
async fn ready_to_close(drain: &mut Drain, begun: &SetOnce<()>) {
    until_drain(drain).await;
    let _ = timeout(FIRST_REQUEST_GRACE, begun.wait()).await;
}

/// Records that a connection has had a request.
fn mark_begun(begun: &SetOnce<()>) {
    if !begun.initialized() {
        let _ = begun.set(());
    }
}

/// Counts a connection as open until it is dropped.
struct ConnectionGuard(Arc<Metrics>);

impl ConnectionGuard {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self(Arc::clone(metrics))
    }

    fn record_error(&self, fault: &ConnectionError) {
        let kind = fault.as_str();
        self.0.connection_errors.get_or_create(&KindLabels { kind }).inc();
        fault.limit().inspect(|&limit| self.0.limits.count_hit(limit));
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}
