//! A headless Chromium, controlled over its debugging protocol.
//!
//! The protocol is JSON over two pipes, which Chromium expects as file descriptors 3 and 4; a shell
//! opens them.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::unix::pipe::{OpenOptions, Receiver, Sender},
};

use super::{SOON, eventually, soon};

/// Names of the program in various distributions.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Opens the pipes and executes the browser.
const START: &str = r#"exec "$1" --headless=new --no-sandbox --disable-gpu --no-first-run \
    --disable-dev-shm-usage --disable-background-networking --disable-component-update \
    --remote-debugging-pipe "--user-data-dir=$2" about:blank 3<"$2/to" 4>"$2/from""#;

/// A browser tab.
pub(crate) struct Browser {
    to: Sender,
    from: BufReader<Receiver>,
    session: Option<String>,
    calls: u64,
    /// Events of the tab.
    told: Vec<Value>,
    child: Child,
    // Declared last, so that the directory is removed after the browser has ended.
    _dir: TempDir,
}

impl Browser {
    /// Starts a browser. Without an installed browser, prints that the test is skipped and returns
    /// `None`.
    pub(crate) async fn start() -> Option<Self> {
        let Some(program) = installed() else {
            eprintln!("skipped: needs a browser; install Debian's `chromium`");
            return None;
        };
        let dir = TempDir::with_prefix("jobcache-browser-").expect("a temporary directory");
        let [to, from] = ["to", "from"].map(|name| dir.path().join(name));
        let made = Command::new("mkfifo").args([&to, &from]).status().expect("mkfifo runs");
        assert!(made.success(), "mkfifo fails");
        // Opened for both directions, because that does not wait for the other side.
        let both = || OpenOptions::new().read_write(true).to_owned();
        let sender = both().open_sender(&to).expect("a pipe to the browser");
        let receiver = both().open_receiver(&from).expect("a pipe from the browser");
        let child = spawn(&program, dir.path());
        let (from, told) = (BufReader::new(receiver), Vec::new());
        let mut browser =
            Self { to: sender, from, session: None, calls: 0, told, child, _dir: dir };
        browser.attach().await;
        Some(browser)
    }

    async fn attach(&mut self) {
        let target = self.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let params = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.call("Target.attachToTarget", params).await;
        self.session = attached["sessionId"].as_str().map(ToOwned::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.call(&format!("{domain}.enable"), json!({})).await;
        }
    }

    /// Opens a page, as the address bar does, and waits until it has loaded.
    pub(crate) async fn open(&mut self, url: &str) {
        let navigated = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(navigated["errorText"].is_null(), "{url}: {navigated}");
        self.until(&format!("location.href === {url:?} && document.readyState === 'complete'"))
            .await;
    }

    /// Returns the awaited value of an expression in the page.
    pub(crate) async fn eval(&mut self, script: &str) -> Value {
        self.try_eval(script).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    async fn try_eval(&mut self, script: &str) -> Result<Value, Value> {
        let params = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
        let done = self.try_call("Runtime.evaluate", params).await?;
        match &done["exceptionDetails"] {
            Value::Null => Ok(done["result"]["value"].clone()),
            exception => Err(exception.clone()),
        }
    }

    /// Waits until an expression is true.
    pub(crate) async fn until(&mut self, script: &str) {
        eventually(SOON, async || match self.try_eval(script).await {
            Ok(Value::Bool(true)) => Ok(()),
            // The page may not have loaded, or may have been replaced.
            other => {
                Err((script.to_owned(), other, self.try_eval("document.body.innerText").await))
            }
        })
        .await;
    }

    /// Returns the visible text of an element.
    pub(crate) async fn text(&mut self, selector: &str) -> String {
        let script = format!("document.querySelector({selector:?})?.innerText ?? ''");
        self.eval(&script).await.as_str().unwrap_or_default().to_owned()
    }

    /// Types text into an input as a person does, and then removes the focus.
    pub(crate) async fn fill(&mut self, selector: &str, text: &str) {
        let script = format!(
            "(() => {{ const it = document.querySelector({selector:?}); it.focus(); it.value = ''; }})()"
        );
        self.eval(&script).await;
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    pub(crate) async fn click(&mut self, selector: &str) {
        self.eval(&format!("document.querySelector({selector:?}).click()")).await;
    }

    /// Returns the errors that the browser has reported: exceptions, errors on the console, and
    /// policy violations.
    pub(crate) fn complaints(&self) -> Vec<&Value> {
        let is_one = |told: &&Value| match told["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => told["params"]["type"] == "error",
            Some("Log.entryAdded") => told["params"]["entry"]["level"] == "error",
            _ => false,
        };
        self.told.iter().filter(is_one).collect()
    }

    /// Returns the URLs that the page has requested.
    pub(crate) fn asked(&self) -> Vec<&str> {
        let sent = self.told.iter().filter(|told| told["method"] == "Network.requestWillBeSent");
        sent.filter_map(|told| told["params"]["request"]["url"].as_str()).collect()
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.try_call(method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    async fn try_call(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        self.calls += 1;
        let id = self.calls;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let message = format!("{message}\0");
        soon(self.to.write_all(message.as_bytes())).await.expect("a browser that reads");
        loop {
            let mut read = Vec::new();
            soon(self.from.read_until(0, &mut read)).await.expect("a browser that writes");
            read.pop();
            let mut told: Value = serde_json::from_slice(&read).expect("JSON");
            if told["id"] == id {
                return if told["error"].is_null() { Ok(told["result"].take()) } else { Err(told) };
            }
            self.told.push(told);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut programs = NAMES.iter().flat_map(|name| places.iter().map(move |at| at.join(name)));
    programs.find(|program| program.is_file())
}

fn spawn(program: &Path, dir: &Path) -> Child {
    // Like Redis, the child is killed when the thread that started it ends.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "sh", "-c", START, "sh"])
        .args([program, dir])
        .env("HOME", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the browser runs")
}
