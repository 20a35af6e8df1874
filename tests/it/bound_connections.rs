//! Logins that belong to a connection: NTLM, Negotiate and Kerberos, and `Persistent-Auth`. The API
//! of these tests knows a user by the connection alone, as such APIs do.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper::{Request, client::conn::http2::SendRequest};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    Body, Reply, SOON, Setup, eventually, full,
    raw::{End, request},
    soon,
};

const X: &str = "/jobs/x1";

/// An API that authenticates connections.
struct LoginApi {
    url: String,
    seen: Arc<Mutex<Seen>>,
}

/// Everything that the API has seen.
#[derive(Default)]
struct Seen {
    opened: usize,
    closed: Vec<usize>,
    /// Connection, and method with path, of each request.
    requests: Vec<(usize, String)>,
}

/// The identity of one connection of the API.
#[derive(Default)]
struct Session {
    /// The first half of a login, which the second must follow on the same connection.
    begun: bool,
    user: Option<String>,
}

impl LoginApi {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let log = Arc::clone(&log);
                let number = {
                    let mut seen = log.lock().expect("no panic");
                    seen.opened += 1;
                    seen.opened
                };
                tokio::spawn(async move {
                    serve(stream, number, &log).await;
                    log.lock().expect("no panic").closed.push(number);
                });
            }
        });
        Self { url, seen }
    }

    /// The connection of the last request with this method and path.
    fn last(&self, what: &str) -> usize {
        let seen = self.seen.lock().expect("no panic");
        let found = seen.requests.iter().rfind(|(_, request)| request == what);
        found.unwrap_or_else(|| panic!("no {what}")).0
    }

    /// The number of requests with this method and path.
    fn count(&self, what: &str) -> usize {
        let seen = self.seen.lock().expect("no panic");
        seen.requests.iter().filter(|(_, request)| request == what).count()
    }

    async fn closes(&self, connection: usize) {
        eventually(SOON, async || self.seen.lock().expect("no panic").closed.contains(&connection))
            .await;
    }

    fn is_open(&self, connection: usize) -> bool {
        !self.seen.lock().expect("no panic").closed.contains(&connection)
    }
}

async fn serve(mut stream: TcpStream, number: usize, log: &Mutex<Seen>) {
    let mut session = Session::default();
    while let Some(head) = read_request(&mut stream).await {
        let what = head.split(" HTTP/").next().unwrap_or_default().to_owned();
        let answer = session.answer(&what, &head);
        log.lock().expect("no panic").requests.push((number, what));
        if stream.write_all(answer.as_bytes()).await.is_err() || answer.is_empty() {
            return;
        }
    }
}

/// Reads a head and the body that it announces.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.to_ascii_lowercase();
    let length = length.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let mut body = vec![0; length.and_then(|length| length.parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(head)
}

impl Session {
    fn answer(&mut self, what: &str, head: &str) -> String {
        if what.contains("/gone") && self.user.is_some() {
            // Closes without an answer.
            return String::new();
        }
        let login = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("authorization").then_some(value)?.split_once(' ')
        });
        match login {
            Some((_, "T1")) => {
                self.begun = true;
                return answer(401, "WWW-Authenticate: NTLM T2\r\n", "challenge");
            }
            Some((_, second)) => {
                let user = second.strip_prefix("T3:").filter(|_| self.begun);
                self.begun = false;
                match user {
                    Some(user) => self.user = Some(user.to_owned()),
                    None => return answer(401, "WWW-Authenticate: NTLM\r\n", "failed"),
                }
            }
            None => {}
        }
        let path = what.split(' ').nth(1).unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
        if name.starts_with("remembered") {
            self.user = Some("remembered".to_owned());
            return answer(200, "Persistent-Auth: true\r\n", "remembered");
        }
        if name == "last" {
            return answer(200, "Connection: close\r\n", "last");
        }
        let anyone = ["open", "warm-up", "exchange"].contains(&name);
        match &self.user {
            Some(user) => answer(200, "", user),
            None if anyone => answer(200, "", "anyone"),
            None => answer(401, "WWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\n", "who"),
        }
    }
}

