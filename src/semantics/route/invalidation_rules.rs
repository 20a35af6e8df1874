//! The rules of `[[invalidate]]`: which further jobs a write changes.
//!
//! A rule matches the path of a write in every way that an upstream may read it, as routes do, but
//! only as a whole: a rule for `DELETE /jobs` does not apply to `DELETE /jobs/7`.

use std::{ops::Deref, sync::Arc};

use hyper::{Method, http::HeaderMap};
use serde_json::Value;

use super::{
    id_parts::MAX_NAMED,
    method_override::overrides,
    namer::Namer,
    path_pattern::{ID, PathPattern},
    template::Template,
};
use crate::semantics::{
    job_id::JobId,
    json_pointer::JsonPointer,
    settings::{InvalidateRule, OnMiss},
};

/// Largest number of rules. Each is compared with the path of every write.
const MAX_RULES: usize = 64;
/// Largest number of pointers into one body of a rule.
const MAX_POINTERS: usize = 32;
/// Largest number of query parameters of a rule.
const MAX_PARAMETERS: usize = 32;

/// The rules in the order of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InvalidationRules(Vec<Arc<InvalidationRule>>);

/// A parsed rule.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidationRule {
    number: usize,
    /// Empty for every unsafe method.
    methods: Vec<Method>,
    path: PathPattern,
    request: Vec<JsonPointer>,
    response: Vec<JsonPointer>,
    query: Vec<String>,
    all: bool,
    max_body: usize,
    on_miss: OnMiss,
}

/// A rule that matches the path of a write, and the routes for which it can name jobs there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleMatch {
    rule: Arc<InvalidationRule>,
    /// One for each route, if the path of the rule has its variables besides `{id}`.
    pub(super) namers: Vec<Namer>,
}

/// The body that a rule reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodySide {
    /// The request body.
    Request,
    /// The response body.
    Response,
}

impl InvalidationRules {
    /// Parses the configured rules for these routes.
    pub(super) fn parse(
        rules: &[InvalidateRule],
        templates: &[Arc<Template>],
    ) -> Result<Self, String> {
        let rules = rules.iter().enumerate().map(|(at, rule)| {
            let rule = InvalidationRule::parse(at + 1, rule)?;
            rule.check_routes(templates)?;
            Ok(Arc::new(rule))
        });
        Ok(Self(rules.collect::<Result<_, String>>()?))
    }

    /// Returns the rules for a write with this method, or with a method that its query or a header
    /// names instead.
    pub(super) fn matching(
        &self,
        method: &Method,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Vec<&Arc<InvalidationRule>> {
        let own = [method.as_str().as_bytes()].into_iter();
        let methods: Vec<&[u8]> = own.chain(overrides(query, headers)).collect();
        self.0.iter().filter(|rule| rule.is_for(&methods)).collect()
    }
}

impl InvalidationRule {
    /// Parses the `number`th rule, counted from 1. An error names it, and says what to write instead.
    pub fn parse(number: usize, rule: &InvalidateRule) -> Result<Self, String> {
        Self::checked(number, rule).map_err(|why| format!("[[invalidate]] number {number}: {why}"))
    }

    fn checked(number: usize, rule: &InvalidateRule) -> Result<Self, String> {
        if number > MAX_RULES {
            return Err(format!(
                "there are too many tables, at most {MAX_RULES} are allowed; remove some"
            ));
        }
        let path = path(&rule.path)?;
        let methods = rule.methods.iter().map(|name| method(name)).collect::<Result<_, _>>()?;
        let request = pointers(&rule.request)?;
        let response = pointers(&rule.response)?;
        let query = checked_parameters(&rule.query)?;
        let has_places = !request.is_empty() || !response.is_empty() || !query.is_empty();
        if rule.all && has_places {
            let why = "all = true already drops every job; remove request, response and query";
            return Err(why.to_owned());
        }
        if !rule.all && !has_places && path.position(ID).is_none() {
            let why = "it names no job; give it {id} in its path, request or response with JSON \
                       pointers, query with parameters, or all = true";
            return Err(why.to_owned());
        }
        let all = rule.all;
        let (max_body, on_miss) = (rule.max_body, rule.on_miss);
        Ok(Self { number, methods, path, request, response, query, all, max_body, on_miss })
    }

