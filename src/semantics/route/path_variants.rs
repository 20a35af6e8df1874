//! Path variants: every way in which an upstream may read a path.
//!
//! Gateways and frameworks decode, resolve dot segments, merge slashes, take `\` for `/` and cut
//! off `;parameters`, each in its own order. That order is not guessed. Every path is walked by the
//! letter of RFC 3986 and with every combination of these liberties. The results of each walk are
//! walked again, decoded and undecoded. A job counts if a walk ends at or below it. It also counts
//! if a walk merely passes it (`/jobs/7/../8`): a reader that resolves less would have stopped
//! there.

use std::{collections::HashSet, sync::Arc};

use percent_encoding::percent_decode_str;

use super::{
    id_parts::{Effort, NamedIds},
    invalidation_rules::{InvalidationRule, RuleMatch},
    namer::Namer,
    template::{MAX_TEMPLATES, Template},
};
use crate::semantics::job_id::JobId;

/// Number of readers in front of the last one: a gateway and a framework.
const MAX_READERS: usize = 2;

/// Largest number of texts that one round of readers leaves, the most literal first. Each costs at
/// most 8 walks, all linear. Only a path made for the purpose has more; other paths have one or
/// two. A path with more counts as not read to its end.
const MAX_TEXTS: usize = 36;

/// Largest number of jobs that a path names at the place of the id and that are fenced until
/// `settle` is over; those found first are the most literal. Further ones count as named elsewhere:
/// one request must not keep many jobs uncached.
pub(super) const MAX_SETTLED: usize = 8;

/// Most collections that the readings of one target may be at: each route may be read with other
/// texts of its variables.
const MAX_COLLECTIONS: usize = MAX_TEMPLATES + 16;

/// Units of [`Effort`] for a rule that is tried on the end of a walk.
const RULE_COST: usize = 120;

/// Units of [`Effort`] for a byte of a walk, besides that for a slash, for a segment of its end, and for an id
/// at its place.
const WALK_BYTE_COST: usize = 6;
const WALK_SLASH_COST: usize = 12;
const SEGMENT_COST: usize = 60;
const PLACE_COST: usize = 1_000;

/// Units of [`Effort`] for a byte of a text that is decoded and compared with the others of its round.
const TEXT_BYTE_COST: usize = 2;

/// How much of a path counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The ids at the place of `{id}`.
    Place,
    /// The same, also behind a prefix of the path, and every id that the segment there holds.
    Tail,
    /// Every id that a segment at or below a collection holds.
    Target,
}

/// The jobs and rules that the variants of a path name.
#[derive(Debug, Default)]
pub(super) struct NamedJobs {
    /// The jobs at the place of the id, without repeats, from the most literal reading first, at
    /// most [`MAX_SETTLED`].
    pub(super) jobs: Vec<JobId>,
    /// The jobs named elsewhere: in other segments, or by a walk that passed them.
    pub(super) elsewhere: NamedIds,
    /// Whether some reading matches a whole template, even if its id is invalid.
    pub(super) is_job_path: bool,
    /// Whether something at the place of the id names a job and is not a word.
    pub(super) names_job: bool,
    /// The collections that some reading is at or below.
    pub(super) collections: Vec<Arc<Namer>>,
    /// The rules that match some reading, without repeats. Their `{id}` is among the jobs.
    pub(super) rules: Vec<RuleMatch>,
}

impl NamedJobs {
    fn add_elsewhere(&mut self, job: JobId) {
        self.elsewhere.add(job);
    }

    fn add_job(&mut self, job: JobId) {
        if self.jobs.contains(&job) {
            return;
        }
        if self.jobs.len() < MAX_SETTLED {
            self.jobs.push(job);
        } else {
            self.elsewhere.add(job);
        }
    }

    /// Adds the jobs that a segment at the place of the id reads as.
    fn add_place(&mut self, namer: &Namer, segment: &str, add: fn(&mut Self, JobId)) {
        let ids = namer.template.ids;
        for id in ids.readings(segment) {
            if ids.names_job(&id) {
                self.names_job = true;
                self.elsewhere.has_unlisted |= namer.has_unlisted;
            }
            namer.for_each_job(&id, |job| add(self, job));
        }
    }

    /// Adds every job that a text at the place of the id holds.
    fn add_parts(&mut self, namer: &Namer, text: &str, effort: &mut Effort) {
        let mut parts = NamedIds::default();
        parts.add_text(namer, text, effort);
        self.elsewhere.has_more |= parts.has_more;
        self.elsewhere.has_unlisted |= parts.has_unlisted;
        self.names_job |= !parts.ids.is_empty();
        parts.ids.into_iter().for_each(|job| self.add_job(job));
    }

