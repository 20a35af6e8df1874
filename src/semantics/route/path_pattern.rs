//! Path patterns: the paths that routes, exceptions and `[[invalidate]]` rules are for.
//!
//! A pattern is absolute. Each of its segments is literal text, or one variable with literal text
//! before and after it: `/t/{tenant}/jobs/v{id}.json`. It may end in a slash.

/// The variable that stands for the id of the job.
pub(super) const ID: &str = "id";

/// Largest number of variables of a pattern.
const MAX_VARIABLES: usize = 8;

/// Characters that literal text may have besides letters and digits: those of RFC 3986 3.3, and `|`,
/// which clients send although it is none.
const LITERAL_MARKS: &[u8] = b"._~-:;,@!$&'()*+=|";

/// A parsed pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathPattern {
    /// The last one is an empty literal if the pattern ends in a slash.
    pub(super) segments: Vec<Segment>,
}

/// One segment of a pattern. Frameworks differ in whether case matters in literal text, so reads
/// compare it byte for byte, and writes without case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Literal(String),
    Variable { before: String, name: String, after: String },
}

impl PathPattern {
    /// Parses a pattern. An error names the place, and what to write instead.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix('/') else {
            return Err("it is not absolute; begin it with '/'".to_owned());
        };
        if path.is_empty() {
            return Ok(Self { segments: Vec::new() });
        }
        let texts: Vec<&str> = path.split('/').collect();
        let last = texts.len() - 1;
        let mut segments = Vec::new();
        for (at, &text) in texts.iter().enumerate() {
            let is_slash_at_end = text.is_empty() && at == last;
            let segment = if is_slash_at_end {
                Some(Segment::Literal(String::new()))
            } else {
                Segment::parse(text)
            };
            segments.push(segment.ok_or_else(|| refusal(&texts, at))?);
        }
        let pattern = Self { segments };
        let names: Vec<&str> = pattern.variables().collect();
        if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name))
        {
            let name = twice.1;
            return Err(format!(
                "it has the variable {{{name}}} twice; give one of them another name"
            ));
        }
        if names.len() > MAX_VARIABLES {
            let count = names.len();
            return Err(format!(
                "it has {count} variables, at most {MAX_VARIABLES} are allowed; remove some"
            ));
        }
        Ok(pattern)
    }

    /// Returns the names of the variables, in their order.
    pub(super) fn variables(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(Segment::name)
    }

    /// Returns the position of the segment with this variable.
    pub(super) fn position(&self, variable: &str) -> Option<usize> {
        self.segments.iter().position(|segment| segment.name() == Some(variable))
    }

    /// Returns the literal texts of each segment, around the variable if it has one.
    pub(super) fn without_names(&self) -> Vec<(&str, Option<&str>)> {
        let mut texts = Vec::new();
        for segment in &self.segments {
            texts.push(match segment {
                Segment::Literal(text) => (text.as_str(), None),
                Segment::Variable { before, after, .. } => (before.as_str(), Some(after.as_str())),
            });
        }
        texts
    }

    /// Returns the texts of the variables of a path that matches byte for byte.
    pub(super) fn read<'p>(&self, path: &'p str) -> Option<Vec<&'p str>> {
        let mut texts = Vec::new();
        let mut parts = path.strip_prefix('/')?.split('/');
        for segment in &self.segments {
            let part = parts.next()?;
            match segment {
                Segment::Literal(literal) if part == literal => {}
                Segment::Literal(_) => return None,
                Segment::Variable { before, after, .. } => {
                    let text = part.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?;
                    texts.push(Some(text).filter(|text| !text.is_empty())?);
                }
            }
        }
        parts.next().is_none().then_some(texts)
    }

    /// Returns the texts of the variables in the first segments of a path. Ignores case.
    pub(super) fn bind<'p>(segments: &[Segment], path: &[&'p str]) -> Option<Vec<&'p str>> {
        let path = path.get(..segments.len())?;
        let mut texts = Vec::new();
        for (segment, part) in segments.iter().zip(path) {
            match segment.text(part)? {
                "" if segment.name().is_none() => {}
                text => texts.push(text),
            }
        }
        Some(texts)
    }

    /// Returns the texts of the variables of a path that matches as a whole.
    pub(super) fn texts<'p>(&self, path: &[&'p str]) -> Option<Vec<&'p str>> {
        Self::bind(self.without_slash(), path)
    }

    /// Whether a path matches as a whole, without case, and with or without a slash at the end.
    pub(super) fn is_whole(&self, path: &[&str]) -> bool {
        let segments = self.without_slash();
        path.len() == segments.len() && Self::bind(segments, path).is_some()
    }

    /// Returns the segments without the empty one after a slash at the end: writers often leave it
    /// out.
    fn without_slash(&self) -> &[Segment] {
        match self.segments.split_last() {
            Some((Segment::Literal(last), rest)) if last.is_empty() => rest,
            _ => &self.segments,
        }
    }
}

