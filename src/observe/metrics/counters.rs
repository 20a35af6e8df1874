//! A family of counters that is cheap to increment.
//!
//! A `Family` hashes its labels with a keyed hash under a lock: some 400 instructions, which a
//! passed request would pay three times. A process uses few of the possible label sets, and the
//! first ones are found here by comparison. The others take the lock.

use std::{array, sync::OnceLock};

use prometheus_client::metrics::{counter::Counter, family::Family};

/// Number of label sets that are found by comparison. With more, the hash is as quick.
const KNOWN: usize = 16;

/// Values, and their counter.
type KnownCounter<const N: usize> = ([&'static str; N], Counter);

/// Counters by the values of `N` labels.
#[derive(Debug)]
pub struct Counters<const N: usize> {
    names: [&'static str; N],
    family: Family<[(&'static str, &'static str); N], Counter>,
    /// The first values, in the order of their first use.
    known: Box<[OnceLock<KnownCounter<N>>]>,
}

impl<const N: usize> Counters<N> {
    /// Creates counters by labels of these names, with these values at zero.
    pub fn new(
        names: [&'static str; N],
        values: impl IntoIterator<Item = [&'static str; N]>,
    ) -> Self {
        let known = (0..KNOWN).map(|_| OnceLock::new()).collect();
        let counters = Self { names, family: Family::default(), known };
        for values in values {
            counters.add(values, 0);
        }
        counters
    }

    /// Increments a counter.
    pub fn inc(&self, values: [&'static str; N]) {
        self.add(values, 1);
    }

    /// Adds to a counter.
    pub fn add(&self, values: [&'static str; N], count: u64) {
        for slot in &self.known {
            // If two threads fill an empty slot at once, one finds the values of the other and goes
            // on.
            let (known, counter) = slot.get_or_init(|| (values, self.handle(values)));
            if *known == values {
                counter.inc_by(count);
                return;
            }
        }
        self.family.get_or_create(&self.labels(values)).inc_by(count);
    }

    /// The counter itself, for callers that increment too often to look it up.
    pub fn handle(&self, values: [&'static str; N]) -> Counter {
        self.family.get_or_create_owned(&self.labels(values))
    }

    /// The value of a counter. Reading it creates no series.
    pub fn get(&self, values: [&'static str; N]) -> u64 {
        self.family.get(&self.labels(values)).map_or(0, |counter| counter.get())
    }

    /// The family, to be registered.
    pub(super) fn family(&self) -> Family<[(&'static str, &'static str); N], Counter> {
        self.family.clone()
    }

    fn labels(&self, values: [&'static str; N]) -> [(&'static str, &'static str); N] {
        array::from_fn(|index| (self.names[index], values[index]))
    }
}

#[cfg(test)]
mod tests {
    use super::{Counters, KNOWN};

    #[test]
    fn a_count_goes_to_its_own_labels_wherever_they_are_found() {
        let counters = Counters::new(["label"], []);
        let label = |n: usize| [n.to_string().leak() as &'static str];
        for n in 0..2 * KNOWN {
            for _ in 0..=n {
                // A different string with the same text: values are compared by text, not by
                // address.
                counters.inc(label(n));
            }
        }
        for n in 0..2 * KNOWN {
            assert_eq!(counters.handle(label(n)).get(), n as u64 + 1);
        }
    }
}
