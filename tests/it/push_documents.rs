//! The samples of `docs/push.md`, unchanged, with a real jobcache: scripts in a browser, in Node and in
//! Python, and the configurations of proxies in front.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use http_body_util::BodyExt as _;
use hyper::{Method, StatusCode};
use jobcache::config::PushMode;
use tempfile::TempDir;
use tokio::{net::TcpStream, task::JoinHandle};

use crate::support::{
    Client, SOON, Setup, browser::Browser, eventually, free_port, python, soon,
    upstream::with_headers,
};

const X: &str = "/jobs/x1";

/// A page that shows what `watchJob` reports.
const PAGE: &str = r##"<!doctype html><meta charset="utf-8"><title>job x1</title><link rel="icon" href="data:,">
<h1>job x1</h1><ol id="seen"></ol><p id="end">waiting</p>
<script type="module">
import { watchJob } from "/watch.js";
document.cookie = "sid=1";
const token = new URLSearchParams(location.search).get("token");
const show = (job) => document.querySelector("#seen").append(
  Object.assign(document.createElement("li"), { innerText: `version ${job.version}: ${job.status}` }));
const end = (text) => { document.querySelector("#end").innerText = text; };
watchJob("/jobs/x1", show, token).then(() => end("end"), end);
</script>"##;

const SEEN: &str = "version 0: RUNNING\nversion 1: RUNNING\nversion 2: COMPLETED";

/// Returns the code block of `docs/push.md` in this language that contains a mark.
fn sample(language: &str, mark: &str) -> String {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/push.md")).unwrap();
    let start = format!("```{language}\n");
    let blocks = page.split(&start).skip(1).filter_map(|rest| rest.split_once("```"));
    let mut found = blocks.map(|(block, _)| block).filter(|block| block.contains(mark));
    found.next().unwrap_or_else(|| panic!("docs/push.md has no {mark}")).to_owned()
}

/// Starts a sidecar with this mode, and the job x1 in version 0.
async fn setup(mode: PushMode) -> Setup {
    let setup = Setup::with(|config| config.push.mode = mode).await;
    set(&setup, 0, "RUNNING");
    setup
}

