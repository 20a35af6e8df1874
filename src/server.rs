//! Accepts connections and serves HTTP/1 and HTTP/2 (prior knowledge) on them, until told to drain.
//!
//! It knows nothing of what is served: proxy and admin are services that it is given.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{Request, Response, body::Body, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use crate::{config, metrics::Metrics};

/// After a failed accept (out of file descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves one listener.
pub struct Server {
    listener: TcpListener,
    builder: auto::Builder<TokioExecutor>,
    max_connections: usize,
    metrics: Arc<Metrics>,
}

/// Tells servers to stop accepting.
pub type Drain = watch::Receiver<bool>;

impl Server {
    /// Prepares to serve.
    pub fn new(listener: TcpListener, config: &config::Server, metrics: Arc<Metrics>) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(config.header_timeout);
        builder.http2().timer(TokioTimer::new());
        Self { listener, builder, max_connections: config.max_connections, metrics }
    }

    /// Serves until `drain` turns, then waits up to `deadline` for the requests in flight.
    pub async fn run<S, F, B>(self, mut drain: Drain, deadline: Duration, serve: S)
    where
        S: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync,
    {
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(self.max_connections));
        loop {
            let accepted = async {
                // A place first: what has none waits in the listen backlog.
                let place = Arc::clone(&places).acquire_owned().await;
                (place, self.listener.accept().await)
            };
            let (place, (stream, peer)) = tokio::select! {
                (place, accepted) = accepted => match accepted {
                    Ok(accepted) => (place, accepted),
                    Err(error) => { pause(&error).await; continue }
                },
                () = until_drain(&mut drain) => break,
            };
            let serve = serve.clone();
            let service = service_fn(move |request| {
                let answer = serve(request, peer);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection =
                self.builder.serve_connection_with_upgrades(prepare(stream), service).into_owned();
            let connection = graceful.watch(connection);
            let open = Open::new(&self.metrics);
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    debug!(error, "client connection ended");
                }
                drop((open, place));
            });
        }
        drop(self.listener);
        let open = graceful.count();
        if timeout(deadline, graceful.shutdown()).await.is_err() {
            warn!(connections = open, "drain deadline passed; closing what is left");
        }
    }
}

fn prepare(stream: TcpStream) -> TokioIo<TcpStream> {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot set TCP_NODELAY");
    }
    TokioIo::new(stream)
}

async fn pause(error: &io::Error) {
    warn!(%error, "cannot accept a connection; is the limit of open files too low?");
    sleep(ACCEPT_PAUSE).await;
}

/// Also when the one who would tell us is gone.
async fn until_drain(drain: &mut Drain) {
    let _ = drain.wait_for(|drain| *drain).await;
}

/// Counts a connection while it is open.
struct Open(Arc<Metrics>);

impl Open {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}