fn answer(status: u16, more: &str, body: &str) -> String {
    let body = format!("{{\"user\":\"{body}\"}}");
    format!("HTTP/1.1 {status} OK\r\n{more}content-length: {}\r\n\r\n{body}", body.len())
}

struct World {
    api: LoginApi,
    setup: Setup,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut jobcache::config::Config)) -> Self {
        let api = LoginApi::start().await;
        let url = api.url.clone();
        let setup = Setup::with(|config| {
            config.upstream.url = url;
            config.upstream.idle_timeout = Duration::from_mins(5);
            change(config);
        })
        .await;
        Self { api, setup }
    }

    async fn client(&self) -> User {
        User(End::new(self.setup.sidecar.client.connect().await))
    }

    /// A client that has logged in, and its connection to the API.
    async fn logged_in(&self, name: &str) -> (User, usize) {
        let mut user = self.client().await;
        user.begin("NTLM").await;
        user.end("NTLM", name).await;
        (user, self.api.last("GET /me"))
    }

    async fn metric(&self, name: &str) -> u64 {
        self.setup.sidecar.admin.metric(&format!("jobcache_upstream_{name}")).await
    }

    async fn bound(&self) -> u64 {
        self.metric("connections_bound").await
    }
}

/// A client connection over HTTP/1.1.
struct User(End);

/// The status, the user in the body, and the head of an answer.
type Answered = (u16, String, String);

impl User {
    async fn ask(&mut self, method: &str, path: &str, more: &str) -> Answered {
        self.0.send(request(method, path, more)).await;
        let (head, body) = self.0.answer().await;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let user = body.split('"').nth(3).unwrap_or_default().to_owned();
        (status.expect("a status"), user, head.to_ascii_lowercase())
    }

    async fn check(&mut self, method: &str, path: &str, status: u16, user: &str) -> String {
        let more = if method == "PUT" { "Content-Length: 0\r\n" } else { "" };
        let got = self.ask(method, path, more).await;
        assert_eq!((got.0, &*got.1), (status, user), "{method} {path}: {}", got.2);
        got.2
    }

    async fn begin(&mut self, scheme: &str) {
        let got = self.ask("GET", "/me", &format!("Authorization: {scheme} T1\r\n")).await;
        assert_eq!((got.0, &*got.1), (401, "challenge"), "{}", got.2);
    }

    async fn end(&mut self, scheme: &str, name: &str) {
        let got = self.ask("GET", "/me", &format!("Authorization: {scheme} T3:{name}\r\n")).await;
        assert_eq!((got.0, &*got.1), (200, name), "{}", got.2);
    }
}

fn detail(head: &str) -> &str {
    let line = head.lines().rfind(|line| line.starts_with("cache-status: ")).unwrap_or_default();
    line.split("detail=").nth(1).unwrap_or_default()
}

/// A stranger without credentials, over new and over kept connections, is nobody.
async fn is_nobody(world: &World) {
    let mut stranger = world.client().await;
    for _ in 0..2 {
        stranger.check("GET", "/me", 401, "who").await;
        stranger.check("GET", X, 401, "who").await;
        stranger.check("PUT", X, 401, "who").await;
    }
}

#[tokio::test]
async fn after_a_login_a_stranger_gets_401_and_nothing_is_stored() {
    for scheme in ["NTLM", "ntlm", "Negotiate", "nEGOTIATE", "Kerberos"] {
        let world = World::new().await;
        let mut user = world.client().await;
        user.begin(scheme).await;
        is_nobody(&world).await;
        user.end(scheme, "ann").await;
        is_nobody(&world).await;

        let head = user.check("GET", X, 200, "ann").await;
        assert_eq!(detail(&head), "bound-connection", "{head}");
        user.check("PUT", X, 200, "ann").await;
        user.check("GET", "/me", 200, "ann").await;
        user.check("GET", X, 200, "ann").await;
        is_nobody(&world).await;

        let nothing = async || {
            let keys = world.setup.redis.keys("*job_status:x*").await;
            if keys.is_empty() { Ok(()) } else { Err(keys) }
        };
        eventually(SOON, nothing).await;
        assert_eq!(world.bound().await, 1);
    }
}

