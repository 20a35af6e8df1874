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

use hyper::{HeaderMap, Method, Request, Response};
use invalidation_rules::{InvalidationRules, RuleMatch};
use method_override::{is_method_override, is_url_override, names_unknown_method, other_urls};
use path_variants::Scope;
use template::{MAX_TEMPLATES, Named, Template, template};
use thiserror::Error;

use super::{
    headers::{is_upgrade, names_scheme},
    identity::{Place, ReadJob, RouteIndex},
    job_id::JobId,
    policy::Bypass,
    settings::{ApiConfig, QueryConfig, RouteConfig},
};

mod id_parts;
pub mod invalidation_rules;
mod key_template;
mod location_targets;
mod method_override;
mod namer;
mod path_pattern;
mod path_variants;
mod template;
mod write_names;

pub use id_parts::MAX_NAMED;
use id_parts::path_and_query;
pub use location_targets::WriteTarget;
pub use method_override::{is_unsafe, overrides_method};

/// How the proxy handles a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A read of a job. It may be answered from the cache, and a miss may fill it.
    Read(ReadJob<'static>),
    /// A write that may change jobs. It is fenced and forwarded, and the jobs are invalidated.
    Write(WriteScope),
    /// Forwarded past the cache, for this reason.
    Pass(Bypass),
}

/// Why routes or rules cannot be used, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct InvalidRoutes(String);

/// The jobs and rules of a write, as far as its head tells. It is never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteScope {
    /// The jobs that the path names at the place of the id, or that a rule names.
    pub jobs: Vec<JobId>,
    /// The jobs that the target names elsewhere. They are fenced only while the write runs.
    pub elsewhere: Vec<JobId>,
    /// Whether the target names more jobs than are invalidated one by one.
    pub too_many: bool,
    /// Whether the write changes jobs that its target cannot list: a variable follows the id.
    pub has_unlisted: bool,
    /// Whether one of `jobs` is more than a word.
    names_job: bool,
    /// The rules that match the path and the method.
    pub rules: Vec<RuleMatch>,
}

/// The routes of the jobs, the `[[invalidate]]` rules, and the query parameters that a cached read
/// may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    templates: Vec<Arc<Template>>,
    rules: InvalidationRules,
    query: QueryConfig,
}

/// Checks a route by itself. An error says what is wrong, and what to write instead.
pub fn check_route(route: &RouteConfig) -> Result<(), String> {
    template(route, &[""]).map(drop)
}

impl Routes {
    /// Parses the routes and the `[[invalidate]]` rules.
    pub fn new(api: &ApiConfig) -> Result<Self, InvalidRoutes> {
        let (routes, prefixes) = (api.routes(), api.prefixes());
        let templates = match routes.len() {
            0 => Err("no route given; give at least one such as '/jobs/{id}'".to_owned()),
            1..=MAX_TEMPLATES => {
                routes.iter().map(|route| template(route, &prefixes)).collect::<Result<Vec<_>, _>>()
            }
            count => Err(format!(
                "{count} routes given, at most {MAX_TEMPLATES} are allowed; remove some"
            )),
        };
        let templates = templates.map_err(InvalidRoutes)?;
        for (at, template) in templates.iter().enumerate() {
            if let Some(first) = templates[..at].iter().find(|first| first.has_paths_of(template)) {
                let (first, other) = (first.text(), template.text());
                return Err(InvalidRoutes(format!(
                    "the routes '{first}' and '{other}' have the same paths; remove one, also if one is \
                     in routes and the other in [[route]]"
                )));
            }
        }
        let rules = InvalidationRules::parse(&api.invalidate, &templates).map_err(InvalidRoutes)?;
        Ok(Self { templates, rules, query: api.query.clone() })
    }

    /// Parses path templates such as `/jobs/{id}`, without rules and with everything else at its
    /// default.
    pub fn parse<S: AsRef<str>>(templates: &[S]) -> Result<Self, InvalidRoutes> {
        let paths = templates.iter().map(|text| text.as_ref().to_owned()).collect();
        Self::new(&ApiConfig { paths, ..ApiConfig::default() })
    }

