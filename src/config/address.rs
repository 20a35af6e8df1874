//! Addresses of listeners.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

/// The longest path of a unix socket, in bytes: an address holds 107 (`sun_path` without its NUL,
/// unix(7)), and a process id is appended to the path while the socket is created.
const MAX_PATH: usize = 96;

/// An IP address and port, or the path of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// Parses `127.0.0.1:8080` or `unix:/run/jobcache.sock`; the error says what would be right.
///
/// `localhost` is the only name accepted: RFC 6761 6.3 fixes it to loopback. Any other name needs a
/// resolver, and its answer may change after the bind.
impl FromStr for ListenAddress {
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
             (the only name accepted is localhost), or unix:/path/to/socket"
                .to_owned()
        })
    }
}

impl ListenAddress {
    /// The address of a TCP listener.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// The path of a unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(path) => Some(path),
        }
    }
}

/// An absolute path; `text` is the part after `unix:` and may be `///path`.
pub(super) fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("//").unwrap_or(text);
    if !path.starts_with('/') || path.ends_with('/') {
        return Err("the path of a socket must be absolute: unix:/path/to/socket".to_owned());
    }
    if path.len() > MAX_PATH {
        return Err(format!("the path of a socket must be at most {MAX_PATH} bytes long"));
    }
    // In a URL no path continues after `?` or `#`, and a user who writes one of them means a URL.
    if path.contains(|c: char| c.is_control() || c == '?' || c == '#') {
        return Err("the path of a socket must not hold ?, # or control characters".to_owned());
    }
    Ok(PathBuf::from(path))
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
