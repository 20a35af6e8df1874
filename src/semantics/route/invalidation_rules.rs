//! The rules of `[[invalidate]]`: which further jobs a write changes.
//!
//! A rule matches the path of a write in every way that an upstream may read it, as routes do, but
//! only as a whole: a rule for `DELETE /jobs` does not apply to `DELETE /jobs/7`.

use std::sync::Arc;

use hyper::{Method, http::HeaderMap};
use serde_json::Value;

use super::{id_parts::MAX_NAMED, method_override::overrides, template::ID};
use crate::semantics::{
    job_id::{JobId, possible_ids},
    json_pointer::JsonPointer,
    settings::{InvalidateRule, OnMiss},
};

/// Largest number of rules. Each is compared with the path of every write.
const MAX_RULES: usize = 64;
/// Largest number of pointers into one body of a rule.
const MAX_POINTERS: usize = 32;
/// Largest number of query parameters of a rule.
const MAX_PARAMETERS: usize = 32;
/// Characters that a literal segment may have besides unreserved ones: those of RFC 3986 3.3, and `|`,
/// which clients send although it is none.
const LITERAL_MARKS: &[u8] = b":;,@!$&'()*+=|";

/// The rules in the order of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InvalidationRules(Vec<Arc<InvalidationRule>>);

/// A parsed rule.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidationRule {
    number: usize,
    /// Empty for every unsafe method.
    methods: Vec<Method>,
    path: Vec<Segment>,
    request: Vec<JsonPointer>,
    response: Vec<JsonPointer>,
    query: Vec<String>,
    all: bool,
    max_body: usize,
    on_miss: OnMiss,
}

#[derive(Debug, PartialEq, Eq)]
enum Segment {
    /// Compared without case, as some frameworks do.
    Literal(String),
    /// `{id}` between two literal texts, which may be empty: the id of the job.
    Id(String, String),
    /// `{name}`: anything.
    Any,
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
    /// Parses the configured rules.
    pub fn parse(rules: &[InvalidateRule]) -> Result<Self, String> {
        let rules = rules
            .iter()
            .enumerate()
            .map(|(at, rule)| InvalidationRule::parse(at + 1, rule).map(Arc::new));
        Ok(Self(rules.collect::<Result<_, _>>()?))
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
        Self::checked(number, rule).map_err(|why| format!("[[invalidate]] rule {number}: {why}"))
    }

    fn checked(number: usize, rule: &InvalidateRule) -> Result<Self, String> {
        if number > MAX_RULES {
            return Err(format!(
                "there are too many rules, at most {MAX_RULES} are allowed; remove some"
            ));
        }
        let path = segments(&rule.path)?;
        let methods = rule.methods.iter().map(|name| method(name)).collect::<Result<_, _>>()?;
        let request = pointers(&rule.request)?;
        let response = pointers(&rule.response)?;
        let query = checked_parameters(&rule.query)?;
        let has_places = !request.is_empty() || !response.is_empty() || !query.is_empty();
        if rule.all && has_places {
            let why = "all = true already drops every job; remove request, response and query";
            return Err(why.to_owned());
        }
        if !rule.all && !has_places && !path.iter().any(Segment::is_id) {
            return Err(format!(
                "it names no job; give it {ID} in its path, request or response with JSON pointers, \
                 query with parameters, or all = true"
            ));
        }
        let all = rule.all;
        let (max_body, on_miss) = (rule.max_body, rule.on_miss);
        Ok(Self { number, methods, path, request, response, query, all, max_body, on_miss })
    }

    /// Returns the number of the rule in the configuration file, from 1.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Whether every write that matches changes every job.
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// Returns what a write does in which the rule did not find every job.
    pub fn on_miss(&self) -> OnMiss {
        self.on_miss
    }

    /// Whether a pointer leads to a value that is not an id. `null` is the absence of one.
    pub fn leads_elsewhere(&self, side: BodySide, body: &Value) -> bool {
        let mut elsewhere = false;
        for pointer in self.pointers(side) {
            pointer.find(body, &mut |value| {
                elsewhere |= !value.is_null() && (is_inexact(value) || ids(value).is_empty());
            });
        }
        elsewhere
    }

    /// Returns how many bytes of this body the rule reads, or `None` if it does not read it.
    pub fn max_body(&self, side: BodySide) -> Option<usize> {
        (!self.pointers(side).is_empty()).then_some(self.max_body)
    }

