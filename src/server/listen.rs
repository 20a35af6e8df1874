//! The sockets that a server listens on: how they are bound, and how one is left.
//!
//! With `SO_REUSEPORT` a new process binds the address of one that still serves. From then on the
//! kernel gives each connection to one of the two, and when the old one closes, all to the new one.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: u32 = 1024;

/// Whether other processes of this user may bind the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// The address is ours alone.
    Never,
    /// Those that set `SO_REUSEPORT` as well.
    Port,
}

/// Binds an address and listens on it.
pub fn bind(address: SocketAddr, reuse: Reuse) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart finds connections of the last process in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    if reuse == Reuse::Port {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Closes a listener, and returns the connections that waited to be accepted: the kernel would reset
/// them.
///
/// The socket itself is asked, not tokio's memory of its readiness, which may be behind.
pub(super) fn close(listener: TcpListener) -> io::Result<Vec<(TcpStream, SocketAddr)>> {
    let listener = listener.into_std()?;
    let mut waiting = Vec::new();
    // More than the backlog can only be those who come meanwhile, to the last of several listeners.
    while waiting.len() < 2 * BACKLOG as usize {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(true)?;
                waiting.push((TcpStream::from_std(stream)?, peer));
            }
            // The client has gone in the meantime, or a signal came.
            Err(error) if is_passing(&error) => {}
            Err(_) => break,
        }
    }
    Ok(waiting)
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}
