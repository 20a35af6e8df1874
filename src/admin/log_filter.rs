//! `/log`: reads and changes the filter of the log while jobcache runs.
//!
//! A change lasts until a reload, which restores the configured filter, or a restart. It needs the
//! webhook secret as a bearer token (`admin_route`), because `debug` shows job ids and slows down
//! every request.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::{StatusCode, body::Incoming};
use serde_json::json;
use tokio::time::timeout;
use tracing::warn;

use super::reply::{Reply, json_reply};
use crate::{config, telemetry::LogFilter};

/// Longest filter, in bytes.
const MAX_FILTER: usize = 4 << 10;
/// Time limit for the whole body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The page `/log`.
pub(super) struct LogFilterPage(LogFilter);

impl LogFilterPage {
    pub(super) fn new(filter: LogFilter) -> Self {
        Self(filter)
    }

    /// `GET /log`.
    pub(super) fn show(&self) -> Reply {
        match self.0.text() {
            Some(log) => json_reply(StatusCode::OK, &json!({ "log": log })),
            None => no_log(),
        }
    }

    /// `PUT /log` with a filter as its body.
    pub(super) async fn put(&self, body: Incoming) -> Reply {
        let body = match timeout(BODY_TIMEOUT, Limited::new(body, MAX_FILTER).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => {
                return bad_filter(&format!(
                    "cannot read the filter ({MAX_FILTER} bytes at most): {error}"
                ));
            }
            Err(_) => {
                return bad_filter(&format!("the body did not arrive within {BODY_TIMEOUT:?}"));
            }
        };
        match self.set(&body) {
            Ok(Some((log, was))) => json_reply(StatusCode::OK, &json!({ "log": log, "was": was })),
            Ok(None) => no_log(),
            Err(reason) => bad_filter(&reason),
        }
    }

    /// Sets the filter. Returns the new and the previous one, or `None` if there is no log.
    fn set(&self, body: &Bytes) -> Result<Option<(String, String)>, String> {
        let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
        let log = config::log_filter(text.trim())?;
        // Logged first: the new filter might suppress it.
        warn!(log, "log filter changed through the admin listener");
        let was = self.0.set(&log).map_err(|error| error.to_string())?;
        Ok(was.map(|was| (log, was)))
    }
}

fn bad_filter(reason: &str) -> Reply {
    json_reply(StatusCode::BAD_REQUEST, &json!({ "error": reason }))
}

/// The answer if this process did not install the logger, as in tests.
fn no_log() -> Reply {
    json_reply(StatusCode::NOT_FOUND, &json!({ "error": "jobcache does not own the log here" }))
}
