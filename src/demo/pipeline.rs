//! The pipeline that works on the jobs: it changes a job directly in the database, where the
//! sidecar does not see it, and then calls the purge webhook until that answers 200.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    http::{
        HeaderValue,
        header::{AUTHORIZATION, CONTENT_TYPE, HOST},
    },
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use tracing::debug;

use super::{
    api::{self, SampleJobs},
    client::Client,
    figures::Figures,
};
use crate::config::Secret;

/// Shortest and longest time that a job stays in one stage, in seconds.
const STAGE_SECONDS: (f64, f64) = (10.0, 30.0);
/// Pause before an unacknowledged purge is sent again; the `Retry-After` of the webhook.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Client of the sidecar's purge webhook.
#[derive(Clone)]
pub(super) struct PurgeClient {
    admin: SocketAddr,
    secret: Option<Secret>,
}

/// Starts the work on every job. The database is new, so entries that an earlier demo may have left
/// in the same Redis are purged first.
pub(super) async fn start(
    crowd: &mut JoinSet<()>,
    jobs: &Arc<SampleJobs>,
    figures: &Arc<Figures>,
    webhook: &PurgeClient,
) {
    let ids: Vec<String> = (0..jobs.count()).map(api::id).collect();
    if !webhook.purge(&mut Client::new(webhook.admin), &json!({ "job_ids": ids })).await {
        // The purge is queued anyway, and these jobs are bypassed until it is confirmed.
        figures.purge_refused();
    }
    for job in 0..jobs.count() {
        crowd.spawn(work(job, Arc::clone(jobs), Arc::clone(figures), webhook.clone()));
    }
}

async fn work(job: usize, jobs: Arc<SampleJobs>, figures: Arc<Figures>, webhook: PurgeClient) {
    let mut client = Client::new(webhook.admin);
    let (shortest, longest) = STAGE_SECONDS;
    // The current stage began some time ago.
    let mut wait_seconds = fastrand::f64() * longest;
    loop {
        sleep(Duration::from_secs_f64(wait_seconds)).await;
        let version = jobs.advance(job);
        let body = json!({ "job_id": api::id(job) });
        while !webhook.purge(&mut client, &body).await {
            figures.purge_refused();
            sleep(RETRY_AFTER).await;
        }
        jobs.acknowledge(job, version);
        figures.purge_acknowledged();
        wait_seconds = shortest + fastrand::f64() * (longest - shortest);
    }
}

impl PurgeClient {
    pub(super) fn new(admin: SocketAddr, secret: Option<Secret>) -> Self {
        Self { admin, secret }
    }

    /// Sends a purge. Returns whether the jobs are confirmed to be gone from the cache.
    async fn purge(&self, client: &mut Client, body: &Value) -> bool {
        let Some(request) = self.request(body) else { return false };
        match client.send(request).await {
            Ok(response) => response.status() == StatusCode::OK,
            Err(error) => {
                debug!(%error, "purge failed");
                false
            }
        }
    }

    /// `None` if a header cannot carry the secret.
    fn request(&self, body: &Value) -> Option<Request<Full<Bytes>>> {
        let mut request = Request::post("/purge")
            .header(HOST, self.admin.to_string())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(secret) = &self.secret {
            request = request.header(AUTHORIZATION, format!("Bearer {}", secret.expose()));
        }
        request.body(Full::from(body.to_string())).ok()
    }
}
