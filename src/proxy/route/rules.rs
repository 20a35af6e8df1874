//! The rules of `[[invalidate]]`: which further jobs a write changes.
//!
//! A rule matches the path of a write in whatever way an upstream may read it, as routes do, but
//! only as a whole: what holds for `DELETE /jobs` does not hold for `DELETE /jobs/7`.

use std::sync::Arc;

use hyper::{Method, http::HeaderMap};
use serde_json::Value;
use thiserror::Error;

use super::{
    METHOD_OVERRIDES,
    template::{ID, is_literal},
};
use crate::{
    cache::key::{JobId, readings},
    config,
    pointer::{BadPointer, Pointer},
};

/// Rules at most: each is compared with the path of every write.
const MAX_RULES: usize = 64;
/// Pointers of one side of a rule at most.
const MAX_POINTERS: usize = 32;
/// Jobs that the bodies of one write may name at most; a fence and an end each.
pub const MAX_NAMED: usize = 1_000;

/// The rules, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Arc<Rule>>);

/// One rule, ready to be matched.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    number: usize,
    /// Every unsafe one, if there are none.
    methods: Vec<Method>,
    path: Vec<Segment>,
    request: Vec<Pointer>,
    response: Vec<Pointer>,
    all: bool,
    max_body: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Segment {
    /// In any case: some frameworks compare so.
    Literal(String),
    /// `{id}`: the job's.
    Id,
    /// `{name}`: anything.
    Any,
}

/// The body that is looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What the client sends.
    Request,
    /// What the upstream answers.
    Response,
}

/// A rule that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("[[invalidate]] rule {number}: {why}")]
pub struct BadRule {
    /// Which one, from 1.
    pub number: usize,
    /// What is wrong with it.
    pub why: Fault,
}

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// It says for which writes it is nowhere.
    #[error("it has no path; give it one such as path = \"/uploads/{{id}}/finish\"")]
    NoPath,
    /// The path does not begin with a slash.
    #[error("path = {0:?} is not absolute; begin it with '/'")]
    Relative(String),
    /// A segment that no path could match.
    #[error(
        "path = {path:?} has the segment {segment:?}; use {{id}}, {{any_name}}, or one or more of \
         A-Z a-z 0-9 . _ ~ -, not '.' or '..', and no slash at the end"
    )]
    Segment {
        /// The template.
        path: String,
        /// The segment.
        segment: String,
    },
    /// `{id}` stands more than once.
    #[error("path = {0:?} has more than one segment {{id}}; give the others another name")]
    Ids(String),
    /// Not a method.
    #[error("{0:?} is not a method; give names such as \"POST\"")]
    Method(String),
    /// Not one that changes anything.
    #[error("{0} changes nothing; leave it out: GET, HEAD, OPTIONS and TRACE are never matched")]
    SafeMethod(String),
    /// Not a pointer.
    #[error("{pointer:?} {why}")]
    Pointer {
        /// What was given.
        pointer: String,
        /// What is wrong with it, and what to do.
        why: BadPointer,
    },
    /// More than are followed.
    #[error("it has {0} pointers into one body, of at most {MAX_POINTERS}; leave some out")]
    Pointers(usize),
    /// It would never invalidate anything.
    #[error(
        "it names no job; give it {{id}} in its path, request or response with JSON pointers, or \
         all = true"
    )]
    NoSource,
    /// It invalidates everything and something else.
    #[error("all = true drops every job already; leave request and response out")]
    AllAndMore,
    /// More rules than are compared with every write.
    #[error("it is one too many, of at most {MAX_RULES}; leave some out")]
    TooMany,
}

impl Rules {
    /// Parses the configured rules.
    pub fn parse(rules: &[config::InvalidateRule]) -> Result<Self, BadRule> {
        let rules =
            rules.iter().enumerate().map(|(at, rule)| Rule::parse(at + 1, rule).map(Arc::new));
        Ok(Self(rules.collect::<Result<_, _>>()?))
    }

    /// Those that are for a write of this method, or of one that a header names instead.
    pub(super) fn of(&self, method: &Method, headers: &HeaderMap) -> Vec<&Arc<Rule>> {
        self.0.iter().filter(|rule| rule.is_for(method, headers)).collect()
    }
}

impl Rule {
    /// Parses one, the `number`th from 1.
    pub fn parse(number: usize, rule: &config::InvalidateRule) -> Result<Self, BadRule> {
        Self::checked(number, rule).map_err(|why| BadRule { number, why })
    }

