//! Write names: everything that the target of a write names, from its path and its query.
//!
//! A write at the jobs that names none of them (`POST /jobs/cancel-all`) may change every job, and
//! nothing here knows. Its unclaimed shape stands for the path in a log message that proposes a rule,
//! so it contains no id.

use std::{collections::HashSet, sync::Arc};

use percent_encoding::percent_decode_str;

use super::{
    Routes, WriteScope,
    id_parts::{Effort, MAX_NAMED, NamedIds, is_named, parameters, path_and_query},
    invalidation_rules::{InvalidationRule, RuleMatch},
    path_pattern::{Segment, is_literal_segment},
    path_variants::{NamedJobs, Scope, read_path},
    template::Template,
};
use crate::semantics::{job_id::JobId, policy::Bypass};

/// Longest segment that a shape shows.
const MAX_SEGMENT: usize = 48;

/// Longest target that has a shape.
const MAX_TARGET: usize = 8 << 10;

/// Most segments of a shape. Longer paths are not at the jobs in any usual API.
const MAX_SEGMENTS: usize = 16;

/// Units of [`Effort`] for a parameter of a query, besides its texts.
const PARAMETER_COST: usize = 60;

/// The jobs that a target names, and the effort of finding them.
#[derive(Debug, Default)]
pub(super) struct TargetNames {
    named: NamedJobs,
    /// The jobs in the query that rules ask for.
    by_rules: NamedIds,
    effort: Effort,
}

impl Routes {
    /// Reads the targets of a write: its own and those that headers name. Each is a path and a query.
    pub(super) fn named_by_targets<'t>(
        &self,
        rules: &[&Arc<InvalidationRule>],
        scope: Scope,
        targets: impl IntoIterator<Item = (&'t str, Option<&'t str>)>,
    ) -> TargetNames {
        let mut names = TargetNames::default();
        for (path, query) in targets {
            let TargetNames { named, effort, .. } = &mut names;
            read_path(&self.templates, rules, path, scope, (named, effort));
            if let Some(query) = query {
                names.read_query(query);
            }
        }
        names
    }

    /// Returns the shape of a target at, above or below a collection of jobs that names no job;
    /// `None` for every other target. Rules are not considered.
    pub fn unclaimed_shape(&self, target: &str) -> Option<String> {
        if target.len() > MAX_TARGET {
            return None;
        }
        let (path, query) = path_and_query(target);
        let decoded = percent_decode_str(path).decode_utf8_lossy();
        let segments: Vec<&str> = decoded.split('/').filter(|part| !part.is_empty()).collect();
        let is_near = |template: &&Arc<Template>| {
            template.is_at_or_above(&segments) || template.below_collection(&segments).is_some()
        };
        let template = self.templates.iter().find(is_near)?;
        if segments.len() > MAX_SEGMENTS {
            return None;
        }
        let query = query.map(naming_parameters);
        let scope =
            self.named_by_targets(&[], Scope::Target, [(path, query.as_deref())]).into_scope();
        scope.names_no_job().then(|| shape(template, &segments))
    }

    /// Returns whether jobs are directly below a path.
    pub fn is_collection(&self, path: &str) -> bool {
        self.templates.iter().any(|template| template.is_collection(path))
    }
}

/// Returns the shape of a path near the collection of a template.
fn shape(template: &Template, segments: &[&str]) -> String {
    if segments.is_empty() {
        return "/".to_owned();
    }
    let mut has_id = false;
    let mut shape = String::new();
    for (at, &text) in segments.iter().enumerate() {
        shape.push('/');
        let has_digit = text.bytes().any(|byte| byte.is_ascii_digit());
        let is_shown = text.len() <= MAX_SEGMENT && is_literal_segment(text) && !has_digit;
        match template.segment_above(at) {
            Some(Segment::Variable { before, name, after }) => {
                shape.extend([before, "{", name, "}", after]);
            }
            Some(Segment::Literal(literal)) if literal.eq_ignore_ascii_case(text) => {
                shape.push_str(text);
            }
            _ if is_shown => shape.push_str(text),
            _ if has_digit && !has_id => {
                has_id = true;
                shape.push_str("{id}");
            }
            _ => shape.push_str("{any}"),
        }
    }
    shape
}

impl TargetNames {
    /// Adds the jobs that a query names: at or below a collection all of them, in values and in names
    /// (`?ids[7]=on`), and otherwise the values that a rule asks for.
    fn read_query(&mut self, query: &str) {
        let Self { named, by_rules, effort } = self;
        for (name, value) in parameters(query) {
            if !effort.spend(PARAMETER_COST + name.len() * named.rules.len()) {
                return;
            }
            let is_asked_for = |rule: &&RuleMatch| is_named(name, rule.query_parameters());
            let mut asking = named.rules.iter().filter(is_asked_for).peekable();
            if asking.peek().is_some() {
                let namers = asking.flat_map(|rule| &rule.namers);
                namers.for_each(|namer| by_rules.add_text(namer, value, effort));
                continue;
            }
            for namer in &named.collections {
                for text in [value].into_iter().chain(name.split('.')) {
                    named.elsewhere.add_text(namer, text, effort);
                }
            }
        }
    }

