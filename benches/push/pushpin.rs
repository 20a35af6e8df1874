//! Pushpin as a peer. The API answers it with instructions to hold the request (GRIP), and the pipeline
//! publishes each new version to it, over its HTTP control port.

use std::{fs, net::SocketAddr, process::Command};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, header::HOST};
use serde_json::json;

use crate::{
    Result,
    api::{body, channel, etag, event},
    client::Client,
    peer_files::PeerFiles,
    process::{self, Process},
    report::first_line,
};

/// Sockets between the parts of Pushpin, from its package; the HTTP client has its sockets elsewhere.
const INTERNAL: &str = "/usr/lib/pushpin/internal.conf";

/// zurl logs each request otherwise.
const QUIET: &str = "--loglevel=0";

/// A running Pushpin.
pub(crate) struct Pushpin {
    pub(crate) listen: SocketAddr,
    pub(crate) publish: SocketAddr,
    runner: Process,
    zurl: Process,
    _files: PeerFiles,
}

/// Whether Pushpin can take part.
pub(crate) fn is_installed() -> bool {
    process::find("pushpin").is_some() && process::find("zurl").is_some()
}

/// Returns the version for the figures.
pub(crate) fn release() -> String {
    match process::find("pushpin") {
        Some(program) => first_line(Command::new(program).arg("--version")),
        None => "not installed".to_owned(),
    }
}

impl Pushpin {
    pub(crate) fn start(upstream: SocketAddr) -> Result<Self> {
        let missing = "pushpin is missing: apt-get install pushpin";
        let files = PeerFiles::new(upstream)?;
        let dir = files.dir.path();
        let sockets = format!("ipc://{}/z-", dir.display());
        let internal = fs::read_to_string(INTERNAL)?.replace("ipc:///var/run/zurl/zurl-", &sockets);
        files.write("internal.conf", &internal)?;
        files.write("routes", "* @UPSTREAM@,trusted\n")?;
        let publish = process::free_address()?;
        let config = include_str!("pushpin.conf")
            .replace("@LISTEN_PORT@", &files.listen.port().to_string())
            .replace("@PUBLISH_PORT@", &publish.port().to_string());
        let config = files.write("pushpin.conf", &config)?;
        let zurl_config = files.write("zurl.conf", include_str!("zurl.conf"))?;
        let program = process::find("zurl").ok_or(missing)?;
        let zurl =
            Process::spawn(program, &[format!("--config={zurl_config}"), QUIET.to_owned()], dir)?;
        let program = process::find("pushpin").ok_or(missing)?;
        let mut runner = Process::spawn(program, &[format!("--config={config}")], dir)?;
        runner.wait_for(files.listen)?;
        runner.wait_for(publish)?;
        Ok(Self { listen: files.listen, publish, runner, zurl, _files: files })
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        vec![self.runner.pid(), self.zurl.pid()]
    }
}

/// Publishes a version of a job. Returns whether Pushpin has acknowledged it.
pub(crate) async fn publish(control: SocketAddr, job: usize, version: u64) -> bool {
    let headers = [["Content-Type", "application/json"], ["ETag", &etag(version)]];
    let items = json!({ "items": [{
        "channel": channel(job),
        "id": version.to_string(),
        "prev-id": (version - 1).to_string(),
        "formats": {
            "http-response": { "code": 200, "headers": headers, "body": body(job, version) },
            "http-stream": { "content": event(job, version) },
        },
    }] });
    let request = Request::post("/publish/")
        .header(HOST, control.to_string())
        .body(Full::<Bytes>::from(items.to_string()));
    let Ok(request) = request else { return false };
    let answer = Client::new(control).send(request).await;
    answer.is_ok_and(|response| response.status() == StatusCode::OK)
}
