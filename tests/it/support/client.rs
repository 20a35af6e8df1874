//! A client that shows all parts of an answer, and one that sends raw bytes.

use std::{fmt::Write as _, net::SocketAddr, sync::Mutex};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::{http1, http2},
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Body, full, soon};

/// Host name of the service for all clients. Sidecars of one upstream serve one name, and an entry
/// belongs to the name under which it was read.
pub(crate) const HOST: &str = "jobs.example";

/// An HTTP/1.1 client of one address that keeps connections open.
pub(crate) struct Client {
    address: SocketAddr,
    /// Value of its `Host` header.
    host: String,
    idle: Mutex<Vec<http1::SendRequest<Body>>>,
}

/// A complete answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, host: HOST.to_owned(), idle: Mutex::default() }
    }

    /// Creates a client that uses the address as host name, as operators do.
    pub(crate) fn operator(address: SocketAddr) -> Self {
        Self { host: address.to_string(), ..Self::new(address) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.request(Method::GET, path).send().await
    }

    /// Returns the value of a metric from an admin listener, or 0 if it has no such line yet.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let metrics = self.get("/metrics").await;
        let value =
            metrics.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a whole number"))
    }

    /// Returns how often the limit with this setting was reached.
    pub(crate) async fn limit_hits(&self, setting: &str) -> u64 {
        self.metric(&format!("jobcache_limits_hit_total{{limit=\"{setting}\"}}")).await
    }

    pub(crate) async fn put(&self, path: &str) -> Reply {
        self.request(Method::PUT, path).body(r#"{"status":"done"}"#).send().await
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder<'_> {
        let mut request = Request::new(full(""));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().expect("a request target");
        let host = HeaderValue::from_str(&self.host).expect("a header value");
        request.headers_mut().insert(header::HOST, host);
        RequestBuilder { client: self, request }
    }

    /// Sends a request on its own connection without waiting for the answer. The answer can be read
    /// later, or the connection can be dropped.
    pub(crate) async fn start(&self, method: Method, path: &str, body: &str) -> Started {
        self.begin(method, path, "", body).await
    }

    /// Like [`start`](Self::start), with this credential and no body.
    pub(crate) async fn start_as(&self, method: Method, path: &str, who: &str) -> Started {
        self.begin(method, path, &format!("authorization: {who}\r\n"), "").await
    }

    async fn begin(&self, method: Method, path: &str, headers: &str, body: &str) -> Started {
        let host = &self.host;
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{headers}");
        head.push_str("connection: close\r\n");
        if !body.is_empty() {
            let _ = write!(head, "content-length: {}\r\n", body.len());
        }
        let mut stream = self.connect().await;
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.expect("a request written");
        Started { stream }
    }

    /// Sends these bytes and returns everything received until the server closes. The server may
    /// answer and close before it has read everything.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let (reader, mut writer) = self.connect().await.into_split();
        let write = async move {
            let _ = writer.write_all(bytes).await;
            // Some servers treat a half-closed connection as a hang-up.
            writer.forget();
        };
        tokio::join!(write, read_all(reader)).1
    }

    /// Sends a request with exactly this target, which need not be a URI. Returns the status and
    /// the body.
    pub(crate) async fn spelled(&self, method: &str, target: &str) -> (u16, String) {
        let rest = "connection: close\r\ncontent-length: 0\r\n\r\n";
        let host = &self.host;
        let request = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{rest}");
        split(&self.raw(request.as_bytes()).await)
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        soon(TcpStream::connect(self.address)).await.expect("a connection")
    }

    /// Opens a connection with HTTP/2 prior knowledge.
    pub(crate) async fn http2(&self) -> http2::SendRequest<Body> {
        let io = TokioIo::new(self.connect().await);
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), io).await.expect("an HTTP/2 preface");
        tokio::spawn(connection);
        sender
    }

    async fn connection(&self) -> Result<http1::SendRequest<Body>, hyper::Error> {
        loop {
            let idle = self.idle.lock().expect("no panic under the lock").pop();
            let Some(mut idle) = idle else { break };
            if idle.ready().await.is_ok() {
                return Ok(idle);
            }
        }
        let io = TokioIo::new(self.connect().await);
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }
}

