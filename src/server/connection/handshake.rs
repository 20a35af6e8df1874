//! The beginning of a connection: who the client is, TLS, and which protocol it speaks.
//!
//! The protocol is detected from the first bytes. hyper-util's `auto` is not used: it waits for the
//! 24 bytes of an HTTP/2 preface without any time limit, before hyper's own header timeout begins.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};
use tokio_util::either::Either;
use tracing::debug;

use super::{
    connection_metrics::{ConnectionError, Result},
    layer::{Layer, Layered, Polled, WriteTimeout, WriteTimeoutStream},
    proxy_protocol::{self, ProxySource},
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
    pub(super) config: config::ServerConfig,
    pub(super) tls: Option<Arc<Renewed<ServerConfig>>>,
}

impl Handshake {
    /// Determines the peer and the protocol of a new connection. The caller limits the time.
    pub(super) async fn open(
        &self,
        socket: Socket,
        remote: RemoteAddress,
    ) -> Result<OpenedConnection> {
        if let Err(error) = prepare(&socket) {
            debug!(%error, "cannot set the options of a client socket");
        }
        let mut socket = Layered::new(WriteTimeout::new(self.config.write_timeout), socket);
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
    ) -> Result<(Option<IpAddr>, bool)> {
        let trusted = self.trusts(remote);
        let source = match self.config.proxy_protocol {
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
            self.config.trusted_proxies.iter().any(|network| network.contains(&ip))
        })
    }
}

/// "The client connection preface starts with a sequence of 24 octets" RFC 9113 3.4
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol of a client connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientProtocol {
    Http1,
    Http2,
}

/// Reads until the protocol is known. The returned stream yields the bytes that were read once
/// more. The caller limits the time. A connection that ends early counts as HTTP/1: hyper then ends
/// it without a response.
async fn detect<S>(mut stream: S) -> io::Result<(ClientProtocol, RewoundStream<S>)>
where
    S: AsyncRead + Unpin,
{
    let mut read = [0; PREFACE.len()];
    let mut filled = 0;
    let protocol = loop {
        let count = stream.read(&mut read[filled..]).await?;
        filled += count;
        match protocol_of(&read[..filled]) {
            Some(protocol) => break protocol,
            None if count == 0 => break ClientProtocol::Http1,
            None => {}
        }
    };
    Ok((protocol, Layered::new(Rewound { prefix: read, next: 0, filled }, stream)))
}

/// Returns the protocol that begins with these bytes, once that is certain.
fn protocol_of(read: &[u8]) -> Option<ClientProtocol> {
    if !PREFACE.starts_with(read) {
        return Some(ClientProtocol::Http1);
    }
    (read.len() == PREFACE.len()).then_some(ClientProtocol::Http2)
}

/// A stream that yields its first bytes once more, although they were already read from it.
type RewoundStream<S> = Layered<Rewound, S>;

/// The layer of [`RewoundStream`].
pub(super) struct Rewound {
    prefix: [u8; PREFACE.len()],
    next: usize,
    filled: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Layer<S> for Rewound {
    fn poll_read(&mut self, below: &mut S, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Polled {
        if self.next == self.filled {
            return Pin::new(below).poll_read(cx, buf);
        }
        let rest = &self.prefix[self.next..self.filled];
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.next += count;
        // Also read the bytes that follow: a head that arrived whole then reaches hyper whole, and
        // is not first parsed in part. An error of the stream shows again at the next read.
        let _ = Pin::new(below).poll_read(cx, buf);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::{ClientProtocol, PREFACE, protocol_of};

    #[test]
    fn a_protocol_is_told_from_as_few_bytes_as_tell_it() {
        for length in 0..PREFACE.len() {
            assert_eq!(protocol_of(&PREFACE[..length]), None, "{length}");
        }
        assert_eq!(protocol_of(PREFACE), Some(ClientProtocol::Http2));
        for other in [&b"G"[..], b"PU", b"PRI /", b"PRI * HTTP/1.1", b"\x16\x03"] {
            assert_eq!(protocol_of(other), Some(ClientProtocol::Http1), "{other:?}");
        }
    }
}
