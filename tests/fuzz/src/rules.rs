//! The jobs that a body names: `[[invalidate]]` rules and JSON pointers, compared with those of
//! `serde_json`.
//!
//! Input: a line with the pointer, then the body.

use hyper::Request;
use jobcache::{
    config::InvalidateRule as Config,
    semantics::{
        job_id::{JobId, is_canonical},
        json_pointer::JsonPointer,
        route::{MAX_NAMED, Route, Routes, invalidation_rules::BodySide},
        settings::ApiConfig,
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
    let paths = vec!["/jobs/{id}".to_owned()];
    let api = ApiConfig { paths, invalidate: vec![config], ..ApiConfig::default() };
    let Ok(routes) = Routes::new(&api) else { return };
    let post = Request::post("/x").body(()).expect("a valid request");
    let Route::Write(scope) = routes.classify(&post) else { panic!("the rule does not match") };
    let rule = &scope.rules[0];
    let jobs = rule.jobs(BodySide::Request, &document);
    assert!(jobs.len() <= MAX_NAMED + 1);
    assert!(rule.jobs(BodySide::Response, &document).is_empty());
    for job in &jobs {
        assert!(is_canonical(job.as_str()), "{job}");
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

fn job(id: &str) -> Option<JobId> {
    is_canonical(id).then(|| JobId::new(id, 0))
}

/// Returns the id that an upstream reads; JSON does not distinguish 7.0 from 7.
fn job_of(value: &Value) -> Option<JobId> {
    match value {
        Value::String(text) => job(text),
        Value::Number(number) => {
            let whole = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15);
            job(&format!("{}", whole?.abs())).filter(|_| whole >= Some(0.0))
        }
        _ => None,
    }
}
