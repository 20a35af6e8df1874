//! Connections of the clients of a history, and what they send and receive.

use std::{io, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Frame, Incoming},
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::mpsc, task::JoinHandle, time::sleep};

use super::{
    callers::Caller,
    record::{How, Process},
    world::{self, Door},
};
use crate::support::{Body, full};

/// Pause before a client tries again to connect to a sidecar that is gone.
const RECONNECT: Duration = Duration::from_millis(10);

/// A kept connection to one process of a sidecar.
pub(super) struct Line {
    pub(super) process: Process,
    sender: http1::SendRequest<Body>,
    connection: JoinHandle<()>,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) version: Option<u32>,
    /// The caller that the body names.
    pub(super) view: Option<Caller>,
    pub(super) how: How,
    pub(super) pending: bool,
    pub(super) tag: Option<String>,
    /// Whether the answer was held.
    pub(super) is_applied: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        // A client that hangs up closes the connection at once.
        self.connection.abort();
    }
}

impl Line {
    /// Returns the existing connection if it still works, or a new one; `None` while the sidecar is
    /// gone.
    pub(super) async fn ready(line: Option<Self>, door: Option<Door>) -> Option<Self> {
        if let Some(mut line) = line
            && line.sender.ready().await.is_ok()
        {
            return Some(line);
        }
        let line = match door {
            Some(door) => Self::open(door.process, door.proxy).await,
            None => None,
        };
        if line.is_none() {
            sleep(RECONNECT).await;
        }
        line
    }

    pub(super) async fn open(process: Process, address: std::net::SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        let connection = tokio::spawn(async move { drop(connection.await) });
        Some(Self { process, sender, connection })
    }

    /// Sends a request without a body, and returns the head of the answer.
    pub(super) async fn send(&mut self, outgoing: Outgoing) -> Option<Response<Incoming>> {
        self.sender.send_request(outgoing.request).await.ok()
    }

    pub(super) async fn exchange(&mut self, outgoing: Outgoing) -> Option<Answer> {
        let Outgoing { request, rest } = outgoing;
        let head = self.sender.send_request(request).await.ok()?;
        if let Some((upload, rest)) = rest {
            let _ = upload.send(rest).await;
        }
        Answer::read(head).await
    }
}

impl Answer {
    pub(super) async fn read(response: Response<Incoming>) -> Option<Self> {
        let (head, body) = response.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        let said = head.headers.get_all("cache-status").iter().next_back();
        let said = said.and_then(|said| said.to_str().ok()).unwrap_or_default();
        let how = match said {
            _ if said.contains("detail=held") => How::Held,
            _ if said.contains("; hit") => How::Hit,
            _ if said.contains("; collapsed") => How::Collapsed,
            _ if said.contains("; stored") => How::Stored,
            _ if said.contains("fwd=miss") => How::Miss,
            _ => How::Pass,
        };
        let pending = said.contains("detail=invalidation-pending");
        let version = number_in(&body, r#""version":"#);
        let view = number_in(&body, r#""caller":"#).and_then(|view| Caller::try_from(view).ok());
        let tag = head.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok());
        let tag = tag.map(str::to_owned);
        let is_applied = head.headers.contains_key("preference-applied");
        Some(Self { status: head.status, version, view, how, pending, tag, is_applied })
    }
}

/// A request, and the part of its body that waits for the head of the answer.
pub(super) struct Outgoing {
    request: Request<Body>,
    rest: Option<(mpsc::Sender<Bytes>, Bytes)>,
}

impl Outgoing {
    pub(super) fn new(method: Method, target: Uri) -> Self {
        let mut request = Request::new(full(Bytes::new()));
        *request.method_mut() = method;
        *request.uri_mut() = target;
        request.headers_mut().insert(header::HOST, HeaderValue::from_static(world::HOST));
        Self { request, rest: None }
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).expect("a value");
        self.request.headers_mut().insert(HeaderName::from_static(name), value);
        self
    }

    pub(super) fn body(mut self, body: String) -> Self {
        *self.request.body_mut() = full(body);
        self
    }

    /// Sends half of the body before the head of the answer has come, and the rest after it.
    pub(super) fn upload(mut self, body: String) -> Self {
        let mut first = Bytes::from(body);
        let rest = first.split_off(first.len() / 2);
        let (sender, mut receiver) = mpsc::channel(2);
        sender.try_send(first).expect("an empty channel");
        let frames = futures_util::stream::poll_fn(move |cx| {
            receiver.poll_recv(cx).map(|data| Some(Ok::<_, io::Error>(Frame::data(data?))))
        });
        *self.request.body_mut() = StreamBody::new(frames).boxed();
        Self { rest: Some((sender, rest)), ..self }
    }
}

/// Returns the number after a name, which is all that the judge needs of a body.
pub(super) fn number_in(body: &[u8], name: &str) -> Option<u32> {
    let name = name.as_bytes();
    let at = body.windows(name.len()).position(|window| window == name)? + name.len();
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}