    /// Returns the namer of a collection; `None` if there are too many.
    fn collection(&mut self, template: &Arc<Template>, before: &[&str]) -> Option<Arc<Namer>> {
        if let Some(known) = self.collections.iter().find(|known| known.is_for(template, before)) {
            return Some(Arc::clone(known));
        }
        if self.collections.len() >= MAX_COLLECTIONS {
            self.elsewhere.has_more = true;
            return None;
        }
        let namer = Arc::new(Namer::new(template, before));
        self.collections.push(Arc::clone(&namer));
        Some(namer)
    }
}

/// Reads a path, or an absolute URL, in every way, and adds what it names to `named`.
pub(super) fn read_path(
    templates: &[Arc<Template>],
    rules: &[&Arc<InvalidationRule>],
    path: &str,
    scope: Scope,
    (named, effort): (&mut NamedJobs, &mut Effort),
) {
    let examined = [HashSet::new(), HashSet::new()];
    let mut search = Search { templates, rules, scope, named, effort, examined };
    if is_literal(path) {
        return search.record_end(&path.split('/').skip(1).collect::<Vec<_>>());
    }
    let mut texts = origin_forms(path);
    for _ in 0..=MAX_READERS {
        let mut next_texts = Vec::new();
        for text in &texts {
            search.read(text, &mut next_texts);
        }
        texts = next_texts;
    }
}

/// Whether all readers read a path alike, as is so for nearly every path: nothing in it can be
/// decoded, resolved, merged, replaced or cut off.
fn is_literal(path: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    path.starts_with('/')
        && !path.ends_with('/')
        && path.bytes().all(is_plain)
        && !path.contains("//")
        && !path.contains("/.")
}

/// Returns the paths that `target` may stand for: the target itself, and what follows its
/// authority.
fn origin_forms(target: &str) -> Vec<String> {
    let target = target.trim().split(['?', '#']).next().unwrap_or_default();
    let is_scheme = |scheme: &str| !scheme.is_empty() && !scheme.contains('/');
    let after_scheme = match target.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => Some(rest),
        // `//jobs/7` may be a path with an empty segment or an authority with a path.
        _ => target.strip_prefix("//"),
    };
    let after_authority = after_scheme.and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    [Some(target), after_authority].into_iter().flatten().map(str::to_owned).collect()
}

/// The liberties that a walk takes with its text. Servers take each of them with or without the
/// others.
#[derive(Clone, Copy)]
struct Liberties {
    /// Merges slashes. RFC 3986 5.2.4 keeps empty segments.
    merged: bool,
    /// Cuts off parameters.
    cut: bool,
    /// Reads `\` as `/`.
    turned: bool,
}

impl Liberties {
    /// Returns the combinations that may make a difference to a text, the one without any liberty
    /// first.
    fn of(text: &str) -> impl Iterator<Item = Self> {
        let choices = |matters: bool| if matters { &[false, true][..] } else { &[false] };
        let cuts = choices(text.contains(';'));
        let turns = choices(text.contains('\\'));
        let both = [false, true].into_iter();
        both.flat_map(move |merged| {
            cuts.iter()
                .flat_map(move |&cut| turns.iter().map(move |&turned| Self { merged, cut, turned }))
        })
    }
}

/// A search through the variants of a path, and what it has found.
struct Search<'s, 't> {
    templates: &'t [Arc<Template>],
    rules: &'t [&'t Arc<InvalidationRule>],
    scope: Scope,
    named: &'s mut NamedJobs,
    effort: &'s mut Effort,
    /// The texts that were read already, at the place of the id and elsewhere, each with the position
    /// of its collection: most walks agree.
    examined: [HashSet<(usize, Box<str>)>; 2],
}

