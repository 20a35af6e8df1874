//! The upstream and how long jobcache waits for it.

use std::{path::PathBuf, time::Duration};

use hyper::http::uri::Authority;

use super::ClientTls;

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
    /// Requests to the upstream at a time, each over its own connection, upgrades included; further
    /// ones wait for `connect_timeout`.
    pub max_connections: usize,
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
