//! Telling what became of reads, for `/explain`, `/status` and `/events`.

use super::{Ask, Cache, policy::Bypass};
use crate::{
    events::{Sample, What},
    store::Key,
};

impl Cache {
    /// A read of a job was answered; `why` is empty where there is nothing to add. Of hits only those
    /// are noted that are looked at.
    pub fn answered(&self, ask: &Ask, what: What, why: &'static str, sample: Option<&Sample>) {
        let recent = &self.metrics.recent;
        let times = match (what, sample) {
            (What::Hit, None) => return,
            (What::Hit, Some(sample)) => {
                recent.hit_times.observe(sample.took(), sample.weight());
                sample.weight()
            }
            (What::Miss, Some(sample)) => {
                recent.miss_times.observe(sample.took(), 1);
                1
            }
            _ => 1,
        };
        self.metrics.events.answered(ask.key.main(), what, why, times);
    }

    /// A read of a job went past the cache, which was not asked.
    pub fn passed(&self, id: &str, why: Bypass) {
        let key = Key::new(&self.settings.prefix, id);
        self.metrics.events.answered(key.main(), What::Pass, why.as_str(), 1);
    }
}
