//! Times from the acknowledgement of a change to the clients.

use serde_json::{Value, json};

use crate::{
    crowd::Sighting,
    perform::Change,
    play::JOBS,
    stats::{median, quantile, real},
};

/// Versions that each client has seen, in order.
pub(crate) struct Sightings(Vec<Vec<Sighting>>);

/// The delays of some changes, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Delays {
    all: Vec<f64>,
    /// Clients that have seen neither a change nor a later one of the same job.
    pub(crate) missing: u64,
}

impl Sightings {
    pub(crate) fn new(clients: usize, all: Vec<Sighting>) -> Self {
        let mut by_client = vec![Vec::new(); clients];
        for sighting in all {
            by_client[sighting.client].push(sighting);
        }
        Self(by_client)
    }

    /// Returns the delay of each change for each client of its job. It is zero for a client that has
    /// the version before the pipeline has the acknowledgement.
    pub(crate) fn delays(&self, changes: &[Change]) -> Delays {
        let mut delays = Delays::default();
        for change in changes {
            for seen in self.0.iter().skip(change.job).step_by(JOBS) {
                match seen.iter().find(|sighting| sighting.version >= change.version) {
                    Some(Sighting { at_us, .. }) => {
                        let us = at_us.saturating_sub(change.acknowledged_us);
                        delays.all.push(real(us) / 1e3);
                    }
                    None => delays.missing += 1,
                }
            }
        }
        delays
    }
}

impl Delays {
    pub(crate) fn p50(&self) -> Option<f64> {
        median(&self.all)
    }

    pub(crate) fn p99(&self) -> Option<f64> {
        quantile(&self.all, 0.99)
    }

    pub(crate) fn last(&self) -> Option<f64> {
        self.all.iter().copied().reduce(f64::max)
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "count": self.all.len(), "missing": self.missing,
            "p50_ms": self.p50(), "p99_ms": self.p99(), "last_ms": self.last(),
        })
    }
}
