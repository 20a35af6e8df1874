//! Write names: everything that the target of a write names, from its path and its query.

use std::{collections::HashSet, sync::Arc};

use super::{
    Routes, WriteScope,
    id_parts::{Effort, MAX_NAMED, NamedIds},
    invalidation_rules::InvalidationRule,
    path_variants::{NamedJobs, Scope, read_path},
    query_names::{is_named, parameters},
};
use crate::semantics::{job_id::JobId, policy::Bypass};

/// The jobs that a target names, and the effort of finding them.
#[derive(Debug, Default)]
pub(super) struct TargetNames {
    named: NamedJobs,
    /// The jobs in the query that rules ask for.
    by_rules: NamedIds,
    effort: Effort,
}

impl Routes {
    /// Reads a path without a query.
    pub(super) fn named_by_path(&self, path: &str, scope: Scope) -> TargetNames {
        let mut names = TargetNames::default();
        let TargetNames { named, effort, .. } = &mut names;
        read_path(&self.templates, &[], path, scope, (named, effort));
        names
    }

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
}

impl TargetNames {
    /// Adds the jobs that a query names: at or below a collection all of them, in values and in names
    /// (`?ids[7]=on`), and otherwise the values that a rule asks for.
    fn read_query(&mut self, query: &str) {
        let Self { named, by_rules, effort } = self;
        for (name, value) in parameters(query) {
            let is_asked_for =
                |rule: &Arc<InvalidationRule>| is_named(name, rule.query_parameters());
            if named.rules.iter().any(is_asked_for) {
                by_rules.add_text(value, effort);
            } else if named.is_in_collection {
                named.elsewhere.add_text(value, effort);
                name.split('.').for_each(|part| named.elsewhere.add_text(part, effort));
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
        let NamedJobs { jobs: place, elsewhere, is_in_collection, rules, .. } = named;
        let is_cut_off = effort.is_spent() && (is_in_collection || !rules.is_empty());
        let mut too_many = elsewhere.has_more || by_rules.has_more || is_cut_off;
        let mut known = HashSet::new();
        let mut new = |jobs: Vec<JobId>| -> Vec<JobId> {
            jobs.into_iter().filter(|job| known.insert(job.clone())).collect()
        };
        let mut jobs = new(place);
        jobs.extend(new(by_rules.into_ids()));
        let mut elsewhere = new(elsewhere.into_ids());
        too_many |= jobs.len() + elsewhere.len() > MAX_NAMED;
        elsewhere.truncate(MAX_NAMED.saturating_sub(jobs.len()));
        WriteScope { jobs, elsewhere, too_many, rules }
    }
}

impl WriteScope {
    /// Whether no job is named. A word, as in `/jobs/cancel-all`, is not a job.
    pub fn names_no_job(&self) -> bool {
        let is_word = |job: &JobId| JobId::is_word(job.as_str());
        !self.too_many && self.elsewhere.is_empty() && self.jobs.iter().all(is_word)
    }

    /// Returns all jobs, those at the place of the id first.
    pub(super) fn into_jobs(self) -> Vec<JobId> {
        self.jobs.into_iter().chain(self.elsewhere).collect()
    }
}
