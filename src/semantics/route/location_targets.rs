//! Location targets: the paths and queries that the response to a write names.
//!
//! RFC 9111 4.4: "A cache MUST invalidate the target URI [..] when it receives a non-error status
//! code in response to an unsafe request method", and "A cache MAY invalidate other URIs [..]. In
//! particular, the URI(s) in the Location and Content-Location response header fields (if present)
//! are candidates for invalidation". The target URI is invalidated elsewhere, whatever the status.
//! This module finds the other two, and further headers by which APIs name what a write has changed, such as
//! the address of a long-running operation.
//!
//! The scheme and the authority are ignored, although the same section forbids to invalidate URIs of
//! other origins: an API behind gateways does not know by which name its clients call it. Here the
//! rule has no purpose, because this process serves one API, and only that API can name a job.

use hyper::{HeaderMap, Request, StatusCode, header::HeaderValue};
use url::{ParseError, Position, Url};

/// Headers by which a response names another resource. The last two name a long-running operation.
const LOCATIONS: [&str; 4] =
    ["location", "content-location", "operation-location", "azure-asyncoperation"];

/// Part of the name of any other such header. It names a resource only if its value has a slash: an
/// `X-Edge-Location: FRA1` does not.
const LOCATION: &str = "location";

/// The authority of the base URL. It is never compared.
const BASE: &str = "http://api";

/// The target of a request, to resolve references with.
#[derive(Clone, Debug)]
pub struct WriteTarget {
    /// Path and query.
    path: String,
}

impl WriteTarget {
    /// Returns the target of a request.
    pub fn of<B>(request: &Request<B>) -> Self {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Self { path }
    }

    /// Returns path and query.
    pub fn path_and_query(&self) -> &str {
        &self.path
    }

    /// Returns the paths that a response names, with their queries. A response that reports an error
    /// names none.
    pub fn named_by(&self, status: StatusCode, headers: &HeaderMap) -> Vec<String> {
        if !(status.is_success() || status.is_redirection()) {
            return Vec::new();
        }
        let lines = headers.iter().filter(|(name, line)| is_location(name.as_str(), line));
        lines.flat_map(|(_, line)| self.paths_of(line)).collect()
    }

    fn paths_of(&self, value: &HeaderValue) -> Vec<String> {
        let reference = String::from_utf8_lossy(value.as_bytes());
        let url = match Url::parse(&reference) {
            Err(ParseError::RelativeUrlWithoutBase) => self.resolve(&reference),
            url => url.ok(),
        };
        // A reference that is no URL, that has no host (`http:///jobs/7`), or that may be a path
        // with an empty segment (`//jobs/7`), is also read as it is.
        let has_host = reference.contains("://") && !reference.contains(":///");
        let is_relative = reference.split(['/', '?', '#']).next().is_some_and(|s| !s.contains(':'));
        let is_unclear = url.is_none() || reference.starts_with("//") || !has_host && !is_relative;
        let literal = is_unclear.then(|| reference.into_owned());
        let target = |url: Url| url[Position::BeforePath..Position::AfterQuery].to_owned();
        url.map(target).into_iter().chain(literal).collect()
    }

    fn resolve(&self, reference: &str) -> Option<Url> {
        // Not by `join`: a path that begins with `//` would name another host there.
        let base = Url::parse(&format!("{BASE}{}", self.path)).ok()?;
        base.join(reference).ok()
    }
}

fn is_location(name: &str, value: &HeaderValue) -> bool {
    LOCATIONS.contains(&name) || name.contains(LOCATION) && value.as_bytes().contains(&b'/')
}

#[cfg(test)]
mod tests {
    use hyper::{Request, Response};

    use super::WriteTarget;

    /// Checks the paths that `value` names in the response to `POST <path>`.
    #[track_caller]
    fn check_at(path: &str, value: &str, want: &[&str]) {
        let target = WriteTarget::of(&Request::post(path).body(()).unwrap());
        for name in ["location", "content-location", "azure-asyncoperation"] {
            let answer = Response::builder().status(201).header(name, value).body(()).unwrap();
            let named = target.named_by(answer.status(), answer.headers());
            assert_eq!(named, want, "{path} {value}");
        }
    }

    #[track_caller]
    fn check(value: &str, want: &str) {
        check_at("/jobs/", value, &[want]);
    }

    #[test]
    fn references_are_resolved_against_the_target() {
        check("17", "/jobs/17");
        check("./17?a=b#c", "/jobs/17?a=b");
        check("../jobs/17", "/jobs/17");
        check("/jobs/17", "/jobs/17");
        check("?page=2", "/jobs/?page=2");
        check_at("/jobs", "jobs/17", &["/jobs/17"]);
        check_at("/jobs?x=/y/", "17", &["/17"]);
        check_at("//jobs", "/jobs/17", &["/jobs/17"]);
    }

    #[test]
    fn scheme_and_authority_are_ignored() {
        for base in ["http://jobs.example", "https://other.example:81", "HTTPS://[::1]:8080"] {
            check(&format!("{base}/jobs/17#c"), "/jobs/17");
        }
        check("https://host/backend/jobs/17", "/backend/jobs/17");
        check_at("/jobs", "//host/jobs/17", &["/jobs/17", "//host/jobs/17"]);
    }

    #[test]
    fn what_is_no_url_is_read_as_it_is() {
        check("http://a b/jobs/17", "http://a b/jobs/17");
        for value in ["http:///jobs/17", "https:/jobs/17", "http:jobs/17"] {
            check_at("/jobs", value, &["/17", value]);
        }
    }

    #[test]
    fn any_header_with_location_in_its_name_may_name_a_path() {
        let target = WriteTarget::of(&Request::post("/jobs/").body(()).unwrap());
        for (name, value, want) in [
            ("x-job-location", "/jobs/17", Some("/jobs/17")),
            ("x-job-location", "https://host/jobs/17", Some("/jobs/17")),
            ("x-edge-location", "FRA1", None),
            ("x-allocation-id", "7", None),
            ("link", "/jobs/17", None),
        ] {
            let answer = Response::builder().header(name, value).body(()).unwrap();
            let named = target.named_by(answer.status(), answer.headers());
            assert_eq!(named.first().map(String::as_str), want, "{name}: {value}");
        }
    }

    #[test]
    fn an_error_names_nothing() {
        let target = WriteTarget::of(&Request::post("/jobs").body(()).unwrap());
        for (status, want) in [(200, 1), (201, 1), (303, 1), (400, 0), (409, 0), (500, 0)] {
            let answer =
                Response::builder().status(status).header("location", "/jobs/17").body(()).unwrap();
            assert_eq!(target.named_by(answer.status(), answer.headers()).len(), want, "{status}");
        }
    }
}
