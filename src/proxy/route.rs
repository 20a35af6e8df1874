//! Routing: decides from a request's head alone what the request is to the cache.
//!
//! Reads are recognised narrowly and writes widely. A read must be spelled in the one way that
//! every upstream understands alike; otherwise it passes. A write counts for every job that some
//! reading of its path names, because the upstream's reading is not known here. So a doubt costs a
//! miss, never a stale answer.
//!
//! Not decided here: credentials and `Cache-Control` (`cache`), and whether an HTTP/2 request
//! without `Content-Length` has a body (the caller asks the body).

use std::sync::Arc;

use hyper::{
    HeaderMap, Method, Request, Response,
    header::{HeaderName, HeaderValue},
};

use super::headers::is_upgrade;
use crate::{
    cache::{identity::RouteIndex, job_id::JobId, policy::Bypass, query::Query},
    config::Config,
};

pub mod invalidation_rules;
mod location_targets;
mod path_variants;
mod template;

use invalidation_rules::{InvalidRule, InvalidationRule, InvalidationRules};
pub use location_targets::WriteTarget;
use path_variants::{NamedJobs, jobs_named};
pub use template::InvalidTemplate;
use template::{MAX_TEMPLATES, Template};

/// Headers by which frameworks let a client name another method (Symfony, Rack, Microsoft).
const METHOD_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-method-override"),
];

/// Headers by which frameworks let a gateway name another URL (IIS, Symfony, Zend).
const URL_OVERRIDES: [HeaderName; 2] =
    [HeaderName::from_static("x-original-url"), HeaderName::from_static("x-rewrite-url")];

/// How the proxy handles a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A read of a job. It may be answered from the cache, and a miss may fill it.
    Read(JobId),
    /// A write that may change jobs. It is fenced and forwarded, and the jobs are invalidated.
    Write(WriteScope),
    /// Forwarded past the cache, for this reason.
    Pass(Bypass),
}

/// The jobs and rules of a write, as far as its head tells. At least one of the two lists is not
/// empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteScope {
    /// The jobs that the path names.
    pub jobs: Vec<JobId>,
    /// The rules that match the path and the method.
    pub rules: Vec<Arc<InvalidationRule>>,
}

/// The routes of the jobs, the `[[invalidate]]` rules, and the query parameters that a cached read
/// may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    templates: Vec<Template>,
    rules: InvalidationRules,
    query: Query,
}

impl Routes {
    /// Builds the routes from the configuration.
    pub fn from_config<E: From<InvalidTemplate> + From<InvalidRule>>(
        config: &Config,
    ) -> Result<Self, E> {
        let routes = Self::parse(&config.routes)?.with_query(Query::new(&config.query));
        Ok(routes.with_rules(InvalidationRules::parse(&config.invalidate)?))
    }

    /// Parses path templates such as `/jobs/{id}` or `/x/{id}/status`. A template is absolute and
    /// has exactly one segment `{id}`; its other segments are literal.
    pub fn parse<S: AsRef<str>>(templates: &[S]) -> Result<Self, InvalidTemplate> {
        match templates.len() {
            0 => return Err(InvalidTemplate::Missing),
            1..=MAX_TEMPLATES => {}
            count => return Err(InvalidTemplate::TooMany { count }),
        }
        let templates = templates.iter().map(|template| Template::parse(template.as_ref()));
        let templates = templates.collect::<Result<_, _>>()?;
        Ok(Self { templates, rules: InvalidationRules::default(), query: Query::default() })
    }

    /// Sets the rules for writes with a path that does not name the jobs they change.
    #[must_use]
    pub fn with_rules(self, rules: InvalidationRules) -> Self {
        Self { rules, ..self }
    }

    /// Sets the parameters that the query of a cached read may have.
    #[must_use]
    pub fn with_query(self, query: Query) -> Self {
        Self { query, ..self }
    }

    /// Classifies a request. Never fails: a request that is not understood passes.
    pub fn classify<B>(&self, request: &Request<B>) -> Route {
        if *request.method() == Method::CONNECT {
            // CONNECT names none of our resources. The proxy refuses it.
            Route::Pass(Bypass::Method)
        } else if is_unsafe(request) {
            // "A cache MUST invalidate the target URI [..] when it receives a non-error status code
            // in response to an unsafe request method (including methods whose safety is unknown)."
            // RFC 9111 4.4. jobcache does so for every status, because an error may come after the
            // commit.
            self.write(request)
        } else {
            self.read(request)
        }
    }

