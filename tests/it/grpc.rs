//! gRPC, which uses HTTP/2 on both sides: streams in both directions, and trailers with the status
//! of the call.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    body::{Body as _, Frame, Incoming},
    client::conn::http2::SendRequest,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jobcache::config::{Config, StoreUrl};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use crate::support::{Body, SOON, eventually, full, sidecar::Sidecar, soon, tls::Authority};

/// A gRPC server that echoes each message and then sends the status of the call.
struct Grpc {
    address: std::net::SocketAddr,
    state: Arc<State>,
    accept: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    connections: AtomicUsize,
    seen: Mutex<Vec<(Version, hyper::Uri, HeaderMap)>>,
}

#[derive(Clone)]
enum Speaks {
    Http2,
    Http1,
    Tls(TlsAcceptor),
}

impl Grpc {
    async fn start(speaks: Speaks) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(State::default()));
        let shared = Arc::clone(&state);
        let accept = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(serve(stream, speaks.clone(), Arc::clone(&shared)));
            }
        });
        Self { address, state, accept }
    }

    async fn behind_sidecar(&self) -> Sidecar {
        in_front_of(format!("http://{}", self.address), |_| {}).await
    }

    fn seen(&self) -> Vec<(Version, hyper::Uri, HeaderMap)> {
        self.state.seen.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn serve(stream: TcpStream, speaks: Speaks, state: Arc<State>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(call(request, &state)) }
    });
    let executor = TokioExecutor::new();
    match speaks {
        Speaks::Http1 => {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
        Speaks::Http2 => {
            let http2 = http2::Builder::new(executor);
            let _ = http2.serve_connection(TokioIo::new(stream), service).await;
        }
        Speaks::Tls(acceptor) => {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let http2 = http2::Builder::new(executor);
            let _ = http2.serve_connection(TokioIo::new(stream), service).await;
        }
    }
}

fn call(request: Request<Incoming>, state: &State) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let failing = head.uri.path().ends_with("/Fail");
    state.seen.lock().unwrap().push((head.version, head.uri, head.headers));
    let mut response = Response::new(full(""));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    if failing {
        // Trailers-only: the call ends with its head.
        response.headers_mut().insert("grpc-status", "5".parse().unwrap());
        return response;
    }
    let (sender, mut frames) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if sender.send(frame).await.is_err() {
                return;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let _ = sender.send(Frame::trailers(trailers)).await;
    });
    let frames = futures_util::stream::poll_fn(move |cx| frames.poll_recv(cx));
    let frames = futures_util::StreamExt::map(frames, Ok);
    *response.body_mut() = http_body_util::BodyExt::boxed(StreamBody::new(frames));
    response
}

async fn in_front_of(url: String, change: impl FnOnce(&mut Config)) -> Sidecar {
    let mut config = Config::default();
    config.cache.settle = Duration::ZERO;
    config.store.reconnect_grace = Duration::ZERO;
    config.store.url = StoreUrl::Memory;
    config.upstream.url = url;
    change(&mut config);
    Sidecar::start(config).await
}

fn request(path: &str, body: Body) -> Request<Body> {
    let request = Request::builder().method(Method::POST).uri(format!("http://api.example{path}"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    request.body(body).unwrap()
}

async fn say(sender: &mut SendRequest<Body>, path: &str, body: Body) -> Response<Incoming> {
    soon(sender.send_request(request(path, body))).await.expect("an answer")
}

#[tokio::test]
async fn a_call_ends_with_its_trailers() {
    let grpc = Grpc::start(Speaks::Http2).await;
    let sidecar = grpc.behind_sidecar().await;
    let mut client = sidecar.client.http2().await;

    let response = say(&mut client, "/jobs.Jobs/Get", full("message")).await;

    assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
    assert_eq!(response.headers()["cache-status"], "jobcache; fwd=bypass; detail=path");
    let body = soon(response.into_body().collect()).await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), "message");
    let (version, uri, headers) = grpc.seen().remove(0);
    assert_eq!(
        (version, uri.to_string().as_str()),
        (Version::HTTP_2, "http://api.example/jobs.Jobs/Get")
    );
    assert_eq!(headers["te"], "trailers");
    assert!(!headers.contains_key("connection") && !headers.contains_key("host"), "{headers:?}");
}

