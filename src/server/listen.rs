//! Listening sockets: how they are bound, and how they are closed.
//!
//! A new process can bind the address of a process that still serves, because of `SO_REUSEPORT`.
//! While both listen, the kernel gives each connection to one of the two; once the old process
//! closes its socket, all of them go to the new one. A unix socket has no such option: there the
//! new process takes over the path, and earlier connections wait in the backlog of the old process,
//! which serves them.

use std::{
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process,
};

use socket2::{Domain, SockAddr, Socket as Socket2, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

use crate::{
    config::ListenAddress,
    transport::{RemoteAddress, Socket},
};

/// Connections that may wait to be accepted; the kernel caps the number at `net.core.somaxconn`.
const BACKLOG: u32 = 1024;

/// A connection and the address of its client.
pub(super) type Accepted = (Socket, RemoteAddress);

/// Whether other processes of this user may bind the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// No other process may.
    Never,
    /// Processes that also set `SO_REUSEPORT` may.
    Port,
}

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// A TCP socket.
    Tcp(TcpListener),
    /// A unix socket and its path.
    Unix(UnixListener, ListenPlace),
}

/// The path of a unix socket, with the inode of the socket. Dropping it removes the path, so that
/// clients see at once that no process listens. It stays if a new process has put its own socket
/// there.
#[derive(Debug, Default)]
pub struct ListenPlace(Option<(PathBuf, u64)>);

/// Binds an address and listens on it. A unix socket gets the permissions `mode`.
pub fn bind(address: &ListenAddress, reuse: Reuse, mode: u32) -> io::Result<Listener> {
    match address {
        ListenAddress::Tcp(address) => bind_tcp(*address, reuse).map(Listener::Tcp),
        ListenAddress::Unix(path) => bind_unix(path, reuse, mode),
    }
}

fn bind_tcp(address: SocketAddr, reuse: Reuse) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // After a restart, connections of the last process may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    if reuse == Reuse::Port {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Creates the socket under a temporary name and then moves it to `path`. So the path always leads
/// to a socket that is listened on, and never to one with other permissions.
fn bind_unix(path: &Path, reuse: Reuse, mode: u32) -> io::Result<Listener> {
    if reuse == Reuse::Never && is_listened_at(path)? {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // Do not replace a file that is not a socket.
    if fs::symlink_metadata(path).is_ok_and(|metadata| !is_socket(&metadata)) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", process::id()));
    // Left behind if a process with this id was killed in the middle of this function.
    let _ = fs::remove_file(&temporary);
    let socket = UnixSocket::new_stream()?;
    socket.bind(&temporary)?;
    // Set before the socket listens: a client that has connected stays connected, whatever the
    // permissions are later.
    let bound = fs::set_permissions(&temporary, Permissions::from_mode(mode))
        .and_then(|()| socket.listen(BACKLOG))
        .and_then(|listener| Ok((listener, fs::symlink_metadata(&temporary)?.ino())))
        .and_then(|bound| fs::rename(&temporary, path).map(|()| bound));
    match bound {
        Ok((listener, inode)) => {
            Ok(Listener::Unix(listener, ListenPlace(Some((path.to_owned(), inode)))))
        }
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
}

/// Whether a process listens on the socket at `path`. Does not wait for the connection: a process
/// with a full backlog listens too.
fn is_listened_at(path: &Path) -> io::Result<bool> {
    let socket = Socket2::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) => Ok(error.kind() == io::ErrorKind::WouldBlock),
    }
}

fn is_socket(metadata: &fs::Metadata) -> bool {
    metadata.file_type().is_socket()
}

impl Drop for ListenPlace {
    fn drop(&mut self) {
        if let Some((path, inode)) = self.0.take()
            && fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.ino() == inode)
        {
            let _ = fs::remove_file(path);
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

/// For a listener with a path that another process removes, as with socket activation.
impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener, ListenPlace::default())
    }
}

impl Listener {
    /// Returns the address. It contains the port that the system chose for port 0.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Self::Unix(_, ListenPlace(Some((path, _)))) => Ok(ListenAddress::Unix(path.clone())),
            Self::Unix(listener, ListenPlace(None)) => {
                let address = listener.local_addr()?;
                Ok(ListenAddress::Unix(address.as_pathname().unwrap_or(Path::new("")).to_owned()))
            }
        }
    }

    /// Waits for the next connection.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                Ok((Socket::Left(stream), Some(remote)))
            }
            Self::Unix(listener, _) => Ok((Socket::Right(listener.accept().await?.0), None)),
        }
    }

    /// Closes the socket and returns the connections that wait to be accepted: the kernel would
    /// reset them.
    ///
    /// Asks the socket itself, because tokio's record of its readiness may be outdated.
    pub(super) fn close(self) -> io::Result<Vec<Accepted>> {
        Ok(match self {
            Self::Tcp(listener) => {
                let listener = listener.into_std()?;
                accept_waiting(|| {
                    let (stream, remote) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    Ok((Socket::Left(TcpStream::from_std(stream)?), Some(remote)))
                })
            }
            Self::Unix(listener, place) => {
                // Remove the path first, so that no further client connects.
                drop(place);
                let listener = listener.into_std()?;
                accept_waiting(|| {
                    let (stream, _) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    Ok((Socket::Right(UnixStream::from_std(stream)?), None))
                })
            }
        })
    }
}

fn accept_waiting(mut accept: impl FnMut() -> io::Result<Accepted>) -> Vec<Accepted> {
    let mut waiting = Vec::new();
    // The backlog of the last of several listeners may fill up again meanwhile, hence the limit.
    while waiting.len() < 2 * BACKLOG as usize {
        match accept() {
            Ok(accepted) => waiting.push(accepted),
            // The client has gone already, or a signal arrived.
            Err(error) if is_transient(&error) => {}
            Err(_) => break,
        }
    }
    waiting
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}
