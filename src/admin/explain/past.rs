//! What happened to a job, as it is told.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::events::jobs::{Happening, Past};

/// All of it, oldest first.
pub(super) fn told(past: &Past) -> Value {
    past.happenings.iter().map(happening).collect()
}

/// With the time of the last of them for programs and for people.
pub(super) fn happening(it: &Happening) -> Value {
    let mut told = json!({
        "what": it.what.as_str(),
        "at": time(at(it.last_ms)),
        "at_ms": it.last_ms,
        "times": it.times,
    });
    if it.times > 1 {
        told["since_ms"] = it.first_ms.into();
    }
    if !it.why.is_empty() {
        told["why"] = it.why.into();
    }
    if let Some(by) = &it.by {
        told["by"] = by.as_ref().into();
    }
    told
}

/// A time as RFC 3339 writes it, in UTC.
pub(super) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

fn at(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}