#[tokio::test]
async fn a_call_that_fails_at_once_says_so_in_its_head() {
    let grpc = Grpc::start(Speaks::Http2).await;
    let sidecar = grpc.behind_sidecar().await;
    let mut client = sidecar.client.http2().await;

    let response = say(&mut client, "/jobs.Jobs/Fail", full("message")).await;

    assert_eq!(response.headers()["grpc-status"], "5");
    assert!(response.body().is_end_stream());
}

#[tokio::test]
async fn both_sides_stream_at_once() {
    let grpc = Grpc::start(Speaks::Http2).await;
    let sidecar = grpc.behind_sidecar().await;
    let mut client = sidecar.client.http2().await;
    let (sender, mut frames) = mpsc::channel(1);
    let frames = futures_util::stream::poll_fn(move |cx| frames.poll_recv(cx));
    let body = http_body_util::BodyExt::boxed(StreamBody::new(frames));

    let mut response = say(&mut client, "/jobs.Jobs/Watch", body).await;

    // Each message is sent after the answer to the previous one.
    for message in ["one", "two", "three"] {
        sender.send(Ok(Frame::data(Bytes::from(message)))).await.unwrap();
        let frame = soon(response.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    drop(sender);
    let end = soon(response.frame()).await.unwrap().unwrap();
    assert_eq!(end.into_trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_connection_is_used_again_and_a_new_one_is_made_when_it_has_ended() {
    let mut grpc = Grpc::start(Speaks::Http2).await;
    let sidecar = grpc.behind_sidecar().await;
    let mut client = sidecar.client.http2().await;
    for _ in 0..20 {
        say(&mut client, "/jobs.Jobs/Get", full("x")).await.collect().await.unwrap();
    }
    assert_eq!(grpc.connections(), 1);

    // The upstream restarts at the same address.
    let (address, state) = (grpc.address, Arc::clone(&grpc.state));
    grpc.accept.abort();
    let listener = eventually(SOON, async || TcpListener::bind(address).await).await;
    grpc.accept = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            state.connections.fetch_add(1, Ordering::SeqCst);
            connections.spawn(serve(stream, Speaks::Http2, Arc::clone(&state)));
        }
    });
    eventually(SOON, async || {
        let response = say(&mut client, "/jobs.Jobs/Get", full("x")).await;
        response.status() == StatusCode::OK
    })
    .await;
    assert_eq!(grpc.connections(), 2);
}

#[tokio::test]
async fn a_call_that_is_not_read_holds_up_no_other() {
    let grpc = Grpc::start(Speaks::Http2).await;
    let sidecar = grpc.behind_sidecar().await;
    let (mut hog, mut other) = (sidecar.client.http2().await, sidecar.client.http2().await);
    // More than all windows on the path hold, and many small messages.
    let mut unread = Vec::new();
    for _ in 0..4 {
        unread.push(say(&mut hog, "/jobs.Jobs/Get", crate::support::zeros(16 << 20)).await);
    }

    for _ in 0..3 {
        let response = say(&mut other, "/jobs.Jobs/Get", full("message")).await;
        let body = soon(response.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes(), "message");
    }
    drop(unread);
}

#[tokio::test]
async fn an_upstream_that_knows_no_http2_is_a_bad_gateway() {
    let grpc = Grpc::start(Speaks::Http1).await;
    let sidecar = grpc.behind_sidecar().await;
    let mut client = sidecar.client.http2().await;

    let response = say(&mut client, "/jobs.Jobs/Get", full("x")).await;

    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(grpc.seen().is_empty());
}

#[tokio::test]
async fn over_tls_the_protocol_is_agreed_on() {
    let authority = Authority::new();
    let tls = |protocols: &[&str]| {
        let mut config: ServerConfig = authority.server(&["127.0.0.1"]);
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Speaks::Tls(TlsAcceptor::from(Arc::new(config)))
    };
    for (protocols, status) in [(&["h2"][..], 200), (&[], 502)] {
        let grpc = Grpc::start(tls(protocols)).await;
        let trusting = |config: &mut Config| config.upstream.tls.ca = Some(authority.ca());
        let sidecar = in_front_of(format!("https://{}", grpc.address), trusting).await;
        let mut client = sidecar.client.http2().await;

        let response = say(&mut client, "/jobs.Jobs/Get", full("x")).await;

        assert_eq!(response.status(), status, "{protocols:?}");
        let uris: Vec<_> = grpc.seen().iter().map(|(_, uri, _)| uri.to_string()).collect();
        assert!(uris.iter().all(|uri| uri == "https://api.example/jobs.Jobs/Get"), "{uris:?}");
        assert_eq!(uris.len(), usize::from(status == 200));
    }
}
