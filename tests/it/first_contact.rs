//! What `jobcache check` and the log say where something else than a Redis that serves jobcache listens: the reason,
//! and a remedy that works.

use std::{
    net::{IpAddr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
};

use redis::cmd;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    Process, RedisServer, SOON, Upstream, client::Reply, eventually, free_port,
    sentinel::Deployment, upstream::version,
};

/// Asserts that a check complains about the store with all of `parts`, and that it says nothing of TLS.
async fn says(url: &str, envs: &[(&str, &str)], parts: &[&str]) {
    let upstream = Upstream::start().await;
    let (refused, line) = Process::check_store(url, &upstream, envs).await;
    assert!(refused, "{line}");
    for part in parts {
        assert!(line.contains(part), "{part} is missing in {line}");
    }
    assert!(!line.contains("use a rediss://") && !line.contains("without TLS"), "{line}");
}

async fn works(url: &str, envs: &[(&str, &str)]) {
    let upstream = Upstream::start().await;
    let (refused, line) = Process::check_store(url, &upstream, envs).await;
    assert!(!refused && line.ends_with(": reachable"), "{line}");
}

/// Asserts that the log and `/status` say it too, and that clients are served.
async fn is_logged(url: &str, part: &str, kind: &str) {
    let upstream = Upstream::start().await;
    let process = Process::start(&["--upstream", &upstream.url(), "--redis-url", url], &[]).await;
    eventually(SOON, async || {
        let log = process.stderr();
        log.lines()
            .any(|line| line.contains("WARN") && line.contains(part))
            .then_some(())
            .ok_or(log)
    })
    .await;
    let reply: Reply = process.client.get("/jobs/x1").await;
    reply.assert(200, &version("x1", 0));
    eventually(SOON, async || {
        let status = process.admin.get("/status").await.json();
        let problem = &status["store"]["problem"];
        let remedy = problem["remedy"].as_str().unwrap_or_default();
        let is_it = problem["kind"] == kind && remedy.contains(part);
        if is_it { Ok(()) } else { Err(problem.clone()) }
    })
    .await;
}

#[tokio::test]
async fn a_server_to_which_there_is_no_connection_is_told_with_its_remedy_everywhere() {
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    // No label of a name is that long.
    let unknown = format!("redis://{}:6379", "x".repeat(64));
    let silent = speaker(None, Some("")).await;
    for (url, said, remedy, kind) in [
        (nowhere, "Connection refused", "start Redis, or check host and port", "refused"),
        (unknown, "lookup address", "check its name in store.url", "unknown-host"),
        (silent, "no answer within 1s", "see whether Redis hangs", "no-answer"),
        ("unix:///no/redis.sock".to_owned(), "No such file", "check the path", "no-socket"),
    ] {
        says(&url, &[], &["not reachable: ", said, remedy]).await;
        is_logged(&url, remedy, kind).await;
    }
}

#[tokio::test]
async fn a_redis_without_room_for_clients_is_called_full_of_them() {
    let redis = RedisServer::start().await;
    let () = redis.run(cmd("CONFIG").arg("SET").arg("maxclients").arg(1)).await;
    let mut only = eventually(SOON, async || {
        let mut only = TcpStream::connect(("127.0.0.1", redis.port())).await.ok()?;
        only.write_all(b"PING\r\n").await.ok()?;
        let mut pong = [0; 64];
        let read = only.read(&mut pong).await.ok()?;
        pong[..read].starts_with(b"+PONG").then_some(only)
    })
    .await;

    let parts = ["max number of clients reached", "raise maxclients"];
    says(&redis.url(), &[], &parts).await;
    says(&redis.url(), &[("JOBCACHE_STORE_PASSWORD", "secret")], &parts).await;
    is_logged(&redis.url(), "raise maxclients", "max-clients").await;

    only.write_all(b"CONFIG SET maxclients 100\r\n").await.expect("a write");
    works(&redis.url(), &[]).await;
}

