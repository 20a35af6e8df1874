//! The command line, its exit codes and the admin pages.

use hyper::{Method, StatusCode};
use jobcache::config::StoreUrl;

use crate::support::{Process, RedisServer, SOON, Setup, Upstream, eventually, upstream::version};

const X: &str = "/jobs/x1";

/// clap's exit code for wrong usage, and `EX_CONFIG` of sysexits.h.
const BAD_USAGE: i32 = 2;
const BAD_CONFIG: i32 = 78;

/// Asserts that the process exits with this code and prints this on stderr.
#[track_caller]
fn check_exit(args: &[&str], envs: &[(&str, &str)], code: i32, says: &str) {
    let (actual, _, stderr) = Process::output(args, envs);
    assert_eq!(actual, code, "{args:?} {envs:?}: {stderr}");
    assert!(stderr.contains(says), "{args:?} {envs:?} does not say {says:?}: {stderr}");
}

#[test]
fn a_bad_flag_is_a_usage_error() {
    check_exit(&["--no-such-flag"], &[], BAD_USAGE, "--no-such-flag");
    check_exit(&["no-such-command"], &[], BAD_USAGE, "no-such-command");
    check_exit(&["--listen"], &[], BAD_USAGE, "--listen");
}

#[test]
fn a_bad_value_is_a_configuration_error_that_names_the_value() {
    check_exit(&["--upstream", "ftp://backend"], &[], BAD_CONFIG, "ftp");
    check_exit(&["--redis-url", "http://cache"], &[], BAD_CONFIG, "http");
    check_exit(&["--route", "/jobs"], &[], BAD_CONFIG, "/jobs");
    check_exit(&["--config", "/no/such/file.toml"], &[], BAD_CONFIG, "/no/such/file.toml");
    check_exit(&[], &[("UPSTREAM_URL", "ftp://backend")], BAD_CONFIG, "ftp");
    check_exit(&[], &[("JOBCACHE_TTL", "soon")], BAD_CONFIG, "soon");
}

#[test]
fn an_unknown_knob_in_a_file_is_a_configuration_error() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("jobcache.toml");
    std::fs::write(&file, "tll = \"300s\"\n").expect("a file written");
    check_exit(&["--config", file.to_str().expect("a path")], &[], BAD_CONFIG, "tll");
}

#[test]
fn an_open_admin_listener_needs_a_secret() {
    check_exit(&["--admin", "0.0.0.0:0"], &[], BAD_CONFIG, "secret");
    check_exit(&["check", "--admin", "0.0.0.0:0"], &[], BAD_CONFIG, "secret");
    let secret = [("JOBCACHE_WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")];
    check_exit(&["check", "--admin", "0.0.0.0:0"], &secret, 0, "");
}

#[test]
fn check_judges_a_configuration_without_serving() {
    check_exit(&["check"], &[], 0, "");
    check_exit(&["check", "--route", "/jobs"], &[], BAD_CONFIG, "/jobs");
}

