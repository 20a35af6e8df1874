//! Byte streams: TCP or unix sockets, plain or with TLS.
//!
//! Both sides use them: `server` accepts connections and `upstream` opens them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

/// A connection as the kernel provides it.
pub type Socket = Either<TcpStream, UnixStream>;

/// A connection that carries HTTP.
pub type ClientStream = Either<Socket, Box<TlsStream<Socket>>>;

/// Unsent bytes at which the kernel accepts no more; it accepts more again once half of them are
/// sent. The default limit grows to megabytes. A slow reader needs minutes for a third of that, and
/// would seem to read nothing in that time.
const MAX_UNSENT_BYTES: u32 = 64 << 10;

/// Sends small messages at once, because a response must not wait for the acknowledgement of the
/// previous one. Also limits the unsent bytes, so that the server can see whether a client reads.
pub(crate) fn prepare(socket: &Socket) -> io::Result<()> {
    match socket {
        Socket::Left(tcp) => {
            tcp.set_nodelay(true)?;
            SockRef::from(tcp).set_tcp_notsent_lowat(MAX_UNSENT_BYTES)
        }
        Socket::Right(_) => Ok(()),
    }
}

/// The address of the other end. A client of a unix socket has none.
pub(crate) type RemoteAddress = Option<SocketAddr>;

/// The client of a connection, as far as the connection tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The address of the client, from the PROXY protocol if that is used. `None` if there is no IP
    /// address, as with a unix socket.
    pub ip: Option<IpAddr>,
    /// Whether the connection uses TLS.
    pub is_tls: bool,
    /// Whether the forwarding headers of its requests are trusted.
    pub is_trusted: bool,
    /// The connection, if its requests follow one another, as over HTTP/1. `None` over HTTP/2, and
    /// for requests that jobcache makes itself.
    pub connection: Option<ConnectionId>,
}

/// Identifies an open client connection. An id is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub(crate) u64);

impl Peer {
    /// The scheme of URLs: `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }

    /// This peer for a request in the background, which runs next to those of its connection.
    #[must_use]
    pub(crate) fn in_background(self) -> Self {
        Self { connection: None, ..self }
    }
}
