//! The jobs that a body names: `[[invalidate]]` rules and JSON pointers, compared with those of
//! `serde_json`.
//!
//! Input: a line with the pointer, then the body.

use jobcache::{
    config::InvalidateRule as Config,
    semantics::{
        job_id::JobId,
        json_pointer::JsonPointer,
        route::{
            MAX_NAMED,
            invalidation_rules::{BodySide, InvalidationRule},
        },
    },
};
use serde_json::Value;

/// Checks one input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (pointer, body) = super::line(text);
    let scalar = JsonPointer::parse(pointer).map(|pointer| pointer.scalar(body.as_bytes()));
    let Ok(document) = serde_json::from_str::<Value>(body) else { return };
    let there = document.pointer(pointer);
    if let Ok(scalar) = scalar {
        assert_eq!(scalar, there.and_then(scalar_of), "{pointer:?}");
    }
    let config = Config {
        path: "/x".to_owned(),
        request: vec![pointer.to_owned(), "/*/*".to_owned()],
        ..Config::default()
    };
    let Ok(rule) = InvalidationRule::parse(1, &config) else { return };
    let jobs = rule.jobs(BodySide::Request, &document);
    assert!(jobs.len() <= MAX_NAMED + 1);
    assert!(rule.jobs(BodySide::Response, &document).is_empty());
    for job in &jobs {
        assert_eq!(JobId::canonical(job.as_str()).as_ref(), Some(job));
    }
    if let Some(job) = there.and_then(job_of).filter(|_| jobs.len() < MAX_NAMED) {
        assert!(jobs.contains(&job), "{job} is at {pointer:?}, but not in {jobs:?}");
    }
}

fn scalar_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(switch) => Some(switch.to_string()),
        Value::Number(number) => (!number.is_f64()).then(|| number.to_string()),
        _ => None,
    }
}

/// Returns the id that an upstream reads; JSON does not distinguish 7.0 from 7.
fn job_of(value: &Value) -> Option<JobId> {
    match value {
        Value::String(text) => JobId::canonical(text),
        Value::Number(number) => {
            let whole = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15);
            JobId::canonical(&format!("{}", whole?.abs())).filter(|_| whole >= Some(0.0))
        }
        _ => None,
    }
}