    /// Sets the parameters that the query of a cached read may have.
    #[must_use]
    pub fn with_query(self, query: QueryConfig) -> Self {
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

    /// Returns the job at a path without a query, or `None` where [`Routes::classify`] finds no read,
    /// whatever the headers.
    pub fn job_at<'p>(&self, path: &'p str) -> Option<ReadJob<'p>> {
        self.find(path)?.ok()
    }

    /// Returns the job of the first route that a path matches, or why it is not cached.
    fn find<'p>(&self, path: &'p str) -> Option<Result<ReadJob<'p>, Bypass>> {
        let mut templates = self.templates.iter().enumerate();
        let (route, found) =
            templates.find_map(|(at, template)| Some((RouteIndex(at), template.read(path)?)))?;
        let prefix = self.templates[route.0].prefix;
        let job =
            |Named { key, variables }| ReadJob { key, prefix, place: Place { route, variables } };
        Some(found.map(job))
    }

    /// Returns the setting with which a read that bypasses the cache for this reason would be cached.
    pub fn setting_for(&self, path: &str, why: Bypass) -> Option<&'static str> {
        if !matches!(why, Bypass::Spelling | Bypass::Word) {
            return None;
        }
        let route = |path: &str| self.templates.iter().find(|template| template.matches(path));
        let Some(template) = route(path) else {
            let other = path.strip_suffix('/').map_or_else(|| format!("{path}/"), str::to_owned);
            return route(&other).map(|_| "routes");
        };
        template.is_text(path).then_some("ids=opaque")
    }

    /// Returns the text in the place of the id, in whatever spelling.
    pub fn id_at<'p>(&self, path: &'p str) -> Option<&'p str> {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        self.templates.iter().find_map(|template| template.id_at_or_above(&segments))
    }

    /// Returns the jobs that a text names by their key, under each prefix.
    pub fn jobs_by_key(&self, text: &str) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for job in self.templates.iter().flat_map(|template| template.jobs_by_key(text)) {
            if !jobs.contains(&job) {
                jobs.push(job);
            }
        }
        jobs
    }

    /// Returns a path of the job with this key, by the first route that has such keys. A read of the path
    /// is cached under this key or under none.
    pub fn path_of(&self, id: &JobId) -> Option<String> {
        let of_prefix = self.templates.iter().filter(|template| template.has_prefix(id.prefix()));
        let mut paths = of_prefix.filter_map(|template| template.path_of(id.as_str()));
        paths.find(|path| self.job_at(path).is_none_or(|job| job.id() == *id))
    }

    /// Returns the template that stands for a path in places that must not contain job ids: the
    /// template that the path matches, or lies below.
    pub fn route_of(&self, path: &str) -> Option<&str> {
        let whole = self.templates.iter().find(|template| template.matches(path));
        let above = || {
            let segments: Vec<&str> = path.split('/').skip(1).collect();
            self.templates.iter().find(|template| template.id_at_or_above(&segments).is_some())
        };
        whole.or_else(above).map(|template| template.text())
    }

    /// Returns every job that some reading of `path` names or lies below.
    ///
    /// `path` may also be an absolute URL. Its query is ignored.
    pub fn named_by_path(&self, path: &str) -> WriteScope {
        let mut scope = self.named_by_targets(&[], Scope::Place, [(path, None)]).into_scope();
        if let Some(job) = self.job_at(path) {
            (scope.too_many, scope.has_unlisted) = (false, false);
            if !scope.jobs.contains(&job.id()) {
                scope.jobs.push(job.id());
            }
        }
        scope
    }

    /// Returns what `Location` and `Content-Location` of the response to a write name, in their paths
    /// or queries. A prefix of their paths is ignored: gateways remove one, and APIs put it back.
    pub fn location_targets<B>(&self, target: &WriteTarget, answer: &Response<B>) -> WriteScope {
        let named = target.named_by(answer.status(), answer.headers());
        if named.is_empty() {
            return WriteScope::default();
        }
        let targets = named.iter().map(|target| path_and_query(target));
        self.named_by_targets(&[], Scope::Tail, targets).into_scope()
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
        let job = match self.find(path) {
            Some(Ok(job)) => job,
            Some(Err(why)) => return Route::Pass(why),
            None => {
                let named = self.named_by_targets(&[], Scope::Place, [(path, None)]);
                return Route::Pass(named.bypass());
            }
        };
        if request.uri().query().is_some_and(|query| !self.query.admits(query)) {
            return Route::Pass(Bypass::Query);
        }
        match bypass(headers) {
            Some(why) => Route::Pass(why),
            None => Route::Read(job.into_owned()),
        }
    }

    fn write<B>(&self, request: &Request<B>) -> Route {
        let query = request.uri().query();
        let rules = self.rules.matching(request.method(), query, request.headers());
        let others = other_urls(request).map(|url| String::from_utf8_lossy(url.as_bytes()));
        let others: Vec<_> = others.collect();
        let others = others.iter().map(|url| path_and_query(url));
        let targets = [(request.uri().path(), query)].into_iter().chain(others);
        let named = self.named_by_targets(&rules, Scope::Target, targets);
        let why = named.bypass();
        let scope = named.into_scope();
        if scope == WriteScope::default() { Route::Pass(why) } else { Route::Write(scope) }
    }
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
        "authorization" if names_scheme(value) => Some(Bypass::BoundConnection),
        // "A cache MUST NOT evaluate conditional header fields that only apply to an origin server, [..]
        // such preconditions are likely intended for some other (inbound) server." RFC 9111 4.3.2
        "if-match" | "if-range" | "if-unmodified-since" => Some(Bypass::Precondition),
        _ if is_method_override(name) || names_unknown_method(name, value) => {
            Some(Bypass::MethodOverride)
        }
        _ if is_url_override(name) => Some(Bypass::UrlOverride),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
