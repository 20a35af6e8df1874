//! Examples that users copy and start: the webhook client of `docs/purging.md`, and the sample of
//! `config/compose.yaml`.
//!
//! Both run unchanged, with real processes instead of containers, except that names and ports of
//! other services are replaced.

use std::{
    fs::{self, File},
    net::SocketAddr,
    process::{Child, Stdio},
};

use hyper::Method;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    Client, Process, RedisServer, SOON, Upstream, eventually, python, upstream::version,
};

const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const STAGES: [&str; 5] = ["QUEUED", "PROBING", "RENDERING", "ENCODING", "DONE"];

/// Long enough for several hits in each stage.
const STEP_SECONDS: &str = "0.5";

/// Returns the Python block of `docs/purging.md` that signs, unchanged.
fn webhook() -> String {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/purging.md")).unwrap();
    let blocks = page.split("```python\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let mut signing = blocks.map(|(block, _)| block).filter(|block| block.contains(".sign("));
    signing.next().expect("docs/purging.md signs a webhook").to_owned()
}

/// Runs the webhook client for the job `x1` with this secret. Returns whether it succeeded, and its
/// output.
fn purge_x(secret: &str, admin: SocketAddr) -> (bool, String) {
    let script = format!("{}\npurge('x1', 'http://{admin}/purge')\n", webhook());
    let mut command = python::command();
    let command = command.args(["-c", &script]).env("JOBCACHE_WEBHOOK_SECRET", secret);
    let output = command.output().expect("python3 runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_webhook_client_purges_and_a_wrong_secret_raises() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let (store, url) = (redis.url(), upstream.url());
    let args = ["--upstream", &url, "--redis-url", &store, "--store-budget", "2s"];
    let process = Process::start(&args, &[("JOBCACHE_WEBHOOK_SECRET", SECRET)]).await;
    let hit = async || process.client.get("/jobs/x1").await.is_hit();
    eventually(SOON, hit).await;
    upstream.commit("x1");

    let (purged, stderr) =
        purge_x("whsec_c29tZXRoaW5nIGVsc2UgZW50aXJlbHk=", process.admin.address());
    assert!(!purged && stderr.contains("HTTP Error 401"), "{stderr}");
    process.client.get("/jobs/x1").await.assert(200, &version("x1", 0));

    let (purged, stderr) = purge_x("", process.admin.address());
    assert!(!purged && stderr.contains("RuntimeError: set JOBCACHE_WEBHOOK_SECRET"), "{stderr}");

    let (purged, stderr) = purge_x(SECRET, process.admin.address());
    assert!(purged, "{stderr}");
    process.client.get("/jobs/x1").await.assert(200, &version("x1", 1));
}

#[test]
fn the_documented_webhook_client_is_ten_lines() {
    let lines = webhook().lines().filter(|line| !line.is_empty()).count();
    assert!(lines <= 10, "{lines}");
}

/// The services of `config/compose.yaml`, as processes.
struct Compose {
    redis: RedisServer,
    api: Client,
    jobcache: Process,
    dir: TempDir,
    _python: [Python; 2],
}

impl Compose {
    async fn up() -> Self {
        let services = python::yaml("config/compose.yaml")[0]["services"].clone();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = ("/data", dir.path().to_str().expect("a path"));
        let redis = RedisServer::start_with(&words(&services["redis"], "redis-server")).await;

        let backend = Python::start(&services["api"], &["-m", "uvicorn"], &[data], &dir, "api");
        let api = eventually(SOON, async || {
            let log = log(&dir, "api");
            let address = log
                .split_once("running on http://")
                .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<SocketAddr>().ok());
            address.ok_or(log)
        })
        .await;

        let (store, upstream) = (redis.url(), format!("http://{api}"));
        let replaced = [("redis://redis:6379", &*store), ("http://api:8000", &upstream)];
        let env = environment(&services["jobcache"], &replaced);
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let jobcache = Process::start(&[], &env).await;

        let admin = format!("http://{}", jobcache.admin.address());
        let replaced = [data, ("http://jobcache:9090", &admin)];
        let workers = Python::start(&services["pipeline"], &[], &replaced, &dir, "pipeline");
        Self { redis, api: Client::new(api), jobcache, dir, _python: [backend, workers] }
    }

    /// Creates a job and returns its path.
    async fn create(&self) -> String {
        let created = self.jobcache.client.request(Method::POST, "/jobs").send().await;
        assert_eq!(created.status, 201, "{created:?}");
        created.header("location").to_owned()
    }

    /// Polls a job until it is done and a hit, and returns the number of polls and of hits. Fails
    /// if an earlier stage reappears.
    async fn poll(&self, path: &str) -> (u64, u64) {
        let (mut polls, mut hits, mut stage) = (0, 0, 0);
        eventually(SOON, async || {
            let reply = self.jobcache.client.get(path).await;
            polls += 1;
            hits += u64::from(reply.is_hit());
            let json = reply.json();
            let now = STAGES.iter().position(|stage| json["status"] == *stage).expect("a stage");
            assert!(now >= stage, "{} after {}", STAGES[now], STAGES[stage]);
            stage = now;
            if stage == STAGES.len() - 1 && reply.is_hit() { Ok(()) } else { Err(reply) }
        })
        .await;
        (polls, hits)
    }
}

/// A service of the image of `config/example`, as a process.
struct Python(Child);

impl Python {
    /// Runs the service's command in the sample's directory. Its program is `python` or a module
    /// that is started with `-m ...`. The service listens on a free port of this machine.
    fn start(
        service: &Value,
        module: &[&str],
        replaced: &[(&str, &str)],
        dir: &TempDir,
        name: &str,
    ) -> Self {
        let program = module.last().unwrap_or(&"python");
        let words = words(service, program).into_iter().map(|word| match word {
            "0.0.0.0" => "127.0.0.1",
            "8000" => "0",
            word => word,
        });
        let log = File::create(dir.path().join(name)).expect("a log");
        let mut command = python::command();
        command
            .args(module)
            .args(words)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config/example"))
            .envs(environment(service, replaced))
            .env("STEP_SECONDS", STEP_SECONDS)
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a log"))
            .stdout(log);
        Self(command.spawn().expect("setpriv runs python3"))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the log of a process.
fn log(dir: &TempDir, name: &str) -> String {
    fs::read_to_string(dir.path().join(name)).expect("a log")
}

/// Returns the arguments of a service's command; its program must be `program`.
#[track_caller]
fn words<'s>(service: &'s Value, program: &str) -> Vec<&'s str> {
    let words = service["command"].as_array().expect("a command").iter();
    let words: Vec<_> = words.map(|word| word.as_str().expect("a word")).collect();
    assert_eq!(words[0], program);
    words[1..].to_vec()
}

/// Returns the environment of a service, with other services replaced by those of the test.
fn environment(service: &Value, replaced: &[(&str, &str)]) -> Vec<(String, String)> {
    let environment = service["environment"].as_object().expect("an environment");
    let value = |text: &str| {
        let text = if text.starts_with("${JOBCACHE_WEBHOOK_SECRET:?") { SECRET } else { text };
        replaced.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    };
    let each = environment.iter();
    each.map(|(name, text)| (name.clone(), value(text.as_str().expect("text")))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_of_compose_serves_each_stage_from_the_cache_and_never_an_older_one() {
    let compose = Compose::up().await;
    let path = compose.create().await;

    let (polls, hits) = compose.poll(&path).await;

    let queries = compose.api.get("/queries").await.json()["queries"].as_u64().expect("a number");
    assert_eq!(queries, polls - hits);
    let id = path.strip_prefix("/jobs/").expect("the path of a job");
    let receipt = format!("purge of {id}: {{'entries': 1, 'purged': ['{id}'], ");
    let receipts = log(&compose.dir, "pipeline").matches(&receipt).count();
    assert!(receipts >= 1, "{}", log(&compose.dir, "pipeline"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_of_compose_goes_on_without_redis_and_caches_again_with_it() {
    let mut compose = Compose::up().await;
    compose.poll(&compose.create().await).await;

    compose.redis.kill();
    let path = compose.create().await;
    eventually(SOON, async || {
        let log = log(&compose.dir, "pipeline");
        let refused = log.contains("is not confirmed: HTTP Error 503: Service Unavailable");
        let reply = compose.jobcache.client.get(&path).await;
        assert!(reply.status == 200 && !reply.is_hit(), "{reply:?}");
        (refused && reply.json()["status"] == "DONE").then_some(()).ok_or(log)
    })
    .await;

    compose.redis.restart_empty().await;
    let back = eventually(SOON, async || {
        let reply = compose.jobcache.client.get(&path).await;
        if reply.is_hit() { Ok(reply) } else { Err(reply) }
    })
    .await;
    assert_eq!(back.json()["status"], "DONE");
}
