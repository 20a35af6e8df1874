//! Several processes with one `pending.journal`: each keeps a file of its own, and what one has not
//! confirmed is neither lost nor served by another.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use hyper::{Method, StatusCode};
use serde_json::Value;

use crate::support::{
    Process, RedisServer, SOON, Upstream, eventually, redis::key, soon, upstream::version,
};

const X: &str = "/jobs/71";
const Y: &str = "/jobs/81";

/// A Redis, an upstream, and the journal that all processes of a test share.
struct Shared {
    redis: RedisServer,
    upstream: Upstream,
    folder: tempfile::TempDir,
}

impl Shared {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        Self { redis: RedisServer::start().await, upstream: Upstream::start().await, folder }
    }

    /// Returns the path of a journal: the setting itself, or the n-th after it.
    fn path(&self, number: usize) -> PathBuf {
        let name = match number {
            0 => "pending.journal".to_owned(),
            n => format!("pending.journal.{n}"),
        };
        self.folder.path().join(name)
    }

    fn text(&self, number: usize) -> String {
        std::fs::read_to_string(self.path(number)).unwrap_or_default()
    }

    /// Returns the ids that a journal names.
    fn names(&self, number: usize) -> String {
        let text = self.text(number);
        ["71", "81"].into_iter().filter(|id| text.contains(&key(id))).collect()
    }

    fn envs(&self) -> [(String, String); 2] {
        let journal = self.path(0).display().to_string();
        [
            ("JOBCACHE_PENDING_JOURNAL".to_owned(), journal),
            ("JOBCACHE_SERVER_REUSE_PORT".to_owned(), "true".to_owned()),
        ]
    }

    async fn start(&self) -> Process {
        self.start_at(None).await
    }

    /// Starts a process, on the client address of another one if there is one.
    async fn start_at(&self, beside: Option<&Process>) -> Process {
        let (upstream, redis) = (self.upstream.url(), self.redis.url());
        let args = ["--upstream", &*upstream, "--redis-url", &*redis, "--settle", "0s"];
        let envs = self.envs();
        let envs = envs.each_ref().map(|(name, value)| (&**name, &**value));
        match beside {
            None => Process::start(&args, &envs).await,
            Some(other) => Process::beside(other.client.address(), &args, &envs).await,
        }
    }
}

async fn status(process: &Process) -> Value {
    process.admin.get("/status").await.json()["store"].clone()
}

async fn hits(process: &Process, path: &str) {
    eventually(SOON, async || {
        let reply = process.client.get(path).await;
        if reply.is_hit() { Ok(()) } else { Err(reply) }
    })
    .await;
}

async fn write_unconfirmed(process: &Process, path: &str) {
    let reply = process.client.put(path).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert!(reply.header("cache-status").contains("invalidation-pending"), "{reply:?}");
}

/// Waits until reads bypass the cache because an invalidation is pending.
async fn bypasses(process: &Process, path: &str) {
    eventually(SOON, async || {
        let reply = process.client.get(path).await;
        if reply.header("cache-status").contains("detail=pending") { Ok(()) } else { Err(reply) }
    })
    .await;
}

