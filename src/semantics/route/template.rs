//! A template: what one route of the configuration says about the paths and keys of its jobs.

use std::{borrow::Cow, sync::Arc};

use percent_encoding::percent_decode_str;

use super::{
    key_template::KeyTemplate,
    path_pattern::{ID, PathPattern, Segment, is_cut, with_id},
};
use crate::semantics::{
    job_id::{Ids, JobId, is_key},
    policy::Bypass,
    settings::RouteConfig,
};

/// Largest number of templates. Each is compared with every path.
pub(super) const MAX_TEMPLATES: usize = 64;

/// A parsed route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    text: String,
    pattern: PathPattern,
    /// Position of the segment with `{id}`.
    id_at: usize,
    /// The text of a path before its first variable.
    start: String,
    /// The text after the variable, if there is only one.
    end: Option<String>,
    pub(super) ids: Ids,
    except: Vec<PathPattern>,
    key: KeyTemplate,
    /// Position of the key's prefix in the configuration.
    pub(super) prefix: u8,
}

/// A job as a read names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named<'p> {
    pub(super) key: Cow<'p, str>,
    /// The texts of all variables, joined by a slash; none if that is the key.
    pub(super) variables: Option<Box<str>>,
}

/// The rest of a path at or below the collection of a template.
pub(super) struct BelowCollection<'s, 'p> {
    /// The texts of the variables before `{id}`.
    pub(super) before: Vec<&'p str>,
    /// The rest of the collection's last segment, as in `/jobs('7')`.
    pub(super) cut: &'p str,
    /// The segments after it.
    pub(super) rest: &'s [&'p str],
}

impl Template {
    /// Parses a route with the `prefix`th of the configured prefixes. An error says what is wrong, and what to
    /// write instead.
    pub(super) fn parse(route: &RouteConfig, prefix: u8) -> Result<Self, String> {
        let shown = route.path.escape_debug();
        let about = |why: String| format!("route '{shown}': {why}");
        let pattern = PathPattern::parse(&route.path).map_err(about)?;
        let Some(id_at) = pattern.position(ID) else {
            return Err(about(match with_id(&route.path) {
                Some(path) => format!("name the variable of the job {{id}}: '{path}'"),
                None => "it has no variable {id} for the job, as in '/jobs/{id}'".to_owned(),
            }));
        };
        let except = route.except.iter().map(|path| {
            PathPattern::parse(path)
                .map_err(|why| about(format!("except = '{}': {why}", path.escape_debug())))
        });
        let except = except.collect::<Result<_, _>>()?;
        let key = KeyTemplate::parse(route.key.as_deref(), &pattern).map_err(about)?;
        let start = route.path.split('{').next().unwrap_or_default().to_owned();
        let end = route.path.split_once("{id}").filter(|_| pattern.variables().count() == 1);
        let end = end.map(|(_, end)| end.to_owned());
        let (text, ids) = (route.path.clone(), route.ids.unwrap_or_default());
        Ok(Self { text, pattern, id_at, start, end, ids, except, key, prefix })
    }

    /// Whether the paths of another template are the same: only names of variables differ.
    pub(super) fn has_paths_of(&self, other: &Self) -> bool {
        self.pattern.without_names() == other.pattern.without_names()
    }

    /// Returns the template as it was given.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether a path matches this template byte for byte.
    pub(super) fn matches(&self, path: &str) -> bool {
        self.read(path).is_some()
    }

