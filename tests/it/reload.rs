//! Changes of the configuration of a running sidecar.

use std::fs;

use hyper::Method;
use jobcache::{
    config::{Config, Flags},
    reload::{ReloadOutcome, Reloader},
};
use tempfile::TempDir;

use crate::support::{
    Process, RedisServer, Reply, SOON, Upstream,
    client::Started,
    eventually,
    raw::End,
    redis::key,
    sidecar::Sidecar,
    soon,
    upstream::{Gate, version},
};

const X: &str = "/jobs/x1";
/// A configuration without a route for jobs.
const ELSEWHERE: &str = "routes = ['/elsewhere/{id}']\nsettle = '0s'\n";

/// A sidecar with a file that a test edits.
struct Setup {
    redis: RedisServer,
    upstream: Upstream,
    sidecar: Sidecar,
    reloader: Reloader,
    dir: TempDir,
}

impl Setup {
    async fn new(file: &str) -> Self {
        Self::with(file, &[]).await
    }

    /// Starts with these variables in addition to the required ones; a `secret` goes into its own
    /// file.
    async fn with(file: &str, vars: &[(&str, &str)]) -> Self {
        let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("jobcache.toml").to_str().expect("a path").to_owned();
        fs::write(&path, file).expect("a file written");
        let fixed = [
            ("REDIS_URL", redis.url()),
            ("UPSTREAM_URL", upstream.url()),
            ("JOBCACHE_CONFIG", path),
            ("JOBCACHE_STORE_BUDGET", "2s".to_owned()),
            ("JOBCACHE_STORE_LINGER", "1s".to_owned()),
            ("JOBCACHE_STORE_RECONNECT_GRACE", "0s".to_owned()),
        ];
        let own = vars.iter().map(|(name, text)| (*name, (*text).to_owned()));
        let env: Vec<_> =
            fixed.into_iter().chain(own).map(|(name, text)| (name.to_owned(), text)).collect();
        let (sidecar, reloader) =
            Sidecar::reloading(move || Config::load(Flags::default(), env.clone())).await;
        let setup = Self { redis, upstream, sidecar, reloader, dir };
        eventually(SOON, async || {
            let ready = setup.sidecar.admin.get("/readyz").await;
            ready.text().contains("\"store\":\"up\"").then_some(()).ok_or(ready)
        })
        .await;
        setup
    }

    async fn reload(&self, file: &str) -> ReloadOutcome {
        fs::write(self.dir.path().join("jobcache.toml"), file).expect("a file written");
        soon(self.reloader.reload()).await.expect("a sidecar that runs")
    }

    async fn applies(&self, file: &str) {
        assert_eq!(self.reload(file).await, ReloadOutcome::Applied, "{file}");
    }

    async fn get(&self, path: &str) -> Reply {
        self.sidecar.get(path).await
    }

    async fn hit(&self, path: &str) -> Reply {
        eventually(SOON, async || {
            let reply = self.get(path).await;
            if reply.is_hit() { Ok(reply) } else { Err(reply) }
        })
        .await
    }

    async fn purge(&self, token: &str) -> u16 {
        let purge = self.sidecar.admin.request(Method::POST, "/purge/x1");
        purge.header("authorization", &format!("Bearer {token}")).send().await.status.as_u16()
    }

    /// Returns the value of a sample by name and labels.
    async fn metric(&self, sample: &str) -> Option<u64> {
        let reply = self.sidecar.admin.get("/metrics").await;
        let line = reply.text().lines().find_map(|line| line.strip_prefix(sample)).map(str::trim);
        line.map(|value| value.parse().expect("a whole number"))
    }

    async fn reloads(&self, outcome: &str) -> u64 {
        let sample = format!("jobcache_config_reloads_total{{outcome=\"{outcome}\"}}");
        self.metric(&sample).await.expect("every outcome has a sample")
    }

    /// Waits until everything was dropped this often, by reloads and by writes.
    async fn dropped(&self, times: u64) {
        let sample = r#"jobcache_invalidations_total{source="write-all",outcome="confirmed"}"#;
        eventually(SOON, async || self.metric(sample).await.is_some_and(|now| now >= times)).await;
    }
}

#[tokio::test]
async fn a_route_that_appears_is_cached_and_one_that_goes_passes() {
    let setup = Setup::new(ELSEWHERE).await;
    assert!(setup.get(X).await.cache_status().ends_with("detail=path"));

    setup.applies("").await;
    setup.hit(X).await;
    setup.applies(ELSEWHERE).await;
    let reply = setup.get(X).await;
    assert!(reply.cache_status().ends_with("detail=path"), "{reply:?}");
}

