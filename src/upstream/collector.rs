//! Sends spans to their collector.
//!
//! It opens connections as those to the upstream are opened, and is apart from them in all else: what
//! a collector does is no news of the upstream, and takes none of its places. A connection is made for
//! each message and closed after it. Messages are seconds apart, and a collector is often a service
//! whose pods come and go: a kept connection would stay with one of them.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode,
    client::conn::http1,
    http::{
        HeaderMap, HeaderValue, Method,
        header::{CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER},
    },
};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;

use super::{
    UpstreamError,
    connect::{Connector, Protocol},
};
use crate::{
    config::{Config, TracesConfig},
    metrics::Metrics,
    tls::TlsError,
};

/// The longest answer that is read, in bytes; what is to be said fits.
const MAX_ANSWER: usize = 64 << 10;

/// Who takes spans.
#[derive(Debug)]
pub(crate) struct Collector {
    connector: Connector,
    target: String,
    headers: HeaderMap,
}

/// What it answers.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// How long it wants to be left alone.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
}

/// Why it does not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("the exchange with the collector broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the collector's answer cannot be read: {0}")]
    Answer(Box<dyn std::error::Error + Send + Sync>),
}

/// Without a word of the upstream, which it is not about.
impl From<UpstreamError> for Unanswered {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::Connect { source, .. } | UpstreamError::Tls { source, .. } => {
                Self::Connect(source)
            }
            _ => Self::Connect(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Collector {
    /// Reads certificates; connects to nothing yet.
    pub(crate) fn new(traces: &TracesConfig, metrics: &Arc<Metrics>) -> Result<Self, TlsError> {
        let mut config = Config::default();
        config.upstream.url.clone_from(&traces.origin);
        config.upstream.connect_timeout = traces.timeout;
        config.upstream.tls.ca.clone_from(&traces.ca);
        let connector = Connector::new(&config, metrics)?;
        let mut headers: HeaderMap = traces.headers.iter().cloned().collect();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if let Ok(host) = HeaderValue::try_from(connector.authority()) {
            headers.insert(HOST, host);
        }
        Ok(Self { connector, target: traces.target.clone(), headers })
    }

    /// Posts one message. The caller bounds how long it takes.
    pub(crate) async fn post(&self, message: Bytes) -> Result<Answer, Unanswered> {
        let io = TokioIo::new(self.connector.connect(Protocol::Http1).await?);
        let (mut sender, connection) = http1::handshake(io).await?;
        let _ends_with_this = AbortOnDropHandle::new(tokio::spawn(connection));
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = Method::POST;
        // It was a part of a URL.
        *request.uri_mut() = self.target.parse().unwrap_or_default();
        *request.headers_mut() = self.headers.clone();
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(Unanswered::Answer)?;
        let seconds = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = seconds.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        Ok(Answer { status: head.status, retry_after, body: body.to_bytes() })
    }
}
