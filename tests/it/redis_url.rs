//! `REDIS_URL` as other clients of the same Redis write it: Celery with a worker, redis-py, and options
//! that only they know.

use std::process::{Child, Stdio};

use crate::support::{
    Process, RedisServer, SOON, Upstream, eventually, python, redis::key, tls::Authority,
    upstream::version,
};

const CELERY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/celery");
const X: &str = "/jobs/x1";

/// Starts a sidecar with this URL in its environment, and polls the job until it is a hit.
async fn sidecar(upstream: &Upstream, redis_url: &str) -> Process {
    let api = upstream.url();
    let envs =
        [("REDIS_URL", redis_url), ("JOBCACHE_STORE_BUDGET", "2s"), ("JOBCACHE_SETTLE", "0s")];
    let process = Process::start(&["--upstream", &api], &envs).await;
    eventually(SOON, async || {
        let reply = process.client.get(X).await;
        if reply.is_hit() { Ok(()) } else { Err((reply, process.stderr())) }
    })
    .await;
    process
}

/// Starts a Celery worker on this URL; it is killed with the test.
struct Worker(Child);

impl Worker {
    fn start(url: &str) -> Self {
        let mut command = python::command();
        command.args(["-m", "celery", "-A", "worker", "worker", "--pool", "solo"]);
        command.args(["--loglevel", "WARNING"]).current_dir(CELERY).env("REDIS_URL", url);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("a worker"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn celery_its_worker_redis_py_and_jobcache_share_one_url() {
    let authority = Authority::new();
    let pair = authority.issue("redis", &["127.0.0.1", "localhost"]);
    let (port, args) = crate::store_tls::tls_args(&authority, &pair, "no");
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let _redis = RedisServer::start_with(&args).await;
    // Celery refuses a TLS URL that does not say how the certificate is verified.
    let ca = authority.ca();
    let options =
        format!("ssl_cert_reqs=required&ssl_ca_certs={}&ssl_check_hostname=true", ca.display());
    let url = format!("rediss://localhost:{port}/2?{options}");
    let upstream = Upstream::start().await;
    let sidecar = sidecar(&upstream, &url).await;
    let _worker = Worker::start(&url);
    upstream.commit("x1");
    sidecar.client.get(X).await.assert(200, &version("x1", 0));

    let mut client = python::command();
    client.args(["client.py", "x1"]).current_dir(CELERY).env("REDIS_URL", &url);
    let output = tokio::task::spawn_blocking(move || client.output()).await.unwrap().unwrap();

    let error = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.lines().collect::<Vec<_>>(), [&*version("x1", 0), "1"], "{error}");
    sidecar.client.get(X).await.assert(200, &version("x1", 1));
    assert!(!sidecar.stderr().contains("look at the configuration"), "{}", sidecar.stderr());
}

#[tokio::test]
async fn options_and_quotes_of_other_clients_do_no_harm_and_an_unknown_one_is_one_warning() {
    let redis = RedisServer::start().await;
    let upstream = Upstream::start().await;
    let known = "socket_timeout=5&health_check_interval=30&family=0&maxRetriesPerRequest=3&db=3";
    let options = format!("{known}&client_name=jobs-7&frobnicate=swordfish");
    let url = format!("\"redis://127.0.0.1:{}/1?{options}\" ", redis.port());

    let sidecar = sidecar(&upstream, &url).await;

    let run = async |args: &[&str]| {
        let mut command = redis::cmd("EVAL");
        let script = "redis.call('SELECT', '3') return redis.call(unpack(ARGV))";
        redis.run::<i64>(command.arg(script).arg(0).arg(args)).await
    };
    assert_eq!(run(&["EXISTS", &key("x1")]).await, 1, "it is in the database of the option");
    // The connection of the commands, and that of tracking.
    eventually(SOON, async || {
        let clients: String = redis.run(redis::cmd("CLIENT").arg("LIST")).await;
        if clients.matches(" name=jobs-7 ").count() == 2 { Ok(()) } else { Err(clients) }
    })
    .await;
    let log = sidecar.stderr();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains(" WARN ")).collect();
    assert_eq!(warnings.iter().filter(|line| line.contains("frobnicate")).count(), 1, "{log}");
    assert!(!log.contains("swordfish") && !log.contains("socket_timeout"), "{log}");
}

#[tokio::test]
async fn a_socket_may_be_written_as_celery_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("redis.sock");
    let socket = socket.to_str().unwrap();
    let _redis = RedisServer::start_with(&["--unixsocket", socket]).await;
    let upstream = Upstream::start().await;
    let url = format!("redis+socket://{socket}?virtual_host=3");

    let sidecar = sidecar(&upstream, &url).await;

    assert!(!sidecar.stderr().contains(" WARN "), "{}", sidecar.stderr());
}
