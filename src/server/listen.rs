//! The sockets that a server listens on: how they are bound, and how one is left.
//!
//! With `SO_REUSEPORT` a new process binds the address of one that still serves. From then on the
//! kernel gives each connection to one of the two, and when the old one closes, all to the new one.
//! A unix socket has no such option: there the new one takes the path over, and who has connected
//! before waits in the backlog of the old one, which serves it.

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
    transport::{Remote, Socket},
};

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

/// A socket that is listened on.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener, Place),
}

/// The path of a unix socket, removed when it is left: who connects then is told at once that
/// nobody listens. Not where a new process has put its own socket there.
#[derive(Debug, Default)]
pub struct Place(Option<(PathBuf, u64)>);

/// Binds an address and listens on it; `mode` are the permissions of a unix socket.
pub fn bind(address: &ListenAddress, reuse: Reuse, mode: u32) -> io::Result<Listener> {
    match address {
        ListenAddress::Tcp(address) => bind_tcp(*address, reuse).map(Listener::Tcp),
        ListenAddress::Unix(path) => bind_unix(path, reuse, mode),
    }
}

fn bind_tcp(address: SocketAddr, reuse: Reuse) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart finds connections of the last process in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    if reuse == Reuse::Port {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The socket is made under another name and then moved to its own, so that the path always leads
/// to one that is listened on, and never to one with other permissions.
fn bind_unix(path: &Path, reuse: Reuse, mode: u32) -> io::Result<Listener> {
    if reuse == Reuse::Never && is_listened_at(path)? {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // What is there and is no socket is not ours to replace.
    if fs::symlink_metadata(path).is_ok_and(|found| !is_socket(&found)) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", process::id()));
    // Left by a process of our number that was killed amid this.
    let _ = fs::remove_file(&draft);
    let socket = UnixSocket::new_stream()?;
    socket.bind(&draft)?;
    // Before it listens: who connects stays connected, whatever the permissions are then.
    let placed = fs::set_permissions(&draft, Permissions::from_mode(mode))
        .and_then(|()| socket.listen(BACKLOG))
        .and_then(|listener| Ok((listener, fs::symlink_metadata(&draft)?.ino())))
        .and_then(|placed| fs::rename(&draft, path).map(|()| placed));
    match placed {
        Ok((listener, inode)) => {
            Ok(Listener::Unix(listener, Place(Some((path.to_owned(), inode)))))
        }
        Err(error) => {
            let _ = fs::remove_file(&draft);
            Err(error)
        }
    }
}

/// Whether there is a socket that somebody listens at, busy as he may be: a connection is not waited
/// for.
fn is_listened_at(path: &Path) -> io::Result<bool> {
    let socket = Socket2::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) => Ok(error.kind() == io::ErrorKind::WouldBlock),
    }
}

fn is_socket(found: &fs::Metadata) -> bool {
    found.file_type().is_socket()
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((path, inode)) = self.0.take()
            && fs::symlink_metadata(&path).is_ok_and(|found| found.ino() == inode)
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

/// One whose path is somebody else's to remove, as with socket activation.
impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener, Place::default())
    }
}

impl Listener {
    /// Where it listens, which the system has chosen for port 0.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Self::Unix(_, Place(Some((path, _)))) => Ok(ListenAddress::Unix(path.clone())),
            Self::Unix(listener, Place(None)) => {
                let address = listener.local_addr()?;
                Ok(ListenAddress::Unix(address.as_pathname().unwrap_or(Path::new("")).to_owned()))
            }
        }
    }

    /// Waits for the next connection.
    pub(super) async fn accept(&self) -> io::Result<(Socket, Remote)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                Ok((Socket::Left(stream), Some(remote)))
            }
            Self::Unix(listener, _) => Ok((Socket::Right(listener.accept().await?.0), None)),
        }
    }

    /// Closes it, and returns the connections that waited to be accepted: the kernel would reset them.
    ///
    /// The socket itself is asked, not tokio's memory of its readiness, which may be behind.
    pub(super) fn close(self) -> io::Result<Vec<(Socket, Remote)>> {
        match self {
            Self::Tcp(listener) => {
                let listener = listener.into_std()?;
                Ok(waiting(|| {
                    let (stream, remote) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    Ok((Socket::Left(TcpStream::from_std(stream)?), Some(remote)))
                }))
            }
            Self::Unix(listener, place) => {
                // First, so that nobody comes any more.
                drop(place);
                let listener = listener.into_std()?;
                Ok(waiting(|| {
                    let (stream, _) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    Ok((Socket::Right(UnixStream::from_std(stream)?), None))
                }))
            }
        }
    }
}

fn waiting(mut accept: impl FnMut() -> io::Result<(Socket, Remote)>) -> Vec<(Socket, Remote)> {
    let mut waiting = Vec::new();
    // More than the backlog can only be those who come meanwhile, to the last of several listeners.
    while waiting.len() < 2 * BACKLOG as usize {
        match accept() {
            Ok(accepted) => waiting.push(accepted),
            // The client has gone in the meantime, or a signal came.
            Err(error) if is_passing(&error) => {}
            Err(_) => break,
        }
    }
    waiting
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}