    /// Returns the id of the job at a path without a query, or `None` where [`Routes::classify`]
    /// finds no read, whatever the headers.
    pub fn job_at<'p>(&self, path: &'p str) -> Option<&'p str> {
        self.read_at(path).map(|(id, _)| id)
    }

    /// Returns the same with the route.
    pub fn read_at<'p>(&self, path: &'p str) -> Option<(&'p str, RouteIndex)> {
        let mut templates = self.templates.iter().enumerate();
        let (index, id) =
            templates.find_map(|(index, template)| Some((index, template.id(path)?)))?;
        JobId::is_canonical(id).then_some((id, RouteIndex::new(index)))
    }

    /// Returns the route of a path that is the path of a job; the first one for any other path.
    pub fn index_of(&self, path: &str) -> RouteIndex {
        let index = self.templates.iter().position(|template| template.id(path).is_some());
        RouteIndex::new(index.unwrap_or_default())
    }

    /// Returns the path of a job by the first route.
    pub fn path_of(&self, id: &JobId) -> String {
        self.templates.first().map_or_else(String::new, |template| template.path(id.as_str()))
    }

    /// Returns the template that stands for a path in places that must not contain job ids: the
    /// template that the path matches, or lies below.
    pub fn route_of(&self, path: &str) -> Option<&str> {
        let whole = self.templates.iter().find(|template| template.id(path).is_some());
        let above = || {
            let segments: Vec<&str> = path.split('/').skip(1).collect();
            self.templates.iter().find(|template| template.id_at_or_above(&segments).is_some())
        };
        whole.or_else(above).map(Template::text)
    }

    /// Returns every job that some reading of `path` names or lies below, at most 32 (`MAX_JOBS`).
    ///
    /// `path` may also be an absolute URL, as in `Location`. Its query is ignored.
    pub fn jobs(&self, path: &str) -> Vec<JobId> {
        jobs_named(&self.templates, &[], path).jobs
    }

    /// Returns the jobs that `Location` and `Content-Location` of the response to a write name.
    pub fn location_targets<B>(&self, target: &WriteTarget, answer: &Response<B>) -> Vec<JobId> {
        let paths = target.named_by(answer.status(), answer.headers());
        paths.iter().flat_map(|path| self.jobs(path)).collect()
    }

    fn read<B>(&self, request: &Request<B>) -> Route {
        let headers = request.headers();
        let path = request.uri().path();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Route::Pass(Bypass::Method);
        }
        if is_upgrade(headers) {
            return Route::Pass(Bypass::Upgrade);
        }
        let Some(id) = self.templates.iter().find_map(|template| template.id(path)) else {
            return Route::Pass(not_a_job(&jobs_named(&self.templates, &[], path)));
        };
        let Some(id) = JobId::canonical(id) else {
            return Route::Pass(Bypass::Spelling);
        };
        if request.uri().query().is_some_and(|query| !self.query.admits(query)) {
            return Route::Pass(Bypass::Query);
        }
        match bypass(headers) {
            Some(why) => Route::Pass(why),
            None => Route::Read(id),
        }
    }

    fn write<B>(&self, request: &Request<B>) -> Route {
        let headers = request.headers();
        let rules = self.rules.matching(request.method(), headers);
        let mut found = jobs_named(&self.templates, &rules, request.uri().path());
        for value in URL_OVERRIDES.iter().flat_map(|name| headers.get_all(name)) {
            let path = String::from_utf8_lossy(value.as_bytes());
            found.merge(jobs_named(&self.templates, &rules, &path));
        }
        if found.jobs.is_empty() && found.rules.is_empty() {
            return Route::Pass(not_a_job(&found));
        }
        Route::Write(WriteScope { jobs: found.jobs, rules: found.rules })
    }
}

/// Returns why a path without an id passes: it is a job path in a spelling that is not cached, or
/// no job path at all.
fn not_a_job(named: &NamedJobs) -> Bypass {
    if named.is_job_path { Bypass::Spelling } else { Bypass::Path }
}

