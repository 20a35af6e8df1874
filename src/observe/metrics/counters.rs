//! A family of counters that is cheap to increment.
//!
//! A `Family` hashes its labels with a keyed hash under a lock: some 400 instructions, which a
//! passed request would pay three times. A process uses few of the possible label sets, and the
//! first ones are found here by comparison. The others take the lock.

use std::{fmt::Debug, hash::Hash, sync::OnceLock};

use prometheus_client::metrics::{counter::Counter, family::Family};

/// Number of label sets that are found by comparison. With more, the hash is as quick.
const KNOWN: usize = 16;

/// Counters by labels.
pub struct Counters<L> {
    family: Family<L, Counter>,
    /// The first label sets, in the order of their first use.
    known: [OnceLock<(L, Counter)>; KNOWN],
}

impl<L: Copy + Debug + Eq + Hash> Counters<L> {
    /// Creates counters with these labels at zero.
    pub(super) fn with_zeros(labels: impl IntoIterator<Item = L>) -> Self {
        let counters =
            Self { family: Family::default(), known: std::array::from_fn(|_| OnceLock::new()) };
        for labels in labels {
            counters.counter(labels, |_| ());
        }
        counters
    }

    /// Increments a counter.
    pub fn inc(&self, labels: L) {
        self.counter(labels, |counter| {
            counter.inc();
        });
    }

    /// The counter itself, for callers that increment too often to look it up.
    pub(super) fn handle(&self, labels: L) -> Counter {
        self.family.get_or_create_owned(&labels)
    }

    /// The value of a counter. Reading it creates no series.
    pub(super) fn count(&self, labels: &L) -> u64 {
        self.family.get(labels).map_or(0, |counter| counter.get())
    }

    /// The family, to be registered.
    pub(super) fn family(&self) -> Family<L, Counter> {
        self.family.clone()
    }

    fn counter(&self, labels: L, then: impl Fn(&Counter)) {
        for slot in &self.known {
            // If two threads fill an empty slot at once, one finds the labels of the other and goes
            // on.
            let (known, counter) = slot.get_or_init(|| (labels, self.handle(labels)));
            if *known == labels {
                return then(counter);
            }
        }
        then(&self.family.get_or_create(&labels));
    }
}

/// A family with these labels at zero.
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
        let counters = Counters::with_zeros([]);
        let label = |n: usize| [("label", n.to_string().leak() as &'static str)];
        for n in 0..2 * KNOWN {
            for _ in 0..=n {
                // A different string with the same text: labels are compared by text, not by
                // address.
                counters.inc(label(n));
            }
        }
        for n in 0..2 * KNOWN {
            assert_eq!(counters.handle(label(n)).get(), n as u64 + 1);
        }
    }
}
