//! jobcache as a service: its messages to the service manager, and the sockets that it inherits.

use std::{fs, path::Path};

use hyper::Method;
use tempfile::TempDir;
use tokio::net::UnixDatagram;

use crate::support::{Process, Upstream, soon, upstream::version};

const X: &str = "/jobs/x1";
const BAD_CONFIG: i32 = 78;

/// The service manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    dir: TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("a socket");
        Self { socket, dir }
    }

    /// Starts a process that notifies this manager, with an editable configuration file.
    async fn start(&self, upstream: &Upstream) -> Process {
        let (notify, config) = (self.dir.path().join("notify"), self.config());
        fs::write(&config, "").expect("a file written");
        let text = |path: &Path| path.to_str().expect("a path").to_owned();
        let (notify, config, url) = (text(&notify), text(&config), upstream.url());
        let args = ["--upstream", &url, "--redis-url", "memory://", "--config", &config];
        Process::start(&args, &[("NOTIFY_SOCKET", &notify)]).await
    }

    fn config(&self) -> std::path::PathBuf {
        self.dir.path().join("jobcache.toml")
    }

    /// Returns the lines of the next message.
    async fn message(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let size = soon(self.socket.recv(&mut message)).await.expect("a message");
        let message = std::str::from_utf8(&message[..size]).expect("text");
        message.lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn the_service_manager_is_told_when_it_serves_reloads_and_stops() {
    let (manager, upstream) = (Manager::new(), Upstream::start().await);
    let mut process = manager.start(&upstream).await;

    let serving = format!("STATUS=serving clients on {}", process.client.address());
    assert_eq!(manager.message().await, ["READY=1", &serving]);

    fs::write(manager.config(), "settle = '2s'").expect("a file written");
    process.hang_up();
    let reloading = manager.message().await;
    assert_eq!(reloading[0], "RELOADING=1");
    let at = reloading[1].strip_prefix("MONOTONIC_USEC=").expect("the time of the reload");
    assert!(at.parse::<u64>().is_ok_and(|at| at > 0), "{reloading:?}");
    let reloaded = manager.message().await;
    assert_eq!(reloaded, ["READY=1", "STATUS=serving with the reloaded configuration"]);

    process.terminate();
    assert_eq!(manager.message().await, ["STOPPING=1", "STATUS=draining"]);
    assert_eq!(process.wait().await.code(), Some(0), "{}", process.stderr());
}

#[tokio::test]
async fn a_configuration_that_was_not_taken_shows_in_the_status() {
    let (manager, upstream) = (Manager::new(), Upstream::start().await);
    let process = manager.start(&upstream).await;
    manager.message().await;
    for (file, status) in [("tll = 1", "mistakes"), ("store.prefix = 'a:'", "restart")] {
        fs::write(manager.config(), file).expect("a file written");
        process.hang_up();
        assert_eq!(manager.message().await[0], "RELOADING=1");
        let told = manager.message().await;
        assert!(told[0] == "READY=1" && told[1].contains(status), "{told:?}");
    }
}

#[tokio::test]
async fn it_serves_when_it_says_so() {
    let (manager, upstream) = (Manager::new(), Upstream::start().await);
    let process = manager.start(&upstream).await;

    assert_eq!(manager.message().await[0], "READY=1");

    process.client.request(Method::GET, X).send().await.assert(200, &version("x1", 0));
}

/// Starts with these sockets. The addresses in the flags cannot be bound, so inherited sockets must
/// win.
async fn activated(sockets: usize, names: Option<&str>, flags: &[&str]) -> (Process, Upstream) {
    let upstream = Upstream::start().await;
    let url = upstream.url();
    let fixed = ["--upstream", &url, "--redis-url", "memory://"];
    (Process::activated(sockets, names, &[&fixed[..], flags].concat()).await, upstream)
}

#[tokio::test]
async fn passed_sockets_are_used_by_their_names() {
    for names in ["proxy:admin", "admin:proxy"] {
        let nowhere = ["--listen", "192.0.2.1:1", "--admin", "127.0.0.1:1"];
        let (process, _upstream) = activated(2, Some(names), &nowhere).await;

        process.client.get(X).await.assert(200, &version("x1", 0));
        assert_eq!(process.admin.get("/readyz").await.status, 200, "{names}");
    }
}

#[tokio::test]
async fn passed_sockets_without_names_are_for_clients_and_then_for_operators() {
    let (process, _upstream) = activated(2, Some("jobcache.socket:jobcache.socket"), &[]).await;
    process.client.get(X).await.assert(200, &version("x1", 0));

    let (process, _upstream) = activated(1, None, &["--admin", "127.0.0.1:0"]).await;
    process.client.get(X).await.assert(200, &version("x1", 0));
    assert_eq!(process.admin.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_reload_goes_on_with_passed_sockets() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("jobcache.toml");
    fs::write(&file, "").expect("a file written");
    let flags = ["--config", file.to_str().expect("a path")];
    let (process, _upstream) = activated(2, None, &flags).await;

    fs::write(&file, "routes = ['/elsewhere/{id}']").expect("a file written");
    process.hang_up();

    crate::support::eventually(crate::support::SOON, async || {
        let reply = process.client.get(X).await;
        if reply.cache_status().ends_with("detail=path") { Ok(()) } else { Err(process.stderr()) }
    })
    .await;
}

#[tokio::test]
async fn sockets_that_nobody_can_tell_apart_are_a_configuration_error() {
    for (sockets, names, says) in [(3, None, "at most 2"), (2, Some("proxy:other"), "\"other\"")] {
        let (code, stderr) =
            Process::failed_activation(sockets, names, &["--redis-url", "memory://"]);
        assert_eq!(code, BAD_CONFIG, "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
}