#[tokio::test]
async fn a_path_that_is_excepted_and_a_status_that_is_taken_out_are_served_no_more() {
    let setup = Setup::new("").await;
    setup.hit(X).await;
    setup.applies("except = ['/jobs/x1']").await;
    let reply = setup.get(X).await;
    assert!(reply.cache_status().ends_with("detail=except"), "{reply:?}");

    setup.upstream.set("x1", 404, "none");
    setup.applies("statuses = { 404 = '60s' }\nsettle = '0s'").await;
    setup.hit(X).await.assert(404, "none");
    setup.applies("settle = '0s'").await;
    setup.upstream.set("x1", 200, "there");
    setup.get(X).await.assert(200, "there");
}

#[tokio::test]
async fn a_route_that_comes_back_serves_nothing_from_before_it_went() {
    let setup = Setup::new("").await;
    setup.hit(X).await;

    setup.applies(ELSEWHERE).await;
    setup.sidecar.put(X).await;
    setup.applies("").await;

    setup.get(X).await.assert(200, &version("x1", 1));
}

/// Starts a write before its path is a route, and holds it while the path is one.
async fn written_before_its_route() -> (Setup, Gate, Started) {
    let setup = Setup::new(ELSEWHERE).await;
    let gate = setup.upstream.hold(Method::PUT, X);
    let write = setup.sidecar.client.start(Method::PUT, X, "{}").await;
    gate.arrived(1).await;

    setup.applies("settle = '0s'").await;
    // Wait for the second drop of the reload, so that it cannot be the cause of a later result.
    setup.dropped(2).await;
    setup.hit(X).await.assert(200, &version("x1", 0));
    (setup, gate, write)
}

