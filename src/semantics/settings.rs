//! The settings of the pure parts: how callers are distinguished, which reads are cached and for how
//! long, and which further jobs a write changes. Also the type of every secret.

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::StatusCode;
use percent_encoding::percent_decode_str;

use super::{job_id::Ids, json_pointer::JsonPointer, labels::labels};

/// How callers are distinguished, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsConfig {
    /// Treatment of requests with a credential.
    pub mode: CredentialMode,
    /// Header names in lower case.
    pub headers: Vec<String>,
    /// Names in lower case of further headers that say nothing about the caller.
    pub ignore: Vec<String>,
    /// Names of the cookies that count; if it is empty, all of them count.
    pub cookies: Vec<String>,
    /// Key of the fingerprints. Without one, the sidecars share a key that the store keeps.
    pub secret: Option<Secret>,
    /// Most pairs of credential and variant that the audience of an entry may hold.
    pub audience: usize,
    /// Time for which a pair is trusted after the upstream has served an entry to it; none = as long
    /// as the entry is kept.
    pub recheck: Option<Duration>,
}

labels! {
    /// Treatment of requests with a credential.
    pub enum CredentialMode {
        /// Only what the upstream itself has served to this credential.
        Partition = "partition",
        /// The same as everyone: a gateway in front has authorised the request.
        Shared = "shared",
        /// Nothing: the request passes uncached.
        Bypass = "bypass",
    }
}

/// What the requests of the API mean to the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiConfig {
    /// Name of the API, for APIs that share a Redis.
    pub name: Option<String>,
    /// Path templates of jobs for which everything else is as below.
    pub paths: Vec<String>,
    /// The tables of routes. They have no setting: only the file can hold them.
    pub tables: Vec<RouteConfig>,
    /// How ids are read, unless a route says so itself.
    pub ids: Ids,
    /// Statuses that are stored besides 200, and for how long, unless a route says so itself.
    pub statuses: Vec<(StatusCode, Duration)>,
    /// Paths that are never cached.
    pub except: Vec<String>,
    /// Query parameters of reads.
    pub query: QueryConfig,
    /// Further jobs that a write changes. It has no setting: only the file can hold these tables.
    pub invalidate: Vec<InvalidateRule>,
}

impl ApiConfig {
    /// Returns every route, with what holds for all of them.
    pub fn routes(&self) -> Vec<RouteConfig> {
        let paths = self.paths.iter().map(|path| RouteConfig::at(path));
        let routes = paths.chain(self.tables.iter().cloned());
        let complete = |route: RouteConfig| RouteConfig {
            ids: route.ids.or(Some(self.ids)),
            statuses: route.statuses.or_else(|| Some(self.statuses.clone())),
            except: route.except.into_iter().chain(self.except.iter().cloned()).collect(),
            ..route
        };
        routes.map(complete).collect()
    }

    /// Returns the prefixes of keys that routes have of their own, after the empty text for those that
    /// have none.
    pub fn prefixes(&self) -> Vec<&str> {
        let mut prefixes = vec![""];
        for prefix in self.tables.iter().filter_map(|route| route.prefix.as_deref()) {
            if !prefixes.contains(&prefix) {
                prefixes.push(prefix);
            }
        }
        prefixes
    }
}

/// The jobs at one path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteConfig {
    /// Template of the path.
    pub path: String,
    /// Template of the key; none = the variables in their order, joined by `:`.
    pub key: Option<String>,
    /// Beginning of the key; none = `store.prefix`.
    pub prefix: Option<String>,
    /// How ids are read.
    pub ids: Option<Ids>,
    /// Paths that are never cached.
    pub except: Vec<String>,
    /// Longest lifetime of an entry; none = `ttl.default`.
    pub ttl: Option<Duration>,
    /// Lifetimes by the state of the job; none = `ttl.states.map`.
    pub states: Option<Vec<(String, Duration)>>,
    /// Statuses that are stored besides 200, and for how long.
    pub statuses: Option<Vec<(StatusCode, Duration)>>,
}

