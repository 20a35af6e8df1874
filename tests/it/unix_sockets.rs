//! Unix sockets on either side.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use jobcache::{
    Listeners,
    config::{Config, ListenAddress, StoreUrl},
    server::listen::{Reuse, bind},
};
use tempfile::tempdir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
};

use crate::support::{
    Load, Process, SOON, Upstream, client::split, eventually, soon, steady_clock, upstream::version,
};

/// Sends a request over its own connection.
async fn get(socket: &Path, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).await.expect("a listener");
    let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("a request written");
    let mut bytes = Vec::new();
    soon(stream.read_to_end(&mut bytes)).await.expect("an answer");
    split(&bytes)
}

struct Running {
    end: Option<oneshot::Sender<()>>,
    run: JoinHandle<Result<(), jobcache::RunError>>,
}

impl Running {
    fn start(listen: &Path, admin: &Path, upstream: &str, reuse: Reuse) -> std::io::Result<Self> {
        steady_clock();
        let mut config = Config::default();
        config.cache.settle = Duration::ZERO;
        config.store.reconnect_grace = Duration::ZERO;
        config.store.url = StoreUrl::Memory;
        upstream.clone_into(&mut config.upstream.url);
        config.listen = ListenAddress::Unix(listen.to_owned());
        config.admin = ListenAddress::Unix(admin.to_owned());
        let listeners = Listeners {
            proxy: bind(&config.listen, reuse, config.unix_mode)?,
            admin: bind(&config.admin, Reuse::Never, config.unix_mode)?,
        };
        let (end, told) = oneshot::channel::<()>();
        let run = tokio::spawn(jobcache::run(config, listeners, async {
            let _ = told.await;
        }));
        Ok(Self { end: Some(end), run })
    }

    async fn end(mut self) {
        self.end.take();
        soon(self.run).await.expect("run does not panic").expect("a complete drain");
    }
}

#[tokio::test]
async fn clients_operators_and_the_upstream_may_all_be_at_paths() {
    let files = tempdir().unwrap();
    let at = |name: &str| files.path().join(name);
    let upstream = Upstream::start_unix(&at("api.sock"));
    let (listen, admin) = (at("proxy.sock"), at("admin.sock"));
    let running = Running::start(&listen, &admin, &upstream.url(), Reuse::Never).unwrap();

    assert_eq!(get(&listen, "/jobs/1").await, (200, version("1", 0)));
    assert_eq!(get(&listen, "/jobs/1").await, (200, version("1", 0)));
    assert_eq!(upstream.requests().len(), 1, "the second request was not a hit");
    assert_eq!(
        upstream.requests()[0].headers.get("x-forwarded-for"),
        None,
        "an address on a Unix socket"
    );
    assert_eq!(get(&admin, "/readyz").await.0, 200);
    let mode = std::fs::metadata(&listen).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);

    running.end().await;
    assert!(!listen.exists() && !admin.exists(), "a socket file is left without a listener");
}

#[tokio::test]
async fn a_socket_that_nobody_listens_at_is_replaced_and_any_other_is_not() {
    let files = tempdir().unwrap();
    let path = files.path().join("a.sock");
    let at = ListenAddress::Unix(path.clone());
    // A killed process leaves its socket file behind like this.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

    let first = bind(&at, Reuse::Never, 0o600).unwrap();
    let taken = bind(&at, Reuse::Never, 0o600).unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    drop(first);

    std::fs::write(&path, "mine").unwrap();
    let other = bind(&at, Reuse::Never, 0o600).unwrap_err();
    assert_eq!(other.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

#[tokio::test]
async fn a_takeover_of_a_socket_refuses_no_connection() {
    let files = tempdir().unwrap();
    let at = |name: &str| files.path().join(name);
    let upstream = Upstream::start().await;
    let (listen, url) = (at("proxy.sock"), upstream.url());
    let old = Running::start(&listen, &at("old.sock"), &url, Reuse::Port).unwrap();
    let path = listen.clone();
    let load = Load::start(move || {
        let path = path.clone();
        async move { get(&path, "/jobs/x1").await.0 }
    });
    load.goes_on().await;

    let new = Running::start(&listen, &at("new.sock"), &url, Reuse::Port).unwrap();
    load.goes_on().await;
    old.end().await;
    load.goes_on().await;

    let answers = load.end().await;
    let unanswered: Vec<_> = answers.iter().filter(|status| **status != 200).collect();
    assert!(unanswered.is_empty(), "{unanswered:?} of {} answers", answers.len());
    assert!(listen.exists(), "the old process has removed the socket of the new one");
    new.end().await;
}

#[tokio::test]
async fn the_binary_tells_health_over_a_socket() {
    let files = tempdir().unwrap();
    let admin = files.path().join("admin.sock");
    let admin = format!("unix:{}", admin.display());
    let envs = [("JOBCACHE_ADMIN", admin.as_str()), ("JOBCACHE_LISTEN", "127.0.0.1:0")];
    let (code, _, error) = Process::output(&["healthcheck"], &envs);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("does not answer"), "{error}");

    let _running = Process::spawn(&["--redis-url", "memory://"], &envs);
    eventually(SOON, async || Process::output(&["healthcheck"], &envs).0 == 0).await;
}
