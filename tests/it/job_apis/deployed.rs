//! An application in its own process, the jobcache binary in front of it, and a Redis.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use hyper::Method;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Client, Process, RedisServer, Reply, SOON, eventually, python::PYTHON};

/// How often each caller polls each job in each of its states.
const POLLS: u64 = 10;

/// How a user configures jobcache.
#[derive(Clone, Copy, Default)]
pub(super) struct Settings<'a> {
    pub(super) flags: &'a [&'a str],
    pub(super) variables: &'a [(&'a str, &'a str)],
    pub(super) file: &'a str,
}

pub(super) struct Deployed {
    pub(super) redis: RedisServer,
    pub(super) app: App,
    pub(super) sidecar: Process,
    _folder: TempDir,
}

/// The application. It prints its port, and counts the reads that it has answered.
pub(super) struct App {
    pub(super) client: Client,
    child: Child,
}

/// The polls of two callers, and the writes that change a job in between.
pub(super) struct Traffic<'a> {
    /// Their `Authorization`.
    pub(super) callers: [&'a str; 2],
    /// The paths of the jobs.
    pub(super) jobs: &'a [&'a str],
    /// Each changes the job at this path.
    pub(super) changes: &'a [fn(&str) -> Change],
}

/// Method, path and body of a write.
pub(super) type Change = (Method, String, Value);

