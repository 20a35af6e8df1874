//! The jobs that the answer to a write names by `Location` and `Content-Location`.
//!
//! Input: a line with the path of the request, its header lines, an empty line, header lines of the
//! answer.

#![no_main]

use hyper::{Request, Response};
use jobcache::proxy::route::{Routes, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (path, rest) = jobcache_fuzz::line(&text);
    let (asked, answered) = rest.split_once("\n\n").unwrap_or((rest, ""));
    // In origin form, as requests are when their answers are examined.
    let Ok(mut request) = Request::post(path).body(()) else { return };
    if !path.starts_with('/') {
        return;
    }
    *request.headers_mut() = jobcache_fuzz::headers(asked);
    let target = Target::of(&request, "127.0.0.1:8000");
    let routes = Routes::parse(&["/jobs/{id}"]).expect("a valid template");

    let mut answer = Response::new(());
    *answer.headers_mut() = jobcache_fuzz::headers(answered);
    for path in target.named_by(answer.status(), answer.headers()) {
        assert!(path.starts_with('/'), "{path}");
        assert!(!path.contains(['?', '#', ' ', '\n']), "{path}");
    }
    // Targets on this origin are found, whatever other headers there are.
    let ours = ["/jobs/17", "http://127.0.0.1:8000/jobs/17", "https://127.0.0.1:8000/jobs/17?a#b"];
    for ours in ours {
        let mut answer = answer.clone();
        answer.headers_mut().append("location", ours.parse().expect("a value"));
        let jobs = routes.mentioned(&target, &answer);
        assert!(jobs.iter().any(|job| job.as_str() == "17"), "{ours}");
    }
    // Targets on another origin are not found.
    if !asked.to_lowercase().contains("evil") {
        let mut answer = Response::new(());
        for other in [
            "http://evil.example/jobs/17",
            "//evil.example/jobs/17",
            "ftp://127.0.0.1:8000/jobs/17",
        ] {
            answer.headers_mut().append("location", other.parse().expect("a value"));
        }
        assert!(routes.mentioned(&target, &answer).is_empty());
    }
    *answer.status_mut() = hyper::StatusCode::CONFLICT;
    assert!(routes.mentioned(&target, &answer).is_empty(), "an error response names a job");
});
