//! Limits for clients and for the upstream, and the certificates of both sides. Only the paths of
//! certificates: the code that speaks TLS reads the files.

use std::{path::PathBuf, time::Duration};

use hyper::http::uri::Authority;
use ipnet::IpNet;

/// Header fields that hyper parses without a memory allocation, and its own limit by default.
pub const HEADERS_ON_STACK: usize = 100;

/// Limits for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct ServerConfig {
    /// Threads that serve; 0 = half of the CPUs that the process may use, and at least one.
    pub workers: usize,
    /// Client connections at a time; further ones wait in the listen backlog.
    pub max_connections: usize,
    /// Requests being answered at a time, over all connections; further ones get 503.
    pub max_requests: usize,
    /// Time from the end of one request to the end of the next one's head: it limits how long an
    /// idle connection is kept and how slowly a head may arrive. Longer than the idle timeout of
    /// load balancers (60 s), or they send requests into connections that are just being closed.
    pub header_timeout: Duration,
    /// Time for which a client may accept nothing of its answer.
    pub write_timeout: Duration,
    /// Bytes per second that an upload has to bring on average until it is answered; 0 = no limit.
    pub min_upload_rate: usize,
    /// Header fields in a head, of requests and of the upstream's responses. Above
    /// [`HEADERS_ON_STACK`] the parser allocates memory for each head.
    pub max_headers: usize,
    /// Bytes in a head, of requests and of the upstream's responses.
    pub max_header_bytes: usize,
    /// Bytes in the path and query of a request.
    pub max_uri: usize,
    /// Requests at a time over one HTTP/2 connection.
    pub max_streams: usize,
    /// Streams of one HTTP/2 connection that were reset before they were looked at.
    pub max_pending_resets: usize,
    /// Streams of one HTTP/2 connection that were reset because of a client's mistake.
    pub max_faulty_streams: usize,
    /// Whether the upstream sees header names as the client spells them instead of in lower case. It
    /// costs an allocation for each request, hits included.
    pub preserve_header_case: bool,
    /// Whether a request with the header fields of the last hit on its connection is answered without
    /// parsing them.
    pub repeat_fast_path: bool,
    /// Whether another process may listen on `listen` too, to take over from this one.
    pub reuse_port: bool,
    /// Whether each connection begins with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Peers from which that header, `Forwarded` and `X-Forwarded-*` are accepted. Peers on a unix
    /// socket are always trusted.
    pub trusted_proxies: Vec<IpNet>,
}

impl ServerConfig {
    /// Bytes that a connection may buffer in each direction: room for a head and for one write to
    /// TCP. A client that stops reading makes the server hold this much.
    pub fn buffer(&self) -> usize {
        self.max_header_bytes + (64 << 10)
    }
}

/// The upstream and the limits of its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// `http://host[:port]`, `https://host[:port]` or `unix:/path`, without a path of requests.
    pub url: String,
    /// TLS files for an `https` URL.
    pub tls: ClientTls,
    /// Time to open a connection, or to wait for a free one.
    pub connect_timeout: Duration,
    /// Time from the last byte of the request to the head of the response.
    pub response_timeout: Duration,
    /// Time between two parts of a response body.
    pub body_timeout: Duration,
    /// Time for which an unused connection is kept: shorter than the upstream's keep-alive
    /// (uvicorn: 5 s).
    pub idle_timeout: Duration,
    /// Unused connections that are kept.
    pub max_idle: usize,
    /// Requests to the upstream at a time, each over its own connection, without streams; further
    /// ones wait for `connect_timeout`.
    pub max_connections: usize,
    /// Streams at a time: upgrades, event streams, and answers that are still open a second
    /// after their head.
    pub max_streams: usize,
    /// Age from which a connection takes no further request, so that names are resolved again.
    pub max_age: Duration,
    /// Requests that may wait for a connection at a time.
    pub max_waiting: usize,
}

/// Where the upstream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP, to `host:port`.
    Tcp(String),
    /// TLS over TCP.
    Tls {
        /// `host:port` to connect to.
        authority: String,
        /// Name to ask for and to find in the certificate.
        name: String,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl UpstreamConfig {
    /// The endpoint of the URL, with the default port of its scheme if it has none.
    pub fn endpoint(&self) -> Endpoint {
        if let Some(path) = self.url.strip_prefix("unix:") {
            return Endpoint::Unix(PathBuf::from(path));
        }
        let (port, rest) = match self.url.strip_prefix("https://") {
            Some(rest) => (443, rest),
            None => (80, self.url.trim_start_matches("http://")),
        };
        let given = rest.trim_end_matches('/');
        let parsed = given.parse::<Authority>().ok();
        let authority = match &parsed {
            Some(parsed) if parsed.port().is_none() => format!("{given}:{port}"),
            _ => given.to_owned(),
        };
        if port == 80 {
            return Endpoint::Tcp(authority);
        }
        let host = parsed.as_ref().map_or(given, Authority::host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = self.tls.server_name.clone().unwrap_or_else(|| host.to_owned());
        Endpoint::Tls { authority, name }
    }
}

/// A certificate to present, and its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPair {
    /// PEM, with the chain that leads to an authority.
    pub cert: Option<PathBuf>,
    /// PEM; none = the key is in the file of the certificate.
    pub key: Option<PathBuf>,
}

/// Files of a certificate with its chain and of its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// How a TLS server is verified, and what is presented to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// PEM file of the trusted authorities, and of server certificates that are trusted as they are;
    /// none = the authorities of the system.
    pub ca: Option<PathBuf>,
    /// Certificate for a server that asks for one.
    pub identity: KeyPair,
    /// Name that the server's certificate must have; none = the host of the URL.
    pub server_name: Option<String>,
    /// Extent of the verification.
    pub verify: TlsVerify,
}

/// Extent to which a server's certificate is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVerify {
    /// The authority that signed it, and its name.
    #[default]
    Full,
    /// The authority only.
    Ca,
    /// Nothing.
    None,
}

impl TlsVerify {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Ca => "ca",
            Self::None => "none",
        }
    }
}

impl KeyPair {
    /// The files of both; none without a certificate.
    pub fn identity(&self) -> Option<Identity> {
        let cert = self.cert.clone()?;
        let key = self.key.clone().unwrap_or_else(|| cert.clone());
        Some(Identity { cert, key })
    }
}