impl Segment {
    fn parse(text: &str) -> Option<Self> {
        let is_literal = |text: &str| text.bytes().all(is_literal_byte);
        let Some((before, rest)) = text.split_once('{') else {
            let is_placeholder =
                matches!(text, "*" | "**") || text.strip_prefix(':').is_some_and(is_name);
            let is_valid = is_literal_segment(text) && !is_placeholder;
            return is_valid.then(|| Self::Literal(text.to_owned()));
        };
        let (name, after) = rest.split_once('}')?;
        (is_name(name) && is_literal(before) && is_literal(after)).then(|| Self::Variable {
            before: before.to_owned(),
            name: name.to_owned(),
            after: after.to_owned(),
        })
    }

    /// Returns the name of the variable.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::Variable { name, .. } => Some(name),
        }
    }

    /// Returns the text of the variable in a segment that matches without case; empty for a literal
    /// segment.
    pub(super) fn text<'p>(&self, part: &'p str) -> Option<&'p str> {
        match self {
            Self::Literal(literal) => part.eq_ignore_ascii_case(literal).then_some(""),
            Self::Variable { before, after, .. } => {
                let (start, rest) = part.split_at_checked(before.len())?;
                let (text, end) = rest.split_at_checked(rest.len().checked_sub(after.len())?)?;
                let is_same = start.eq_ignore_ascii_case(before) && end.eq_ignore_ascii_case(after);
                (is_same && !text.is_empty()).then_some(text)
            }
        }
    }

    /// Returns a part of a segment that was cut at the characters of [`is_cut`], and what is left of it
    /// without the literal text around the variable. Ignores case.
    pub(super) fn texts_in<'p>(&self, part: &'p str) -> Vec<&'p str> {
        let mut texts = vec![part];
        let Self::Variable { before, after, .. } = self else { return texts };
        // The part has been cut where the literal text is.
        let before = before.rsplit(is_cut).next().unwrap_or_default();
        let after = after.split(is_cut).next().unwrap_or_default();
        let without_start = |text: &'p str| {
            let (start, rest) = text.split_at_checked(before.len())?;
            start.eq_ignore_ascii_case(before).then_some(rest)
        };
        let without_end = |text: &'p str| {
            let (rest, end) = text.split_at_checked(text.len().checked_sub(after.len())?)?;
            end.eq_ignore_ascii_case(after).then_some(rest)
        };
        let short = without_start(part).unwrap_or(part);
        for text in [Some(short), without_end(part), without_end(short)].into_iter().flatten() {
            if !text.is_empty() && !texts.contains(&text) {
                texts.push(text);
            }
        }
        texts
    }
}

/// Returns whether a segment may stand in a pattern as it is.
pub(super) fn is_literal_segment(segment: &str) -> bool {
    let is_dots = matches!(segment, "." | "..");
    !segment.is_empty() && !is_dots && segment.bytes().all(is_literal_byte)
}

/// Whether an API may end an id at this character. A `%` begins an encoded character, which the
/// decoded text shows.
pub(super) fn is_cut(c: char) -> bool {
    !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '%'))
}

fn is_literal_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || LITERAL_MARKS.contains(&byte)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Says what is wrong with a segment, and what to write instead.
fn refusal(texts: &[&str], at: usize) -> String {
    let text = texts[at];
    let place = format!("its segment {} is '{}'", at + 1, text.escape_debug());
    let suggested: Vec<String> = texts.iter().map(|text| translated(text)).collect();
    let path = format!("/{}", suggested.join("/"));
    if suggested != texts && PathPattern::parse(&path).is_ok() {
        let path = with_id(&path).unwrap_or(path);
        return format!("{place}; a variable is a name in braces: write '{path}'");
    }
    if text.matches('{').count() > 1 {
        return format!("{place}; give each segment at most one variable, such as '{{id}}'");
    }
    if text.contains('?') {
        return format!("{place}; leave out the query: query.allow and query.ignore are about it");
    }
    format!(
        "{place}; use one or more of A-Z a-z 0-9 . _ ~ - : ; , @ ! $ & ' ( ) * + = |, with at most one \
         variable such as {{id}}, and not '.' or '..'"
    )
}

