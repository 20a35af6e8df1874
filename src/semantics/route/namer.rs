//! Namers: the jobs of a route that an id in a write may mean.

use std::sync::Arc;

use super::template::Template;
use crate::semantics::job_id::{Ids, JobId};

/// Most combinations of readings of the variables besides `{id}`.
const MAX_COMBINATIONS: usize = 256;

/// Names the jobs of a route for an id, where the texts of the variables before it are known, or those of
/// all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Namer {
    pub(super) template: Arc<Template>,
    /// The known texts of the variables but `{id}`.
    others: Vec<String>,
    /// Every reading of each.
    readings: Vec<Vec<String>>,
    /// Whether a write names more jobs than can be listed: the readings are too many, or variables
    /// follow the id.
    pub(super) has_unlisted: bool,
}

impl Namer {
    pub(super) fn new(template: &Arc<Template>, others: &[&str]) -> Self {
        let most = (1..=MAX_COMBINATIONS)
            .take_while(|most| others.iter().fold(1, |all, _| all * most) <= MAX_COMBINATIONS)
            .last()
            .unwrap_or(1);
        let mut has_unlisted = others.len() < template.variables_but_id();
        let readings = others.iter().map(|text| {
            let mut readings = Ids::Opaque.readings(text);
            has_unlisted |= readings.len() > most;
            readings.truncate(most);
            readings
        });
        let readings = readings.collect();
        let others = others.iter().map(|&text| text.to_owned()).collect();
        Self { template: Arc::clone(template), others, readings, has_unlisted }
    }

    /// Whether it names the jobs of this route with these texts.
    pub(super) fn is_for(&self, template: &Arc<Template>, others: &[&str]) -> bool {
        Arc::ptr_eq(&self.template, template) && self.others == others
    }

    /// Calls `each` with the jobs with this id and any reading of the other variables.
    pub(super) fn for_each_job(&self, id: &str, each: impl FnMut(JobId)) {
        if self.template.key_is_id() {
            return [self.template.job(id)].into_iter().for_each(each);
        }
        if self.others.len() < self.template.variables_but_id() {
            return;
        }
        let id_at = self.template.variables_before_id().count();
        let count: usize = self.readings.iter().map(Vec::len).product();
        let job = |mut combination: usize| {
            let mut texts = Vec::with_capacity(self.readings.len() + 1);
            for readings in &self.readings {
                texts.push(readings[combination % readings.len()].as_str());
                combination /= readings.len();
            }
            texts.insert(id_at, id);
            self.template.job_of(&texts)
        };
        (0..count).filter_map(job).for_each(each);
    }
}
