//! What a container gives to jobcache: the port in a variable, and a memory limit.

#![allow(clippy::print_stdout, reason = "a test says what it measured, or that it was skipped")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::support::{
    Process, RedisServer, SOON, Upstream, eventually, free_port, upstream::with_headers,
};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn the_port_may_come_from_a_variable_in_an_image_without_a_shell() {
    let args = ["--listen", "127.0.0.1:$PORT", "--redis-url", "memory://"];
    // Another process may have taken a port.
    let (process, port, admin) = loop {
        let (port, admin) = (free_port().to_string(), free_port().to_string());
        let envs = variables(&port, &admin);
        let process = Process::spawn(&args, &envs);
        let lives = eventually(SOON, async || {
            let (code, _, _) = Process::output(&["healthcheck"], &envs);
            let is_taken = process.stderr().contains("in use");
            (code == 0 || is_taken).then_some(code == 0)
        });
        if lives.await {
            break (process, port, admin);
        }
    };

    let listens = format!("listen=\"127.0.0.1:{port}\"");
    assert!(process.stderr().contains(&listens), "{}", process.stderr());
    let envs = variables(&port, &admin);
    let (code, out, error) = Process::output(&[&["check"], &args[..]].concat(), &envs);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains(&format!("admin = \"127.0.0.1:{admin}\"")), "{out}");
    for (command, expected) in [("check", 78), ("healthcheck", 1)] {
        let (code, _, error) = Process::output(&[command], &envs[2..]);
        assert_eq!(code, expected, "{error}");
        assert!(error.contains("the environment variable ADMIN_PORT is not set"), "{error}");
    }
}

fn variables<'v>(port: &'v str, admin: &'v str) -> [(&'static str, &'v str); 3] {
    [("PORT", port), ("ADMIN_PORT", admin), ("JOBCACHE_ADMIN", "127.0.0.1:${ADMIN_PORT}")]
}

/// A group of version 1 with a memory limit. This thread is in it until it is dropped, so what it starts
/// stays in it.
struct MemoryGroup {
    path: PathBuf,
    before: PathBuf,
}

impl MemoryGroup {
    /// `None` where groups cannot be made.
    fn enter(limit: usize) -> Option<Self> {
        let root = PathBuf::from("/sys/fs/cgroup/memory");
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.split_once(":memory:"))?.1.to_owned();
        let before = root.join(own.trim_start_matches('/'));
        let path = root.join(format!("jobcache-test-{}", std::process::id()));
        // In a container, the group that this process is in may have another path.
        fs::metadata(before.join("tasks")).ok()?;
        fs::create_dir(&path).ok()?;
        let group = Self { path, before };
        fs::write(group.path.join("memory.limit_in_bytes"), limit.to_string()).ok()?;
        Self::move_thread(&group.path);
        Some(group)
    }

    fn move_thread(group: &Path) {
        let thread = fs::read_link("/proc/thread-self").expect("this thread");
        let id = thread.file_name().expect("the id of this thread").to_str().expect("a number");
        fs::write(group.join("tasks"), id).expect("a group that takes threads");
    }

    fn number(&self, file: &str) -> usize {
        let text = fs::read_to_string(self.path.join(file)).expect("a file of the group");
        text.trim().parse().expect("a number")
    }

    fn kills(&self) -> String {
        let text = fs::read_to_string(self.path.join("memory.oom_control")).expect("a file");
        text.lines().find(|line| line.starts_with("oom_kill ")).expect("a count").to_owned()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The thread that reads the log of the process is in the group until it ends.
        let is_busy = || fs::remove_dir(&self.path).is_err();
        let tries = std::iter::repeat_n(Duration::from_millis(10), 100);
        for pause in tries.take_while(|_| is_busy()) {
            std::thread::sleep(pause);
        }
    }
}

#[tokio::test]
async fn a_container_of_96_mib_serves_more_jobs_than_fit_with_default_settings() {
    const JOBS: usize = 1500;
    let redis = RedisServer::start().await;
    let upstream = Upstream::start().await;
    let body: &'static str = "x".repeat(100_000).leak();
    for job in 0..JOBS {
        upstream.respond(&format!("/jobs/{job}"), move |_| Some(with_headers(body, &[])));
    }
    let (api, url) = (upstream.url(), redis.url());
    let Some(group) = MemoryGroup::enter(96 * MIB) else {
        println!("no writable cgroup of version 1: the test of a small container is skipped");
        return;
    };
    let args = ["--upstream", &api, "--redis-url", &url, "--store-budget", "2s"];
    let process = Process::start(&args, &[]).await;
    MemoryGroup::move_thread(&group.before);
    let idle = group.number("memory.usage_in_bytes");

    // The second round finds all of them in Redis, and the third what fits in memory.
    for _ in 0..3 {
        for job in 0..JOBS {
            let reply = process.client.get(&format!("/jobs/{job}")).await;
            assert_eq!((reply.status.as_u16(), reply.body.len()), (200, body.len()), "{reply:?}");
        }
    }

    let (peak, kills) = (group.number("memory.max_usage_in_bytes"), group.kills());
    println!("idle {} MiB, at most {} MiB of 96, {kills}", idle / MIB, peak / MIB);
    assert_eq!(kills, "oom_kill 0");
    assert!(peak < 90 * MIB, "{peak}");
    let log = process.stderr();
    assert!(
        log.contains(r#"near_max_bytes = \"24MiB\""#) && log.contains("memory.limit_in_bytes"),
        "{log}"
    );
    drop(process);
}