    /// Returns the number of the rule in the configuration file, from 1.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Returns what a write does in which the rule did not find every job.
    pub fn on_miss(&self) -> OnMiss {
        self.on_miss
    }

    /// Checks that the rule can name jobs of some route.
    fn check_routes(&self, templates: &[Arc<Template>]) -> Result<(), String> {
        let names: Vec<&str> = self.path.variables().collect();
        let lacks = |template: &Arc<Template>| {
            template.variables_before_id().find(|name| !names.contains(name)).map(str::to_owned)
        };
        let lacking: Option<Vec<String>> = templates.iter().map(lacks).collect();
        match lacking.as_deref() {
            Some([name, ..]) if !self.all => Err(format!(
                "[[invalidate]] number {}: every route has further variables besides {{id}}, and the path \
                 of the rule lacks {{{name}}}; add it there, or set all = true",
                self.number
            )),
            _ => Ok(()),
        }
    }

    /// Returns how many bytes of this body the rule reads, or `None` if it does not read it.
    pub fn max_body(&self, side: BodySide) -> Option<usize> {
        (!self.pointers(side).is_empty()).then_some(self.max_body)
    }

    /// Returns the variables of a path with these segments, by their names, if the rule matches it.
    fn variables<'p>(&self, segments: &[&'p str]) -> Option<Vec<(&str, &'p str)>> {
        let bind = |segments: &[&'p str]| {
            self.path.is_whole(segments).then(|| self.path.texts(segments)).flatten()
        };
        let texts = bind(segments).or_else(|| {
            let (last, above) = segments.split_last()?;
            let stem = without_suffix(last)?;
            bind(&above.iter().copied().chain([stem]).collect::<Vec<_>>())
        });
        Some(self.path.variables().zip(texts?).collect())
    }

    /// Returns the text at the `{id}` of the rule, in a path that the rule matches.
    pub(super) fn id<'p>(&self, segments: &[&'p str]) -> Option<&'p str> {
        let position = self.path.position(ID)?;
        self.path.segments.get(position)?.text(segments.get(position)?)
    }

    /// Returns the names of the query parameters that carry ids.
    pub(super) fn query_parameters(&self) -> &[String] {
        &self.query
    }

    fn is_for(&self, methods: &[&[u8]]) -> bool {
        let is_given = |listed: &Method| {
            methods.iter().any(|given| given.eq_ignore_ascii_case(listed.as_str().as_bytes()))
        };
        self.methods.is_empty() || self.methods.iter().any(is_given)
    }

    fn pointers(&self, side: BodySide) -> &[JsonPointer] {
        match side {
            BodySide::Request => &self.request,
            BodySide::Response => &self.response,
        }
    }
}

impl Deref for RuleMatch {
    type Target = InvalidationRule;

    fn deref(&self) -> &InvalidationRule {
        &self.rule
    }
}

impl RuleMatch {
    /// Matches a rule with a path of these segments.
    pub(super) fn of(
        rule: &Arc<InvalidationRule>,
        segments: &[&str],
        templates: &[Arc<Template>],
    ) -> Option<Self> {
        let variables = rule.variables(segments)?;
        let namer = |template: &Arc<Template>| {
            let text = |name: &str| Some(variables.iter().find(|known| known.0 == name)?.1);
            let before: Option<Vec<&str>> = template.variables_before_id().map(text).collect();
            Some(Namer::new(template, &before?))
        };
        let namers = templates.iter().filter_map(namer).collect();
        Some(Self { rule: Arc::clone(rule), namers })
    }

    /// Whether every write that matches changes every job.
    pub fn is_all(&self) -> bool {
        self.rule.all || self.namers.iter().any(|namer| namer.has_unlisted)
    }

    /// Whether a pointer leads to a value that is not an id. `null` is the absence of one.
    pub fn leads_elsewhere(&self, side: BodySide, body: &Value) -> bool {
        let mut elsewhere = false;
        for pointer in self.pointers(side) {
            pointer.find(body, &mut |value| {
                let names_none = || self.jobs_of(value).is_empty();
                elsewhere |= !value.is_null() && (is_inexact(value) || names_none());
            });
        }
        elsewhere
    }