#[test]
fn no_output_ever_shows_a_secret() {
    let envs = [
        ("JOBCACHE_WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ("REDIS_URL", "redis://user:hunter2@127.0.0.1:1"),
    ];
    for args in [&["check"][..], &["check", "--route", "/jobs"]] {
        let (_, stdout, stderr) = Process::output(args, &envs);
        let all = stdout + &stderr;
        assert!(!all.contains("hunter2") && !all.contains("MfKQ9r8GKYqr"), "{args:?}: {all}");
    }
}

async fn process(args: &[&str]) -> (Process, Upstream) {
    let upstream = Upstream::start().await;
    let url = upstream.url();
    let args = [&["--upstream", &url], args].concat();
    (Process::start(&args, &[]).await, upstream)
}

#[tokio::test]
async fn sigterm_drains_and_exits_with_zero() {
    let (mut process, upstream) = process(&["--redis-url", "memory://"]).await;
    let gate = upstream.hold(Method::GET, "/other");
    let in_flight = process.client.start(Method::GET, "/other", "").await;
    gate.arrived(1).await;

    process.terminate();

    eventually(SOON, async || {
        let probe = process.admin.request(Method::GET, "/readyz").try_send().await;
        probe.map_or(true, |reply| reply.status == StatusCode::SERVICE_UNAVAILABLE)
    })
    .await;
    gate.release();
    assert_eq!(in_flight.answer().await.0, 404);
    assert_eq!(process.wait().await.code(), Some(0), "{}", process.stderr());
}

#[tokio::test]
async fn healthcheck_tells_whether_a_sidecar_is_live() {
    let (mut process, _upstream) = process(&["--redis-url", "memory://"]).await;
    let admin = process.admin.address().to_string();

    assert_eq!(Process::output(&["healthcheck", "--admin", &admin], &[]).0, 0);
    process.kill();
    assert_ne!(Process::output(&["healthcheck", "--admin", &admin], &[]).0, 0);
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let (process, _upstream) = process(&["--redis-url", "memory://"]).await;
    let taken = process.client.address().to_string();

    let (code, _, stderr) = Process::output(&["--listen", &taken, "--admin", "127.0.0.1:0"], &[]);

    assert_ne!(code, 0);
    assert!(stderr.contains(&taken), "{stderr}");
}

#[tokio::test]
async fn the_embedded_store_serves_hits_and_forgets_on_a_write() {
    let (process, upstream) = process(&["--redis-url", "memory://", "--settle", "0s"]).await;

    process.client.get(X).await.assert(200, &version("x1", 0));
    eventually(SOON, async || process.client.get(X).await.is_hit()).await;
    process.client.put(X).await;

    process.client.get(X).await.assert(200, &version("x1", 1));
    assert_eq!(upstream.reads(X), 2);
}

#[tokio::test]
async fn the_embedded_store_takes_a_purge() {
    let setup =
        Setup::cold(RedisServer::absent(), |config| config.store.url = StoreUrl::Memory).await;
    setup.hit(X).await;
    setup.upstream.commit("x1");

    let purge = setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;

    assert_eq!(purge.status, StatusCode::OK, "{purge:?}");
    setup.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_flag_wins_over_the_environment() {
    let (upstream, wrong) = (Upstream::start().await, Upstream::start().await);
    let envs = [("UPSTREAM_URL", &*wrong.url()), ("REDIS_URL", "memory://")];

    let process = Process::start(&["--upstream", &upstream.url()], &envs).await;
    process.client.get(X).await.assert(200, &version("x1", 0));
    let process = Process::start(&[], &envs).await;
    process.client.get(X).await.assert(200, &version("x1", 0));

    assert_eq!((upstream.reads(X), wrong.reads(X)), (1, 1));
}

#[tokio::test]
async fn a_sidecar_is_live_and_ready_with_and_without_redis() {
    let setup = Setup::cold(RedisServer::absent(), |_| {}).await;
    for page in ["/livez", "/readyz"] {
        let reply = setup.sidecar.admin.get(page).await;
        assert_eq!(reply.status, StatusCode::OK, "{page}: {reply:?}");
    }
    let setup = Setup::new().await;
    for page in ["/livez", "/readyz"] {
        let reply = setup.sidecar.admin.get(page).await;
        assert_eq!(reply.status, StatusCode::OK, "{page}: {reply:?}");
    }
}

#[tokio::test]
async fn the_proxy_listener_serves_no_admin_page() {
    let setup = Setup::new().await;
    for path in ["/livez", "/metrics", "/purge/x1"] {
        setup.get(path).await;
        assert_eq!(setup.upstream.reads(path), 1, "{path} did not reach the upstream");
    }
}

#[tokio::test]
async fn metrics_count_requests_by_what_became_of_them() {
    let setup = Setup::new().await;
    setup.get(X).await;
    setup.hit(X).await;
    let before = hits(&setup).await;

    for _ in 0..3 {
        assert!(setup.get(X).await.is_hit());
    }

    assert!((hits(&setup).await - before - 3.0).abs() < f64::EPSILON);
}

/// Returns the requests that `/metrics` counts as hits.
async fn hits(setup: &Setup) -> f64 {
    let reply = setup.sidecar.admin.get("/metrics").await;
    assert_eq!(reply.status, StatusCode::OK);
    let samples = reply
        .text()
        .lines()
        .filter(|line| line.starts_with("jobcache_requests_total{") && line.contains("\"hit\""));
    samples
        .map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number"))
        .sum()
}

#[tokio::test]
async fn no_metric_names_a_job() {
    let setup = Setup::new().await;
    setup.get("/jobs/a-very-special-job1").await;
    setup.sidecar.put("/jobs/a-very-special-job1").await;

    let reply = setup.sidecar.admin.get("/metrics").await;

    assert!(!reply.text().contains("a-very-special-job"));
}

#[tokio::test]
async fn the_log_tells_a_fault_of_redis_and_never_a_credential() {
    let mut redis = RedisServer::start().await;
    let upstream = Upstream::start().await;
    let args = ["--upstream", &upstream.url(), "--redis-url", &redis.url(), "--access-log"];
    let process = Process::start(&args, &[]).await;
    redis.kill();
    let request = process.client.request(Method::GET, "/jobs/x1?token=hunter2");
    request.header("authorization", "Bearer hunter2").send().await;

    eventually(SOON, async || {
        process.client.get(X).await;
        process.stderr().contains("WARN").then_some(()).ok_or_else(|| process.stderr())
    })
    .await;

    assert!(!process.stderr().contains("hunter2"), "{}", process.stderr());
}

#[tokio::test]
async fn a_strict_check_is_an_error_while_anything_cannot_be_reached() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ids = dir.path().join("ids.txt");
    std::fs::write(&ids, "x\n").expect("a file written");
    let list = r#"{"items":[{"id":"x1"}]}"#;
    upstream.respond("/list", move |_| Some(crate::support::upstream::json(StatusCode::OK, list)));
    let (url, redis_url, path) = (upstream.url(), redis.url(), ids.display().to_string());
    let envs = [("JOBCACHE_WARM_FILE", &*path), ("JOBCACHE_WARM_LIST", "/list")];
    let check = async |args: Vec<String>, envs: Vec<(String, String)>| {
        let run = move || {
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            let envs: Vec<_> = envs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            Process::output(&args, &envs)
        };
        tokio::task::spawn_blocking(run).await.expect("no panic")
    };
    let owned = |envs: &[(&str, &str)]| {
        envs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>()
    };
    let args = |upstream: &str, redis: &str, strict: &[&str]| {
        let all = [&["check", "--upstream", upstream, "--redis-url", redis], strict].concat();
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let (code, out, _) = check(args(&url, &redis_url, &["--strict"]), owned(&envs)).await;
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("# warm.list /list: has 1 ids") && out.contains("has 1 ids"), "{out}");

    let dead = "redis://127.0.0.1:1";
    assert_eq!(check(args(&url, dead, &[]), Vec::new()).await.0, 0);
    let (code, out, err) = check(args(&url, dead, &["--strict"]), Vec::new()).await;
    assert_eq!((code, err.contains("store")), (1, true), "{out}{err}");
    let refused = "not reachable: cannot connect to the store 127.0.0.1:1: Connection refused";
    assert!(out.contains(refused) && !out.contains("broke"), "{out}");
    std::fs::write(&ids, "x\na b\n").expect("a file written");
    let pointer = [envs[0], envs[1], ("JOBCACHE_WARM_POINTER", "/jobs")];
    let (code, out, err) = check(args(&url, &redis_url, &["--strict"]), owned(&pointer)).await;
    assert_eq!(code, 1, "{out}");
    assert!(err.contains("warm.file") && err.contains("warm.list"), "{err}");
    assert!(out.contains(r#"line 2: "a b""#) && out.contains(r#"warm.pointer = "/jobs""#), "{out}");
}

#[test]
fn the_demo_ends_soon_where_its_redis_is_dead() {
    let args = ["demo", "--redis-url", "redis://127.0.0.1:1", "--listen", "127.0.0.1:0"];
    let args = [&args[..], &["--admin", "127.0.0.1:0", "--duration", "60s"]].concat();
    let started = std::time::Instant::now();
    check_exit(&args, &[], 1, "redis://127.0.0.1:1 does not answer");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

/// Runs a tool with our output as its input; returns its success and its output.
fn fed(program: &str, args: &[&str], input: &str) -> (bool, String) {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("an end");
    let _ = writer.join();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn bash_completes_flags_and_commands() {
    let (code, script, stderr) = Process::output(&["completions", "bash"], &[]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(fed("bash", &["-n"], &script), (true, String::new()));
    let complete = |words: &str, at: usize| {
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={at}; _jobcache jobcache \"${{COMP_WORDS[{at}]}}\" \
             \"${{COMP_WORDS[{}]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            at - 1
        );
        let (ok, out) = fed("bash", &["--norc"], &ask);
        assert!(ok, "{out}");
        out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete("jobcache --redis", 1), ["--redis-url"]);
    assert_eq!(complete("jobcache ch", 1), ["check"]);
    assert_eq!(complete("jobcache check --str", 2), ["--strict"]);
    assert_eq!(complete("jobcache --mode ''", 2), ["on", "shadow", "off"]);
    assert_eq!(complete("jobcache check --near b", 3), ["bounded"]);
    assert_eq!(complete("jobcache --log-format j", 2), ["json"]);
    assert!(complete("jobcache completions z", 2).contains(&"zsh".to_owned()));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = Process::output(&["completions", shell], &[]);
        assert!(code == 0 && script.contains("store-budget"), "{shell}");
    }
}

#[test]
fn the_manual_is_read_without_warnings_and_has_every_setting() {
    for args in [&["man"][..], &["man", "demo"], &["man", "check"]] {
        let (code, page, stderr) = Process::output(args, &[]);
        assert_eq!(code, 0, "{stderr}");
        let (ok, warnings) = fed("groff", &["-man", "-ww", "-z", "-Tutf8"], &page);
        assert_eq!((ok, warnings.as_str()), (true, ""), "{args:?}");
    }
    let (_, page, _) = Process::output(&["man"], &[]);
    let (_, read) = fed("groff", &["-man", "-Tascii", "-P-cbou"], &page);
    let plain = read.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in ["SETTINGS", "store.budget", "JOBCACHE_WEBHOOK_MAX_PURGES", "webhook_secret"] {
        assert!(plain.contains(text), "{text}: {read}");
    }
    let sections: Vec<_> =
        read.lines().filter(|line| line.starts_with(char::is_alphabetic)).collect();
    for section in ["COMMANDS", "EXIT STATUS", "SIGNALS", "FILES"] {
        assert!(sections.contains(&section), "{section}: {sections:?}");
    }
    assert!(!sections.contains(&"EXTRA") && !sections.contains(&"Commands"), "{sections:?}");
}
