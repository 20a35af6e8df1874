//! systemd: what it is told of this process, and the sockets that it listens on for us.
//!
//! Other service managers speak the same two protocols, `sd_notify(3)` and `sd_listen_fds(3)`; without
//! one nothing here does anything. Not done: a watchdog (`/livez` is for that), and sockets that are
//! not TCP.

use std::{
    env, io,
    net::{SocketAddr, TcpListener},
};

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tracing::warn;

/// The names of the sockets: `LISTEN_FDNAMES`, or in this order without.
const NAMES: [&str; 2] = ["proxy", "admin"];

/// Clients or operators are served, as `status` says on one line.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read anew; [`ready`] has to follow.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        // Without the time it would count as a reload that failed.
        Err(error) => warn!(%error, "cannot tell the service manager of the reload"),
    }
}

/// The process is on its way out.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot tell the service manager, which NOTIFY_SOCKET names");
    }
}

/// Sockets that were passed to this process.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For clients.
    pub proxy: Option<TcpListener>,
    /// For operators and the purge webhook.
    pub admin: Option<TcpListener>,
}

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSockets {
    /// More than there are uses for.
    #[error("there are {0}, of at most 2: one for clients and one for the admin listener")]
    TooMany(usize),
    /// Some have names that say what for, and this one does not.
    #[error("one is named {0:?}; name them proxy and admin (FileDescriptorName=), or neither so")]
    Name(String),
    /// Two for the same.
    #[error("two are named {0:?}; name one proxy and one admin (FileDescriptorName=)")]
    Twice(&'static str),
    /// `LISTEN_FDNAMES` does not fit.
    #[error("LISTEN_FDNAMES has {names} names for {count} of them")]
    Names {
        /// How many names.
        names: usize,
        /// How many sockets.
        count: usize,
    },
    /// Not a TCP socket, for one.
    #[error("the one for {name} cannot be used: {source}; give it a TCP port (ListenStream=)")]
    Unusable {
        /// What it is for.
        name: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

impl Inherited {
    /// Takes the sockets that were passed. To be called once, before there are other threads: it takes
    /// the variables that tell of them out of the environment.
    pub fn take() -> Result<Self, BadSockets> {
        let names = env::var("LISTEN_FDNAMES").ok();
        let mut passed = ListenFd::from_env();
        let [proxy, admin] = places(passed.len(), names.as_deref())?;
        let mut take = |place: Option<usize>, name| match place {
            None => Ok(None),
            Some(place) => passed
                .take_tcp_listener(place)
                .map_err(|source| BadSockets::Unusable { name, source }),
        };
        let [name_of_proxy, name_of_admin] = NAMES;
        Ok(Self { proxy: take(proxy, name_of_proxy)?, admin: take(admin, name_of_admin)? })
    }

    /// The knobs whose addresses these are, which nothing else may then say.
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let known = |listener: &Option<TcpListener>| listener.as_ref()?.local_addr().ok();
        let all = [("listen", known(&self.proxy)), ("admin", known(&self.admin))];
        all.into_iter().filter_map(|(key, address)| Some((key, address?))).collect()
    }
}

/// Where among `count` sockets those of [`NAMES`] are. Names count where one of them is ours: systemd
/// calls those without a name after their unit.
fn places(count: usize, names: Option<&str>) -> Result<[Option<usize>; 2], BadSockets> {
    if count > NAMES.len() {
        return Err(BadSockets::TooMany(count));
    }
    let names: Vec<&str> = names.map(|names| names.split(':').collect()).unwrap_or_default();
    if count == 0 || !names.iter().any(|name| NAMES.contains(name)) {
        return Ok([0, 1].map(|place| (place < count).then_some(place)));
    }
    if names.len() != count {
        return Err(BadSockets::Names { names: names.len(), count });
    }
    if let Some(name) = names.iter().find(|name| !NAMES.contains(name)) {
        return Err(BadSockets::Name((*name).to_owned()));
    }
    let twice =
        NAMES.into_iter().find(|ours| names.iter().filter(|name| *name == ours).count() > 1);
    if let Some(name) = twice {
        return Err(BadSockets::Twice(name));
    }
    Ok(NAMES.map(|ours| names.iter().position(|name| *name == ours)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(count: usize, names: Option<&str>, want: Result<[Option<usize>; 2], &str>) {
        let got = places(count, names).map_err(|error| error.to_string());
        match (got, want) {
            (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
            (got, want) => assert_eq!(got, want.map_err(str::to_owned), "{count} {names:?}"),
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
        check(2, Some("admin:admin"), Err("two are named \"admin\""));
        check(2, Some("proxy"), Err("1 names for 2"));
    }
}