impl RouteConfig {
    /// The jobs at this path, with everything else as for all routes.
    pub fn at(path: &str) -> Self {
        Self { path: path.to_owned(), ..Self::default() }
    }
}

/// Query parameters of reads. A read with any other parameter passes uncached.
///
/// Frameworks read queries differently: some also split at `;`, some ignore the case of names, and
/// some read `_[a]` as `_`. So a query is recognised narrowly: any doubt costs only a miss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryConfig {
    /// Names of parameters that do not change the answer.
    pub ignore: Vec<String>,
    /// Names of parameters that change only its form.
    pub allow: Vec<String>,
}

impl QueryConfig {
    /// Returns whether a query consists only of ignored and allowed parameters. An empty query does
    /// not.
    pub fn admits(&self, query: &str) -> bool {
        let known = |parameter| {
            contains_name(&self.ignore, parameter) || contains_name(&self.allow, parameter)
        };
        !query.contains(';') && query.split('&').all(known)
    }

    /// Returns the parameters that may change the answer, as spelled and in their order.
    pub fn counted<'q>(&self, query: &'q str) -> impl Iterator<Item = &'q str> {
        query.split('&').filter(|parameter| !contains_name(&self.ignore, parameter))
    }
}

fn contains_name(list: &[String], parameter: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default();
    list.iter().any(|known| percent_decode_str(name).eq(known.bytes()))
}

/// Greatest TTL of an entry, by the state of its job, which is read from the body.
///
/// After a lost purge, clients see the old state until the TTL ends. That matters while a job runs,
/// but not once it has finished. So each state may have its own limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateTtlConfig {
    /// Place of the state in the body.
    pub pointer: JsonPointer,
    /// Each state, as text, and its lifetime; if it is empty, states do not matter.
    pub map: Vec<(String, Duration)>,
}

impl StateTtlConfig {
    /// Returns the limit for a job with this body; `None` if no state has one. The shortest limit is
    /// for a state in which a job may change often: one that is not in the map or cannot be found,
    /// also because the body is not JSON.
    pub fn ttl(&self, body: &[u8]) -> Option<Duration> {
        let shortest = self.map.iter().map(|(_, ttl)| *ttl).min()?;
        let state = self.pointer.scalar(body);
        let entry = self.map.iter().rev().find(|(known, _)| Some(known) == state.as_ref());
        Some(entry.map_or(shortest, |(_, ttl)| *ttl))
    }
}

/// Further jobs that a write changes, where its path does not name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidateRule {
    /// Methods of the write; if it is empty, every unsafe one.
    pub methods: Vec<String>,
    /// Template of the path: `{id}` is the id of the job, `{any_name}` is any segment.
    pub path: String,
    /// JSON pointers to ids in the request.
    pub request: Vec<String>,
    /// JSON pointers to ids in the response.
    pub response: Vec<String>,
    /// Names of query parameters that carry ids.
    pub query: Vec<String>,
    /// The write changes every job.
    pub all: bool,
    /// Largest body that is searched, in bytes.
    pub max_body: usize,
    /// Treatment of a write in which the rule does not find every job.
    pub on_miss: OnMiss,
}

/// Treatment of a write with a body in which a rule does not find every job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMiss {
    /// If the API accepts it, it counts as a write that changes every job.
    #[default]
    All,
    /// The write changes only the jobs that were found.
    Ignore,
}

impl Default for InvalidateRule {
    fn default() -> Self {
        Self {
            methods: Vec::new(),
            path: String::new(),
            request: Vec::new(),
            response: Vec::new(),
            query: Vec::new(),
            all: false,
            max_body: 64 << 10,
            on_miss: OnMiss::All,
        }
    }
}

