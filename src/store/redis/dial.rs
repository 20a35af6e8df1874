//! Connections to a server: its address, the transport, and the login.
//!
//! Data and tracking connections are both opened here, so that the same settings hold for both.
//! This module knows nothing about roles or versions. Apart from the login it has only the commands
//! that also run on a connection without a session: `CLUSTER` and `ASKING`. It retries nothing: its
//! callers have a budget and know how to go on without a connection.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::select_ok;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo,
    RedisConnectionInfo, RedisResult, Value, aio::MultiplexedConnection, cmd,
};
use tokio::{
    net::{TcpStream, UnixStream, lookup_host},
    sync::Notify,
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector, TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
};
use tokio_util::task::AbortOnDropHandle;

use super::traffic::{Metered, Traffic};
use crate::{
    config::{ClusterSeeds, Config, Secret, StoreLogin},
    store::{Diagnosis, NodeAddress, StoreError, errors::Result},
    tls::{self, Renewed, TlsMetrics},
    transport::{ClientStream, Socket},
};

/// Commands that may wait for their turn on a connection.
const PIPELINE_BUFFER: usize = 1024;
/// Timeout of the TLS handshake. A server without TLS may silently wait for more bytes; this
/// timeout tells it apart from a server that hangs.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(700);

/// A server, and how to log in there.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) address: RedisAddress,
    pub(super) login: Arc<RedisLogin>,
    /// `None` for plain text.
    pub(super) tls: Option<Arc<Tls>>,
}

/// Address at which a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RedisAddress {
    /// A host name or IP address, and a port.
    Tcp(NodeAddress),
    /// A Unix socket.
    Unix(PathBuf),
}

/// TLS settings for all servers of the store.
#[derive(Debug)]
pub(super) struct Tls {
    client: Arc<Renewed<ClientConfig>>,
    /// Name that every server certificate must carry; `None` for the host that is connected to.
    server_name: Option<String>,
    _renewal: AbortOnDropHandle<()>,
}

impl Tls {
    /// Reads the certificates, and reads them again when the files change; `None` for plain text.
    pub(super) fn new(
        is_tls: bool,
        config: &Config,
        metrics: &TlsMetrics,
    ) -> Result<Option<Arc<Self>>> {
        if !is_tls {
            return Ok(None);
        }
        let client = tls::renewed_client(config.store.tls.clone());
        let client = client.map_err(|error| StoreError::Tls(error.to_string()))?;
        let renewal = client.spawn_renewal(config.tls_renew_interval, metrics.clone());
        let server_name = config.store.tls.server_name.clone();
        Ok(Some(Arc::new(Self { client, server_name, _renewal: renewal })))
    }
}

/// A multiplexed connection for concurrent commands. It closes when this value is dropped, even if
/// clones of `requests` remain.
#[derive(Debug)]
pub(super) struct RedisConnection {
    pub(super) requests: MultiplexedConnection,
    /// Notified when the connection has been closed by the server or the network.
    pub(super) closed: Arc<Notify>,
    pub(super) traffic: Arc<Traffic>,
    _driver: AbortOnDropHandle<()>,
}