fn set(setup: &Setup, version: u64, status: &str) {
    let body = format!(r#"{{"id":"x1","version":{version},"status":"{status}"}}"#);
    setup.upstream.set("x1", 200, body);
}

async fn purge(setup: &Setup) {
    let reply = setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
}

async fn delivered(setup: &Setup, form: &str) -> u64 {
    let name = format!("jobcache_push_delivered_total{{form=\"{form}\"}}");
    setup.sidecar.admin.metric(&name).await
}

/// Changes the job to version 1 and to its end, each while a poll is held.
async fn change_while_polls_are_held(setup: &Setup) {
    for (version, status) in [(1, "RUNNING"), (2, "COMPLETED")] {
        eventually(SOON, async || {
            let held = setup.sidecar.admin.metric("jobcache_push_held_polls").await;
            (held, delivered(setup, "poll").await) == (1, version - 1)
        })
        .await;
        set(setup, version, status);
        purge(setup).await;
    }
}

/// Opens the page that runs the documented script. `None` without a browser.
async fn watch(setup: &Setup, query: &str) -> Option<Browser> {
    let mut browser = Browser::start().await?;
    let script = sample("js", "export async function watchJob");
    let script: &'static str = Box::leak(script.into_boxed_str());
    let html = [("content-type", "text/html; charset=utf-8")];
    setup.upstream.respond_to("/watch.html", move |_| with_headers(PAGE, &html));
    let js = [("content-type", "text/javascript")];
    setup.upstream.respond_to("/watch.js", move |_| with_headers(script, &js));
    let address = setup.sidecar.client.address();
    browser.open(&format!("http://{address}/watch.html{query}")).await;
    browser.until(&shows("#seen", "version 0: RUNNING")).await;
    Some(browser)
}

/// The condition that an element has this text.
fn shows(selector: &str, text: &str) -> String {
    format!("document.querySelector({selector:?}).innerText.trim() === {text:?}")
}

/// Runs the documented script in one way, and returns the browser at the end of the job.
async fn watch_to_the_end(setup: &Setup, query: &str) -> Option<Browser> {
    let mut browser = watch(setup, query).await?;
    set(setup, 1, "RUNNING");
    purge(setup).await;
    browser.until(&shows("#seen", "version 0: RUNNING\nversion 1: RUNNING")).await;
    set(setup, 2, "COMPLETED");
    purge(setup).await;
    browser.until(&shows("#end", "end")).await;
    assert_eq!(browser.text("#seen").await.trim(), SEEN);
    Some(browser)
}

/// Whether every read of the job so far carried this header.
fn all_reads_have(setup: &Setup, name: &str, value: &str) -> bool {
    let reads = setup.upstream.requests().into_iter().filter(|seen| seen.target == X);
    reads.map(|seen| seen.headers.get(name).cloned()).all(|found| found.is_some_and(|v| v == value))
}

#[tokio::test]
async fn the_script_watches_with_event_source_where_cookies_authenticate() {
    let setup = setup(PushMode::All).await;
    let Some(browser) = watch_to_the_end(&setup, "").await else { return };
    assert!(delivered(&setup, "stream").await >= 2);
    assert_eq!(delivered(&setup, "poll").await, 0);
    assert!(all_reads_have(&setup, "cookie", "sid=1"), "{:?}", setup.upstream.requests());
    assert_eq!(browser.complaints(), Vec::<&serde_json::Value>::new());
}

#[tokio::test]
async fn the_script_watches_a_stream_with_its_token() {
    let setup = setup(PushMode::All).await;
    let Some(browser) = watch_to_the_end(&setup, "?token=secret").await else { return };
    assert!(delivered(&setup, "stream").await >= 2);
    assert_eq!(delivered(&setup, "poll").await, 0);
    let bearer = "Bearer secret";
    assert!(all_reads_have(&setup, "authorization", bearer), "{:?}", setup.upstream.requests());
    assert_eq!(browser.complaints(), Vec::<&serde_json::Value>::new());
}

#[tokio::test]
async fn the_script_falls_back_to_a_long_poll() {
    for query in ["", "?token=secret"] {
        let setup = setup(PushMode::LongPoll).await;
        if watch_to_the_end(&setup, query).await.is_none() {
            return;
        }
        assert_eq!(delivered(&setup, "stream").await, 0);
        // A change between two polls is answered at once.
        assert!(delivered(&setup, "poll").await >= 1);
    }
}

#[tokio::test]
async fn the_script_falls_back_to_polling() {
    let setup = setup(PushMode::Off).await;
    if watch_to_the_end(&setup, "?token=secret").await.is_none() {
        return;
    }
    assert_eq!((delivered(&setup, "stream").await, delivered(&setup, "poll").await), (0, 0));
}

#[tokio::test]
async fn the_script_ends_when_the_api_refuses_the_job() {
    let ways = [(PushMode::All, ""), (PushMode::All, "?token=secret"), (PushMode::LongPoll, "")];
    for (mode, query) in ways {
        let setup = setup(mode).await;
        let Some(mut browser) = watch(&setup, query).await else { return };
        setup.upstream.set("x1", 403, "{}");
        purge(&setup).await;
        browser.until("/403/.test(document.querySelector('#end').innerText)").await;
    }
}

/// Feeds a program, and collects its output while the test goes on.
fn run(mut command: Command, input: String) -> JoinHandle<Output> {
    tokio::task::spawn_blocking(move || {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("a child that reads");
        drop(stdin);
        child.wait_with_output().expect("a child that ends")
    })
}

/// Changes the job for a program that polls it, and returns what it prints.
async fn printed(setup: &Setup, program: JoinHandle<Output>) -> String {
    let ((), output) = tokio::join!(change_while_polls_are_held(setup), soon(program));
    let output = output.expect("no panic");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test]
async fn the_query_function_gets_each_version_and_then_stops() {
    const USE: &str = r#"
const ask = fetch;
globalThis.fetch = (url, init) => ask(process.argv[2] + url, init);
const { queryKey, queryFn, select, refetchInterval } = jobQuery("x1");
for (let data, next; next !== false; ) {
  const client = { getQueryData: () => data };
  data = await queryFn({ queryKey, client, signal: new AbortController().signal });
  next = refetchInterval({ state: { data } });
  console.log(`version ${select(data).version}: ${select(data).status} ${next}`);
}"#;
    let setup = setup(PushMode::All).await;
    let mut node = Command::new("setpriv");
    node.args(["--pdeathsig", "KILL", "node", "--input-type=module", "-"]);
    node.arg(format!("http://{}", setup.sidecar.client.address()));
    let script = sample("js", "export const jobQuery");
    let printed = printed(&setup, run(node, script + USE)).await;
    assert_eq!(printed, "version 0: RUNNING 1\nversion 1: RUNNING 1\nversion 2: COMPLETED false");
}

#[tokio::test]
async fn the_python_clients_get_each_version_and_then_stop() {
    const SYNC: &str = r#"
import sys
with httpx.Client(base_url=sys.argv[1]) as client:
    for job in watch_job(client, "/jobs/x1"):
        print(f"version {job['version']}: {job['status']}")
"#;
    const ASYNC: &str = r#"
import sys
async def main():
    async with httpx.AsyncClient(base_url=sys.argv[1]) as client:
        async for job in watch_job_async(client, "/jobs/x1"):
            print(f"version {job['version']}: {job['status']}")
asyncio.run(main())
"#;
    for used in [SYNC, ASYNC] {
        let setup = setup(PushMode::All).await;
        let mut python = python::command();
        python.args(["-", &format!("http://{}", setup.sidecar.client.address())]);
        let script = sample("python", "class JobPoll");
        assert_eq!(printed(&setup, run(python, script + used)).await, SEEN);
    }
}

/// A proxy in front of a sidecar.
struct Proxy {
    client: Client,
    child: Child,
    _dir: TempDir,
}

impl Proxy {
    /// Starts a program with a configuration. Without the program, prints that the test is skipped.
    async fn start(
        program: &str,
        args: &[&str],
        configuration: impl Fn(&Path, SocketAddr) -> String,
    ) -> Option<Self> {
        let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
        let Some(at) = places.iter().map(|at| Path::new(at).join(program)).find(|at| at.is_file())
        else {
            eprintln!("skipped: {program} is not installed (it is in Debian's package {program})");
            return None;
        };
        let dir = TempDir::with_prefix("jobcache-proxy-").expect("a temporary directory");
        let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let file = dir.path().join("proxy.conf");
        fs::write(&file, configuration(dir.path(), listen)).expect("a written file");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(at).args(args).arg(&file);
        let child = command.stdout(Stdio::null()).spawn().expect("the proxy runs");
        let proxy = Self { client: Client::new(listen), child, _dir: dir };
        eventually(SOON, async || TcpStream::connect(listen).await.is_ok()).await;
        Some(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Holds a poll and a stream through a proxy, and checks that each change passes at once.
async fn check_proxy(setup: &Setup, client: &Client) {
    let first = client.get(X).await;
    let poll = client.request(Method::GET, X).header("prefer", "wait=30");
    let poll = poll.header("if-none-match", first.header("etag")).send();
    let change = async {
        eventually(SOON, async || {
            setup.sidecar.admin.metric("jobcache_push_held_polls").await == 1
        })
        .await;
        set(setup, 1, "RUNNING");
        purge(setup).await;
    };
    let (reply, ()) = tokio::join!(poll, change);
    assert_eq!((reply.status, reply.header("preference-applied")), (StatusCode::OK, "wait=30"));

    let stream = client.request(Method::GET, X).header("accept", "text/event-stream");
    let mut stream = soon(stream.open()).await;
    let mut text = String::new();
    for (version, status) in [(1, "RUNNING"), (2, "RUNNING"), (3, "COMPLETED")] {
        if version > 1 {
            set(setup, version, status);
            purge(setup).await;
        }
        let last = format!("\"version\":{version},\"status\":\"{status}\"}}\n\n");
        while !text.contains(&last) {
            let frame = soon(stream.body_mut().frame()).await.expect("an open stream");
            let data = frame.expect("a whole stream").into_data().unwrap_or_default();
            text.push_str(std::str::from_utf8(&data).expect("text"));
        }
    }
    let rest = soon(stream.collect()).await.expect("the end of the stream").to_bytes();
    text.push_str(std::str::from_utf8(&rest).expect("text"));
    assert!(text.ends_with("event: end\ndata:\n\n"), "{text}");
}

/// Replaces a text that must occur once.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from}: {text}");
    text.replace(from, to)
}

#[tokio::test]
async fn nginx_passes_held_polls_and_events_on() {
    let setup = setup(PushMode::All).await;
    let upstream = setup.sidecar.client.address().to_string();
    let configuration = |dir: &Path, listen: SocketAddr| {
        let server = replaced(&sample("nginx", "proxy_pass"), "127.0.0.1:8080", &upstream);
        let server = replaced(&server, "listen 80;", &format!("listen {listen};"));
        let temp = dir.display();
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {temp}/{kind};"))
            .concat();
        format!(
            "daemon off; master_process off; pid {temp}/pid; error_log {temp}/error.log;\n\
             events {{}}\nhttp {{ access_log off; {paths}\n{server}}}\n"
        )
    };
    let Some(nginx) = Proxy::start("nginx", &["-c"], configuration).await else { return };
    check_proxy(&setup, &nginx.client).await;
}

#[tokio::test]
async fn haproxy_passes_held_polls_and_events_on() {
    let setup = setup(PushMode::All).await;
    let upstream = setup.sidecar.client.address().to_string();
    let configuration = |_: &Path, listen: SocketAddr| {
        let text = replaced(&sample("haproxy", "backend"), "127.0.0.1:8080", &upstream);
        replaced(&text, "bind :80", &format!("bind {listen}"))
    };
    let Some(haproxy) = Proxy::start("haproxy", &["-db", "-f"], configuration).await else {
        return;
    };
    check_proxy(&setup, &haproxy.client).await;
}
