//! When a client learns of the changes of its job.

use std::sync::Arc;

use super::{
    api::SampleJobs,
    figures::{DemoGroup, Figures},
};

/// The versions that one client has seen.
pub(super) struct SeenChanges {
    group: DemoGroup,
    job: usize,
    last: Option<u64>,
    jobs: Arc<SampleJobs>,
    figures: Arc<Figures>,
}

impl SeenChanges {
    pub(super) fn new(
        group: DemoGroup,
        job: usize,
        jobs: &Arc<SampleJobs>,
        figures: &Arc<Figures>,
    ) -> Self {
        Self { group, job, last: None, jobs: Arc::clone(jobs), figures: Arc::clone(figures) }
    }

    /// Notes the version of an answer, and how long ago the job changed to it. The first one is no
    /// change for this client.
    pub(super) fn see(&mut self, version: u64) {
        let is_change = self.last.is_some_and(|last| version > last);
        if is_change && let Some(delay) = self.jobs.age(self.job, version) {
            self.figures.record_change(self.group, delay);
        }
        self.last = self.last.max(Some(version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_timed_once_and_only_while_the_job_still_has_that_version() {
        let (jobs, figures) = (Arc::new(SampleJobs::new(1)), Arc::new(Figures::default()));
        let mut changes = SeenChanges::new(DemoGroup::Push, 0, &jobs, &figures);
        let mut see = |version| {
            changes.see(version);
            figures.changes(DemoGroup::Push).0
        };
        assert_eq!(see(1), 0, "the first version");
        jobs.advance(0);
        assert_eq!((see(2), see(2)), (1, 1));
        jobs.advance(0);
        jobs.advance(0);
        assert_eq!((see(3), see(4), see(3)), (1, 2, 2));
        assert_eq!(figures.changes(DemoGroup::Polling), (0, None));
    }
}
