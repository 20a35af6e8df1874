//! Responses of the admin listener: complete bodies, and the stream of events.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    body::{Body, Frame, SizeHint},
    http::{
        HeaderValue,
        header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS},
    },
};
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;

/// A response of the admin listener.
pub type Reply = Response<ReplyBody>;

/// The body of a response.
#[derive(Debug)]
pub enum ReplyBody {
    /// A complete body; empty once it is sent.
    Complete(Bytes),
    /// A stream that ends when its sender is dropped.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            Self::Complete(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Self::Complete(bytes) => Poll::Ready(Some(std::mem::take(bytes))),
            Self::Stream(chunks) => chunks.poll_recv(cx),
        };
        bytes.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Complete(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Complete(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// A JSON response.
pub(super) fn json_reply(status: StatusCode, body: &impl Serialize) -> Reply {
    // Bodies hold strings, numbers, lists and maps with string keys, which never fail to serialize.
    let mut text = serde_json::to_vec(body).unwrap_or_default();
    text.push(b'\n');
    typed_reply(status, "application/json", ReplyBody::Complete(text.into()))
}

/// A response of this content type that must not be cached, sniffed for another type, or embedded
/// by pages of other origins.
pub(super) fn typed_reply(
    status: StatusCode,
    content_type: &'static str,
    page: ReplyBody,
) -> Reply {
    let mut response = Response::new(page);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Browsers then drop the response if a page of another site asked for it, which could otherwise
    // occupy all places of the event stream.
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// A JSON response with `Retry-After`, in whole seconds, at least 1.
pub(super) fn retry_later(status: StatusCode, body: &impl Serialize, wait: Duration) -> Reply {
    let mut response = json_reply(status, body);
    let seconds = wait.as_millis().div_ceil(1000).max(1);
    // Digits are always a valid header value.
    if let Ok(seconds) = HeaderValue::from_str(&seconds.to_string()) {
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    response
}

pub(super) fn method_not_allowed(allowed: &'static str) -> Reply {
    let error = format!("method not allowed; this page accepts {allowed}");
    let mut response = json_reply(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": error }));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