    /// Returns the job of a read; `None` if the path does not match byte for byte.
    ///
    /// # Errors
    ///
    /// Returns why a matching path is not cached.
    pub(super) fn read<'p>(&self, path: &'p str) -> Option<Result<Named<'p>, Bypass>> {
        if !self.may_match(path.as_bytes()) {
            return None;
        }
        match &self.end {
            Some(end) => Some(self.named_by_id(path, self.only_variable(path, end)?)),
            None => Some(self.named_by_all(path, &self.pattern.read(path)?)),
        }
    }

    /// Whether a path may match, by three of its bytes. This is all that most templates cost a read, of
    /// which there may be many.
    fn may_match(&self, path: &[u8]) -> bool {
        let start = self.start.as_bytes();
        let last = start.len() - 1;
        let is_same = |at: usize| path[at] == start[at];
        start.len() < path.len() && is_same(last) && is_same(last / 2) && is_same(last.min(1))
    }

    /// Returns the text of the only variable.
    fn only_variable<'p>(&self, path: &'p str, end: &str) -> Option<&'p str> {
        let id = path.strip_prefix(self.start.as_str())?.strip_suffix(end)?;
        (!id.is_empty() && !id.as_bytes().contains(&b'/')).then_some(id)
    }

    fn named_by_id<'p>(&self, path: &str, id: &'p str) -> Result<Named<'p>, Bypass> {
        if self.is_excepted(path) {
            return Err(Bypass::Except);
        }
        let id = self.ids.read(id)?;
        if self.key_is_id() {
            return Ok(Named { key: id, variables: None });
        }
        Ok(Named { key: self.key.of(&[&id])?.into(), variables: Some(id.into()) })
    }

    fn named_by_all<'p>(&self, path: &str, texts: &[&str]) -> Result<Named<'p>, Bypass> {
        if self.is_excepted(path) {
            return Err(Bypass::Except);
        }
        let read = self.pattern.variables().zip(texts).map(|(name, text)| {
            if name == ID { self.ids.read(text) } else { self.ids.read_other(text) }
        });
        let read = read.collect::<Result<Vec<_>, _>>()?;
        let read: Vec<&str> = read.iter().map(AsRef::as_ref).collect();
        Ok(Named { key: self.key.of(&read)?.into(), variables: Some(read.join("/").into()) })
    }

    /// Whether a read of a matching path would be cached if the API compared ids as text.
    pub(super) fn is_text(&self, path: &str) -> bool {
        let texts = self.pattern.read(path).unwrap_or_default();
        let is_text = |text: &&str| Ids::Opaque.read(text).is_ok();
        self.ids == Ids::Auto && !texts.is_empty() && texts.iter().all(is_text)
    }

    /// Whether a path is never cached. Its encoding does not count.
    fn is_excepted(&self, path: &str) -> bool {
        if self.except.is_empty() {
            return false;
        }
        let path = percent_decode_str(path.strip_suffix('/').unwrap_or(path)).decode_utf8_lossy();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        self.except.iter().any(|pattern| pattern.is_whole(&segments))
    }

    /// Whether the key is the id alone.
    pub(super) fn key_is_id(&self) -> bool {
        self.end.is_some() && self.key.is_variable()
    }

    /// Whether its keys have the prefix at this position.
    pub(super) fn has_prefix(&self, prefix: usize) -> bool {
        usize::from(self.prefix) == prefix
    }

    /// Returns the job with this key.
    pub(super) fn job(&self, key: &str) -> JobId {
        JobId::new(key, self.prefix)
    }

    /// Returns the jobs that a text names by their key; none if no job of this route has such a key.
    pub(super) fn jobs_by_key(&self, text: &str) -> Vec<JobId> {
        let Some(texts) = self.key.texts(text, self.pattern.variables().count()) else {
            return Vec::new();
        };
        let id_at = self.variables_before_id().count();
        let key = |id: &String| {
            let mut texts = texts.clone();
            texts[id_at] = id;
            self.key.of(&texts).ok()
        };
        // A purge names the key itself. Only ids that some parser reads have other spellings.
        let is_parsed = self.ids == Ids::Auto;
        let ids = if is_parsed { self.ids.readings(texts[id_at]) } else { Vec::new() };
        let keys: Vec<String> = ids.iter().filter_map(key).collect();
        let is_literal = !is_parsed || !self.key_is_id();
        let literal = Some(text.to_owned()).filter(|text| is_literal && is_key(text));
        literal.iter().chain(&keys).map(|key| self.job(key)).collect()
    }

    /// Returns a path of the job with this key, if the key can be taken apart.
    pub(super) fn path_of(&self, key: &str) -> Option<String> {
        self.key.texts(key, self.pattern.variables().count()).map(|texts| self.path(&texts))
    }

    fn path(&self, texts: &[&str]) -> String {
        let mut texts = texts.iter();
        let mut path = String::new();
        for segment in &self.pattern.segments {
            path.push('/');
            match segment {
                Segment::Literal(text) => path.push_str(text),
                Segment::Variable { before, after, .. } => {
                    let text = texts.next().map_or_else(String::new, |text| encoded(text));
                    path.extend([before.as_str(), &text, after]);
                }
            }
        }
        path
    }

    /// Whether there are variables after `{id}`. A write that names the id then changes jobs that its
    /// path need not name.
    pub(super) fn continues_after_id(&self) -> bool {
        self.pattern.segments[self.id_at + 1..].iter().any(|segment| segment.name().is_some())
    }

    /// Returns the texts of the variables but `{id}` in a path that matches as a whole, if there are some
    /// after it.
    pub(super) fn texts_around_id<'p>(&self, segments: &[&'p str]) -> Option<Vec<&'p str>> {
        let is_whole = self.continues_after_id() && self.is_whole(segments);
        let mut texts = is_whole.then(|| self.pattern.texts(segments)).flatten()?;
        texts.remove(self.variables_before_id().count());
        Some(texts)
    }

    /// Returns the text of `{id}` in a path at or below it. Ignores case, as some frameworks do.
    pub(super) fn id_at_or_above<'p>(&self, segments: &[&'p str]) -> Option<&'p str> {
        let (id, above) = self.pattern.segments[..=self.id_at].split_last()?;
        PathPattern::bind(above, segments)?;
        id.text(segments.get(self.id_at)?)
    }

    /// Returns the texts of `{id}` that a part of a target may stand for: with the literal text around
    /// the variable, and without.
    pub(super) fn id_texts<'t>(&self, part: &'t str) -> Vec<&'t str> {
        self.pattern.segments[self.id_at].texts_in(part)
    }

    /// Returns what follows the collection of this template in a path at or below it. Ignores case.
    pub(super) fn below_collection<'s, 'p>(
        &self,
        segments: &'s [&'p str],
    ) -> Option<BelowCollection<'s, 'p>> {
        let collection = &self.pattern.segments[..self.id_at];
        let (above, rest) = segments.split_at_checked(collection.len())?;
        let Some((Segment::Literal(literal), parents)) = collection.split_last() else {
            let before = PathPattern::bind(collection, above)?;
            return Some(BelowCollection { before, cut: "", rest });
        };
        let (last, above) = above.split_last()?;
        let (name, cut) = last.split_at_checked(literal.len())?;
        let is_end = |c: char| is_cut(c) || matches!(c, '.' | '%');
        let is_same = name.eq_ignore_ascii_case(literal);
        let before = PathPattern::bind(parents, above).filter(|_| is_same)?;
        cut.chars().next().is_none_or(is_end).then_some(BelowCollection { before, cut, rest })
    }

    /// Whether a path is at or above the collection of this template. Ignores case.
    pub(super) fn is_at_or_above(&self, segments: &[&str]) -> bool {
        let above = self.pattern.segments[..self.id_at].get(..segments.len());
        above.is_some_and(|above| PathPattern::bind(above, segments).is_some())
    }

    /// Whether this is the path of the collection, in the spelling of the template.
    pub(super) fn is_collection(&self, path: &str) -> bool {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        segments.len() == self.id_at && self.is_at_or_above(&segments)
    }

    /// Returns the segment at this position above the id.
    pub(super) fn segment_above(&self, at: usize) -> Option<&Segment> {
        self.pattern.segments[..self.id_at].get(at)
    }

    /// Whether a path matches this whole template, in any case and with any non-empty texts, with or
    /// without a slash at the end.
    pub(super) fn is_whole(&self, segments: &[&str]) -> bool {
        self.pattern.is_whole(segments)
    }

    pub(super) fn variables_but_id(&self) -> usize {
        self.pattern.variables().count() - 1
    }

    /// Returns the job with these texts of all variables, if they make a key.
    pub(super) fn job_of(&self, texts: &[&str]) -> Option<JobId> {
        self.key.of(texts).ok().map(|key| self.job(&key))
    }

    /// Returns the names of the variables before `{id}`.
    pub(super) fn variables_before_id(&self) -> impl Iterator<Item = &str> {
        self.pattern.segments[..self.id_at].iter().filter_map(Segment::name)
    }
}

/// Parses a route of the configuration.
pub(super) fn template(route: &RouteConfig, prefixes: &[&str]) -> Result<Arc<Template>, String> {
    let own = route.prefix.as_deref().unwrap_or_default();
    let prefix = prefixes.iter().position(|prefix| *prefix == own).unwrap_or_default();
    Template::parse(route, u8::try_from(prefix).unwrap_or_default()).map(Arc::new)
}

/// Returns a text as a segment of a path.
fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, SEGMENT).to_string()
}

/// Characters that RFC 3986 3.3 does not allow in a segment.
const SEGMENT: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