pub(crate) struct RequestBuilder<'c> {
    client: &'c Client,
    request: Request<Body>,
}

impl RequestBuilder<'_> {
    /// Adds a header; `host` replaces the existing one.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        let (name, value) = (HeaderName::from_static(name), HeaderValue::from_str(value));
        let headers = self.request.headers_mut();
        if name == header::HOST {
            headers.remove(header::HOST);
        }
        headers.append(name, value.expect("a header value"));
        self
    }

    pub(crate) fn body(self, body: impl Into<Bytes>) -> Self {
        self.stream(full(body))
    }

    pub(crate) fn stream(mut self, body: Body) -> Self {
        *self.request.body_mut() = body;
        self
    }

    /// Sends the request and returns the whole answer; panics after a deadline.
    pub(crate) async fn send(self) -> Reply {
        let what = format!("{} {}", self.request.method(), self.request.uri());
        self.try_send().await.unwrap_or_else(|error| panic!("{what}: {error:?}"))
    }

    /// Sends the request and returns the whole answer or the connection error.
    pub(crate) async fn try_send(self) -> Result<Reply, hyper::Error> {
        let client = self.client;
        let (response, sender) = soon(self.exchange()).await?;
        let reply = Reply::read(response).await?;
        client.idle.lock().expect("no panic under the lock").push(sender);
        Ok(reply)
    }

    /// Sends the request and returns the head of the answer with an unread body.
    pub(crate) async fn open(self) -> Response<Incoming> {
        soon(self.exchange()).await.expect("an answer").0
    }

    async fn exchange(
        self,
    ) -> Result<(Response<Incoming>, http1::SendRequest<Body>), hyper::Error> {
        let mut sender = self.client.connection().await?;
        let response = sender.send_request(self.request).await?;
        Ok((response, sender))
    }
}

impl Reply {
    pub(crate) async fn read(response: Response<Incoming>) -> Result<Self, hyper::Error> {
        let (head, body) = response.into_parts();
        let body = soon(body.collect()).await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Self { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
    }

    /// Returns jobcache's member of `Cache-Status`, which is the last one.
    pub(crate) fn cache_status(&self) -> &str {
        let status = self.headers.get_all("cache-status").iter().next_back();
        status.map_or("", |status| status.to_str().expect("a readable Cache-Status"))
    }

    pub(crate) fn is_hit(&self) -> bool {
        self.cache_status().starts_with("jobcache; hit")
    }

    /// Returns whether the answer was fetched for this request and stored.
    pub(crate) fn is_stored(&self) -> bool {
        self.cache_status() == "jobcache; fwd=miss; stored"
    }

    /// Returns whether the answer was neither served from the cache nor stored.
    pub(crate) fn is_uncached(&self) -> bool {
        let status = self.cache_status();
        status.starts_with("jobcache; fwd=") && !status.contains("; stored")
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a readable body")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().expect("a readable header"))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// Returns the reason in an answer generated by jobcache: `{"error": "..."}`.
    pub(crate) fn reason(&self) -> String {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        let json = self.json();
        let reason = json["error"].as_str().unwrap_or_else(|| panic!("no reason: {json}"));
        assert!(!reason.is_empty(), "an empty reason");
        reason.into()
    }

    #[track_caller]
    pub(crate) fn assert(&self, status: u16, body: &str) {
        assert_eq!((self.status.as_u16(), self.text()), (status, body), "{:?}", self.headers);
    }
}

/// A request that was sent and not yet answered.
pub(crate) struct Started {
    stream: TcpStream,
}

impl Started {
    /// Returns the status and the body.
    pub(crate) async fn answer(self) -> (u16, String) {
        split(&read_all(self.stream).await)
    }
}

/// Reads until the server closes or resets the connection.
async fn read_all(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = soon(stream.read_to_end(&mut bytes)).await;
    bytes
}

/// Splits raw bytes into status and body; the status is 0 if the bytes are not an answer.
pub(crate) fn split(bytes: &[u8]) -> (u16, String) {
    let text = String::from_utf8_lossy(bytes);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if is_chunked { dechunk(body) } else { body.into() })
}

fn dechunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 || size > rest.len() {
            break;
        }
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}
