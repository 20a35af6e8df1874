//! How a connection to a server is opened: where it is, how it is spoken to and as whom.
//!
//! The data and the tracking connection are both opened here, so that whatever is true of one is true
//! of the other. It knows nothing of roles, versions and what is asked over a connection, and retries
//! nothing: who connects has a budget and knows what to do without.

mod login;

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::select_ok;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, IntoConnectionInfo, RedisError,
    aio::MultiplexedConnection, cmd,
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpStream, UnixStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector, TlsStream,
    rustls::{self, AlertDescription, CertificateError, ClientConfig, pki_types::ServerName},
};
use tokio_util::task::AbortOnDropHandle;

pub(super) use self::login::Login;
use super::{refused, session::classify};
use crate::{
    config,
    metrics::Metrics,
    store::StoreError,
    tls::{self, Renewed, TlsError},
    transport::{Socket, Stream},
};

/// Commands that wait for their turn on a connection.
const QUEUE: usize = 1024;
/// For the handshake of TLS: a server that speaks none may wait for more of it in silence, and is to be
/// told from one that hangs.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(700);

/// For a server to say why it does not believe us.
const REJECTION_TIMEOUT: Duration = Duration::from_millis(300);

/// A server, and who we are there.
#[derive(Clone, Debug)]
pub(in crate::store) struct Target {
    place: Place,
    login: Arc<Login>,
    /// None = in the clear.
    tls: Option<Arc<Tls>>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A host by its name or address, and a port.
    Tcp(String, u16),
    /// A socket of this machine.
    Unix(PathBuf),
}

/// How TLS is spoken, whoever the server is.
#[derive(Debug)]
pub(super) struct Tls {
    client: Arc<Renewed<ClientConfig>>,
    /// In every server's certificate; none = the host that is connected to.
    server_name: Option<String>,
    _renewal: AbortOnDropHandle<()>,
}

impl Tls {
    /// Reads certificates, and keeps them as the files are.
    pub(super) fn new(
        config: &config::Config,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, TlsError> {
        let client = tls::renewed_client(config.store.tls.clone())?;
        let renewal = client.keep(config.tls_renew_interval, Arc::clone(metrics));
        let server_name = config.store.tls.server_name.clone();
        Ok(Arc::new(Self { client, server_name, _renewal: renewal }))
    }
}

/// A connection on which many ask at a time. It ends with this value, whoever holds a clone of it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) requests: MultiplexedConnection,
    _driver: AbortOnDropHandle<()>,
}