/// Waits until nothing is pending in this process or in its siblings.
async fn confirmed(process: &Process) {
    eventually(SOON, async || {
        let now = status(process).await;
        let siblings = &now["journal"]["siblings"];
        if now["up"] == true && now["pending_invalidations"] == 0 && *siblings == 0 {
            Ok(())
        } else {
            Err(now)
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_killed_process_owes_is_bypassed_and_confirmed_by_the_other() {
    let shared = Shared::new().await;
    let mut first = shared.start().await;
    let second = shared.start().await;
    assert_eq!(
        status(&second).await["journal"]["path"],
        shared.path(1).display().to_string().as_str()
    );
    hits(&first, X).await;
    hits(&second, X).await;
    shared.redis.stop();

    write_unconfirmed(&first, X).await;

    bypasses(&second, X).await;
    let now = status(&second).await;
    assert_eq!(
        (&now["journal"]["siblings"], &now["journal"]["sibling_invalidations"]),
        (&1.into(), &1.into())
    );
    assert_eq!((shared.names(0), shared.names(1)), ("71".into(), String::new()));
    first.kill();
    eventually(SOON, async || {
        let pending = status(&second).await["pending_invalidations"].clone();
        if pending == 1 && shared.text(0).is_empty() { Ok(()) } else { Err(pending) }
    })
    .await;
    assert_eq!(shared.names(1), "71", "it is in the file of the second before it leaves the first");
    bypasses(&second, X).await;

    shared.redis.cont();
    confirmed(&second).await;
    hits(&second, X).await;
    second.client.get(X).await.assert(200, &version("71", 1));
    assert_eq!((shared.text(0), shared.text(1)), (String::new(), String::new()));
}

#[tokio::test]
async fn no_process_empties_the_journal_of_another_that_lives() {
    let shared = Shared::new().await;
    let first = shared.start().await;
    let mut second = shared.start().await;
    hits(&first, X).await;
    hits(&second, Y).await;
    shared.redis.stop();
    write_unconfirmed(&first, X).await;
    write_unconfirmed(&second, Y).await;
    bypasses(&first, Y).await;
    bypasses(&second, X).await;
    assert_eq!((shared.names(0), shared.names(1)), ("71".into(), "81".into()));

    second.kill();
    let third = shared.start().await;

    // Either the first has adopted it by now, or the third has found it in its own file.
    bypasses(&third, X).await;
    bypasses(&third, Y).await;
    bypasses(&first, Y).await;
    let all = format!("{}{}{}", shared.text(0), shared.text(1), shared.text(2));
    assert!(all.contains(&key("71")) && all.contains(&key("81")), "{all}");
    shared.redis.cont();
    for process in [&first, &third] {
        confirmed(process).await;
        for (path, id) in [(X, "71"), (Y, "81")] {
            hits(process, path).await;
            process.client.get(path).await.assert(200, &version(id, 1));
        }
    }
    assert_eq!(shared.text(0) + &shared.text(1) + &shared.text(2), "");
}

#[tokio::test]
async fn a_takeover_leaves_nothing_unconfirmed_behind() {
    let shared = Shared::new().await;
    let mut old = shared.start().await;
    hits(&old, X).await;
    let gate = shared.upstream.hold(Method::PUT, X);
    let write = old.client.start(Method::PUT, X, "{}").await;
    gate.arrived(1).await;
    let new = shared.start_at(Some(&old)).await;
    eventually(SOON, async || status(&new).await["up"] == true).await;
    old.terminate();
    eventually(SOON, async || {
        let ready = old.admin.get("/readyz").await.json();
        if ready["status"] == "draining" { Ok(()) } else { Err(ready) }
    })
    .await;

    // The last write of the old process ends while it drains, and Redis does not confirm it.
    shared.redis.stop();
    gate.release();
    assert_eq!(soon(write.answer()).await.0, 200);
    bypasses(&new, X).await;
    assert!(old.wait().await.success(), "{}", old.stderr());
    bypasses(&new, X).await;
    eventually(SOON, async || status(&new).await["pending_invalidations"] == 1).await;

    shared.redis.cont();
    confirmed(&new).await;
    hits(&new, X).await;
    new.client.get(X).await.assert(200, &version("71", 1));
    // The next process finds the first file free.
    let next = shared.start_at(Some(&new)).await;
    assert_eq!(
        status(&next).await["journal"]["path"],
        shared.path(0).display().to_string().as_str()
    );
}

#[tokio::test]
async fn a_journal_of_another_store_is_named_and_kept_and_one_without_a_header_is_read() {
    let shared = Shared::new().await;
    let added = |id: &str| {
        format!("{{\"event\":\"added\",\"key\":\"{}\",\"write\":\"w\",\"linger_ms\":0}}\n", key(id))
    };
    let header = "{\"event\":\"journal\",\"store\":\"redis://elsewhere:6379/0\",\"prefix\":\"job_status:\"}\n";
    let foreign = header.to_owned() + &added("71");
    std::fs::write(shared.path(0), &foreign).expect("a journal of another store");
    std::fs::write(shared.path(1), added("81")).expect("a journal of an earlier version");

    let process = shared.start().await;

    confirmed(&process).await;
    eventually(SOON, async || shared.text(1).is_empty()).await;
    assert_eq!(shared.text(0), foreign);
    let log = process.stderr();
    assert!(log.contains("another store or prefix") && log.contains("elsewhere:6379"), "{log}");
    assert!(log.contains("delete the file"), "{log}");
}

#[tokio::test]
async fn the_seventeenth_process_is_refused_with_the_remedy() {
    let shared = Shared::new().await;
    let locked = |path: &Path| {
        let file = File::create(path).expect("a file");
        file.lock().expect("a lock");
        file
    };
    let mut held: Vec<_> = (0..16).map(|number| locked(&shared.path(number))).collect();
    let (upstream, redis) = (shared.upstream.url(), shared.redis.url());
    let args = ["--upstream", &*upstream, "--redis-url", &*redis, "--listen", "127.0.0.1:0"];
    let args = [&args[..], &["--admin", "127.0.0.1:0"]].concat();
    let envs = shared.envs();
    let envs = envs.each_ref().map(|(name, value)| (&**name, &**value));
    let (code, _, log) = Process::output(&args, &envs);
    assert_ne!(code, 0);
    assert!(log.contains("16 processes") && log.contains("another pending.journal"), "{log}");

    held.remove(7);
    let process = shared.start().await;
    assert_eq!(
        status(&process).await["journal"]["path"],
        shared.path(7).display().to_string().as_str()
    );
}
