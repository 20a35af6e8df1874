//! The name of the upstream: it is resolved again and again, all of its addresses are used, and a
//! DNS server that does not answer keeps nobody waiting. The names are given to the child by files
//! that it alone sees, in a mount namespace.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hyper::{Method, StatusCode};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};

use crate::support::{Process, SOON, Setup, eventually, soon};

/// Time in which the process is to be gone after its last line, on a machine that is busy.
const GONE: Duration = Duration::from_secs(4);

fn file(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text).expect("a written file");
    file
}

/// Starts a child that sees `file` at `path`, unless this machine has no mount namespaces.
async fn process(path: &str, file: &NamedTempFile, upstream: &str) -> Option<Process> {
    let args = ["--redis-url", "memory://", "--upstream", upstream];
    let envs = [("JOBCACHE_UPSTREAM_MAX_AGE", "1ms")];
    let process = Process::seeing((path, file.path()), &args, &envs).await;
    if process.is_none() {
        eprintln!("skipped: this machine has no mount namespaces for us");
    }
    process
}

/// Answers each request on each connection with this body.
fn serve(listener: TcpListener, body: &'static str) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while socket.read(&mut head).await.is_ok_and(|count| count > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{body}");
                    let _ = socket.write_all(answer.as_bytes()).await;
                }
            });
        }
    })
}

/// Listens on the same port of both addresses.
async fn two_addresses() -> [TcpListener; 2] {
    for _ in 0..20 {
        let first = TcpListener::bind(("127.0.0.2", 0)).await.expect("a free port");
        let port = first.local_addr().expect("a bound listener").port();
        if let Ok(second) = TcpListener::bind(("127.0.0.3", port)).await {
            return [first, second];
        }
    }
    panic!("no port that is free on two addresses");
}

#[tokio::test]
async fn all_addresses_of_the_name_are_used_and_one_that_fails_is_passed_over() {
    let hosts = file("127.0.0.2 api-7.test\n127.0.0.3 api-7.test\n");
    let [first, second] = two_addresses().await;
    let port = first.local_addr().expect("a bound listener").port();
    let upstream = format!("http://api-7.test:{port}");
    let (first, _second) = (serve(first, "1"), serve(second, "2"));
    let Some(process) = process("/etc/hosts", &hosts, &upstream).await else { return };

    let bodies = async || {
        let mut bodies = String::new();
        for _ in 0..6 {
            let reply = process.client.get("/p").await;
            assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
            bodies.push_str(reply.text());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        bodies
    };
    let both = bodies().await;
    assert!(both == "121212" || both == "212121", "{both}");

    first.abort();
    assert!(first.await.is_err_and(|error| error.is_cancelled()));
    assert_eq!(bodies().await, "222222");
}

#[tokio::test]
async fn a_connection_of_some_age_takes_no_further_request() {
    let setup = Setup::with(|config| config.upstream.max_age = Duration::from_millis(1)).await;
    let before = setup.upstream.connections();
    for opened in 1..4 {
        assert_eq!(setup.get("/p7").await.status, StatusCode::NOT_FOUND);
        assert_eq!(setup.upstream.connections(), before + opened);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_silent_dns_server_does_not_keep_the_process_from_ending() {
    let Ok(dns) = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 97], 53))).await else {
        return eprintln!("skipped: port 53 is not ours to bind");
    };
    let resolv = file("nameserver 127.0.0.97\noptions timeout:20 attempts:3\n");
    let upstream = "http://api-7.example:80";
    let Some(mut process) = process("/etc/resolv.conf", &resolv, upstream).await else { return };
    let asked = process.client.start(Method::GET, "/p", "").await;
    soon(dns.recv(&mut [0; 512])).await.expect("a question");

    process.terminate();

    assert_eq!(asked.answer().await.0, 504);
    eventually(SOON, async || process.stderr().contains("stopped")).await;
    let stopped = Instant::now();
    assert_eq!(process.wait().await.code(), Some(0), "{}", process.stderr());
    assert!(stopped.elapsed() < GONE, "{:?} after the last line", stopped.elapsed());
}

/// A signal that comes at once is the echo of the first.
#[tokio::test]
async fn a_second_sigterm_ends_the_process_at_once() {
    let setup = Setup::new().await;
    let upstream = setup.config().upstream.url.clone();
    let mut process =
        Process::start(&["--redis-url", "memory://", "--upstream", &upstream], &[]).await;
    let gate = setup.upstream.hold(Method::GET, "/slow");
    let _in_flight = process.client.start(Method::GET, "/slow", "").await;
    gate.arrived(1).await;

    process.terminate();
    eventually(SOON, async || process.stderr().contains("draining")).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    process.terminate();

    assert_eq!(process.wait().await.code(), Some(130), "{}", process.stderr());
}