    /// Returns why a request passes that names no job: its path is a job path in a spelling that is
    /// not cached, or no job path at all.
    pub(super) fn bypass(&self) -> Bypass {
        if self.named.is_job_path { Bypass::Spelling } else { Bypass::Path }
    }

    pub(super) fn into_scope(self) -> WriteScope {
        let Self { named, by_rules, effort } = self;
        let NamedJobs { jobs: place, elsewhere, rules, names_job, .. } = named;
        let has_unlisted = elsewhere.has_unlisted || by_rules.has_unlisted;
        let mut too_many = elsewhere.has_more || by_rules.has_more || effort.is_cut_off();
        let names_job = names_job || !by_rules.ids.is_empty();
        let count = place.len() + by_rules.ids.len() + elsewhere.ids.len();
        let mut known = HashSet::with_capacity(count);
        let mut new = |jobs: Vec<JobId>| -> Vec<JobId> {
            jobs.into_iter().filter(|job| known.insert(job.clone())).collect()
        };
        let mut jobs = new(place);
        jobs.extend(new(by_rules.ids));
        // They are distinct by themselves.
        let mut elsewhere = if jobs.is_empty() { elsewhere.ids } else { new(elsewhere.ids) };
        too_many |= jobs.len() + elsewhere.len() > MAX_NAMED;
        elsewhere.truncate(MAX_NAMED.saturating_sub(jobs.len()));
        WriteScope { jobs, elsewhere, too_many, has_unlisted, names_job, rules }
    }
}

impl WriteScope {
    /// Whether the write changes more jobs than are listed here.
    pub fn changes_unlisted(&self) -> bool {
        self.too_many || self.has_unlisted
    }

    /// Whether a job is named at its place. A word, as in `/jobs/cancel-all`, is not a job.
    pub fn names_job_at_its_place(&self) -> bool {
        self.changes_unlisted() || self.names_job
    }

    /// Whether no job is named.
    pub fn names_no_job(&self) -> bool {
        !self.names_job_at_its_place() && self.elsewhere.is_empty()
    }

    /// Returns all jobs, those at the place of the id first.
    pub fn all_jobs(&self) -> Vec<JobId> {
        self.jobs.iter().chain(&self.elsewhere).cloned().collect()
    }
}

/// Returns the parameters of a query that look as if they named jobs. A write drops whatever any
/// parameter names, but `?limit=10` does not say which jobs it changes, while a list does.
fn naming_parameters(query: &str) -> String {
    let is_naming = |(name, value): &(&str, &str)| {
        let name = percent_decode_str(name).decode_utf8_lossy().to_ascii_lowercase();
        let is_list = percent_decode_str(value).any(|byte| byte == b',');
        is_list || name.is_empty() || name.contains("id") || name.contains("job")
    };
    let naming = parameters(query).filter(is_naming);
    naming.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::Routes;

    #[track_caller]
    fn check(target: &str, want: Option<&str>) {
        let routes = Routes::parse(&["/jobs/{id}", "/api/v1/jobs/{id}", "/x/{id}/status"]).unwrap();
        assert_eq!(routes.unclaimed_shape(target).as_deref(), want, "{target}");
    }

    #[test]
    fn a_target_at_the_jobs_that_names_none_has_a_shape() {
        check("/jobs", Some("/jobs"));
        check("/jobs/", Some("/jobs"));
        check("/JOBS?all=true", Some("/JOBS"));
        check("/", Some("/"));
        check("/api/v1", Some("/api/v1"));
        check("/api/v1/jobs", Some("/api/v1/jobs"));
        check("/jobs/cancel-all", Some("/jobs/cancel-all"));
        check("/jobs/cancel-all?limit=10&ts=2026-11-30", Some("/jobs/cancel-all"));
        check("/jobs/cancel-all?job_ids=7", None);
        check("/jobs/cancel-all?7", None);
        check("/jobs/cancel?targets=7%2C8", None);
        check("/jobs:batchCancel", Some("/jobs:batchCancel"));
        check("/jobs/a%20b", Some("/jobs/{any}"));
        check(&format!("/jobs/{}", "9".repeat(200)), Some("/jobs/{id}"));
    }

    #[test]
    fn other_targets_have_none() {
        for target in ["/jobs/7", "/jobs/7/cancel", "/jobs/7:cancel", "/jobs?id=7", "/jobs('7')"] {
            check(target, None);
        }
        for target in ["/uploads", "/jobsite", "/api/v2", "/a/jobs", "/api/v1/other"] {
            check(target, None);
        }
        check(&"/jobs".repeat(100), None);
        check(&format!("/jobs{}", "/".repeat(10_000)), None);
    }
}
