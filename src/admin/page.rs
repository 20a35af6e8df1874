//! Answers of the admin listener: whole ones, and the stream of events.

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

/// What is answered.
pub type Reply = Response<Page>;

/// The body of an answer.
#[derive(Debug)]
pub enum Page {
    /// All of it; nothing once it is sent.
    Whole(Bytes),
    /// What comes, for as long as it comes.
    Live(mpsc::Receiver<Bytes>),
}

impl Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(std::mem::take(bytes))),
            Self::Live(parts) => parts.poll_recv(cx),
        };
        bytes.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Live(_) => SizeHint::default(),
        }
    }
}

/// A JSON answer.
pub(super) fn reply(status: StatusCode, body: &impl Serialize) -> Reply {
    // Texts, numbers and lists are what JSON has.
    let mut text = serde_json::to_vec(body).unwrap_or_default();
    text.push(b'\n');
    typed(status, "application/json", Page::Whole(text.into()))
}

/// An answer that nobody is to keep, nor to take for something else, nor to show in a page of his own.
pub(super) fn typed(status: StatusCode, kind: &'static str, page: Page) -> Reply {
    let mut response = Response::new(page);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // A browser hangs up on a page of another site, which could else keep the places of listeners.
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// An answer that is to be asked for again, in whole seconds.
pub(super) fn later(status: StatusCode, body: &impl Serialize, wait: Duration) -> Reply {
    let mut response = reply(status, body);
    let seconds = wait.as_millis().div_ceil(1000).max(1);
    // Digits always are a value.
    if let Ok(seconds) = HeaderValue::from_str(&seconds.to_string()) {
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    response
}

pub(super) fn wrong_method(allowed: &'static str) -> Reply {
    let error = format!("this page takes {allowed}");
    let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": error }));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