impl App {
    fn start(file: &str, redis_url: &str) -> Self {
        let path = format!("{}/tests/it/job_apis/{file}", env!("CARGO_MANIFEST_DIR"));
        // Debian's interpreter has Debian's packages; another interpreter may come first in PATH.
        let python: &[&str] = &["/usr/bin/python3", "-B"];
        let program = match file {
            // This one needs a client of Redis from PyPI.
            "self_caching_app.py" => &[PYTHON, "-B"],
            _ if file.ends_with("js") => &["node"][..],
            _ => python,
        };
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(program)
            .arg(path)
            // Debian's packages for Node, which another Node does not know.
            .env("NODE_PATH", "/usr/share/nodejs")
            .env("REDIS_URL", redis_url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("setpriv runs the application");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a piped stdout");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let port = line.trim().parse().unwrap_or_else(|_| {
            panic!("{file} prints no port; tests/run.sh installs the packages that it needs")
        });
        Self { client: Client::new(SocketAddr::from(([127, 0, 0, 1], port))), child }
    }

    /// Returns how many reads the application has answered: `"<caller> <job>"`.
    async fn counts(&self) -> serde_json::Map<String, Value> {
        self.client.get("/reads").await.json().as_object().expect("counts").clone()
    }

    pub(super) async fn reads(&self, of: &str) -> u64 {
        self.counts().await.get(of).and_then(Value::as_u64).unwrap_or(0)
    }

    async fn all_reads(&self) -> u64 {
        self.counts().await.values().filter_map(Value::as_u64).sum()
    }

    /// Changes a job past the cache, as a worker does.
    pub(super) async fn work(&self, path: &str, body: &Value) {
        let reply = write(&self.client, "", Method::PUT, path, body).await;
        assert!(reply.status.is_success(), "{reply:?}");
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Deployed {
    pub(super) async fn start(app: &str, settings: &Settings<'_>) -> Self {
        let redis = RedisServer::start().await;
        let app = App::start(app, &redis.url());
        let folder = TempDir::with_prefix("jobcache-api-").expect("a temporary directory");
        let file = folder.path().join("jobcache.toml");
        std::fs::write(&file, settings.file).expect("a file written");
        let upstream = format!("http://{}", app.client.address());
        let redis_url = redis.url();
        let file = file.to_str().expect("a readable path");
        let args = [
            &["--upstream", &upstream, "--redis-url", &redis_url, "--config", file][..],
            &["--settle", "0s", "--store-budget", "2s"],
            settings.flags,
        ];
        let sidecar = Process::start(&args.concat(), settings.variables).await;
        Self { redis, app, sidecar, _folder: folder }
    }

    /// Polls until this job, which no test uses otherwise, is answered from the cache.
    pub(super) async fn warm(self, who: &str, path: &str) -> Self {
        eventually(SOON, async || {
            let reply = self.get(who, path).await;
            if reply.is_hit() { Ok(()) } else { Err(reply) }
        })
        .await;
        self
    }

    /// Waits for Redis where no poll is ever answered from the cache.
    pub(super) async fn connected(&self) {
        eventually(SOON, async || {
            let ready = self.sidecar.admin.get("/readyz").await.json();
            if ready["store"] == "up" { Ok(()) } else { Err(ready) }
        })
        .await;
    }

    pub(super) async fn get(&self, who: &str, path: &str) -> Reply {
        let request = self.sidecar.client.request(Method::GET, path);
        request.header("authorization", who).send().await
    }

    pub(super) async fn write(&self, who: &str, method: Method, path: &str, body: &Value) -> Reply {
        write(&self.sidecar.client, who, method, path, body).await
    }

    /// Purges by the webhook, which names this key, and perhaps the same in another case.
    pub(super) async fn purge(&self, body: &Value, key: &str) {
        let reply = write(&self.sidecar.admin, "", Method::POST, "/purge", body).await;
        assert_eq!(reply.status, 200, "{body}: {reply:?}");
        let purged = reply.json()["purged"].as_array().expect("keys").clone();
        assert!(purged.contains(&key.into()), "{body}: {reply:?}");
    }

    /// Purges with the method `PURGE`.
    pub(super) async fn purge_path(&self, path: &str) {
        let purge = Method::from_bytes(b"PURGE").expect("a method");
        let reply = self.sidecar.admin.request(purge, path).send().await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
    }

    /// Asserts that the application answers the first read and the cache the second, both with this in
    /// the body.
    pub(super) async fn miss_then_hit(&self, who: &str, path: &str, part: &str) {
        let first = self.get(who, path).await;
        assert!(first.is_stored() && first.text().contains(part), "{who} {path}: {first:?}");
        self.hit(who, path, part).await;
    }

    pub(super) async fn hit(&self, who: &str, path: &str, part: &str) {
        let reply = self.get(who, path).await;
        assert!(reply.is_hit() && reply.text().contains(part), "{who} {path}: {reply:?}");
    }

    /// Asserts that reads pass uncached, for this reason if there is one, with this status.
    pub(super) async fn passes(&self, who: &str, path: &str, status: u16, detail: &str) {
        for _ in 0..2 {
            let reply = self.get(who, path).await;
            assert_eq!(reply.status, status, "{who} {path}: {reply:?}");
            let is_told = reply.cache_status().contains(detail);
            assert!(reply.is_uncached() && is_told, "{who} {path}: {reply:?}");
        }
    }

    /// Returns how many polls there were, and how many the application answered.
    async fn poll(&self, traffic: &Traffic<'_>) -> (u64, u64) {
        let before = self.app.all_reads().await;
        let mut polls = 0;
        for job in traffic.jobs {
            for state in 0..=traffic.changes.len() {
                for _ in 0..POLLS {
                    for who in traffic.callers {
                        self.get(who, job).await;
                        polls += 1;
                    }
                }
                if let Some(change) = traffic.changes.get(state) {
                    let (method, path, body) = change(job);
                    let reply = self.write(traffic.callers[0], method, &path, &body).await;
                    assert!(reply.status.is_success(), "{path}: {reply:?}");
                }
            }
        }
        (polls, self.app.all_reads().await - before)
    }
}

async fn write(client: &Client, who: &str, method: Method, path: &str, body: &Value) -> Reply {
    let request = client.request(method, path).header("content-type", "application/json");
    let request = if who.is_empty() { request } else { request.header("authorization", who) };
    request.body(body.to_string()).send().await
}

/// Asserts what `docs/job-apis.md` says about the polls that an application is spared, with default
/// settings and with these. `warm` is a job that is not polled otherwise.
pub(super) async fn check_saved(
    app: &str,
    settings: &Settings<'_>,
    traffic: &Traffic<'_>,
    warm: &str,
    row: &str,
) {
    let [who, _] = traffic.callers;
    let by_default = Deployed::start(app, &Settings::default()).await;
    by_default.connected().await;
    let configured = Deployed::start(app, settings).await.warm(who, warm).await;
    let mut figures = Vec::new();
    for deployed in [&by_default, &configured] {
        let (polls, reads) = deployed.poll(traffic).await;
        println!("{app}: {reads} of {polls} polls reach the application");
        figures.push(format!("{} %", (polls - reads) * 100 / polls));
    }
    let cells = format!("| {} |", figures.join(" | "));
    let page = include_str!("../../../docs/job-apis.md");
    let row = page.lines().find(|line| line.starts_with("| ") && line.contains(row));
    let row = row.expect("a row of the table");
    assert!(row.ends_with(&cells), "{cells} {row}");
}
