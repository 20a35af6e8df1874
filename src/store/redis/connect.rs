//! How a connection to a server is opened: where it is, how it is spoken to and as whom.
//!
//! The data and the tracking connection are both opened here, so that whatever is true of one is true
//! of the other. It knows nothing of roles, versions and what is asked over a connection, and retries
//! nothing: who connects has a budget and knows what to do without.

use std::{fmt, io, path::PathBuf};

use futures_util::future::select_ok;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, RedisResult, aio::MultiplexedConnection, cmd,
};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_util::task::AbortOnDropHandle;

use super::refused;
use crate::{
    store::StoreError,
    transport::{Socket, Stream},
};

/// Commands that wait for their turn on a connection.
const QUEUE: usize = 1024;

/// A server, and who we are there.
#[derive(Clone, Debug)]
pub(super) struct Target {
    place: Place,
    login: RedisConnectionInfo,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A host by its name or address, and a port.
    Tcp(String, u16),
    /// A socket of this machine.
    Unix(PathBuf),
}

/// A connection on which many ask at a time. It ends with this value, whoever holds a clone of it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) requests: MultiplexedConnection,
    _driver: AbortOnDropHandle<()>,
}

impl Target {
    /// The server that a URL names, and what it says of who we are.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let info = url.into_connection_info().map_err(refused)?;
        let place = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Place::Tcp(host.clone(), *port),
            ConnectionAddr::Unix(path) => Place::Unix(path.clone()),
            other => return Err(StoreError::Refused(format!("cannot speak to {other}"))),
        };
        Ok(Self { place, login: info.redis_settings().clone() })
    }

    /// Another server, spoken to in the same way by the same user.
    #[allow(dead_code, reason = "for deployments of several servers")]
    pub(super) fn at(&self, host: &str, port: u16) -> Self {
        Self { place: Place::Tcp(host.to_owned(), port), login: self.login.clone() }
    }

    /// Connects; nothing has been said yet.
    pub(super) async fn open(&self) -> io::Result<Stream> {
        let socket = match &self.place {
            Place::Tcp(host, port) => Socket::Left(dial(host, *port).await?),
            Place::Unix(path) => Socket::Right(UnixStream::connect(path).await?),
        };
        Ok(Stream::Left(socket))
    }

    /// Connects and logs in, for whoever asks many things at a time.
    pub(super) async fn connect(&self) -> RedisResult<Connection> {
        let stream = self.open().await.map_err(RedisError::from)?;
        // Every caller has a limit of its own for how long it waits.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let opened = MultiplexedConnection::new_with_config(&self.login, stream, config).await?;
        let (requests, driver) = opened;
        Ok(Connection { requests, _driver: AbortOnDropHandle::new(tokio::spawn(driver)) })
    }

    /// The first command of a connection that is given a name and speaks RESP3: it logs in.
    pub(super) fn hello(&self, name: &str) -> Cmd {
        let mut hello = cmd("HELLO");
        hello.arg(3);
        if let Some(password) = self.login.password() {
            hello.arg("AUTH").arg(self.login.username().unwrap_or("default")).arg(password);
        }
        hello.arg("SETNAME").arg(name);
        hello
    }
}

/// To all addresses of a name at a time, as one that nobody answers at would eat the budget of the
/// others.
async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let dials: Vec<_> =
        lookup_host((host, port)).await?.map(|at| Box::pin(TcpStream::connect(at))).collect();
    if dials.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    }
    let (stream, _) = select_ok(dials).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Place::Tcp(host, port) => write!(f, "{host}:{port}"),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, shown: &str, db: i64, user: Option<&str>, password: Option<&str>) {
        let target = Target::parse(url).unwrap();
        assert_eq!(target.to_string(), shown);
        for login in [&target.login, &target.at("elsewhere", 1).login] {
            assert_eq!((login.db(), login.username(), login.password()), (db, user, password));
        }
        assert!(!format!("{target:?}").contains(password.unwrap_or("nothing")), "{target:?}");
    }

    #[test]
    fn a_url_tells_place_user_and_database_and_another_place_keeps_them() {
        check("redis://h", "h:6379", 0, None, None);
        check("valkey://u:p%40ss@h:1/2", "h:1", 2, Some("u"), Some("p@ss"));
        check("redis://[::1]:7", "[::1]:7", 0, None, None);
        check("unix:///run/r.sock?db=3&pass=x9x", "unix:/run/r.sock", 3, None, Some("x9x"));
    }
}