    /// Returns the jobs that a body names: every reading of every string and whole number that a
    /// pointer leads to, at most one more than [`MAX_NAMED`].
    pub fn jobs(&self, side: BodySide, body: &Value) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for pointer in self.pointers(side) {
            pointer.find(body, &mut |value| {
                if jobs.len() <= MAX_NAMED {
                    jobs.extend(ids_in_any_case(value));
                }
            });
        }
        jobs.truncate(MAX_NAMED + 1);
        jobs
    }

    /// Whether the rule matches a path with these segments.
    pub(super) fn matches(&self, segments: &[&str]) -> bool {
        let same = |(segment, pattern): (&&str, &Segment)| match pattern {
            Segment::Literal(literal) => literal.eq_ignore_ascii_case(segment),
            Segment::Id(..) => pattern.id(segment).is_some(),
            Segment::Any => !segment.is_empty(),
        };
        let (Some((last, above)), Some((last_pattern, patterns))) =
            (segments.split_last(), self.path.split_last())
        else {
            return segments.len() == self.path.len();
        };
        let is_last = |segment: &str| same((&segment, last_pattern));
        above.len() == patterns.len()
            && above.iter().zip(patterns).all(same)
            && (is_last(last) || without_suffix(last).is_some_and(is_last))
    }

    /// Returns the text at the `{id}` of the rule, in a path that the rule matches.
    pub(super) fn id<'p>(&self, segments: &[&'p str]) -> Option<&'p str> {
        let position = self.path.iter().position(Segment::is_id)?;
        self.path.get(position)?.id(segments.get(position)?)
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

impl Segment {
    fn is_id(&self) -> bool {
        matches!(self, Self::Id(..))
    }

    /// Returns the text at `{id}` in a segment that has the literal texts around it.
    fn id<'p>(&self, segment: &'p str) -> Option<&'p str> {
        let Self::Id(before, after) = self else { return None };
        let (start, rest) = segment.split_at_checked(before.len())?;
        let (id, end) = rest.split_at_checked(rest.len().checked_sub(after.len())?)?;
        let is_same = start.eq_ignore_ascii_case(before) && end.eq_ignore_ascii_case(after);
        (is_same && !id.is_empty()).then_some(id)
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

/// Returns the ids that a value reads as. Ids are strings, or whole numbers from databases.
pub(crate) fn ids(value: &Value) -> Vec<JobId> {
    match value {
        Value::String(text) => possible_ids(text),
        // RFC 8259 6 has one kind of number: many upstreams read 7.0 as 7.
        Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => {
            possible_ids(&number.to_string())
        }
        _ => Vec::new(),
    }
}

/// Returns the same, and those in lower and in upper case: the API may ignore case.
fn ids_in_any_case(value: &Value) -> Vec<JobId> {
    let Value::String(text) = value else { return ids(value) };
    let cases = [text.clone(), text.to_ascii_lowercase(), text.to_ascii_uppercase()];
    let mut all: Vec<JobId> = Vec::new();
    for id in cases.iter().flat_map(|text| possible_ids(text)) {
        if !all.contains(&id) {
            all.push(id);
        }
    }
    all
}

/// Whether a number may have lost digits when it was parsed. Integers within 2^53 "are
/// interoperable in the sense that implementations will agree exactly on their numeric values"
/// RFC 8259 6.
fn is_inexact(value: &Value) -> bool {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.is_f64() && value.as_f64().is_some_and(|number| number.abs() >= EXACT)
}

fn segments(path: &str) -> Result<Vec<Segment>, String> {
    if path.is_empty() {
        return Err(
            r#"it has no path; give it one such as path = "/uploads/{id}/finish""#.to_owned()
        );
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err(format!("path = {path:?} is not absolute; begin it with '/'"));
    };
    if rest.is_empty() {
        return Ok(Vec::new());
    }
    let invalid = |text| {
        format!(
            "path = {path:?} has the segment {text:?}; use {{any_name}}, or {ID} and one or more of \
             A-Z a-z 0-9 . _ ~ - : ; , @ ! $ & ' ( ) * + = |, not '.' or '..', and no slash at the end"
        )
    };
    let segments = rest.split('/').map(|text| segment(text).ok_or_else(|| invalid(text)));
    let segments = segments.collect::<Result<_, _>>()?;
    if path.matches(ID).count() > 1 {
        return Err(format!(
            "path = {path:?} has more than one segment {ID}; give the others another name"
        ));
    }
    Ok(segments)
}

fn segment(text: &str) -> Option<Segment> {
    if let Some((before, after)) = text.split_once(ID) {
        let is_valid = |text: &str| text.bytes().all(is_literal_byte);
        // Whether there is a second `{id}` is checked for the path as a whole.
        let is_usable = is_valid(before) && is_valid(&after.replace(ID, ""));
        return is_usable.then(|| Segment::Id(before.to_owned(), after.to_owned()));
    }
    let name = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let is_name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    match name {
        Some(name) => is_name(name).then_some(Segment::Any),
        None => is_rule_literal(text).then(|| Segment::Literal(text.to_owned())),
    }
}

/// Whether a segment may stand in the path of a rule as it is.
pub(super) fn is_rule_literal(segment: &str) -> bool {
    let is_dots = matches!(segment, "." | "..");
    !segment.is_empty() && !is_dots && segment.bytes().all(is_literal_byte)
}

fn is_literal_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._~-".contains(&byte) || LITERAL_MARKS.contains(&byte)
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
