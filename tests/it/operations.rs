//! Operations on a running sidecar: replacing and draining it.

use std::time::{Duration, Instant};

use hyper::{Method, header::CONNECTION};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Load, Process, SOON, Setup, Upstream, eventually, soon};

/// Silence of a new connection after which a drain closes it as idle.
const FIRST_WORDS: Duration = Duration::from_millis(500);
/// Stands for the status of a client that was too late: a busy machine delayed its request for longer than
/// [`FIRST_WORDS`].
const IDLE: u16 = 1;

const REUSE: [(&str, &str); 1] = [("JOBCACHE_SERVER_REUSE_PORT", "true")];

#[tokio::test]
async fn a_takeover_refuses_and_resets_no_connection() {
    let upstream = Upstream::start().await;
    let url = upstream.url();
    let args = ["--upstream", &url, "--redis-url", "memory://"];
    let mut old = Process::start(&args, &REUSE).await;
    old.client.get("/jobs/x1").await;
    let address = old.client.address();
    let load = Load::start(move || async move {
        let client = crate::support::Client::new(address);
        let connects = Instant::now();
        let request = client.start(Method::GET, "/jobs/x1", "").await;
        let was_late = connects.elapsed() >= FIRST_WORDS;
        match request.answer().await.0 {
            0 if was_late => IDLE,
            status => status,
        }
    });
    load.goes_on().await;

    let new = Process::beside(address, &args, &REUSE).await;
    load.goes_on().await;
    old.terminate();
    assert_eq!(old.wait().await.code(), Some(0), "{}", old.stderr());
    load.goes_on().await;

    let answers = load.end().await;
    let unanswered: Vec<_> =
        answers.iter().filter(|status| ![200, IDLE].contains(status)).collect();
    assert!(unanswered.is_empty(), "{unanswered:?} of {} answers", answers.len());
    let metrics = new.admin.get("/metrics").await;
    assert!(
        metrics.text().contains(r#"jobcache_requests_total{outcome="hit""#),
        "the new process has served nothing"
    );
}

#[tokio::test]
async fn without_reuse_port_an_address_has_one_owner() {
    let upstream = Upstream::start().await;
    let url = upstream.url();
    let args = ["--upstream", &url, "--redis-url", "memory://"];
    let first = Process::start(&args, &[]).await;
    let taken = first.client.address().to_string();

    let second = [&args[..], &["--listen", &taken, "--admin", "127.0.0.1:0"]].concat();
    let (code, _, stderr) = Process::output(&second, &REUSE);

    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains(&taken), "{stderr}");
}

#[tokio::test]
async fn a_drain_closes_idle_connections_and_tells_the_others_to() {
    let mut setup = Setup::with(|_| {}).await;
    setup.get("/jobs/x1").await;
    let mut silent = setup.sidecar.client.connect().await;
    let gate = setup.upstream.hold(Method::GET, "/other");
    let address = setup.sidecar.client.address();
    let in_flight = tokio::spawn(async move {
        crate::support::Client::new(address).request(Method::GET, "/other").send().await
    });
    gate.arrived(1).await;

    setup.sidecar.begin_shutdown();

    eventually(SOON, async || setup.sidecar.refuses().await).await;
    assert_eq!(soon(silent.read(&mut [0])).await.expect("an end without a reset"), 0);
    assert!(!in_flight.is_finished());
    gate.release();
    let answer = soon(in_flight).await.expect("an answer");
    assert_eq!(answer.header(CONNECTION.as_str()), "close");
}

#[tokio::test]
async fn a_drain_serves_the_backlog_within_the_limit_of_connections() {
    let mut setup = Setup::with(|config| config.server.max_connections = 2).await;
    let gate = setup.upstream.hold(Method::GET, "/other");
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(setup.sidecar.client.start(Method::GET, "/other", "").await);
    }
    gate.arrived(1).await;

    setup.sidecar.begin_shutdown();
    eventually(SOON, async || setup.sidecar.refuses().await).await;

    gate.arrived(2).await;
    // Each client of the backlog has sent its request, so without a limit all are answered at once.
    tokio::time::sleep(FIRST_WORDS).await;
    assert_eq!(gate.arrivals(), 2);
    gate.release();
    for client in clients {
        assert_eq!(soon(client.answer()).await.0, 404, "answered by the upstream");
    }
}

#[tokio::test]
async fn a_connection_that_has_just_come_gets_its_answer_in_spite_of_a_drain() {
    let mut setup = Setup::with(|_| {}).await;
    let mut fresh = setup.sidecar.client.connect().await;
    setup.exchange().await;

    setup.sidecar.begin_shutdown();
    eventually(SOON, async || setup.sidecar.refuses().await).await;
    fresh.write_all(b"GET /jobs/x1 HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("a request written");

    let mut answer = String::new();
    soon(fresh.read_to_string(&mut answer)).await.expect("an answer and an end");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn during_the_drain_delay_it_is_not_ready_and_serves_all_the_same() {
    let mut setup = Setup::with(|config| config.drain.delay = Duration::from_mins(1)).await;
    let mut silent = setup.sidecar.client.connect().await;

    setup.sidecar.begin_shutdown();

    eventually(SOON, async || setup.sidecar.admin.get("/readyz").await.status == 503).await;
    let fresh = crate::support::Client::new(setup.sidecar.client.address());
    let answer = fresh.get("/jobs/x1").await;
    assert_eq!((answer.status.as_u16(), answer.header(CONNECTION.as_str())), (200, ""));
    // No client is asked to leave: the earlier connection is as good as a new one.
    silent.write_all(b"GET /jobs/x1 HTTP/1.0\r\nhost: a\r\n\r\n").await.expect("a request written");
    let mut answer = String::new();
    soon(silent.read_to_string(&mut answer)).await.expect("an answer");
    assert!(answer.contains(" 200 "), "{answer}");
}

#[tokio::test]
async fn after_the_drain_delay_the_drain_begins() {
    let delay = Duration::from_millis(200);
    let mut setup = Setup::with(|config| config.drain.delay = delay).await;
    let asked = Instant::now();

    setup.sidecar.shutdown().await.expect("a drain");

    assert!(asked.elapsed() >= delay, "{:?}", asked.elapsed());
    // A child of another test holds a copy of the listener between its fork and its exec.
    eventually(SOON, async || setup.sidecar.refuses().await).await;
}