    /// Returns the jobs that a body names: every reading of every string and whole number that a
    /// pointer leads to, at most one more than [`MAX_NAMED`].
    pub fn jobs(&self, side: BodySide, body: &Value) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for pointer in self.pointers(side) {
            pointer.find(body, &mut |value| {
                if jobs.len() <= MAX_NAMED {
                    jobs.extend(self.jobs_of(value));
                }
            });
        }
        jobs.truncate(MAX_NAMED + 1);
        jobs
    }

    /// Returns the jobs of a value: ids are strings, or whole numbers from databases. A string counts
    /// in lower and in upper case too, because the API may ignore case.
    fn jobs_of(&self, value: &Value) -> Vec<JobId> {
        let texts = match value {
            Value::String(text) => {
                vec![text.clone(), text.to_ascii_lowercase(), text.to_ascii_uppercase()]
            }
            // RFC 8259 6 has one kind of number: many upstreams read 7.0 as 7.
            Value::Number(number) if number.as_f64().is_some_and(|n| n.fract() == 0.0) => {
                vec![number.to_string()]
            }
            _ => Vec::new(),
        };
        let mut jobs: Vec<JobId> = Vec::new();
        for namer in &self.namers {
            let ids = texts.iter().flat_map(|text| namer.template.ids.readings(text));
            let mut add = |job| {
                if !jobs.contains(&job) {
                    jobs.push(job);
                }
            };
            ids.for_each(|id| namer.for_each_job(&id, &mut add));
        }
        jobs
    }
}

impl BodySide {
    /// Returns the word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }
}

/// Returns a segment without its suffix, which Rails takes for a format.
fn without_suffix(segment: &str) -> Option<&str> {
    let (stem, suffix) = segment.rsplit_once('.')?;
    suffix.bytes().all(|byte| byte.is_ascii_alphabetic()).then_some(stem)
}

/// Whether a number may have lost digits when it was parsed. Integers within 2^53 "are
/// interoperable in the sense that implementations will agree exactly on their numeric values"
/// RFC 8259 6.
fn is_inexact(value: &Value) -> bool {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.is_f64() && value.as_f64().is_some_and(|number| number.abs() >= EXACT)
}

fn path(text: &str) -> Result<PathPattern, String> {
    if text.is_empty() {
        let why = r#"it has no path; give it one such as path = "/uploads/{id}/finish""#;
        return Err(why.to_owned());
    }
    PathPattern::parse(text).map_err(|why| format!("path = {text:?}: {why}"))
}

fn method(name: &str) -> Result<Method, String> {
    let safe = ["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT"];
    if safe.iter().any(|safe| safe.eq_ignore_ascii_case(name)) {
        return Err(format!(
            "{name} changes nothing; leave it out: GET, HEAD, OPTIONS and TRACE are never matched"
        ));
    }
    let method = Method::from_bytes(name.as_bytes());
    method.map_err(|_| format!("{name:?} is not a method; give names such as \"POST\""))
}

fn checked_parameters(names: &[String]) -> Result<Vec<String>, String> {
    if names.len() > MAX_PARAMETERS {
        let count = names.len();
        return Err(format!(
            "it has {count} query parameters, at most {MAX_PARAMETERS} are allowed; remove some"
        ));
    }
    if names.iter().any(String::is_empty) {
        let why = "query has an empty name; give the names of parameters, such as \"ids\"";
        return Err(why.to_owned());
    }
    Ok(names.to_vec())
}

fn pointers(texts: &[String]) -> Result<Vec<JsonPointer>, String> {
    if texts.len() > MAX_POINTERS {
        let count = texts.len();
        return Err(format!(
            "it has {count} pointers into one body, at most {MAX_POINTERS} are allowed; remove some"
        ));
    }
    let pointer = |text: &String| JsonPointer::parse(text).map_err(|why| format!("{text:?} {why}"));
    texts.iter().map(pointer).collect()
}

#[cfg(test)]
mod tests;
