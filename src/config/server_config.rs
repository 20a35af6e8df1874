//! Limits for clients.

use std::time::Duration;

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
