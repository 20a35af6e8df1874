//! A path template: `/jobs/{id}`.

use super::id_parts::is_cut;
use crate::semantics::job_id::is_unreserved;

/// Largest number of templates. Each is compared with every path.
pub(super) const MAX_TEMPLATES: usize = 64;

/// The segment that stands for the id of the job.
pub(super) const ID: &str = "{id}";

/// The literal segments of a template, before and after its `{id}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    before: Vec<String>,
    after: Vec<String>,
    /// The text of a path before the id, with the slash, and the text after it.
    affixes: (String, String),
    text: String,
}

impl Template {
    /// An error says what is wrong, and what to write instead.
    pub(super) fn parse(template: &str) -> Result<Self, String> {
        let shown = template.escape_debug();
        let Some(path) = template.strip_prefix('/') else {
            return Err(format!("route '{shown}' is not absolute; begin it with '/'"));
        };
        let segments: Vec<&str> = path.split('/').collect();
        if let Some(suggested) = suggestion(&segments) {
            return Err(format!(
                "route '{shown}' has another placeholder for the job's id; write {ID} instead: '{}'",
                suggested.escape_debug()
            ));
        }
        let is_valid = |segment: &&&str| **segment == ID || is_unreserved(segment);
        if let Some(segment) = segments.iter().find(|segment| !is_valid(segment)) {
            return Err(format!(
                "route '{shown}' has the segment '{}'; use one or more of A-Z a-z 0-9 . _ ~ -, \
                 not '.' or '..', and no slash at the end",
                segment.escape_debug()
            ));
        }
        let mut parts = segments.split(|segment| *segment == ID);
        let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
            let count = segments.iter().filter(|segment| **segment == ID).count();
            return Err(format!(
                "route '{shown}' has {count} segments '{ID}'; give it exactly one"
            ));
        };
        let owned = |part: &[&str]| part.iter().map(|&segment| segment.to_owned()).collect();
        let start: String = before.iter().flat_map(|segment| ["/", segment]).collect();
        let end = after.iter().flat_map(|segment| ["/", segment]).collect();
        let (before, after, text) = (owned(before), owned(after), template.to_owned());
        Ok(Self { before, after, affixes: (start + "/", end), text })
    }

    /// Returns the path of this id.
    pub(super) fn path(&self, id: &str) -> String {
        let (start, end) = &self.affixes;
        [start, id, end].concat()
    }

    /// Returns the id segment of a path that matches this template byte for byte.
    pub(super) fn id<'p>(&self, path: &'p str) -> Option<&'p str> {
        let (start, end) = &self.affixes;
        let id = path.strip_prefix(start.as_str())?.strip_suffix(end.as_str())?;
        (!id.is_empty() && !id.as_bytes().contains(&b'/')).then_some(id)
    }

    /// Returns the id segment of a path that matches this template up to its id. Ignores case, as
    /// some frameworks do.
    pub(super) fn id_at_or_above<'p>(&self, segments: &[&'p str]) -> Option<&'p str> {
        let (before, rest) = segments.split_at_checked(self.before.len())?;
        let id = rest.first()?;
        same(before, &self.before).then_some(id)
    }

    /// Returns what follows the collection of this template in a path at or below it: the rest of
    /// its last segment, as in `/jobs('7')`, and the segments after it. Ignores case.
    pub(super) fn after_collection<'s, 'p>(
        &self,
        segments: &'s [&'p str],
    ) -> Option<(&'p str, &'s [&'p str])> {
        let (before, rest) = segments.split_at_checked(self.before.len())?;
        let Some((literal, parents)) = self.before.split_last() else { return Some(("", rest)) };
        let (last, above) = before.split_last()?;
        let (name, cut) = last.split_at_checked(literal.len())?;
        let is_end = |c: char| is_cut(c) || matches!(c, '.' | '%');
        let is_same = name.eq_ignore_ascii_case(literal) && same(above, parents);
        (is_same && cut.chars().next().is_none_or(is_end)).then_some((cut, rest))
    }

    /// Whether a path is at or above the collection of this template. Ignores case.
    pub(super) fn is_at_or_above(&self, segments: &[&str]) -> bool {
        self.before.get(..segments.len()).is_some_and(|before| same(segments, before))
    }

    /// Whether a segment is the literal one at this position above the id. Ignores case.
    pub(super) fn has_literal(&self, at: usize, segment: &str) -> bool {
        self.before.get(at).is_some_and(|literal| literal.eq_ignore_ascii_case(segment))
    }

    /// Returns the template as it was given.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether a path matches this whole template, in any case and with any non-empty id.
    pub(super) fn is_whole(&self, segments: &[&str]) -> bool {
        let after = segments.get(self.before.len() + 1..).unwrap_or_default();
        self.id_at_or_above(segments).is_some_and(|id| !id.is_empty()) && same(after, &self.after)
    }
}

/// Returns the template with `{id}` in place of the placeholder of a framework (`{job_id}`, `:id`,
/// `<int:id>`), if there is exactly one and every other segment is valid.
fn suggestion(segments: &[&str]) -> Option<String> {
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
    let suggested: Vec<_> =
        segments.iter().map(|segment| if segment == id { ID } else { segment }).collect();
    let literal = suggested.iter().filter(|segment| is_unreserved(segment)).count();
    (*id != ID && literal + 1 == suggested.len()).then(|| format!("/{}", suggested.join("/")))
}

fn same(segments: &[&str], literals: &[String]) -> bool {
    segments.len() == literals.len()
        && segments
            .iter()
            .zip(literals)
            .all(|(segment, literal)| segment.eq_ignore_ascii_case(literal))
}

#[cfg(test)]
mod tests {
    use super::Template;

    #[test]
    fn a_refusal_shows_what_cannot_be_seen_and_forges_no_line() {
        for template in ["/b\x1f/{id}", "b\n/{id}", "/\u{1b}[1m"] {
            let refusal = Template::parse(template).unwrap_err();
            assert!(!refusal.chars().any(char::is_control), "{refusal:?}");
        }
    }
}