/// Returns why the headers of a read make it pass, if they do. The first such header counts.
fn bypass(headers: &HeaderMap) -> Option<Bypass> {
    headers.iter().find_map(|(name, value)| match name.as_str() {
        // "Although request message framing is independent of the method used, content received in
        // a GET request has no generally defined semantics" RFC 9110 9.3.1. Some upstreams treat it
        // as a query.
        "content-length" if value.as_bytes() != b"0" => Some(Bypass::RequestBody),
        "transfer-encoding" => Some(Bypass::RequestBody),
        // "A server MAY ignore the Range header field." RFC 9110 14.2. Whether the upstream ignores
        // it is not known here.
        "range" => Some(Bypass::Range),
        // "A cache MUST NOT evaluate conditional header fields that only apply to an origin server, [..]
        // such preconditions are likely intended for some other (inbound) server." RFC 9111 4.3.2
        "if-match" | "if-range" | "if-unmodified-since" => Some(Bypass::Precondition),
        _ if METHOD_OVERRIDES.contains(name) => Some(Bypass::MethodOverride),
        _ if URL_OVERRIDES.contains(name) => Some(Bypass::UrlOverride),
        _ => None,
    })
}

/// Whether a request may change something, by its method or by a method that a header names
/// instead.
pub fn is_unsafe<B>(request: &Request<B>) -> bool {
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE];
    !safe.contains(request.method()) || overrides_to_unsafe(request.headers())
}

/// Whether a header names another method, whatever that is. The method of the request then says
/// nothing.
pub fn overrides_method(headers: &HeaderMap) -> bool {
    METHOD_OVERRIDES.iter().any(|name| headers.contains_key(name))
}

/// Whether a header names a method that is unsafe or unknown.
fn overrides_to_unsafe(headers: &HeaderMap) -> bool {
    let is_safe = |value: &HeaderValue| {
        let method = value.as_bytes().trim_ascii();
        ["", "GET", "HEAD", "OPTIONS", "TRACE"]
            .iter()
            .any(|safe| safe.as_bytes().eq_ignore_ascii_case(method))
    };
    // One pass costs less than three lookups, which hash each name again.
    headers.iter().any(|(name, value)| METHOD_OVERRIDES.contains(name) && !is_safe(value))
}

#[cfg(test)]
mod tests {
    use hyper::{Request, http::request::Builder};

    use super::{InvalidTemplate, MAX_TEMPLATES, Route, Routes};
    use crate::{
        cache::{job_id::JobId, query::Query},
        config,
    };

    const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn routes() -> Routes {
        Routes::parse(&["/jobs/{id}", "/api/v1/jobs/{id}", "/x/{id}/status"]).unwrap()
    }

    fn words(jobs: &[JobId]) -> String {
        jobs.iter().map(JobId::as_str).collect::<Vec<_>>().join(" ")
    }

    /// `request` is the method and target, then one header per line.
    #[track_caller]
    fn check(request: &str, want: &str) {
        check_with(&routes(), request, want);
    }

