//! Sends spans to their collector.
//!
//! Connections are opened as for the upstream, and nothing else is shared: a failing collector says
//! nothing about the upstream, and its connections do not count in `upstream.max_connections`. Each
//! message has its own connection, which is closed afterwards. Messages are seconds apart, and a
//! collector is often a service with pods that come and go: a kept connection would stay with one
//! of them.

use std::{io, time::Duration};

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
    connect::{Connector, UpstreamProtocol},
};
use crate::{
    config::{Config, TracesConfig},
    tls::{TlsError, TlsMetrics},
};

/// Largest response body that is read, in bytes. Any useful one fits.
const MAX_REPLY_BYTES: usize = 64 << 10;

/// The collector that spans are sent to.
#[derive(Debug)]
pub(crate) struct Collector {
    connector: Connector,
    target: String,
    headers: HeaderMap,
}

/// The response of the collector.
#[derive(Debug)]
pub(crate) struct CollectorReply {
    pub(crate) status: StatusCode,
    /// The time that the collector asks the sender to wait.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
}

impl Collector {
    /// Reads the certificates. Does not connect yet.
    pub(crate) fn new(
        traces: &TracesConfig,
        tls_renew_interval: Duration,
        metrics: TlsMetrics,
    ) -> Result<Self, TlsError> {
        let Config { mut upstream, .. } = Config::default();
        upstream.url.clone_from(&traces.origin);
        upstream.connect_timeout = traces.timeout;
        upstream.tls.ca.clone_from(&traces.ca);
        let connector = Connector::new(&upstream, tls_renew_interval, metrics)?;
        let mut headers: HeaderMap = traces.headers.iter().cloned().collect();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if let Ok(host) = HeaderValue::try_from(connector.authority()) {
            headers.insert(HOST, host);
        }
        Ok(Self { connector, target: traces.target.clone(), headers })
    }

    /// Posts one message. The caller limits the time. An error says why there is no response.
    pub(crate) async fn post(&self, message: Bytes) -> Result<CollectorReply, String> {
        let stream = self.connector.connect(UpstreamProtocol::Http1).await;
        let stream = stream.map_err(|error| format!("cannot connect: {}", cause(error)))?;
        let broken = |error| format!("the exchange with the collector broke off: {error}");
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let _connection_task = AbortOnDropHandle::new(tokio::spawn(connection));
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = Method::POST;
        // Always parses, because it was part of a URL.
        *request.uri_mut() = self.target.parse().unwrap_or_default();
        *request.headers_mut() = self.headers.clone();
        let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let body = Limited::new(body, MAX_REPLY_BYTES)
            .collect()
            .await
            .map_err(|error| format!("cannot read the collector's answer: {error}"))?;
        let seconds = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = seconds.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        Ok(CollectorReply { status: head.status, retry_after, body: body.to_bytes() })
    }
}

/// Leaves out the text about the upstream, because the error is about the collector.
fn cause(error: UpstreamError) -> io::Error {
    match error {
        UpstreamError::Connect { source, .. } | UpstreamError::Tls { source, .. } => source,
        _ => io::ErrorKind::TimedOut.into(),
    }
}
