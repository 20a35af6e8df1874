//! Shared parts of the plays: an API server, the limit of open files, and waiting that ends with
//! Ctrl-C.

use std::{
    convert::Infallible,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

use crate::{Result, interrupt::Interrupt};

/// Interval between two checks for an interrupt.
const STEP: Duration = Duration::from_millis(50);

/// Serves these answers over HTTP/1.1 until `tasks` is dropped, and returns the address.
pub(crate) async fn serve<F>(
    tasks: &mut JoinSet<()>,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> Result<SocketAddr>
where
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            connections.spawn(async move {
                let answer = service_fn(move |request| {
                    let answer = answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                // A client that disconnects does not want an answer.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    Ok(address)
}

/// Lets the play run for this long.
pub(crate) async fn wait(time: Duration, interrupt: &Interrupt) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        interrupt.check()?;
        sleep(STEP.min(end.saturating_duration_since(Instant::now()))).await;
    }
    Ok(())
}

/// Raises the limit of open files of this process and the sidecars as far as allowed, and returns
/// it.
pub(crate) fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // If this fails, the current limit decides which sizes can be played.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