/// Returns a segment with the variable of a framework (`<int:pk>`, `:id`, `*`, `{id:int}`) in braces.
fn translated(text: &str) -> String {
    let inside = |open: &str, close: &str| -> Option<String> {
        let name = text.strip_prefix(open)?.strip_suffix(close)?;
        // Flask and Django name the type first, Starlette and chi last; Express may add a `?`.
        let name = match (open, name.split_once(':')) {
            ("<", Some((_, name))) | ("{", Some((name, _))) => name,
            _ => name.trim_matches(['?', '*', '+', '.']),
        };
        is_name(name).then(|| format!("{{{name}}}"))
    };
    if matches!(text, "*" | "**") {
        return "{any}".to_owned();
    }
    let translated = inside("<", ">").or_else(|| inside("{", "}")).or_else(|| inside(":", ""));
    translated.unwrap_or_else(|| text.to_owned())
}

/// Returns a path with its last variable named `{id}`, unless it has one of this name.
pub(super) fn with_id(path: &str) -> Option<String> {
    let id = format!("{{{ID}}}");
    if path.contains(&id) {
        return None;
    }
    let (start, rest) = path.rsplit_once('{')?;
    let (_, end) = rest.split_once('}')?;
    Some([start, &id, end].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(text: &str, want: &str) {
        assert_eq!(PathPattern::parse(text), Err(want.to_owned()), "{text}");
    }

    #[test]
    fn a_variable_in_the_style_of_a_framework_is_refused_with_the_translation() {
        let write = |segment: &str, at: usize, path: &str| {
            format!(
                "its segment {at} is '{segment}'; a variable is a name in braces: write '{path}'"
            )
        };
        for (text, segment, at, path) in [
            ("/jobs/<int:pk>", "<int:pk>", 2, "/jobs/{id}"),
            ("/jobs/:id", ":id", 2, "/jobs/{id}"),
            ("/jobs/*", "*", 2, "/jobs/{id}"),
            ("/jobs/<id>/", "<id>", 2, "/jobs/{id}/"),
            ("/t/<slug:tenant>/jobs/<uuid:pk>", "<slug:tenant>", 2, "/t/{tenant}/jobs/{id}"),
            ("/jobs/{id:int}", "{id:int}", 2, "/jobs/{id}"),
            ("/jobs/{job_id:path}", "{job_id:path}", 2, "/jobs/{id}"),
        ] {
            check_refused(text, &write(segment, at, path));
        }
    }

    #[test]
    fn a_refusal_shows_what_cannot_be_seen_and_forges_no_line() {
        for text in ["/b\x1f/{id}", "b\n/{id}", "/\u{1b}[1m"] {
            let refusal = PathPattern::parse(text).unwrap_err();
            assert!(!refusal.chars().any(char::is_control), "{refusal:?}");
        }
    }

    #[track_caller]
    fn check_read(pattern: &str, path: &str, want: Option<&[&str]>) {
        let pattern = PathPattern::parse(pattern).unwrap();
        assert_eq!(pattern.read(path).as_deref(), want, "{path}");
    }

    #[test]
    fn a_path_is_read_byte_for_byte() {
        check_read("/jobs/{id}", "/jobs/7", Some(&["7"]));
        check_read("/jobs/{id}", "/jobs/7/", None);
        check_read("/jobs/{id}", "/jobs/", None);
        check_read("/jobs/{id}", "/Jobs/7", None);
        check_read("/jobs/{id}/", "/jobs/7/", Some(&["7"]));
        check_read("/jobs/{id}/", "/jobs/7", None);
        check_read("/t/{tenant}/jobs/v{id}.json", "/t/a/jobs/v7.json", Some(&["a", "7"]));
        check_read("/t/{tenant}/jobs/v{id}.json", "/t/a/jobs/v.json", None);
    }
}
