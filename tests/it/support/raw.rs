//! A client and an upstream that use raw HTTP/1, with a sidecar between them.

use std::time::Duration;

use jobcache::config::{Config, StoreUrl};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{sidecar::Sidecar, soon};

/// A sidecar with its own store, in front of an upstream that the test plays.
pub(crate) struct Between {
    pub(crate) sidecar: Sidecar,
    upstream: TcpListener,
}

/// One end of a connection.
pub(crate) struct End(TcpStream);

impl Between {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let upstream = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let mut config = Config::default();
        config.cache.settle = Duration::ZERO;
        config.store.reconnect_grace = Duration::ZERO;
        config.store.url = StoreUrl::Memory;
        config.upstream.url = format!("http://{}", upstream.local_addr().expect("an address"));
        change(&mut config);
        Self { sidecar: Sidecar::start(config).await, upstream }
    }

    /// Opens a client connection and writes these bytes.
    pub(crate) async fn client(&self, bytes: impl AsRef<[u8]>) -> End {
        let mut client = End(self.sidecar.client.connect().await);
        client.send(bytes).await;
        client
    }

    /// Accepts the next connection from the sidecar.
    pub(crate) async fn accept(&self) -> End {
        End(soon(self.upstream.accept()).await.expect("a connection").0)
    }

    /// Sends a client request. Returns both ends and the head that the upstream receives.
    pub(crate) async fn pass(&self, bytes: impl AsRef<[u8]>) -> (End, End, String) {
        let client = self.client(bytes).await;
        let mut upstream = self.accept().await;
        let head = upstream.head().await;
        (client, upstream, head)
    }
}

impl End {
    /// Writes to a peer that may have closed; returns whether everything was accepted.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        soon(self.0.write_all(bytes.as_ref())).await.is_ok()
    }

    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    /// Reads the next answer: its head, and a body of the stated length.
    pub(crate) async fn answer(&mut self) -> (String, String) {
        let head = self.head().await;
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        (head, self.exactly(length).await)
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.0.write_all(bytes.as_ref())).await.expect("bytes written");
    }

    /// Reads the next head, including its empty line.
    pub(crate) async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = soon(self.0.read_u8()).await;
            head.push(byte.unwrap_or_else(|error| panic!("{error} after {head:?}")));
        }
        String::from_utf8(head).expect("a readable head")
    }

    pub(crate) async fn exactly(&mut self, len: usize) -> String {
        let mut bytes = vec![0; len];
        soon(self.0.read_exact(&mut bytes)).await.expect("the requested bytes");
        String::from_utf8(bytes).expect("readable bytes")
    }

    /// Reads until the other side closes.
    pub(crate) async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = soon(self.0.read_to_end(&mut bytes)).await;
        String::from_utf8(bytes).expect("readable bytes")
    }
}

pub(crate) fn request(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: jobs.example\r\n{more}\r\n")
}

/// An answer that closes the upstream connection, so that the next exchange uses another one.
pub(crate) const LAST_OK: &str =
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Reads a final answer with the body `ok`.
pub(crate) async fn ok(client: &mut End) -> String {
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(client.exactly(2).await, "ok");
    head
}
