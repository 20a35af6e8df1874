//! The frontends that do not poll: each keeps a stream of events open (`Accept: text/event-stream`).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, StatusCode,
    http::header::{ACCEPT, HOST},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::debug;

use super::{
    api::{self, SampleJobs},
    client::{Client, ClientError, JobStatus},
    figures::{DemoGroup, Figures},
    seen_changes::SeenChanges,
    show::DemoSetup,
};

/// Pause before a stream that has ended is requested again, as `EventSource` does.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// The streams begin within this time.
const START_WITHIN: Duration = Duration::from_secs(1);
/// A stream that is silent for so long is dead. It has a comment every 15 s.
const MAX_SILENCE: Duration = Duration::from_secs(45);

/// One simulated frontend with a stream of events.
pub(super) struct Follower {
    job: usize,
    proxy: SocketAddr,
    /// The lowest version that the next event may have.
    floor: u64,
    changes: SeenChanges,
    jobs: Arc<SampleJobs>,
    figures: Arc<Figures>,
}

impl Follower {
    /// Starts as many followers as pollers, spread over as many jobs of their own.
    pub(super) fn start(
        crowd: &mut JoinSet<()>,
        setup: &DemoSetup,
        jobs: &Arc<SampleJobs>,
        figures: &Arc<Figures>,
    ) {
        for n in 0..usize::from(setup.pollers) {
            let job = setup.jobs + n % setup.jobs;
            let follower = Self {
                job,
                proxy: setup.proxy,
                floor: 0,
                changes: SeenChanges::new(DemoGroup::Push, job, jobs, figures),
                jobs: Arc::clone(jobs),
                figures: Arc::clone(figures),
            };
            crowd.spawn(follower.run());
        }
    }

    async fn run(mut self) {
        sleep(START_WITHIN.mul_f64(fastrand::f64())).await;
        loop {
            if let Err(error) = self.follow().await {
                debug!(%error, "stream failed");
                self.figures.stream_failed();
            }
            sleep(RECONNECT_AFTER).await;
        }
    }

    /// Reads one stream to its end.
    async fn follow(&mut self) -> Result<(), ClientError> {
        let request = Request::get(format!("/jobs/{}", api::id(self.job)))
            .header(HOST, self.proxy.to_string())
            .header(ACCEPT, "text/event-stream")
            .body(Full::<Bytes>::default());
        let Ok(request) = request else { return Ok(()) };
        self.floor = self.floor.max(self.jobs.acknowledged(self.job));
        self.figures.stream_requested();
        let response = Client::new(self.proxy).open(request).await?;
        if response.status() != StatusCode::OK {
            return Err(ClientError::NoStream(response.status()));
        }
        let mut body = response.into_body();
        let mut text = EventText::default();
        while let Some(frame) = timeout(MAX_SILENCE, body.frame()).await?.transpose()? {
            text.0.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            while let Some(data) = text.next_data() {
                self.take(&data);
            }
        }
        Ok(())
    }

    fn take(&mut self, data: &str) {
        let Ok(JobStatus { version }) = serde_json::from_str(data) else {
            self.figures.stream_failed();
            return;
        };
        if version < self.floor {
            self.figures.stale_event();
        }
        self.floor = self.floor.max(version);
        self.changes.see(version);
    }
}

/// The text of a stream that was not read yet.
#[derive(Default)]
struct EventText(Vec<u8>);

impl EventText {
    /// Takes the data of the next complete event; `None` if there is none.
    fn next_data(&mut self) -> Option<String> {
        loop {
            let end = self.0.windows(2).position(|pair| pair == b"\n\n")?;
            let block: Vec<u8> = self.0.drain(..end + 2).collect();
            let block = String::from_utf8_lossy(&block);
            let lines = block.lines().filter_map(|line| line.strip_prefix("data:"));
            let data = lines.map(str::trim_start).collect::<Vec<_>>().join("\n");
            // Comments and times to reconnect have no data.
            if !data.is_empty() {
                return Some(data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_pieces_and_comments_are_none() {
        let mut text = EventText::default();
        let mut read = |piece: &[u8]| {
            text.0.extend_from_slice(piece);
            text.next_data()
        };
        assert_eq!(read(b":\n\nid: \"a\"\ndata: {\"ver"), None);
        assert_eq!(read(b"sion\":1}\n"), None);
        assert_eq!(read(b"\n:\n\n"), Some("{\"version\":1}".to_owned()));
        assert_eq!(read(b"retry: 500\n\n"), None);
    }
}
