//! The pipeline that works on the jobs: it changes a job in the database, behind the sidecar's back,
//! and then calls the purge webhook until that is answered 200.

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
    api::{self, Jobs},
    client::Client,
    figures::Figures,
};
use crate::config::Secret;

/// Shortest and longest time that a job stays in one stage, in seconds.
const STAGE_SECONDS: (f64, f64) = (10.0, 30.0);
/// Before a purge that was not acknowledged is sent again: what its `Retry-After` says.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The purge webhook of the sidecar.
#[derive(Clone)]
pub(super) struct Webhook {
    admin: SocketAddr,
    secret: Option<Secret>,
}

/// Starts the work on every job, in a new database: what an earlier demo may have left in the same
/// Redis is purged first.
pub(super) async fn start(
    crowd: &mut JoinSet<()>,
    jobs: &Arc<Jobs>,
    figures: &Arc<Figures>,
    webhook: &Webhook,
) {
    let ids: Vec<String> = (0..jobs.count()).map(api::id).collect();
    if !webhook.purge(&mut Client::new(webhook.admin), &json!({ "job_ids": ids })).await {
        // Queued all the same, and these jobs are not answered from the cache until it is done.
        figures.purge_refused();
    }
    for job in 0..jobs.count() {
        crowd.spawn(work(job, Arc::clone(jobs), Arc::clone(figures), webhook.clone()));
    }
}

async fn work(job: usize, jobs: Arc<Jobs>, figures: Arc<Figures>, webhook: Webhook) {
    let mut client = Client::new(webhook.admin);
    let (shortest, longest) = STAGE_SECONDS;
    // The stage that it is in has begun some time ago.
    let mut stays = fastrand::f64() * longest;
    loop {
        sleep(Duration::from_secs_f64(stays)).await;
        let version = jobs.advance(job);
        let what = json!({ "job_id": api::id(job) });
        while !webhook.purge(&mut client, &what).await {
            figures.purge_refused();
            sleep(RETRY_AFTER).await;
        }
        jobs.acknowledge(job, version);
        figures.purge_acknowledged();
        stays = shortest + fastrand::f64() * (longest - shortest);
    }
}

impl Webhook {
    pub(super) fn new(admin: SocketAddr, secret: Option<Secret>) -> Self {
        Self { admin, secret }
    }

    /// Whether the jobs are known to be gone from the cache.
    async fn purge(&self, client: &mut Client, what: &Value) -> bool {
        let Some(request) = self.request(what) else { return false };
        match client.send(request).await {
            Ok(response) => response.status() == StatusCode::OK,
            Err(error) => {
                debug!(%error, "purge failed");
                false
            }
        }
    }

    /// None for a secret that no header can carry.
    fn request(&self, what: &Value) -> Option<Request<Full<Bytes>>> {
        let mut request = Request::post("/purge")
            .header(HOST, self.admin.to_string())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(secret) = &self.secret {
            request = request.header(AUTHORIZATION, format!("Bearer {}", secret.expose()));
        }
        request.body(Full::from(what.to_string())).ok()
    }
}
