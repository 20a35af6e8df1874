//! Byte streams: TCP or a unix socket, plain or within TLS.
//!
//! Both sides use the same ones: `server` accepts them, `upstream` opens them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

/// A connection as the kernel gives it.
pub type Socket = Either<TcpStream, UnixStream>;

/// A connection that HTTP is spoken over.
pub type Stream = Either<Socket, Box<TlsStream<Socket>>>;

/// Bytes that wait to be sent before the system takes no more, and half of which have to go before it
/// does again. Its own limit grows to megabytes, and a third of them takes a slow reader minutes, in
/// which it seems to take nothing.
const UNSENT_MAX: u32 = 64 << 10;

/// Sends small messages at once, as an answer must not wait for the acknowledgement of the last one, and
/// lets us see who takes what he is sent.
pub(crate) fn prepare(socket: &Socket) -> io::Result<()> {
    match socket {
        Socket::Left(tcp) => {
            tcp.set_nodelay(true)?;
            SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT_MAX)
        }
        Socket::Right(_) => Ok(()),
    }
}

/// The other end, where it has an address: who connects to a unix socket has none.
pub(crate) type Remote = Option<SocketAddr>;

/// Who asks, as far as the connection tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who has connected, by the PROXY protocol where it is spoken; nobody by a unix socket.
    pub ip: Option<IpAddr>,
    /// Whether over TLS.
    pub is_tls: bool,
    /// Whether what it says of those before it is to be believed.
    pub is_trusted: bool,
}

impl Peer {
    /// As in a URL.
    pub fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }
}
