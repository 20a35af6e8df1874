//! The begin of a connection: who the client is, TLS, and which protocol it speaks.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};
use tokio_util::either::Either;
use tracing::debug;

use super::{
    connection_error::ConnectionError,
    detect::{ClientProtocol, RewoundStream, detect},
    proxy_protocol::{self, ProxySource},
    write_timeout::WriteTimeoutStream,
};
use crate::{
    config,
    tls::Renewed,
    transport::{Peer, RemoteAddress, Socket, prepare},
};

/// The bytes of a connection. The write timeout is below TLS, because TLS accepts more bytes than
/// the client has read.
type SecureStream = Either<WriteTimeoutStream<Socket>, Box<TlsStream<WriteTimeoutStream<Socket>>>>;

/// A connection whose peer and protocol are known. The stream yields its first bytes once more.
pub(super) struct OpenedConnection {
    pub(super) protocol: ClientProtocol,
    pub(super) stream: RewoundStream<SecureStream>,
    pub(super) peer: Peer,
}

/// The settings by which a connection begins.
pub(super) struct Handshake {
    write_timeout: Duration,
    /// Peers that are trusted to name the client.
    trusted_proxies: Vec<IpNet>,
    /// Whether each connection begins with a PROXY protocol header.
    pub(super) use_proxy_protocol: bool,
    pub(super) tls: Option<Arc<Renewed<ServerConfig>>>,
}

impl Handshake {
    /// Without TLS.
    pub(super) fn new(config: &config::ServerConfig) -> Self {
        Self {
            write_timeout: config.write_timeout,
            trusted_proxies: config.trusted_proxies.clone(),
            use_proxy_protocol: config.proxy_protocol,
            tls: None,
        }
    }

    /// Determines the peer and the protocol of a new connection. The caller limits the time.
    pub(super) async fn open(
        &self,
        socket: Socket,
        remote: RemoteAddress,
    ) -> Result<OpenedConnection, ConnectionError> {
        if let Err(error) = prepare(&socket) {
            debug!(%error, "cannot set the options of a client socket");
        }
        let mut socket = WriteTimeoutStream::new(self.write_timeout, socket);
        let (ip, is_trusted) = self.client_address(&mut socket, remote).await?;
        let peer = Peer { ip, is_tls: self.tls.is_some(), is_trusted, connection: None };
        let stream = match &self.tls {
            None => SecureStream::Left(socket),
            Some(tls) => {
                let acceptor = TlsAcceptor::from(tls.current());
                let stream = acceptor.accept(socket).await.map_err(ConnectionError::Tls)?;
                SecureStream::Right(Box::new(stream))
            }
        };
        let (protocol, stream) = detect(stream).await?;
        Ok(OpenedConnection { protocol, stream, peer })
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
        let trusted = self.trusts(remote);
        let source = match self.use_proxy_protocol {
            false => ProxySource::Connection,
            true if !trusted => return Err(ConnectionError::UntrustedPeer),
            true => proxy_protocol::read(socket).await?,
        };
        Ok(match source {
            ProxySource::Connection => (remote.map(|remote| remote.ip()), trusted),
            ProxySource::Client(client) => (Some(client.ip()), self.trusts(Some(client))),
            ProxySource::Unknown => (None, false),
        })
    }

    fn trusts(&self, remote: RemoteAddress) -> bool {
        // The permissions of a unix socket decide who can connect to it, so every peer is trusted.
        remote.is_none_or(|remote| {
            let ip = remote.ip().to_canonical();
            self.trusted_proxies.iter().any(|network| network.contains(&ip))
        })
    }
}
