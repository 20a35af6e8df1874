//! One HTTP/2 connection: hyper owns the stream, and each of its own streams has a time limit.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    drain_grace::FirstRequest,
    stream_timeout::{StreamCounter, WriteTimeoutBody},
};
use crate::{
    config,
    limits::LimitHits,
    service::{Drain, Informational, Service},
    transport::Peer,
};

/// Time limit for the answer to the ping that a client gets after it has sent nothing for
/// `server.header_timeout`.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of HTTP/2 connections.
pub(super) struct Http2Config {
    builder: http2::Builder<TokioExecutor>,
    write_timeout: Duration,
    max_streams: usize,
}

impl Http2Config {
    pub(super) fn new(config: &config::ServerConfig) -> Self {
        let limit = config.header_timeout;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(limit)
            .keep_alive_timeout(PING_TIMEOUT.min(limit))
            .max_concurrent_streams(u32::try_from(config.max_streams).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(config.max_pending_resets)
            .max_local_error_reset_streams(config.max_faulty_streams)
            .max_send_buf_size(config.buffer())
            .max_header_list_size(u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX));
        let config::ServerConfig { write_timeout, max_streams, .. } = *config;
        Self { builder, write_timeout, max_streams }
    }

    /// Serves a connection to its end.
    pub(super) async fn serve<I, S>(
        &self,
        stream: I,
        peer: Peer,
        service: S,
        drain: &mut Drain,
        limits: &Arc<LimitHits>,
    ) -> hyper::Result<()>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service,
    {
        let begun = Arc::new(FirstRequest::default());
        let first_request = Arc::clone(&begun);
        let limit = self.write_timeout;
        let streams = StreamCounter::new(self.max_streams, limits);
        let service = service_fn(move |request| {
            first_request.mark_begun();
            let stream = streams.open();
            let answer = service.clone().serve(request, peer, Informational::default());
            async move {
                let response = answer.await.response;
                Ok::<_, Infallible>(response.map(|body| WriteTimeoutBody::new(limit, body, stream)))
            }
        });
        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = begun.ready_to_close(drain) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    }
}
