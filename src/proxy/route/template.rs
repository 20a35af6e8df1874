//! One path template: `/jobs/{id}`.

use thiserror::Error;

/// Templates at most: each is compared with every path.
pub(super) const MAX_TEMPLATES: usize = 64;

/// The segment that stands for the id.
pub(super) const ID: &str = "{id}";

/// A template that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadTemplate {
    /// There is none.
    #[error("no route given; give at least one such as '/jobs/{{id}}'")]
    Missing,
    /// More than can be compared with every request.
    #[error("{count} routes given, of at most {MAX_TEMPLATES}; leave some out")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// It does not begin with a slash.
    #[error("route '{}' is not absolute; begin it with '/'", template.escape_debug())]
    Relative {
        /// The template.
        template: String,
    },
    /// A segment stands for the id in the words of a framework.
    #[error(
        "route '{}' names the job's id in other words; write {{id}} where the job's id is: '{}'",
        template.escape_debug(), meant.escape_debug()
    )]
    Named {
        /// The template.
        template: String,
        /// What was meant.
        meant: String,
    },
    /// Not exactly one segment is `{id}`.
    #[error(
        "route '{}' has {count} segments '{{id}}'; give it exactly one",
        template.escape_debug()
    )]
    Id {
        /// The template.
        template: String,
        /// How many it has.
        count: usize,
    },
    /// A segment that no request could match literally.
    #[error(
        "route '{}' has the segment '{}'; use one or more of A-Z a-z 0-9 . _ ~ -, \
         not '.' or '..', and no slash at the end",
        template.escape_debug(), segment.escape_debug()
    )]
    Segment {
        /// The template.
        template: String,
        /// The segment.
        segment: String,
    },
}

/// Literal segments around one id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    before: Vec<String>,
    after: Vec<String>,
    /// What a path begins with, to the slash before its id, and what follows that.
    ends: (String, String),
    text: String,
}

impl Template {
    pub(super) fn parse(template: &str) -> Result<Self, BadTemplate> {
        let Some(path) = template.strip_prefix('/') else {
            return Err(BadTemplate::Relative { template: template.to_owned() });
        };
        let segments: Vec<&str> = path.split('/').collect();
        if let Some(meant) = meant(&segments) {
            return Err(BadTemplate::Named { template: template.to_owned(), meant });
        }
        if let Some(segment) =
            segments.iter().find(|segment| **segment != ID && !is_literal(segment))
        {
            let (template, segment) = (template.to_owned(), (*segment).to_owned());
            return Err(BadTemplate::Segment { template, segment });
        }
        let mut parts = segments.split(|segment| *segment == ID);
        let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
            let count = segments.iter().filter(|segment| **segment == ID).count();
            return Err(BadTemplate::Id { template: template.to_owned(), count });
        };
        let owned = |part: &[&str]| part.iter().map(|&segment| segment.to_owned()).collect();
        let start: String = before.iter().flat_map(|segment| ["/", segment]).collect();
        let end = after.iter().flat_map(|segment| ["/", segment]).collect();
        let (before, after, text) = (owned(before), owned(after), template.to_owned());
        Ok(Self { before, after, ends: (start + "/", end), text })
    }

    /// The path with this id.
    pub(super) fn path(&self, id: &str) -> String {
        let (start, end) = &self.ends;
        [start, id, end].concat()
    }

    /// The id segment of a path that is this template, byte for byte.
    pub(super) fn id<'p>(&self, path: &'p str) -> Option<&'p str> {
        let (start, end) = &self.ends;
        let id = path.strip_prefix(start.as_str())?.strip_suffix(end.as_str())?;
        (!id.is_empty() && !id.as_bytes().contains(&b'/')).then_some(id)
    }

    /// The id segment of a path that is this template or goes on from its id, in any case: some
    /// frameworks compare literals so.
    pub(super) fn id_at_or_above<'p>(&self, segments: &[&'p str]) -> Option<&'p str> {
        let (before, rest) = segments.split_at_checked(self.before.len())?;
        let id = rest.first()?;
        same(before, &self.before).then_some(id)
    }

    /// As it was given.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Where in a path the id stands.
    pub(super) fn id_position(&self) -> usize {
        self.before.len()
    }

    /// Whether a path is this template, in any case and with anything for an id.
    pub(super) fn is_whole(&self, segments: &[&str]) -> bool {
        let after = segments.get(self.before.len() + 1..).unwrap_or_default();
        self.id_at_or_above(segments).is_some_and(|id| !id.is_empty()) && same(after, &self.after)
    }
}

/// The template with `{id}` for what frameworks write there, where that is one segment and all else is
/// as it must be: `{job_id}`, `:id`, `<int:id>`.
fn meant(segments: &[&str]) -> Option<String> {
    let is_named = |segment: &&&str| {
        let inside = [("{", "}"), ("<", ">"), (":", "")].into_iter().find_map(|(open, close)| {
            segment.strip_prefix(open)?.strip_suffix(close).filter(|name| !name.is_empty())
        });
        inside.is_some_and(|name| {
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-:".contains(&byte))
        })
    };
    let mut named = segments.iter().filter(is_named);
    let (Some(id), None) = (named.next(), named.next()) else { return None };
    let meant: Vec<_> =
        segments.iter().map(|segment| if segment == id { ID } else { segment }).collect();
    let literal = meant.iter().filter(|segment| is_literal(segment)).count();
    (*id != ID && literal + 1 == meant.len()).then(|| format!("/{}", meant.join("/")))
}

fn same(segments: &[&str], literals: &[String]) -> bool {
    segments.len() == literals.len()
        && segments
            .iter()
            .zip(literals)
            .all(|(segment, literal)| segment.eq_ignore_ascii_case(literal))
}

/// RFC 3986 2.3, unreserved: what a client has no reason to encode.
pub(super) fn is_literal(segment: &str) -> bool {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-');
    !segment.is_empty() && segment.bytes().all(unreserved) && !matches!(segment, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::Template;

    #[test]
    fn a_refusal_shows_what_cannot_be_seen_and_forges_no_line() {
        for template in ["/b\x1f/{id}", "b\n/{id}", "/\u{1b}[1m"] {
            let refusal = Template::parse(template).unwrap_err().to_string();
            assert!(!refusal.chars().any(char::is_control), "{refusal:?}");
        }
    }
}