/// An address of this machine that is not loopback, if there is one.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    // Sends nothing: it only chooses the address.
    socket.connect(("192.0.2.1", 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// The first bytes with which Redis 7.0 answers a remote client in protected mode.
const DENIED: &str = "-DENIED Redis is running in protected mode because protected mode is enabled and no password \
                      is set for the default user. In this mode connections are only accepted from the loopback \
                      interface.\r\n";

#[tokio::test]
async fn protected_mode_is_called_so() {
    let parts = ["DENIED Redis is running in protected mode", "set requirepass"];
    let denies = speaker(Some(DENIED), None).await;
    says(&denies, &[], &parts).await;
    let Some(address) = own_address() else { return };
    let redis = RedisServer::start_with(&["--bind", "127.0.0.1", &address.to_string()]).await;
    let url = format!("redis://{address}:{}", redis.port());
    says(&url, &[], &parts).await;
    says(&url, &[("JOBCACHE_STORE_PASSWORD", "secret")], &parts).await;
    is_logged(&url, "set requirepass", "protected-mode").await;
    let () = redis.run(cmd("CONFIG").arg("SET").arg("requirepass").arg("secret")).await;
    works(&url, &[("JOBCACHE_STORE_PASSWORD", "secret")]).await;
}

/// Returns the URL of a server that greets each client, or answers what each sends, and closes the connection.
async fn speaker(greeting: Option<&'static str>, answer: Option<&'static str>) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a listener");
    let url = format!("redis://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Some(greeting) = greeting {
                    let _ = client.write_all(greeting.as_bytes()).await;
                }
                let mut asked = [0; 1024];
                while let (Some(answer), Ok(read @ 1..)) = (answer, client.read(&mut asked).await) {
                    // Each command begins with a star.
                    let commands = String::from_utf8_lossy(&asked[..read]).matches('*').count();
                    let _ = client.write_all(answer.repeat(commands).as_bytes()).await;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn what_a_server_says_is_understood() {
    const LOADING: &str = "-LOADING Redis is loading the dataset in memory\r\n";
    const MASTERDOWN: &str =
        "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n";
    for (greeting, answer, parts) in [
        (None, Some(LOADING), ["LOADING Redis is loading", "wait until Redis has loaded"]),
        (None, Some(MASTERDOWN), ["MASTERDOWN", "replica without its master"]),
        (Some("SSH-2.0-OpenSSH_9.2p1\r\n"), None, ["answers \"SSH-2.0-OpenSSH", "another server"]),
        (None, Some(""), ["no answer within 1s", "whether Redis hangs"]),
        (None, None, ["closes the connection without an answer", "check host and port"]),
    ] {
        says(&speaker(greeting, answer).await, &[], &parts).await;
    }
}

#[tokio::test]
async fn a_replica_is_called_one() {
    let redis = RedisServer::start().await;
    let () = redis.run(cmd("REPLICAOF").arg("127.0.0.1").arg(1)).await;
    says(&redis.url(), &[], &["role is \"slave\"", "this is a replica: name the master"]).await;
    let () = redis.run(cmd("REPLICAOF").arg("NO").arg("ONE")).await;
    works(&redis.url(), &[]).await;
}

#[tokio::test]
async fn an_http_server_is_called_one_whatever_the_scheme() {
    let api = Upstream::start().await;
    let url = api.url().replace("http://", "redis://");
    let parts = ["answers \"HTTP/1.1 400 Bad Request\"", "an HTTP server listens there"];
    says(&url, &[], &parts).await;
    says(&url.replace("redis://", "rediss://"), &[], &parts).await;
    is_logged(&url, "an HTTP server listens there", "http").await;
}

/// twemproxy in front of a Redis.
struct Twemproxy(Child, String);

impl Twemproxy {
    /// Returns `None` without the program.
    async fn start(redis: &RedisServer, dir: &Path) -> Option<Self> {
        let (port, stats) = (free_port(), free_port());
        let file = dir.join("nutcracker.yml");
        let text = format!(
            "alpha:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: ketama\n  redis: true\n  \
             servers:\n   - 127.0.0.1:{}:1\n",
            redis.port()
        );
        std::fs::write(&file, text).expect("a file");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "/usr/sbin/nutcracker", "-c"]).arg(&file);
        command.args(["-a", "127.0.0.1", "-s", &stats.to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().ok().filter(|_| Path::new("/usr/sbin/nutcracker").exists())?;
        let proxy = Self(child, format!("redis://127.0.0.1:{port}"));
        eventually(SOON, async || TcpStream::connect(("127.0.0.1", port)).await.map(drop)).await;
        Some(proxy)
    }
}

impl Drop for Twemproxy {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_proxy_that_takes_some_commands_only_is_called_one() {
    let (redis, dir) = (RedisServer::start().await, tempfile::tempdir().expect("a directory"));
    let Some(proxy) = Twemproxy::start(&redis, dir.path()).await else {
        eprintln!("nutcracker is not installed; see tests/run.sh");
        return;
    };
    let parts =
        ["a proxy that takes some commands only, such as twemproxy", "connect to Redis itself"];
    says(&proxy.1, &[], &parts).await;
    is_logged(&proxy.1, "such as twemproxy", "proxy").await;
    works(&redis.url(), &[]).await;
}

#[tokio::test]
async fn a_login_that_fails_is_told_with_its_user_and_its_remedy() {
    let redis = RedisServer::start().await;
    let wrong = redis.url().replace("redis://", "redis://nobody:wrong@");
    let parts = ["authentication failed for the user \"nobody\": WRONGPASS", "store.password"];
    says(&wrong, &[], &parts).await;
    let needless = [("JOBCACHE_STORE_PASSWORD", "secret")];
    says(&redis.url(), &needless, &["this Redis has no password: remove it"]).await;
    let () = redis.run(cmd("CONFIG").arg("SET").arg("requirepass").arg("secret")).await;
    let parts = ["authentication failed for the default user: NOAUTH", "set store.password_file"];
    says(&redis.url(), &[], &parts).await;
    works(&redis.url(), &needless).await;
}

#[tokio::test]
async fn a_url_of_another_kind_is_corrected() {
    let redis = RedisServer::start().await;
    let cluster = redis.url().replace("redis://", "redis-cluster://");
    says(&cluster, &[], &["this is not a cluster: use a redis:// URL"]).await;
    let sentinel = redis.url().replace("redis://", "redis-sentinel://") + "/mymaster";
    says(&sentinel, &[], &["this is not a sentinel"]).await;
    let parts = ["refuses jobcache: database 77: DB index is out of range; name", "databases"];
    says(&(redis.url() + "/77"), &[], &parts).await;
    let watched = Deployment::start().await;
    let port = watched.sentinels[0].port();
    let sentinel = format!("redis://127.0.0.1:{port}");
    says(&sentinel, &[], &["answers as a sentinel", "use a redis-sentinel://"]).await;
}
