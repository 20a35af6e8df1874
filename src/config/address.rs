//! Where a listener is.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

/// The longest path of a unix socket, in bytes: its address holds 107 (`sun_path` with its NUL: unix(7)),
/// and the number of a process is put behind it while it is made.
const MAX_PATH: usize = 96;

/// An IP address and port, or the path of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// `127.0.0.1:8080` or `unix:/run/jobcache.sock`; the error says what would be right.
///
/// `localhost` is the one name taken: RFC 6761 6.3 fixes it to loopback, every other one needs a
/// resolver, whose answer may change after the bind.
impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        let named = text
            .strip_prefix("localhost:")
            .and_then(|port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().ok()?))));
        text.parse().ok().or(named).map(Self::Tcp).ok_or_else(|| {
            "must be an IP address and a port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080 \
             (of names only localhost is taken), or unix:/path/to/socket"
                .to_owned()
        })
    }
}

impl Address {
    /// Of a TCP listener.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Of a unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(path) => Some(path),
        }
    }
}

/// An absolute path, also as what follows in `unix:///path`.
pub(super) fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("//").unwrap_or(text);
    if !path.starts_with('/') || path.ends_with('/') {
        return Err("the path of a socket must be absolute: unix:/path/to/socket".to_owned());
    }
    if path.len() > MAX_PATH {
        return Err(format!("the path of a socket must be at most {MAX_PATH} bytes long"));
    }
    // What follows `?` and `#` in URLs is no path, and whoever writes one here means an URL.
    if path.contains(|c: char| c.is_control() || c == '?' || c == '#') {
        return Err("the path of a socket must not hold ?, # or control characters".to_owned());
    }
    Ok(PathBuf::from(path))
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