#[tokio::test]
async fn a_write_under_way_when_its_route_appears_is_invalidated_before_it_is_answered() {
    let (setup, gate, write) = written_before_its_route().await;
    gate.release();
    let answer = write.answer().await;

    assert_eq!(answer.0, 200, "{answer:?}");
    setup.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_write_given_up_after_its_route_appeared_is_invalidated_all_the_same() {
    let (setup, gate, write) = written_before_its_route().await;

    drop(write);
    gate.release();

    setup.dropped(4).await;
    setup.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_write_under_way_when_a_rule_appears_is_invalidated_by_it() {
    let setup = Setup::new("settle = '0s'").await;
    let gate = setup.upstream.hold(Method::PUT, "/jobs/y1");
    let write = setup.sidecar.client.start(Method::PUT, "/jobs/y1", r#"{"also":"x1"}"#).await;
    gate.arrived(1).await;

    let rule = "[[invalidate]]\npath = '/jobs/y1'\nrequest = ['/also']";
    setup.applies(&format!("settle = '0s'\n{rule}")).await;
    setup.dropped(2).await;
    setup.hit(X).await.assert(200, &version("x1", 0));
    setup.upstream.commit("x1");
    gate.release();
    write.answer().await;

    setup.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_read_under_way_is_answered_by_the_rules_under_which_it_began() {
    let setup = Setup::new("").await;
    let gate = setup.upstream.hold(Method::GET, X);
    let read = setup.sidecar.client.start(Method::GET, X, "").await;
    gate.arrived(1).await;

    setup.applies("max_body = 1").await;
    gate.release();

    assert_eq!(read.answer().await, (200, version("x1", 0)));
    setup.hit(X).await;
    let reply = setup.get("/jobs/y1").await;
    assert!(reply.cache_status().ends_with("detail=too-large"), "{reply:?}");
}

#[tokio::test]
async fn a_shorter_ttl_is_for_what_is_stored_from_then_on() {
    let setup = Setup::new("").await;
    setup.hit(X).await;

    setup.applies("ttl.default = '7s'").await;
    setup.hit("/jobs/y1").await;

    assert!(setup.redis.ttl_ms(&key("x1")).await > 7_000);
    assert!(setup.redis.ttl_ms(&key("y1")).await <= 7_000);
}

#[tokio::test]
async fn what_was_too_large_to_store_is_stored_once_it_may_be() {
    let setup = Setup::new("max_body = 1").await;
    assert!(setup.get(X).await.cache_status().ends_with("detail=too-large"));

    setup.applies("").await;

    // The lease of the first read may not have been released earlier.
    setup.hit(X).await;
}

#[tokio::test]
async fn the_repeat_fast_path_ends_on_every_connection_and_begins_on_new_ones() {
    let setup = Setup::new("").await;
    let request = format!("GET {X} HTTP/1.1\r\nHost: jobs.example\r\n\r\n");
    let repeats = async || setup.metric("jobcache_repeats_total ").await.expect("a counter");
    let connect = async || End::new(setup.sidecar.client.connect().await);
    let poll = async |end: &mut End| {
        end.send(&request).await;
        assert_eq!(end.answer().await.1, version("x1", 0));
    };
    let repeated = async |end: &mut End| {
        eventually(SOON, async || {
            let before = repeats().await;
            poll(end).await;
            repeats().await > before
        })
        .await;
    };
    let mut old = connect().await;
    repeated(&mut old).await;

    setup.applies("server.repeat_fast_path = false").await;
    let before = repeats().await;
    let mut new = connect().await;
    for end in [&mut old, &mut new] {
        for _ in 0..20 {
            poll(end).await;
        }
    }
    assert_eq!(repeats().await, before);

    setup.applies("").await;
    repeated(&mut connect().await).await;
}

#[tokio::test]
async fn settle_queries_and_directives_of_clients_are_judged_anew() {
    let setup = Setup::new("settle = '0s'").await;
    setup.sidecar.put(X).await;
    assert!(setup.get(X).await.is_stored());
    assert!(setup.get("/jobs/x1?t=1").await.cache_status().ends_with("detail=query"));

    let file = "settle = '1m'\nignore_client_cache_control = true\nquery.ignore = ['t']";
    setup.applies(file).await;

    setup.hit("/jobs/x1?t=1").await;
    let insisting =
        setup.sidecar.client.request(Method::GET, X).header("cache-control", "no-cache");
    let reply = insisting.send().await;
    assert!(reply.is_hit(), "{reply:?}");
    setup.sidecar.put(X).await;
    let reply = setup.get(X).await;
    assert!(reply.cache_status().ends_with("detail=fenced"), "{reply:?}");
}

#[tokio::test]
async fn a_secret_in_a_file_is_read_again() {
    let secrets = tempfile::tempdir().expect("a temporary directory");
    let path = secrets.path().join("secret");
    let path = path.to_str().expect("a path");
    fs::write(path, "the-first-secret\n").expect("a file written");
    let setup = Setup::with("", &[("JOBCACHE_WEBHOOK_SECRET_FILE", path)]).await;
    assert_eq!(setup.purge("the-first-secret").await, 200);

    fs::write(path, "the-second-secret\n").expect("a file written");
    setup.applies("").await;

    assert_eq!(setup.purge("the-first-secret").await, 401);
    assert_eq!(setup.purge("the-second-secret").await, 200);
}

#[tokio::test]
async fn the_environment_wins_over_the_file_at_a_reload_too() {
    let setup = Setup::with("", &[("JOBCACHE_MAX_BODY", "1MiB")]).await;

    assert_eq!(setup.reload("max_body = 1").await, ReloadOutcome::Unchanged);

    assert!(setup.get(X).await.is_stored());
}

#[tokio::test]
async fn what_needs_a_restart_keeps_everything_as_it_was() {
    let setup = Setup::new("").await;

    let file = format!("{ELSEWHERE}[pending]\nlimit = 7");
    assert_eq!(setup.reload(&file).await, ReloadOutcome::Refused);

    setup.hit(X).await;
    assert_eq!(setup.reload("").await, ReloadOutcome::Unchanged);
    setup.applies(ELSEWHERE).await;
    assert_eq!((setup.reloads("refused").await, setup.reloads("invalid").await), (1, 0));
    assert_eq!((setup.reloads("unchanged").await, setup.reloads("applied").await), (1, 1));
}

#[tokio::test]
async fn a_file_with_a_mistake_keeps_everything_as_it_was() {
    let setup = Setup::new("").await;

    assert_eq!(setup.reload(&format!("{ELSEWHERE}tll = 1")).await, ReloadOutcome::Invalid);

    setup.hit(X).await;
    assert_eq!(setup.reloads("invalid").await, 1);
    setup.applies(ELSEWHERE).await;
}

/// A child process with a configuration file, and its log.
struct Reloaded {
    process: Process,
    file: std::path::PathBuf,
    _dir: TempDir,
    _upstream: Upstream,
}

impl Reloaded {
    async fn start(file: &str, args: &[&str]) -> Self {
        let upstream = Upstream::start().await;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("jobcache.toml");
        fs::write(&path, file).expect("a file written");
        let (url, config) = (upstream.url(), path.to_str().expect("a path"));
        let fixed = ["--upstream", &url, "--redis-url", "memory://", "--config", config];
        let process = Process::start(&[&fixed[..], args].concat(), &[]).await;
        Self { process, file: path, _dir: dir, _upstream: upstream }
    }

    /// Sends SIGHUP, and returns the first later log line that contains this text.
    async fn says(&self, file: &str, what: &str) -> String {
        let before = self.process.stderr().len();
        fs::write(&self.file, file).expect("a file written");
        self.process.hang_up();
        eventually(SOON, async || {
            let log = self.process.stderr()[before..].to_owned();
            log.lines().find(|line| line.contains(what)).map(str::to_owned).ok_or(log)
        })
        .await
    }
}

#[tokio::test]
async fn sighup_applies_the_file_and_tells_what_has_changed() {
    let file = "webhook_secret = 'hunter2hunter2hu'";
    let reloaded = Reloaded::start(file, &["--ttl", "9s"]).await;

    let file = "webhook_secret = 'hunter3hunter3hu'\nsettle = '2s'\n[ttl]\ndefault = '8s'";
    reloaded.says(file, "the configuration was reloaded").await;

    let log = reloaded.process.stderr();
    let changes: Vec<_> =
        log.lines().filter(|line| line.contains("a setting has changed")).collect();
    assert_eq!(changes.len(), 2, "{log}");
    let vain = log.lines().find(|line| line.contains("overrides it")).unwrap_or_default();
    assert!(
        vain.contains("WARN") && vain.contains(r#"key="ttl.default" file="8s" by=--ttl"#),
        "{log}"
    );
    assert!(changes[0].contains(r#"key="webhook_secret" old="***""#), "{log}");
    assert!(changes[1].contains(r#"key="settle" old="1s" new="2s""#), "{log}");
    assert!(changes.iter().all(|line| line.contains(" INFO ")), "{log}");
    assert!(!log.contains("hunter"), "{log}");
}

#[tokio::test]
async fn sighup_changes_the_level_of_the_log_and_the_access_log() {
    let reloaded = Reloaded::start("log = 'error'", &[]).await;
    reloaded.process.client.get(X).await;
    assert_eq!(reloaded.process.stderr(), "");

    reloaded.says("access_log = true", "the configuration was reloaded").await;
    reloaded.process.client.get(X).await;
    eventually(SOON, async || reloaded.process.stderr().contains("outcome=")).await;

    let line = reloaded.says("log = 'error'\naccess_log = true", "a setting has changed").await;
    assert!(line.contains(r#"key="log""#), "{line}");
    let answered = || reloaded.process.stderr().matches("outcome=").count();
    let before = answered();
    // The log filter changes after that line.
    eventually(SOON, async || {
        let seen = answered();
        reloaded.process.client.get(X).await;
        let again = answered();
        seen == again && again >= before
    })
    .await;
}

#[tokio::test]
async fn sighup_names_what_needs_a_restart_and_the_mend() {
    let reloaded = Reloaded::start("", &[]).await;

    let file = "settle = '2s'\n[server]\nmax_uri = 512";
    let line = reloaded.says(file, "a setting cannot change").await;

    assert!(line.contains(" ERROR "), "{line}");
    assert!(line.contains(r#"key="server.max_uri" old="8KiB" new=512"#), "{line}");
    assert!(line.contains("restart") && line.contains("server.reuse_port"), "{line}");
    let line = reloaded.says(file, "a setting has not changed").await;
    assert!(line.contains(r#"key="settle""#), "{line}");
    reloaded.process.client.get(X).await.assert(200, &version("x1", 0));
}

#[tokio::test]
async fn sighup_tells_every_mistake_in_one_event() {
    let reloaded = Reloaded::start("", &[]).await;

    let line = reloaded.says("tll = 1\nsettle = 'later'", "nothing has changed").await;

    assert!(line.contains(" ERROR ") && line.contains("mistakes=2"), "{line}");
    assert!(line.contains("tll") && line.contains("later"), "{line}");
    reloaded.process.client.get(X).await.assert(200, &version("x1", 0));
}

#[tokio::test]
async fn a_guarded_admin_address_cannot_lose_its_secret() {
    let args = ["--admin", "0.0.0.0:0"];
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("jobcache.toml").to_str().expect("a path").to_owned();
    fs::write(&path, "webhook_secret = 'hunter2hunter2hu'").expect("a file written");
    let read = {
        let path = path.clone();
        move || {
            let flag = |name, text: &str| (name, jobcache::config::RawValue::One(text.to_owned()));
            let values = vec![flag("admin", args[1]), flag("redis-url", "memory://")];
            Config::load(Flags { config: Some(path.clone()), values }, [])
        }
    };
    let (_sidecar, reloader) = Sidecar::reloading(read).await;

    fs::write(&path, "").expect("a file written");

    assert_eq!(soon(reloader.reload()).await, Some(ReloadOutcome::Invalid));
}