impl Target {
    /// The server that a URL names. Who we are there the URL says, or else the configuration.
    pub(super) fn parse(
        url: &str,
        config: &config::Config,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
        let (scheme, is_tls) = match scheme {
            "rediss" | "valkeys" => ("redis", true),
            scheme => (scheme, false),
        };
        // In the clear, as the crate reads URLs of TLS only where it speaks it.
        let info = format!("{scheme}://{rest}").into_connection_info().map_err(refused)?;
        let place = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Place::Tcp(host.clone(), *port),
            ConnectionAddr::Unix(path) => Place::Unix(path.clone()),
            other => return Err(StoreError::Refused(format!("cannot speak to {other}"))),
        };
        let login = Login::of_url(info.redis_settings(), &config.store.login);
        let tls = is_tls.then(|| Tls::new(config, metrics)).transpose();
        let tls = tls.map_err(|error| StoreError::Tls(error.to_string()))?;
        Ok(Self { place, login: Arc::new(login), tls })
    }

    /// A node of a cluster.
    pub(in crate::store) fn of_seeds(
        seeds: &config::ClusterSeeds,
        config: &config::Config,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let (host, port) = seeds.hosts.first().map_or(("", 0), |(host, port)| (&**host, *port));
        let login = if seeds.login.is_some() { &seeds.login } else { &config.store.login };
        let tls = seeds.is_tls.then(|| Tls::new(config, metrics)).transpose();
        let tls = tls.map_err(|error| StoreError::Tls(error.to_string()))?;
        Ok(Self::new(host, port, Arc::new(Login::new(login, 0)), tls))
    }

    /// A server at an address.
    pub(super) fn new(host: &str, port: u16, login: Arc<Login>, tls: Option<Arc<Tls>>) -> Self {
        Self { place: Place::Tcp(host.to_owned(), port), login, tls }
    }

    /// Another server, spoken to in the same way by the same user.
    pub(in crate::store) fn at(&self, host: &str, port: u16) -> Self {
        Self::new(host, port, Arc::clone(&self.login), self.tls.clone())
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Connects; nothing has been said yet.
    pub(super) async fn open(&self) -> Result<Stream, StoreError> {
        let lost = |error: io::Error| StoreError::Lost(format!("{self}: {error}"));
        let (socket, host) = match &self.place {
            Place::Tcp(host, port) => (Socket::Left(dial(host, *port).await.map_err(lost)?), host),
            Place::Unix(path) => {
                let socket = UnixStream::connect(path).await.map_err(lost)?;
                return Ok(Stream::Left(Socket::Right(socket)));
            }
        };
        let Some(tls) = &self.tls else { return Ok(Stream::Left(socket)) };
        let name = tls.server_name.as_ref().unwrap_or(host);
        let name = ServerName::try_from(name.clone())
            .map_err(|_| StoreError::Tls(format!("{name:?} is no name of a host")))?;
        let connector = TlsConnector::from(tls.client.current());
        match timeout(HANDSHAKE_TIMEOUT, connector.connect(name, socket)).await {
            Ok(Ok(stream)) => Ok(Stream::Right(Box::new(TlsStream::Client(stream)))),
            Ok(Err(error)) => Err(self.distrusted(&error)),
            Err(_) => Err(StoreError::Tls(format!(
                "{self} does not answer the handshake; a server without TLS has a redis:// URL"
            ))),
        }
    }

    /// Connects and logs in, for whoever asks many things at a time.
    pub(super) async fn connect(&self) -> Result<Connection, StoreError> {
        let login = self.login.settings().await?;
        let stream = self.open().await?;
        // Every caller has a limit of its own for how long it waits.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let opened = MultiplexedConnection::new_with_config(&login, stream, config).await;
        let (requests, driver) = match opened {
            Ok(opened) => opened,
            Err(error) => return Err(self.first(&error).await),
        };
        Ok(Connection { requests, _driver: AbortOnDropHandle::new(tokio::spawn(driver)) })
    }

    /// The first command of a connection that is given a name and speaks RESP3: it logs in.
    pub(super) async fn hello(&self, name: &str) -> Result<Cmd, StoreError> {
        let login = self.login.settings().await?;
        let mut hello = cmd("HELLO");
        hello.arg(3);
        if let Some(password) = login.password() {
            hello.arg("AUTH").arg(login.username().unwrap_or("default")).arg(password);
        }
        hello.arg("SETNAME").arg(name);
        Ok(hello)
    }

    /// What the failure of the first exchange on a connection means.
    pub(super) async fn first(&self, error: &RedisError) -> StoreError {
        let is_cut = error.is_io_error() || error.is_connection_dropped();
        if self.tls.is_some() && is_cut {
            return self.rejected().await.unwrap_or_else(|| classify(error));
        }
        // A server of TLS answers with an alert or hangs up.
        if self.tls.is_none() && (is_cut || error.kind() == redis::ErrorKind::Parse) {
            return StoreError::Lost(format!(
                "{self} ends the connection at the first command ({error}); a server of TLS has a \
                 rediss:// URL"
            ));
        }
        classify(error)
    }

    /// With TLS 1.3 a server says only after the handshake that it does not believe us, and whoever
    /// writes then may find the connection gone before that is read. So this one only reads.
    async fn rejected(&self) -> Option<StoreError> {
        let mut stream = self.open().await.ok()?;
        let read = timeout(REJECTION_TIMEOUT, stream.read(&mut [0])).await.ok()?;
        read.err().map(|error| self.distrusted(&error))
    }

    /// What came of the handshake, and how it is mended.
    fn distrusted(&self, error: &io::Error) -> StoreError {
        let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let mend = match reason {
            // A signature is bad where another authority has the same name.
            Some(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => "; name the authority that signed it in store.tls.ca",
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => "; name the one that it is for in store.tls.server_name",
            Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
                "; it asks for a certificate of ours: store.tls.cert"
            }
            Some(rustls::Error::InvalidMessage(_)) => "; a server without TLS has a redis:// URL",
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                "; a server without TLS has a redis:// URL"
            }
            _ => "",
        };
        StoreError::Tls(format!("{self}: {error}{mend}"))
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
    fn check(url: &str, shown: &str, login: (i64, Option<&str>, Option<&str>)) {
        let target = Target::parse(url, &config::Config::default(), &Arc::default()).unwrap();
        assert_eq!(target.to_string(), shown);
        for target in [&target, &target.at("elsewhere", 1)] {
            let info = futures_util::FutureExt::now_or_never(target.login.settings());
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