impl Target {
    /// The server that a URL names. The login comes from the URL, or else from the configuration.
    pub(super) fn parse(url: &str, config: &Config, metrics: &TlsMetrics) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
        let (scheme, is_tls) = match scheme {
            "rediss" | "valkeys" => ("redis", true),
            scheme => (scheme, false),
        };
        // Without TLS in the scheme: the `redis` crate parses TLS URLs only if its own TLS is
        // compiled in.
        let info = format!("{scheme}://{rest}").into_connection_info();
        let info = info.map_err(|error| StoreError::Refused(error.to_string()))?;
        let place = match info.addr() {
            ConnectionAddr::Tcp(host, port) => RedisAddress::Tcp(NodeAddress::new(host, *port)),
            ConnectionAddr::Unix(path) => RedisAddress::Unix(path.clone()),
            other => return Err(StoreError::Refused(format!("unsupported address {other}"))),
        };
        let login = RedisLogin::from_url(info.redis_settings(), &config.store.login);
        let tls = Tls::new(is_tls, config, metrics)?;
        Ok(Self { address: place, login: Arc::new(login), tls }.named(config))
    }

    /// The same server, with the name that connections have there by the URL.
    pub(super) fn named(self, config: &Config) -> Self {
        let client_name = config.store.client_name.clone();
        Self { login: Arc::new(RedisLogin { client_name, ..(*self.login).clone() }), ..self }
    }

    /// The login and TLS settings for the nodes of a cluster; [`Target::at`] says where each is.
    pub(super) fn of_nodes(
        seeds: &ClusterSeeds,
        config: &Config,
        metrics: &TlsMetrics,
    ) -> Result<Self> {
        let login = if seeds.login.is_some() { &seeds.login } else { &config.store.login };
        Ok(Self::anywhere(login, 0, Tls::new(seeds.is_tls, config, metrics)?).named(config))
    }

    /// A login and TLS settings, for [`Target::at`].
    pub(super) fn anywhere(login: &StoreLogin, database: i64, tls: Option<Arc<Tls>>) -> Self {
        let address = RedisAddress::Tcp(NodeAddress::new("", 0));
        let login = RedisLogin { login: login.clone(), database, client_name: None };
        Self { address, login: Arc::new(login), tls }
    }

    /// Another server with the same login and TLS settings.
    pub(super) fn at(&self, address: &NodeAddress) -> Self {
        Self { address: RedisAddress::Tcp(address.clone()), ..self.clone() }
    }

    /// The user that logs in.
    pub(super) fn username(&self) -> &str {
        self.login.login.username.as_deref().unwrap_or("default")
    }

    pub(super) fn database(&self) -> i64 {
        self.login.database
    }

    /// The user in a sentence.
    pub(super) fn user(&self) -> String {
        match self.username() {
            "default" => "the default user".to_owned(),
            user => format!("the user {user:?}"),
        }
    }

    /// Opens the socket and completes the TLS handshake. Sends no command yet.
    pub(super) async fn open(&self) -> Result<ClientStream> {
        let failed = |error: io::Error| {
            let said = format!("{self}: {error}");
            match Diagnosis::of_connect(&error) {
                Some(diagnosis) => StoreError::Denied(diagnosis, said),
                None => StoreError::Unreachable(said),
            }
        };
        let (socket, host) = match &self.address {
            RedisAddress::Tcp(NodeAddress { host, port }) => {
                (Socket::Left(connect_tcp(host, *port).await.map_err(failed)?), host)
            }
            RedisAddress::Unix(path) => {
                let socket = UnixStream::connect(path).await.map_err(failed)?;
                return Ok(ClientStream::Left(Socket::Right(socket)));
            }
        };
        let Some(tls) = &self.tls else { return Ok(ClientStream::Left(socket)) };
        let name = tls.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| StoreError::Tls(format!("{name:?} is not a valid host name")))?;
        let connector = TlsConnector::from(tls.client.current());
        match timeout(HANDSHAKE_TIMEOUT, connector.connect(name, socket)).await {
            Ok(Ok(stream)) => Ok(ClientStream::Right(Box::new(TlsStream::Client(stream)))),
            Ok(Err(error)) => Err(self.tls_error(&error).await),
            Err(_) => Err(self.not_tls("no answer to the handshake").await),
        }
    }

    /// Connects and logs in. The connection carries concurrent commands.
    pub(super) async fn connect(&self) -> Result<RedisConnection> {
        let login = self.login.connection_info().await?;
        let traffic = Traffic::new();
        let stream = Metered::new(self.open().await?, Arc::clone(&traffic));
        // Every caller sets its own time limit.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(PIPELINE_BUFFER);
        let opened = MultiplexedConnection::new_with_config(&login, stream, config).await;
        let (mut requests, driver) = self.first_reply(opened).await?;
        let closed = Arc::<Notify>::default();
        let is_closed = Arc::clone(&closed);
        let driver = async move {
            driver.await;
            is_closed.notify_one();
        };
        let driver = AbortOnDropHandle::new(tokio::spawn(driver));
        if let Some(name) = &self.login.client_name {
            // No ACL forbids HELLO, as it does CLIENT SETNAME. A server that refuses the name is used
            // without it.
            let mut hello = cmd("HELLO");
            let _ = hello.arg(2).arg("SETNAME").arg(name).query_async::<Value>(&mut requests).await;
        }
        Ok(RedisConnection { requests, closed, traffic, _driver: driver })
    }

    /// The first command of a RESP3 connection with a client name, unless the URL has one. It also
    /// logs in.
    pub(super) async fn hello(&self, name: &str) -> Result<Cmd> {
        let login = self.login.connection_info().await?;
        let mut hello = cmd("HELLO");
        hello.arg(3);
        if let Some(password) = login.password() {
            hello.arg("AUTH").arg(login.username().unwrap_or("default")).arg(password);
        }
        hello.arg("SETNAME").arg(self.login.client_name.as_deref().unwrap_or(name));
        Ok(hello)
    }
}