impl Search<'_, '_> {
    /// Walks a text in every way. Adds the texts for the next round: the decoded text, the result
    /// of each walk decoded, and the result of each walk where it differs from the text.
    fn read(&mut self, text: &str, next_texts: &mut Vec<String>) {
        let mut walks = Vec::new();
        let slashes = memchr::memchr_iter(b'/', text.as_bytes()).count();
        let cost = WALK_BYTE_COST * text.len() + WALK_SLASH_COST * slashes;
        for liberties in Liberties::of(text) {
            if !self.effort.spend(cost) {
                return;
            }
            walks.push(self.walk(text, liberties));
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let encoded = text.contains('%').then_some(text);
        let walked = walks.iter().map(|walk| decoded(walk));
        let texts = encoded.map(decoded).into_iter().chain(walked).chain(walks.iter().cloned());
        for next in texts {
            if !self.effort.spend(TEXT_BYTE_COST * next.len()) {
                return;
            }
            if next == text || next_texts.contains(&next) {
                continue;
            }
            if next_texts.len() >= MAX_TEXTS {
                return self.effort.cut_off();
            }
            next_texts.push(next);
        }
    }

    /// Resolves the dot segments of a text and records the jobs on the way. Returns the resulting
    /// path.
    fn walk(&mut self, text: &str, liberties: Liberties) -> String {
        let separators: &[char] = if liberties.turned { &['/', '\\'] } else { &['/'] };
        let mut stack: Vec<&str> = Vec::new();
        for segment in text.strip_prefix(separators).unwrap_or(text).split(separators) {
            let bare = segment.split(';').next().unwrap_or_default();
            let segment = if liberties.cut { bare } else { segment };
            match segment {
                "." => {}
                "" if liberties.merged => {}
                ".." => {
                    self.record_passed(&stack);
                    stack.pop();
                }
                _ => stack.push(segment),
            }
        }
        self.record_end(&stack);
        format!("/{}", stack.join("/"))
    }

    /// Records the jobs that a walk is about to leave.
    fn record_passed(&mut self, stack: &[&str]) {
        for template in self.templates {
            if !self.effort.spend(SEGMENT_COST) {
                return;
            }
            let Some(below) = template.below_collection(stack) else { continue };
            let Some(namer) = self.named.collection(template, &below.before) else { continue };
            match below.rest {
                [_] => {
                    if let Some(id) = template.id_at_or_above(stack) {
                        self.add_place(&namer, id, NamedJobs::add_elsewhere);
                    }
                }
                [.., last] if self.scope == Scope::Target => self.add_elsewhere(&namer, last),
                _ => {}
            }
        }
    }

    /// Records the jobs that a walk ended at or below, and the rules that match.
    fn record_end(&mut self, stack: &[&str]) {
        self.record_jobs(stack);
        if self.scope == Scope::Tail {
            for at in 1..stack.len() {
                if self.effort.spend(SEGMENT_COST * self.templates.len()) {
                    self.record_jobs(&stack[at..]);
                }
            }
        }
        for rule in self.rules {
            if !self.effort.spend(RULE_COST) {
                // A rule that is not tried may be one for all jobs.
                self.named.elsewhere.has_more = true;
                return;
            }
            let Some(found) = RuleMatch::of(rule, stack, self.templates) else { continue };
            if let Some(id) = rule.id(stack) {
                for namer in &found.namers {
                    if self.effort.spend(PLACE_COST) {
                        self.named.add_place(namer, id, NamedJobs::add_job);
                    }
                    self.named.add_parts(namer, id, self.effort);
                }
            }
            if !self.named.rules.contains(&found) {
                self.named.rules.push(found);
            }
        }
    }

    fn record_jobs(&mut self, stack: &[&str]) {
        for template in self.templates {
            self.named.is_job_path |= template.is_whole(stack);
            let Some(below) = template.below_collection(stack) else { continue };
            let Some(namer) = self.named.collection(template, &below.before) else { continue };
            if let Some(id) = template.id_at_or_above(stack) {
                self.add_place(&namer, id, NamedJobs::add_job);
                if let Some(others) = template.texts_around_id(stack) {
                    self.add_place(&Namer::new(template, &others), id, NamedJobs::add_job);
                }
            }
            if self.scope == Scope::Place {
                continue;
            }
            for text in [Some(below.cut), below.rest.first().copied()].into_iter().flatten() {
                self.add_parts(&namer, text);
            }
            if self.scope == Scope::Target {
                below.rest.iter().skip(1).for_each(|text| self.add_elsewhere(&namer, text));
            }
        }
    }

    fn add_place(&mut self, namer: &Namer, segment: &str, add: fn(&mut NamedJobs, JobId)) {
        if self.effort.spend(PLACE_COST) {
            self.named.add_place(namer, segment, add);
        }
    }

    /// Adds every job that a text at the place of the id holds.
    fn add_parts(&mut self, namer: &Arc<Namer>, text: &str) {
        if !text.is_empty() && self.is_new(0, namer, text) {
            self.named.add_parts(namer, text, self.effort);
        }
    }

    /// Adds every job that a segment elsewhere holds.
    fn add_elsewhere(&mut self, namer: &Arc<Namer>, segment: &str) {
        if self.effort.spend(SEGMENT_COST) && self.is_new(1, namer, segment) {
            self.named.elsewhere.add_text(namer, segment, self.effort);
        }
    }

    fn is_new(&mut self, place: usize, namer: &Arc<Namer>, text: &str) -> bool {
        let at = self.named.collections.iter().position(|known| Arc::ptr_eq(known, namer));
        self.examined[place].insert((at.unwrap_or_default(), text.into()))
    }
}

#[cfg(test)]
mod tests;
