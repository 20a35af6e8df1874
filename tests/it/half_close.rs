//! A client that closes its half of the connection after its request gets its answer. A stream of
//! events ends with it, because nothing else may tell for hours that the client is gone.

use hyper::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Setup, soon, upstream::version};

const X: &str = "/jobs/x1";

/// Sends requests on a new connection and closes the half that sends.
async fn half_closed(setup: &Setup, requests: &str) -> TcpStream {
    let mut socket = setup.sidecar.client.connect().await;
    socket.write_all(requests.as_bytes()).await.expect("requests written");
    socket.shutdown().await.expect("a half closed");
    socket
}

async fn rest(mut socket: TcpStream) -> String {
    let mut answer = String::new();
    soon(socket.read_to_string(&mut answer)).await.expect("an answer and the end");
    answer
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_client_that_closes_its_half_gets_its_answer() {
    let setup = Setup::new().await;
    for (method, path) in [(Method::GET, X), (Method::GET, "/p7"), (Method::PUT, X)] {
        let gate = setup.upstream.hold(method.clone(), path);
        let body = if method == Method::PUT { "{}" } else { "" };
        let socket = half_closed(&setup, &request(method.as_str(), path, body)).await;
        gate.arrived(1).await;
        // Another answer on the way: by now the end of the requests has been seen.
        assert_eq!(setup.get("/other").await.status, StatusCode::NOT_FOUND);
        gate.release();
        let answer = rest(socket).await;
        let status = if path == X { "HTTP/1.1 200 " } else { "HTTP/1.1 404 " };
        assert!(answer.starts_with(status), "{method} {path}: {answer}");
    }
    let get = format!("GET {X} HTTP/1.1\r\nhost: a\r\n\r\n");
    rest(half_closed(&setup, &get).await).await;
    let hit = rest(half_closed(&setup, &get).await).await;
    assert!(hit.ends_with(&version("x1", 1)) && hit.contains("; hit"), "{hit}");
    let hits = rest(half_closed(&setup, &get.repeat(3)).await).await;
    assert_eq!(hits.matches("; hit").count(), 3, "{hits}");
}

#[tokio::test]
async fn a_repeated_request_before_the_end_is_answered_too() {
    let setup = Setup::new().await;
    setup.get(X).await;
    let mut socket = setup.sidecar.client.connect().await;
    let get = format!("GET {X} HTTP/1.1\r\nhost: a\r\n\r\n");
    for _ in 0..3 {
        socket.write_all(get.as_bytes()).await.expect("a request written");
        let mut answer = String::new();
        while !answer.ends_with(&version("x1", 0)) {
            let byte = soon(socket.read_u8()).await.expect("an answer");
            answer.push(char::from(byte));
        }
    }
    socket.write_all(get.as_bytes()).await.expect("a request written");
    socket.shutdown().await.expect("a half closed");
    let answer = rest(socket).await;
    assert!(answer.ends_with(&version("x1", 0)) && answer.contains("; hit"), "{answer}");
}

#[tokio::test]
async fn a_stream_of_events_ends_with_its_client_though_there_is_nothing_to_send() {
    let setup = Setup::new().await;
    let feed = setup.upstream.feed("/events", &[("content-type", "text/event-stream")]);
    feed.data("data: 1\n\n").await;
    let mut socket = setup.sidecar.client.connect().await;
    let get = "GET /events HTTP/1.1\r\nhost: a\r\n\r\n";
    socket.write_all(get.as_bytes()).await.expect("a request written");
    let mut seen = String::new();
    while !seen.contains("data: 1") {
        seen.push(char::from(soon(socket.read_u8()).await.expect("an event")));
    }

    socket.shutdown().await.expect("a half closed");

    feed.abandoned().await;
}