#[tokio::test]
async fn two_logins_at_a_time_do_not_mix() {
    let world = World::new().await;
    let (mut ann, mut bob) = (world.client().await, world.client().await);

    ann.begin("NTLM").await;
    bob.begin("NTLM").await;
    ann.end("NTLM", "ann").await;
    bob.end("NTLM", "bob").await;

    for _ in 0..2 {
        ann.check("GET", "/me", 200, "ann").await;
        bob.check("PUT", X, 200, "bob").await;
        ann.check("PUT", X, 200, "ann").await;
        bob.check("GET", X, 200, "bob").await;
    }
    assert_ne!(world.api.last("GET /me"), world.api.last("GET /jobs/x1"));
    assert_eq!(world.bound().await, 2);
}

#[tokio::test]
async fn the_connection_closes_with_its_client() {
    let world = World::new().await;
    let (ann, connection) = world.logged_in("ann").await;
    let (mut bob, other) = world.logged_in("bob").await;

    drop(ann);

    world.api.closes(connection).await;
    bob.check("GET", "/me", 200, "bob").await;
    assert!(world.api.is_open(other));
    eventually(SOON, async || world.bound().await == 1).await;
}

#[tokio::test]
async fn an_idle_connection_closes_and_its_client_has_to_log_in_again() {
    let idle_timeout = Duration::from_millis(100);
    let world = World::with(|config| config.upstream.idle_timeout = idle_timeout).await;
    let mut ann = world.client().await;
    // On a busy machine the timeout may pass between the two halves of a login.
    let begun = ann.ask("GET", "/me", "Authorization: NTLM T1\r\n").await;
    assert_eq!(begun.0, 401);

    world.api.closes(world.api.last("GET /me")).await;

    eventually(SOON, async || world.bound().await == 0).await;
    let head = ann.check("GET", "/jobs/open1", 200, "anyone").await;
    assert_eq!(detail(&head), "bound-connection", "{head}");
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(ann.0.rest().await, "");
    world.api.closes(world.api.last("GET /jobs/open1")).await;
}

#[tokio::test]
async fn a_client_ends_with_the_connection_that_the_api_closes() {
    let world = World::new().await;
    let (mut ann, connection) = world.logged_in("ann").await;

    let head = ann.check("GET", "/last", 200, "last").await;

    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(ann.0.rest().await, "");
    world.api.closes(connection).await;
}

#[tokio::test]
async fn a_login_is_not_sent_again_over_another_connection() {
    let world = World::new().await;
    let (mut ann, _) = world.logged_in("ann").await;

    let got = ann.ask("GET", "/gone", "Authorization: NTLM T1\r\n").await;

    assert_eq!(got.0, 502, "{}", got.2);
    assert_eq!(world.api.count("GET /gone"), 1);
}

#[tokio::test]
async fn a_read_that_loses_its_connection_is_sent_again_as_nobody() {
    let world = World::new().await;
    let (mut ann, _) = world.logged_in("ann").await;

    let head = ann.check("GET", "/gone", 401, "who").await;

    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(world.api.count("GET /gone"), 2);
}

async fn http2(sender: &mut SendRequest<Body>, path: &str, login: &str) -> Reply {
    let request = Request::get(format!("http://jobs.example{path}"));
    let request = request.header("authorization", login).body(full("")).expect("a request");
    let response = soon(sender.send_request(request)).await.expect("an answer");
    Reply::read(response).await.expect("a whole body")
}

#[tokio::test]
async fn over_http2_a_login_fails_closed() {
    let world = World::new().await;
    let mut sender = world.setup.sidecar.client.http2().await;
    let mut connections = Vec::new();
    for (login, want) in [("NTLM T1", "challenge"), ("NTLM T3:ann", "failed")] {
        for path in ["/me", X] {
            let reply = http2(&mut sender, path, login).await;
            assert_eq!(reply.status, 401, "{reply:?}");
            assert!(reply.text().contains(want), "{reply:?}");
            connections.push(world.api.last(&format!("GET {path}")));
        }
    }
    assert!(connections.is_sorted_by(|a, b| a < b), "{connections:?}");
    for connection in connections {
        world.api.closes(connection).await;
    }
    is_nobody(&world).await;
    assert_eq!((world.bound().await, world.metric("binds_refused_total").await), (0, 0));
}