/// Connects to all addresses of a host at the same time: an address that does not answer must not
/// use up the time for the others.
pub(super) async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    // Tells a name without an address apart from an address without a listener.
    let unknown = |error| io::Error::new(io::ErrorKind::AddrNotAvailable, error);
    let addresses = lookup_host((host, port)).await.map_err(unknown)?;
    let dials: Vec<_> = addresses.map(|addr| Box::pin(TcpStream::connect(addr))).collect();
    if dials.is_empty() {
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the host has no address"));
    }
    let (stream, _) = select_ok(dials).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            RedisAddress::Tcp(address) => address.fmt(f),
            RedisAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Maximum size of a password file, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;

/// User name, password, database and name of the connections.
#[derive(Clone, Debug)]
pub(super) struct RedisLogin {
    login: StoreLogin,
    database: i64,
    client_name: Option<String>,
}

impl RedisLogin {
    /// The login in the URL, or else the configured one.
    fn from_url(url: &RedisConnectionInfo, configured: &StoreLogin) -> Self {
        let mut login = configured.clone();
        if url.username().is_some() || url.password().is_some() {
            login = StoreLogin {
                username: url.username().map(str::to_owned),
                password: url.password().map(Secret::new),
                password_file: None,
            };
        }
        Self { login, database: url.db(), client_name: None }
    }

    pub(super) fn has_password(&self) -> bool {
        self.login.password.is_some() || self.login.password_file.is_some()
    }

    /// The login as the `redis` crate takes it. A password file is read for each connection, so
    /// that a rotated password is used. Library name and version are not sent: an ACL then needs to
    /// allow one command less.
    pub(super) async fn connection_info(&self) -> Result<RedisConnectionInfo> {
        let StoreLogin { username, password, password_file } = &self.login;
        let mut info = RedisConnectionInfo::default().set_db(self.database).set_skip_set_lib_name();
        if let Some(username) = username {
            info = info.set_username(username);
        }
        Ok(match (password_file, password) {
            (Some(path), _) => info.set_password(read(path.clone()).await?),
            (None, Some(password)) => info.set_password(password.expose()),
            (None, None) => info,
        })
    }
}

/// Reads a password file, without the trailing newline that most editors add.
async fn read(path: PathBuf) -> Result<String> {
    let name = path.display().to_string();
    let read = spawn_blocking(move || {
        let mut text = String::new();
        File::open(path)?.take(MAX_PASSWORD).read_to_string(&mut text).map(|_| text)
    });
    match read.await {
        Ok(Ok(text)) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Ok(Err(error)) => Err(StoreError::Refused(format!("cannot read {name}: {error}"))),
        // The runtime is shutting down.
        Err(_) => Err(StoreError::Down),
    }
}

/// Replies to `CLUSTER SLOTS`, `CLUSTER NODES` and `CLUSTER INFO`.
pub(super) type ClusterReplies = (Value, String, String);

impl RedisConnection {
    /// Asks a node which node owns which slot.
    pub(super) async fn cluster_replies(&self) -> Result<ClusterReplies> {
        Ok(self.ask_cluster().await?)
    }

    /// The same with the error as it came.
    pub(super) async fn ask_cluster(&self) -> RedisResult<ClusterReplies> {
        let mut pipeline = redis::pipe();
        for topic in ["SLOTS", "NODES", "INFO"] {
            pipeline.cmd("CLUSTER").arg(topic);
        }
        pipeline.query_async(&mut self.requests.clone()).await
    }

    /// Runs one command on a key in a slot that is migrating to this node. `ASKING` and the command
    /// are sent together, so that no other caller's command gets in between and uses up the
    /// permission.
    pub(super) async fn asking<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("ASKING").ignore().add_command(command.clone());
        let (reply,) = pipeline.query_async::<(T,)>(&mut self.requests.clone()).await?;
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Registry;

    #[track_caller]
    fn check(url: &str, shown: &str, login: (i64, Option<&str>, Option<&str>)) {
        let target =
            Target::parse(url, &Config::default(), &TlsMetrics::shared(&mut Registry::default()))
                .unwrap();
        assert_eq!(target.to_string(), shown);
        for target in [&target, &target.at(&NodeAddress::new("elsewhere", 1))] {
            let info = futures_util::FutureExt::now_or_never(target.login.connection_info());
            let info = info.unwrap().unwrap();
            assert_eq!((info.db(), info.username(), info.password()), login);
        }
        assert!(!format!("{target:?}").contains(login.2.unwrap_or("nothing")), "{target:?}");
    }

    #[test]
    fn a_url_tells_place_user_and_database_and_another_place_keeps_them() {
        check("redis://h", "h:6379", (0, None, None));
        check("valkey://u:p%40ss@h:1/2", "h:1", (2, Some("u"), Some("p@ss")));
        check("redis://[::1]:7", "[::1]:7", (0, None, None));
        check("unix:///run/r.sock?db=3&pass=x9x", "unix:/run/r.sock", (3, None, Some("x9x")));
    }
}
