//! Records how reads were answered, for `/explain`, `/status` and `/events`.

use super::{Cache, lookup_request::LookupRequest};
use crate::{
    observe::events::{EventKind, HitSample},
    semantics::policy::Bypass,
    store::Key,
};

impl Cache {
    /// Records the answer to a read of a job. `why` is empty if there is nothing to add. Hits are
    /// recorded only if they are sampled.
    pub fn record_answer(
        &self,
        request: &LookupRequest,
        what: EventKind,
        why: &'static str,
        sample: Option<&HitSample>,
    ) {
        let count = match (what, sample) {
            (EventKind::Hit, None) => return,
            (EventKind::Hit, Some(sample)) => {
                self.state.metrics.hit_times.observe(sample.elapsed(), sample.weight());
                sample.weight()
            }
            (EventKind::Miss, Some(sample)) => {
                self.state.metrics.miss_times.observe(sample.elapsed(), 1);
                1
            }
            _ => 1,
        };
        self.state.events.record_request(request.key.main(), what, why, count);
    }

    /// Records a read of a job that bypassed the cache without a lookup.
    pub fn record_pass(&self, id: &str, why: Bypass) {
        let key = Key::new(&self.config.settings.prefix, id);
        self.state.events.record_request(key.main(), EventKind::Pass, why.as_str(), 1);
    }
}
