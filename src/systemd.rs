//! Support for systemd: state notifications (`sd_notify(3)`) and inherited sockets
//! (`sd_listen_fds(3)`).
//!
//! Other service managers use the same two protocols. Without a service manager this module does
//! nothing. It leaves out the watchdog (use `/livez`) and sockets other than TCP.

use std::{
    env, io,
    net::{SocketAddr, TcpListener},
};

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tracing::warn;

/// Names of the sockets in `LISTEN_FDNAMES`. Sockets without names come in this order.
const SOCKET_NAMES: [&str; 2] = ["proxy", "admin"];

/// Reports that the process is ready. `status` is one line for `systemctl status`.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that a reload begins. A call of [`ready`] has to follow.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        // Without the time systemd would count the reload as failed.
        Err(error) => warn!(%error, "cannot report the reload to the service manager"),
    }
}

/// Reports that the process is shutting down.
pub fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot notify the service manager; check NOTIFY_SOCKET");
    }
}

/// The sockets that the service manager passed to this process.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    /// The socket for clients.
    pub proxy: Option<TcpListener>,
    /// The socket of the admin listener.
    pub admin: Option<TcpListener>,
}

/// Why the inherited sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedSocketsError {
    /// There are more than two.
    #[error(
        "there are {0} sockets; pass at most 2: one for clients and one for the admin listener"
    )]
    TooMany(usize),
    /// One socket has a known name, and this one has another name.
    #[error(
        "one socket is named {0:?}; name them proxy and admin, or name none (FileDescriptorName=)"
    )]
    UnknownName(String),
    /// Two sockets have the same name.
    #[error("two sockets are named {0:?}; name one proxy and one admin (FileDescriptorName=)")]
    DuplicateName(&'static str),
    /// `LISTEN_FDNAMES` does not have one name for each socket.
    #[error("LISTEN_FDNAMES has {names} names for {count} sockets; pass one name per socket")]
    NameCount {
        /// The number of names.
        names: usize,
        /// The number of sockets.
        count: usize,
    },
    /// A socket cannot be used, for example because it is not a TCP socket.
    #[error("the socket for {name} cannot be used: {source}; give it a TCP port (ListenStream=)")]
    Unusable {
        /// The use of the socket: proxy or admin.
        name: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl InheritedSockets {
    /// Takes the inherited sockets. Call it once, before other threads start: it removes the
    /// `LISTEN_*` variables from the environment.
    pub fn take() -> Result<Self, InheritedSocketsError> {
        let names = env::var("LISTEN_FDNAMES").ok();
        let mut passed = ListenFd::from_env();
        let [proxy, admin] = socket_positions(passed.len(), names.as_deref())?;
        let mut take = |position: Option<usize>, name| match position {
            None => Ok(None),
            Some(position) => passed
                .take_tcp_listener(position)
                .map_err(|source| InheritedSocketsError::Unusable { name, source }),
        };
        let [proxy_name, admin_name] = SOCKET_NAMES;
        Ok(Self { proxy: take(proxy, proxy_name)?, admin: take(admin, admin_name)? })
    }

    /// Returns the address settings that inherited sockets replace, with their addresses.
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let address = |listener: &Option<TcpListener>| listener.as_ref()?.local_addr().ok();
        let all = [("listen", address(&self.proxy)), ("admin", address(&self.admin))];
        all.into_iter().filter_map(|(key, address)| Some((key, address?))).collect()
    }
}

/// Returns the positions of the sockets of [`SOCKET_NAMES`] among `count` sockets. Names count only if at
/// least one of them is in [`SOCKET_NAMES`], because systemd names a socket after its unit by default.
fn socket_positions(
    count: usize,
    names: Option<&str>,
) -> Result<[Option<usize>; 2], InheritedSocketsError> {
    if count > SOCKET_NAMES.len() {
        return Err(InheritedSocketsError::TooMany(count));
    }
    let names: Vec<&str> = names.map(|names| names.split(':').collect()).unwrap_or_default();
    if count == 0 || !names.iter().any(|name| SOCKET_NAMES.contains(name)) {
        return Ok([0, 1].map(|position| (position < count).then_some(position)));
    }
    if names.len() != count {
        return Err(InheritedSocketsError::NameCount { names: names.len(), count });
    }
    if let Some(name) = names.iter().find(|name| !SOCKET_NAMES.contains(name)) {
        return Err(InheritedSocketsError::UnknownName((*name).to_owned()));
    }
    let repeated = SOCKET_NAMES
        .into_iter()
        .find(|known| names.iter().filter(|name| *name == known).count() > 1);
    if let Some(name) = repeated {
        return Err(InheritedSocketsError::DuplicateName(name));
    }
    Ok(SOCKET_NAMES.map(|known| names.iter().position(|name| *name == known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(count: usize, names: Option<&str>, expected: Result<[Option<usize>; 2], &str>) {
        let got = socket_positions(count, names).map_err(|error| error.to_string());
        match (got, expected) {
            (Err(got), Err(expected)) => assert!(got.contains(expected), "{got}"),
            (got, expected) => {
                assert_eq!(got, expected.map_err(str::to_owned), "{count} {names:?}");
            }
        }
    }

    #[test]
    fn sockets_are_known_by_their_names() {
        check(2, Some("proxy:admin"), Ok([Some(0), Some(1)]));
        check(2, Some("admin:proxy"), Ok([Some(1), Some(0)]));
        check(1, Some("admin"), Ok([None, Some(0)]));
        check(1, Some("proxy"), Ok([Some(0), None]));
    }

    #[test]
    fn without_names_of_ours_their_order_counts() {
        check(0, None, Ok([None, None]));
        check(1, None, Ok([Some(0), None]));
        check(2, None, Ok([Some(0), Some(1)]));
        check(2, Some("jobcache.socket:jobcache.socket"), Ok([Some(0), Some(1)]));
        check(1, Some(""), Ok([Some(0), None]));
        check(0, Some("proxy"), Ok([None, None]));
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        check(3, None, Err("there are 3"));
        check(2, Some("proxy:other"), Err("\"other\""));
        check(2, Some("admin:admin"), Err("two sockets are named \"admin\""));
        check(2, Some("proxy"), Err("1 names for 2"));
    }
}