#[tokio::test]
async fn past_a_quarter_of_the_connections_a_login_fails_closed() {
    let world = World::with(|config| config.upstream.max_connections = 8).await;
    let (ann, _) = world.logged_in("ann").await;
    let (mut bob, _) = world.logged_in("bob").await;
    let mut eve = world.client().await;

    eve.begin("NTLM").await;
    let got = eve.ask("GET", "/me", "Authorization: NTLM T3:eve\r\n").await;

    assert_eq!((got.0, &*got.1), (401, "failed"), "{}", got.2);
    eve.check("GET", "/me", 401, "who").await;
    bob.check("GET", "/me", 200, "bob").await;
    assert_eq!((world.bound().await, world.metric("binds_refused_total").await), (2, 2));

    drop(ann);
    eventually(SOON, async || world.bound().await == 1).await;
    eve.begin("NTLM").await;
    eve.end("NTLM", "eve").await;
}

#[tokio::test]
async fn an_answer_with_persistent_auth_binds_its_connection_and_is_stored_for_nobody() {
    for path in ["/remembered", "/jobs/remembered7"] {
        let world = World::new().await;
        // A connection that others have used before.
        world.setup.exchange().await;
        let mut ann = world.client().await;

        let head = ann.check("GET", path, 200, "remembered").await;

        let connection = world.api.last(&format!("GET {path}"));
        if path.starts_with("/jobs/") {
            assert_eq!(detail(&head), "bound-connection", "{head}");
        }
        is_nobody(&world).await;
        ann.check("GET", "/me", 200, "remembered").await;
        assert_eq!(world.api.last("GET /me"), connection);
        assert_eq!(world.bound().await, 1);
        let mut bob = world.client().await;
        bob.check("GET", path, 200, "remembered").await;
        assert_ne!(world.api.last(&format!("GET {path}")), connection);
        assert_eq!(world.api.count(&format!("GET {path}")), 2);
    }
}

#[tokio::test]
async fn a_challenge_alone_binds_nothing_and_its_connection_is_not_used_again() {
    let world = World::new().await;
    let mut ann = world.client().await;

    for path in ["/me", X] {
        ann.check("GET", path, 401, "who").await;
        let connection = world.api.last(&format!("GET {path}"));
        world.api.closes(connection).await;
        // The client is not bound, so it may have entries.
        eventually(SOON, async || {
            detail(&ann.check("GET", "/jobs/open1", 200, "anyone").await).is_empty()
        })
        .await;
    }
    assert_eq!(world.bound().await, 0);
}

#[tokio::test]
async fn a_bound_client_gets_no_entry_of_others_and_makes_none() {
    let world = World::new().await;
    let world_repeats = async || world.setup.sidecar.admin.metric("jobcache_repeats_total").await;
    let mut ann = world.client().await;
    // The connection polls over the repeat fast path before its user logs in.
    eventually(SOON, async || {
        let before = world_repeats().await;
        ann.check("GET", "/jobs/open1", 200, "anyone").await;
        world_repeats().await > before
    })
    .await;

    ann.begin("Negotiate").await;
    let head = ann.check("GET", "/jobs/open1", 200, "anyone").await;
    assert_eq!(detail(&head), "bound-connection", "{head}");
    ann.end("Negotiate", "ann").await;

    for _ in 0..2 {
        let head = ann.check("GET", "/jobs/open1", 200, "ann").await;
        assert_eq!(detail(&head), "bound-connection", "{head}");
    }
    let mut stranger = world.client().await;
    eventually(SOON, async || {
        let head = stranger.check("GET", "/jobs/open1", 200, "anyone").await;
        head.contains("cache-status: jobcache; hit")
    })
    .await;
}