    #[track_caller]
    fn check_with(routes: &Routes, request: &str, want: &str) {
        let mut lines = request.split('\n');
        let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
        let head = Request::builder().method(method).uri(target);
        let with_header = |head: Builder, line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            head.header(name, value)
        };
        let built = lines.fold(head, with_header).body(()).unwrap();
        let got = match routes.classify(&built) {
            Route::Read(id) => format!("read: {id}"),
            Route::Write(scope) => format!("write: {}", words(&scope.jobs)),
            Route::Pass(why) => format!("pass: {why}"),
        };
        assert_eq!(got, want, "{request}");
    }

    #[test]
    fn a_plain_get_or_head_of_a_job_is_a_read() {
        check("GET /jobs/7", "read: 7");
        check("HEAD /jobs/7", "read: 7");
        check("GET http://host:1/jobs/a.b_c~d-e", "read: a.b_c~d-e");
        check(&format!("GET /api/v1/jobs/{UUID}"), &format!("read: {UUID}"));
        check("GET /x/7/status", "read: 7");
        check("GET /jobs/7\ncontent-length: 0\ncache-control: no-store\ncookie: a", "read: 7");
        check("GET /jobs/7\nif-none-match: \"a\"\naccept-encoding: gzip", "read: 7");
    }

    #[test]
    fn other_paths_pass() {
        for path in
            ["/", "/jobs", "/jobs/", "/jobsite", "/jobs7", "/jobs/7/logs", "/x/7", "/a/jobs/7"]
        {
            check(&format!("GET {path}"), "pass: path");
        }
        check("POST /jobs", "pass: path");
        check("POST /", "pass: path");
        check("DELETE /a/jobs/7", "pass: path");
    }

    #[test]
    fn other_spellings_of_a_job_path_pass() {
        for path in ["/jobs/007", "/jobs/%37", "/jobs/7/", "//jobs/7", "/jobs//7", "/Jobs/7"] {
            check(&format!("GET {path}"), "pass: spelling");
        }
        for path in
            ["/a/../jobs/7", "/jobs/./7", "/jobs/7;v=1", "/jobs/a:b", "/jobs%2F7", "/jobs/7.0"]
        {
            check(&format!("GET {path}"), "pass: spelling");
        }
        check(&format!("GET /jobs/{}", UUID.to_uppercase()), "pass: spelling");
        check("POST /jobs/a:b", "pass: spelling");
        check("GET http://host//jobs/7?", "pass: spelling");
    }

    #[test]
    fn a_query_passes_a_read_even_an_empty_one() {
        check("GET /jobs/7?a=b", "pass: query");
        check("GET /jobs/7?", "pass: query");
        check("HEAD /jobs/7?fresh", "pass: query");
    }

    #[test]
    fn a_query_that_the_upstream_ignores_is_none() {
        let ignore = vec!["_".to_owned()];
        let query = config::QueryConfig { ignore, ..config::QueryConfig::default() };
        let routes = routes().with_query(Query::new(&query));
        check_with(&routes, "GET /jobs/7?_=1", "read: 7");
        check_with(&routes, "HEAD /jobs/7?_=1&_=2", "read: 7");
        check_with(&routes, "GET /jobs/7?_=1&fields=a", "pass: query");
        check_with(&routes, "GET /jobs/7?", "pass: query");
        check_with(&routes, "GET /jobs/07?_=1", "pass: spelling");
        check_with(&routes, "GET /jobs/7?_=1\nrange: bytes=0-1", "pass: range");
        check_with(&routes, "POST /jobs/7?_=1", "write: 7");
    }

    #[test]
    fn methods_that_neither_read_nor_change_pass() {
        check("OPTIONS /jobs/7", "pass: method");
        check("TRACE /jobs/7", "pass: method");
        check("OPTIONS *", "pass: method");
        check("CONNECT host:443", "pass: method");
        check("CONNECT host:443\nx-http-method-override: DELETE", "pass: method");
    }

    #[test]
    fn a_read_with_a_body_passes() {
        check("GET /jobs/7\ncontent-length: 5", "pass: request-body");
        check("GET /jobs/7\ncontent-length: 00", "pass: request-body");
        check("GET /jobs/7\ncontent-length: 0\ncontent-length: 5", "pass: request-body");
        check("GET /jobs/7\ntransfer-encoding: chunked", "pass: request-body");
    }

    #[test]
    fn an_upgrade_passes_unless_it_offers_h2c() {
        check("GET /jobs/7\nconnection: Upgrade\nupgrade: websocket", "pass: upgrade");
        check("GET /ws\nconnection: Upgrade\nupgrade: websocket", "pass: upgrade");
        check("GET /jobs/7\nconnection: Upgrade, HTTP2-Settings\nupgrade: h2c", "read: 7");
        check("GET /jobs/7\nupgrade: websocket", "read: 7");
    }

    #[test]
    fn ranges_and_preconditions_pass() {
        check("GET /jobs/7\nrange: bytes=0-1", "pass: range");
        check("GET /jobs/7\nif-match: \"a\"", "pass: precondition");
        check("GET /jobs/7\nif-unmodified-since: x", "pass: precondition");
        check("GET /jobs/7\nif-range: \"a\"", "pass: precondition");
    }

    #[test]
    fn an_overridden_method_counts() {
        for name in ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"] {
            check(&format!("GET /jobs/7\n{name}: DELETE"), "write: 7");
            check(&format!("HEAD /jobs/7\n{name}: get\n{name}: patch"), "write: 7");
            check(&format!("GET /jobs/7\n{name}: frobnicate"), "write: 7");
            check(&format!("OPTIONS /jobs/7/x\n{name}: PUT"), "write: 7");
            check(&format!("GET /jobs/7?a=b\n{name}: PUT"), "write: 7");
            check(&format!("GET /a\n{name}: DELETE"), "pass: path");
            check(&format!("GET /jobs/7\n{name}: head"), "pass: method-override");
            check(&format!("GET /jobs/7\n{name}: "), "pass: method-override");
            check(&format!("POST /jobs/7\n{name}: GET"), "write: 7");
        }
    }

    #[test]
    fn an_overridden_url_counts() {
        for name in ["X-Original-URL", "X-Rewrite-URL"] {
            check(&format!("GET /jobs/7\n{name}: /jobs/8"), "pass: url-override");
            check(&format!("GET /a\n{name}: /jobs/8"), "pass: path");
            check(&format!("POST /jobs/7\n{name}: /jobs/8?a=b"), "write: 7 8");
            check(&format!("POST /jobs/7\n{name}: /jobs/07"), "write: 7");
            check(&format!("POST /a\n{name}: https://host/jobs/8#x"), "write: 8");
            check(&format!("POST /a\n{name}: /b"), "pass: path");
        }
    }

    #[test]
    fn every_other_method_on_or_below_a_job_is_a_write() {
        for method in ["POST", "PUT", "PATCH", "DELETE", "PURGE", "PROPFIND", "get", "X"] {
            check(&format!("{method} /jobs/7"), "write: 7");
            check(&format!("{method} /jobs/7/cancel?now=1"), "write: 7");
        }
        check("POST /jobs/7/a/b/c", "write: 7");
        check("POST http://host/api/v1/jobs/abc/", "write: abc");
        check("POST /x/7", "write: 7");
        check("POST /x/7/other", "write: 7");
        check("POST /x/7/status/y", "write: 7");
        check("POST /jobs/7\nconnection: upgrade\nupgrade: websocket", "write: 7");
        check("POST /jobs/7\nrange: bytes=0-1\ncontent-length: 5", "write: 7");
    }

    #[test]
    fn jobs_are_found_in_paths_and_urls() {
        assert_eq!(words(&routes().jobs("/jobs/007/x")), "7");
        assert_eq!(words(&routes().jobs("https://host/api/v1/jobs/7?a=/jobs/8")), "7");
        assert_eq!(words(&routes().jobs("/a")), "");
        assert_eq!(words(&routes().jobs("")), "");
    }

    #[track_caller]
    fn check_refused(templates: &[&str], want: &str) {
        assert_eq!(
            Routes::parse(templates).map_err(|error| error.to_string()),
            Err(want.to_owned())
        );
    }

    #[test]
    fn a_bad_template_is_refused_with_the_mend() {
        let segment = |template: &str, segment: &str| InvalidTemplate::Segment {
            template: template.to_owned(),
            segment: segment.to_owned(),
        };
        check_refused(&[], "no route given; give at least one such as '/jobs/{id}'");
        check_refused(&["jobs/{id}"], "route 'jobs/{id}' is not absolute; begin it with '/'");
        check_refused(&["/jobs"], "route '/jobs' has 0 segments '{id}'; give it exactly one");
        check_refused(&["/jobs/{id}", "/{id}/{id}"], {
            "route '/{id}/{id}' has 2 segments '{id}'; give it exactly one"
        });
        for (template, bad) in [
            ("/jobs/{id}/", ""),
            ("//jobs/{id}", ""),
            ("/../{id}", ".."),
            ("/a b/{id}", "a b"),
            ("/jobs/x{id}", "x{id}"),
            ("/{name}/{id}", "{name}"),
            ("/jobs/{id}?a=b", "{id}?a=b"),
            ("/j%6Fbs/{id}", "j%6Fbs"),
        ] {
            assert_eq!(Routes::parse(&[template]), Err(segment(template, bad)), "{template}");
        }
        let count = MAX_TEMPLATES + 1;
        check_refused(
            &vec!["/{id}"; count],
            "65 routes given, at most 64 are allowed; remove some",
        );
        assert!(Routes::parse(&vec!["/{id}"; MAX_TEMPLATES]).is_ok());
    }
}