/// A secret; `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text` unchecked: the limits of a configured secret are those of its setting.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that compares or signs with it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Key of Standard Webhooks signatures: the decoded base64 after `whsec_`, or else the bytes as
    /// they are. None if the base64 is not valid.
    pub fn key(&self) -> Option<Vec<u8>> {
        match self.0.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).ok(),
            None => Some(self.0.clone().into_bytes()),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{JsonPointer, QueryConfig, StateTtlConfig};

    fn query() -> QueryConfig {
        QueryConfig {
            ignore: vec!["_".to_owned(), "utm_source".to_owned()],
            allow: vec!["view".to_owned(), "v".to_owned()],
        }
    }

    #[track_caller]
    fn check(text: &str, want: bool) {
        assert_eq!(query().admits(text), want, "{text:?}");
    }

    #[test]
    fn what_is_ignored_does_not_count_and_what_is_allowed_does_as_it_is_spelled() {
        let check = |text: &str, want: &[&str]| {
            check(text, true);
            assert_eq!(query().counted(text).collect::<Vec<_>>(), want, "{text:?}");
        };
        check("_=1", &[]);
        check("view=short", &["view=short"]);
        check("v=2&_=1&view=a,b&v=3", &["v=2", "view=a,b", "v=3"]);
        check("%76=2&v", &["%76=2", "v"]);
        check("view=_", &["view=_"]);
    }

    #[test]
    fn a_query_of_ignored_parameters_alone_is_covered() {
        check("_", true);
        check("_=", true);
        check("_=1718000000", true);
        check("_=1&_=2", true);
        check("utm_source=a&_=b=c", true);
        check("%5F=1&utm%5fsource", true);
        check("_=%3B%26fields=a", true);
    }

    #[test]
    fn a_query_with_anything_else_is_not_covered() {
        for query in
            ["fields=a", "_=1&fields=a", "fields=a&_=1", "__=1", "_[a]=1", "_.a=1", "%255F=1"]
        {
            check(query, false);
        }
        // Case and spaces count, even where the upstream ignores them.
        for query in ["UTM_SOURCE=a", "+_=1", "_+=1", "%20_=1", "_%00=1", "_%"] {
            check(query, false);
        }
    }

    #[test]
    fn what_some_upstreams_split_otherwise_is_not_covered() {
        check("_=1;fields=a", false);
        check("_;_", false);
    }

    #[test]
    fn an_empty_parameter_is_not_covered() {
        for query in ["", "&", "_=1&", "&_=1", "_=1&&_=2", "=", "=1"] {
            check(query, false);
        }
    }

    #[test]
    fn without_names_no_query_is_covered() {
        for query in ["", "_", "_=1"] {
            assert!(!QueryConfig::default().admits(query), "{query:?}");
        }
    }

    fn config(map: &[(&str, u64)]) -> StateTtlConfig {
        let pointer = JsonPointer::parse("/job/status").unwrap();
        let ttl =
            |&(state, seconds): &(&str, u64)| (state.to_owned(), Duration::from_secs(seconds));
        StateTtlConfig { pointer, map: map.iter().map(ttl).collect() }
    }

    #[track_caller]
    fn check_state(body: &str, seconds: u64) {
        let map = [("completed", 300), ("running", 10), ("true", 60), ("3", 30)];
        let ttl = config(&map).ttl(body.as_bytes());
        assert_eq!(ttl, Some(Duration::from_secs(seconds)), "{body}");
    }

    #[test]
    fn each_state_has_its_own_life() {
        check_state(r#"{"job":{"status":"completed"}}"#, 300);
        check_state(r#"{"job":{"status":"running"}}"#, 10);
        check_state(r#"{"job":{"status":true}}"#, 60);
        check_state(r#"{"job":{"status":3}}"#, 30);
        check_state(r#"{"job":{"status":"3"}}"#, 30);
    }

    #[test]
    fn what_is_not_known_has_the_shortest() {
        for status in ["\"paused\"", "\"Completed\"", "false", "4", "3.0", "null", "{}", "[3]"] {
            check_state(&format!(r#"{{"job":{{"status":{status}}}}}"#), 10);
        }
        check_state(r#"{"job":{}}"#, 10);
        check_state(r#"{"status":"completed"}"#, 10);
        check_state(r#"{"job":{"status":"completed"}"#, 10);
        check_state("completed", 10);
        check_state("", 10);
    }

    #[test]
    fn without_states_there_is_no_such_limit() {
        assert_eq!(config(&[]).ttl(br#"{"job":{"status":3}}"#), None);
    }
}
