//! The registry of metrics, and the types of which the parts make theirs.
//!
//! A part registers its metrics when it is built, and owns them in a struct next to it
//! (`proxy/metrics.rs`, `store/metrics.rs` and so on). What is exported without a part is here: the
//! build, the process and the runtime.
//!
//! Names follow `jobcache_<noun>_<unit|total>`; labels come from enums, never from a URL or an id.
//! Process metrics have their conventional names (`process_...`). A family starts with its known
//! labels at zero: a series that first appears above zero does not look like an increase.
//!
//! `docs/metrics.md` says for each metric what to do about it.

mod process;
mod recent_times;

use std::{any::Any, array, iter, sync::OnceLock};

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry as Families, Unit},
};

use self::process::{ProcessCollector, RuntimeCollector};

pub use self::recent_times::RecentTimes;

/// All metrics of the process. The help texts have no full stop; it is added.
#[derive(Debug)]
pub struct Registry {
    process: Families,
    /// Those with the prefix `jobcache_`.
    ours: Families,
    /// Families that several parts share.
    shared: Vec<Box<dyn Any + Send + Sync>>,
}

impl Default for Registry {
    /// Begins with the metrics of the process, the build and the runtime.
    fn default() -> Self {
        let mut process = Families::default();
        process.register_collector(Box::new(ProcessCollector::default()));
        let mut ours = Families::with_prefix("jobcache");
        ours.register("build", "The running build", Info::new(build_labels()));
        ours.register_collector(Box::new(RuntimeCollector));
        Self { process, ours, shared: Vec::new() }
    }
}

impl Registry {
    /// Registers a metric and returns it.
    pub fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.ours.register(name, help, metric.clone());
        metric
    }

    /// Registers a counter. Its name is exported with `_total`.
    pub fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.add(name, help, Counter::default())
    }

    /// Registers a gauge.
    pub fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.add(name, help, Gauge::default())
    }

    /// Registers a gauge of bytes. Its name is exported with `_bytes`.
    pub fn bytes(&mut self, name: &str, help: &str) -> Gauge {
        self.add_with_unit(name, help, Unit::Bytes, Gauge::default())
    }

    /// Registers a histogram of seconds. Its name is exported with `_seconds`.
    pub fn seconds<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        buckets: [f64; N],
    ) -> Histogram {
        self.add_with_unit(name, help, Unit::Seconds, Histogram::new(buckets))
    }

    /// Registers a metric with a unit, by which its name ends, and returns it.
    pub fn add_with_unit<M>(&mut self, name: &str, help: &str, unit: Unit, metric: M) -> M
    where
        M: Metric + Clone,
    {
        self.ours.register_with_unit(name, help, unit, metric.clone());
        metric
    }

    /// Registers counters by labels of these names, with these values at zero.
    pub fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&'static str; N],
        values: impl IntoIterator<Item = [&'static str; N]>,
    ) -> Counters<N> {
        let counters = Counters::new(labels, values);
        self.add_counters(name, help, &counters);
        counters
    }

    /// Registers counters by one label, with these values at zero.
    pub fn counters_by(
        &mut self,
        label: &'static str,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = &'static str>,
    ) -> Counters<1> {
        self.counters(name, help, [label], values.into_iter().map(|value| [value]))
    }

    /// Registers counters that were created before.
    pub fn add_counters<const N: usize>(&mut self, name: &str, help: &str, counters: &Counters<N>) {
        self.add(name, help, counters.family());
    }

    /// Returns what this function has registered for another part, or calls it: for families that
    /// several parts count in.
    pub fn shared<F>(&mut self, register: fn(&mut Self) -> F) -> F
    where
        F: Clone + Send + Sync + 'static,
    {
        let known = self.shared.iter().find_map(|shared| shared.downcast_ref::<F>());
        if let Some(known) = known {
            return known.clone();
        }
        let new = register(self);
        self.shared.push(Box::new(new.clone()));
        new
    }

    /// Returns the text that Prometheus scrapes (`OpenMetrics` 1.0).
    pub fn exposition(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode_registry(&mut text, &self.process)
            .and_then(|()| encode_registry(&mut text, &self.ours))
            .and_then(|()| encode_eof(&mut text));
        text
    }
}

/// Labels of the build: the version and, if the build had `JOBCACHE_COMMIT` set, the commit.
fn build_labels() -> Vec<(&'static str, &'static str)> {
    let commit = option_env!("JOBCACHE_COMMIT").filter(|commit| !commit.is_empty());
    let version = ("version", env!("CARGO_PKG_VERSION"));
    iter::once(version).chain(commit.map(|commit| ("commit", commit))).collect()
}

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
    use super::{Counters, KNOWN, *};

    #[test]
    fn what_was_counted_stands_in_the_exposition() {
        let mut registry = Registry::default();
        let outcomes = ["stored", "failed"];
        let fills = registry.counters_by("outcome", "fills", "Fills by outcome", outcomes);
        let held = registry.bytes("captured", "Responses held in memory");
        fills.inc(["stored"]);
        held.set(7);
        let text = registry.exposition();
        for line in [
            "# HELP jobcache_fills Fills by outcome.",
            "jobcache_fills_total{outcome=\"stored\"} 1",
            "jobcache_fills_total{outcome=\"failed\"} 0",
            "jobcache_captured_bytes 7",
            "# EOF",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn parts_that_share_a_family_count_in_the_same() {
        #[derive(Clone)]
        struct Shared(Counter);
        let mut registry = Registry::default();
        let [first, second] = [(); 2]
            .map(|()| registry.shared(|registry| Shared(registry.counter("both", "Of both"))));
        first.0.inc();
        second.0.inc();
        let text = registry.exposition();
        assert_eq!(text.matches("jobcache_both_total").count(), 1, "{text}");
        assert!(text.contains("jobcache_both_total 2"), "{text}");
    }

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
