//! The filter of the log, read and changed while jobcache runs.
//!
//! What is put here holds until a reload, which puts back what the configuration says, or a restart. It
//! takes the webhook secret as a bearer token, where there is one: `debug` shows what jobs there are and costs every request.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::{Request, StatusCode, body::Incoming};
use serde_json::json;
use tokio::time::timeout;
use tracing::warn;

use super::{
    guard::Guard,
    page::{Reply, reply},
};
use crate::{config, telemetry::Filter, transport::Peer};

/// The longest filter, in bytes.
const MAX_FILTER: usize = 4 << 10;
/// For all of it to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The page.
pub(super) struct Log {
    filter: Filter,
    guard: Arc<Guard>,
}

impl Log {
    pub(super) fn new(filter: Filter, guard: Arc<Guard>) -> Self {
        Self { filter, guard }
    }

    /// `GET /log`.
    pub(super) fn show(&self) -> Reply {
        match self.filter.text() {
            Some(log) => reply(StatusCode::OK, &json!({ "log": log })),
            None => none(),
        }
    }

    /// `PUT /log` with a filter as its body.
    pub(super) async fn put(&self, request: Request<Incoming>, client: Peer) -> Reply {
        if let Some(refusal) = self.guard.refuses(request.headers(), client) {
            return refusal;
        }
        let body = request.into_body();
        let body = match timeout(BODY_TIMEOUT, Limited::new(body, MAX_FILTER).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return refuse(&format!("no filter of {MAX_FILTER} bytes: {error}")),
            Err(_) => return refuse(&format!("the body did not come within {BODY_TIMEOUT:?}")),
        };
        match self.set(&body) {
            Ok(Some((log, was))) => reply(StatusCode::OK, &json!({ "log": log, "was": was })),
            Ok(None) => none(),
            Err(reason) => refuse(&reason),
        }
    }

    /// Returns the filter and the one before, where there is a log.
    fn set(&self, body: &Bytes) -> Result<Option<(String, String)>, String> {
        let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
        let log = config::log_filter(text.trim())?;
        // Before: a filter that lets less pass would hide it.
        warn!(log, "the filter of the log is changed over the admin listener");
        let was = self.filter.set(&log).map_err(|error| error.to_string())?;
        Ok(was.map(|was| (log, was)))
    }
}

fn refuse(reason: &str) -> Reply {
    reply(StatusCode::BAD_REQUEST, &json!({ "error": reason }))
}

/// Somebody else writes the log of this process, if anybody.
fn none() -> Reply {
    reply(StatusCode::NOT_FOUND, &json!({ "error": "this process has no log of ours" }))
}
