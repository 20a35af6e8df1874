//! The jobs that the answer to a write names by `Location` and `Content-Location`.
//!
//! Input: a line with the path of the request, its header lines, an empty line, header lines of the
//! answer.

use hyper::{
    Request, Response, StatusCode,
    header::{CONTENT_LOCATION, HeaderValue, LOCATION},
};
use jobcache::semantics::route::{Routes, WriteTarget};

/// Checks one input.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (path, rest) = super::line(&text);
    let (asked, answered) = rest.split_once("\n\n").unwrap_or((rest, ""));
    // In origin form, as requests are when their answers are examined.
    let Ok(mut request) = Request::post(path).body(()) else { return };
    if !path.starts_with('/') {
        return;
    }
    *request.headers_mut() = super::headers(asked);
    let target = WriteTarget::of(&request);
    let routes = Routes::parse(&["/jobs/{id}"]).expect("a valid template");

    let mut answer = Response::new(());
    *answer.headers_mut() = super::headers(answered);
    let lines = answer.headers().get_all(LOCATION).iter().count()
        + answer.headers().get_all(CONTENT_LOCATION).iter().count();
    assert!(target.named_by(answer.status(), answer.headers()).len() <= 2 * lines);
    // A job is found whatever the authority is, and whatever other headers there are.
    for named in [
        "/jobs/17",
        "/prefix/jobs/17",
        "http://127.0.0.1:8000/jobs/17",
        "https://other.example/jobs/17?a#b",
        "//other.example/jobs/17",
    ] {
        let mut answer = answer.clone();
        answer.headers_mut().append(LOCATION, HeaderValue::from_static(named));
        let jobs = routes.location_targets(&target, &answer).all_jobs();
        assert!(jobs.iter().any(|job| job.as_str() == "17"), "{named}");
    }
    *answer.status_mut() = StatusCode::CONFLICT;
    let jobs = routes.location_targets(&target, &answer).all_jobs();
    assert!(jobs.is_empty(), "an error response names {jobs:?}");
}
