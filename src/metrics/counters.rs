//! A family of counters that is quick to count in.
//!
//! A `Family` hashes its labels with a keyed hash under a lock: some 400 instructions, which a request
//! that passes through would pay three times over. A process meets few of the label sets that there
//! could be, and these first ones are found here by comparing them. The lock is for the others.

use std::{fmt::Debug, hash::Hash, sync::OnceLock};

use prometheus_client::metrics::{counter::Counter, family::Family};

/// Label sets that are found by comparing. Past that the hash is as quick.
const KNOWN: usize = 16;

/// Counters by their labels.
pub struct Counters<L> {
    family: Family<L, Counter>,
    /// The first ones, in the order in which they came.
    known: [OnceLock<(L, Counter)>; KNOWN],
}

impl<L: Copy + Debug + Eq + Hash> Counters<L> {
    /// With these at zero.
    pub(super) fn beginning_with(labels: impl IntoIterator<Item = L>) -> Self {
        let counters =
            Self { family: Family::default(), known: std::array::from_fn(|_| OnceLock::new()) };
        for labels in labels {
            counters.counter(labels, |_| ());
        }
        counters
    }

    /// Counts one more.
    pub fn inc(&self, labels: L) {
        self.counter(labels, |counter| {
            counter.inc();
        });
    }

    /// The counter itself, for what counts too often to look for it.
    pub(super) fn handle(&self, labels: L) -> Counter {
        self.family.get_or_create_owned(&labels)
    }

    /// What was counted. Asking makes no series of what never was.
    pub(super) fn count(&self, labels: &L) -> u64 {
        self.family.get(labels).map_or(0, |counter| counter.get())
    }

    /// All of them, to be registered.
    pub(super) fn family(&self) -> Family<L, Counter> {
        self.family.clone()
    }

    fn counter(&self, labels: L, then: impl Fn(&Counter)) {
        for slot in &self.known {
            // Of two that come at once to an empty slot one finds the other's labels in it, and goes on.
            let (known, counter) = slot.get_or_init(|| (labels, self.handle(labels)));
            if *known == labels {
                return then(counter);
            }
        }
        then(&self.family.get_or_create(&labels));
    }
}

/// A family with these at zero.
pub(super) fn zeros<L>(labels: impl IntoIterator<Item = L>) -> Family<L, Counter>
where
    L: Clone + Eq + Hash,
{
    let family = Family::default();
    for labels in labels {
        family.get_or_create_owned(&labels);
    }
    family
}

#[cfg(test)]
mod tests {
    use super::{Counters, KNOWN};

    #[test]
    fn a_count_goes_to_its_own_labels_wherever_they_are_found() {
        let counters = Counters::beginning_with([]);
        let label = |n: usize| [("label", n.to_string().leak() as &'static str)];
        for n in 0..2 * KNOWN {
            for _ in 0..=n {
                // Others of the same text: labels are told apart by that, not by where it lies.
                counters.inc(label(n));
            }
        }
        for n in 0..2 * KNOWN {
            assert_eq!(counters.handle(label(n)).get(), n as u64 + 1);
        }
    }
}