    fn checked(number: usize, rule: &config::InvalidateRule) -> Result<Self, Fault> {
        if number > MAX_RULES {
            return Err(Fault::TooMany);
        }
        let path = segments(&rule.path)?;
        let methods = rule.methods.iter().map(|name| method(name)).collect::<Result<_, _>>()?;
        let (request, response) = (pointers(&rule.request)?, pointers(&rule.response)?);
        let points = !request.is_empty() || !response.is_empty();
        if rule.all && points {
            return Err(Fault::AllAndMore);
        }
        if !rule.all && !points && !path.contains(&Segment::Id) {
            return Err(Fault::NoSource);
        }
        let (all, max_body) = (rule.all, rule.max_body);
        Ok(Self { number, methods, path, request, response, all, max_body })
    }

    /// Which one it is, from 1.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Whether the writes that it matches change every job.
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// How much of this body it looks at, if it does at all.
    pub fn max_body(&self, side: Side) -> Option<usize> {
        (!self.pointers(side).is_empty()).then_some(self.max_body)
    }

    /// The jobs that a body names: every reading of every string and whole number that a pointer
    /// leads to, at most one more than [`MAX_NAMED`].
    pub fn jobs(&self, side: Side, body: &Value) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for pointer in self.pointers(side) {
            pointer.find(body, &mut |value| {
                if jobs.len() <= MAX_NAMED {
                    jobs.extend(ids(value));
                }
            });
        }
        jobs.truncate(MAX_NAMED + 1);
        jobs
    }

    /// Whether it matches a path of these segments.
    pub(super) fn matches(&self, segments: &[&str]) -> bool {
        let same = |(segment, pattern): (&&str, &Segment)| match pattern {
            Segment::Literal(literal) => literal.eq_ignore_ascii_case(segment),
            Segment::Id | Segment::Any => !segment.is_empty(),
        };
        segments.len() == self.path.len() && segments.iter().zip(&self.path).all(same)
    }

    /// The segment of a path that it matches where its `{id}` is.
    pub(super) fn id<'p>(&self, segments: &[&'p str]) -> Option<&'p str> {
        let position = self.path.iter().position(|segment| *segment == Segment::Id)?;
        segments.get(position).copied()
    }

    fn is_for(&self, method: &Method, headers: &HeaderMap) -> bool {
        let is_ours = |name: &[u8]| {
            self.methods.iter().any(|ours| ours.as_str().as_bytes().eq_ignore_ascii_case(name))
        };
        let mut overrides = METHOD_OVERRIDES.into_iter().flat_map(|name| headers.get_all(name));
        self.methods.is_empty()
            || is_ours(method.as_str().as_bytes())
            || overrides.any(|value| is_ours(value.as_bytes().trim_ascii()))
    }

    fn pointers(&self, side: Side) -> &[Pointer] {
        match side {
            Side::Request => &self.request,
            Side::Response => &self.response,
        }
    }
}

impl Side {
    /// The word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }
}

/// What a value reads as: ids come as strings, and from databases as whole numbers.
pub(crate) fn ids(value: &Value) -> Vec<JobId> {
    match value {
        Value::String(text) => readings(text),
        // RFC 8259 6 knows one kind of number: to many backends 7.0 is 7.
        Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => {
            readings(&number.to_string())
        }
        _ => Vec::new(),
    }
}

fn segments(path: &str) -> Result<Vec<Segment>, Fault> {
    if path.is_empty() {
        return Err(Fault::NoPath);
    }
    let rest = path.strip_prefix('/').ok_or_else(|| Fault::Relative(path.to_owned()))?;
    let segments: Vec<Segment> = rest
        .split('/')
        .map(|text| {
            segment(text).ok_or_else(|| Fault::Segment { path: path.into(), segment: text.into() })
        })
        .collect::<Result<_, _>>()?;
    if segments.iter().filter(|segment| **segment == Segment::Id).count() > 1 {
        return Err(Fault::Ids(path.to_owned()));
    }
    Ok(segments)
}

fn segment(text: &str) -> Option<Segment> {
    let name = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let is_name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    match name {
        _ if text == ID => Some(Segment::Id),
        Some(name) => is_name(name).then_some(Segment::Any),
        None => is_literal(text).then(|| Segment::Literal(text.to_owned())),
    }
}

fn method(name: &str) -> Result<Method, Fault> {
    let method = Method::from_bytes(name.as_bytes()).map_err(|_| Fault::Method(name.to_owned()))?;
    let safe = ["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT"];
    if safe.iter().any(|safe| safe.eq_ignore_ascii_case(name)) {
        return Err(Fault::SafeMethod(name.to_owned()));
    }
    Ok(method)
}

fn pointers(texts: &[String]) -> Result<Vec<Pointer>, Fault> {
    if texts.len() > MAX_POINTERS {
        return Err(Fault::Pointers(texts.len()));
    }
    let pointer = |text: &String| {
        Pointer::parse(text).map_err(|why| Fault::Pointer { pointer: text.clone(), why })
    };
    texts.iter().map(pointer).collect()
}

#[cfg(test)]
mod tests;
