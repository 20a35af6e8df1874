//! Results of the stages: tables, and the check of jobcache's promises.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    Result,
    stage::Size,
    stats::{median, real},
    table::{Table, number},
};

/// Reads of the API allowed per version and credential: one, plus a few by chance, because a
/// version that is purged while it is read costs a further read. A lookup during another
/// credential's read cannot join it, so two credentials cause some more reads.
const READS: [f64; 2] = [1.1, 1.25];
/// Largest accepted share of polls that find Redis late; above it the machine was too busy for a
/// result.
const LATE: f64 = 0.001;

/// Named numbers of one measurement of one size.
#[derive(Clone, Debug)]
pub(crate) struct Sample(BTreeMap<&'static str, f64>);

/// The samples of all sizes.
#[derive(Debug, Default)]
pub(crate) struct Outcomes(BTreeMap<Size, Vec<Sample>>);

impl Sample {
    pub(crate) fn new(seconds: f64, polls: f64, changes: f64) -> Self {
        Self(BTreeMap::from([("seconds", seconds), ("polls", polls), ("changes", changes)]))
    }

    pub(crate) fn put(&mut self, name: &'static str, value: f64) {
        self.0.insert(name, value);
    }

    pub(crate) fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }
}

/// The samples of one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Samples<'s>(&'s [Sample]);

impl Samples<'_> {
    /// Returns the median of a number.
    pub(crate) fn of(self, name: &str) -> f64 {
        self.median(|sample| sample.of(name))
    }

    /// Returns the median of the ratio of two numbers.
    pub(crate) fn per(self, name: &str, other: &str) -> f64 {
        self.median(|sample| sample.of(name) / sample.of(other).max(f64::MIN_POSITIVE))
    }

    fn most(self, name: &str) -> f64 {
        self.0.iter().map(|sample| sample.of(name)).fold(0.0, f64::max)
    }

    fn sum(self, name: &str) -> f64 {
        self.0.iter().map(|sample| sample.of(name)).sum()
    }

    fn median(self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(&self.0.iter().map(of).collect::<Vec<_>>()).unwrap_or_default()
    }
}

impl Outcomes {
    pub(crate) fn add(&mut self, size: Size, sample: Sample) {
        self.0.entry(size).or_default().push(sample);
    }

    /// Iterates over the sizes and their samples.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Size, Samples<'_>)> {
        self.0.iter().map(|(size, samples)| (*size, Samples(samples)))
    }

    /// Renders the tables: what clients see, then the costs.
    pub(crate) fn tables(&self) -> String {
        format!(
            "### many sidecars\n\n{}\n{}\n{}\n",
            self.client_table().render(),
            self.redis_table().render(),
            self.cost_table().render()
        )
    }

    fn client_table(&self) -> Table {
        let mut table = Table::new(&[
            "sidecars",
            "tracking",
            "credentials",
            "polls/s",
            "changes/s",
            "hits",
            "reads/version",
            "and credential",
            "most",
            "stale",
            "failed",
            "late",
            "hit p50/p99 ms",
            "purge p50/p99 ms",
        ]);
        for (size, samples) in self.all() {
            table.row(vec![
                size.sidecars.to_string(),
                size.tracking.as_str().to_owned(),
                size.credentials.to_string(),
                number(Some(samples.per("polls", "seconds"))),
                number(Some(samples.per("changes", "seconds"))),
                format!("{:.1} %", 100.0 * samples.per("hits", "polls")),
                format!("{:.3}", samples.of("reads_a_version")),
                format!("{:.3}", samples.of("reads_a_version_and_credential")),
                format!("{:.0}", samples.most("most_reads")),
                format!("{:.0}", samples.sum("stale")),
                format!("{:.0}", samples.sum("failed")),
                format!("{:.0}", samples.sum("late")),
                pair(samples.of("hit_ms"), samples.of("hit99_ms")),
                pair(samples.of("purge_ms"), samples.of("purge99_ms")),
            ]);
        }
        table
    }

    fn redis_table(&self) -> Table {
        let mut table = Table::new(&[
            "sidecars",
            "tracking",
            "credentials",
            "commands/s",
            "PINGs/hit",
            "lookups/change",
            "leases/change",
            "scripts/change",
            "notifications/change",
            "sends/change",
            "bytes/change",
        ]);
        for (size, samples) in self.all() {
            let a_change = |name| number(Some(samples.per(name, "changes")));
            table.row(vec![
                size.sidecars.to_string(),
                size.tracking.as_str().to_owned(),
                size.credentials.to_string(),
                number(Some(samples.per("commands", "seconds"))),
                number(Some(samples.per("rounds", "hits"))),
                a_change("lookups"),
                a_change("leases"),
                a_change("evalsha"),
                a_change("news"),
                number(Some(samples.median(|sample| {
                    (sample.of("tracking_segments") - sample.of("rounds")) / sample.of("changes")
                }))),
                a_change("tracking_bytes"),
            ]);
        }
        table
    }

    fn cost_table(&self) -> Table {
        let mut table = Table::new(&[
            "sidecars",
            "tracking",
            "credentials",
            "Redis CPU-s/1,000 changes",
            "Redis cores",
            "sidecars CPU-s/1,000 changes",
            "CPU-s/100k polls",
            "Redis MiB",
            "Redis clients KiB",
            "largest tracking client KiB",
            "tracked",
            "MiB per sidecar",
        ]);
        for (size, samples) in self.all() {
            let both = samples.median(|sample| {
                (sample.of("redis_cpu") + sample.of("sidecars_cpu")) / sample.of("polls")
            });
            table.row(vec![
                size.sidecars.to_string(),
                size.tracking.as_str().to_owned(),
                size.credentials.to_string(),
                number(Some(1e3 * samples.per("redis_cpu", "changes"))),
                format!("{:.3}", samples.per("redis_cpu", "seconds")),
                number(Some(1e3 * samples.per("sidecars_cpu", "changes"))),
                number(Some(1e5 * both)),
                number(Some(samples.of("used_bytes") / 1_048_576.0)),
                number(Some(samples.of("clients_bytes") / 1024.0)),
                number(Some(samples.most("tracking_connection_bytes") / 1024.0)),
                number(Some(samples.of("tracking_items"))),
                number(Some(samples.of("sidecar_mib"))),
            ]);
        }
        table
    }

    pub(crate) fn json(&self) -> Value {
        let sizes = self.0.iter().map(|(size, samples)| {
            let samples: Vec<_> = samples.iter().map(|sample| json!(sample.0)).collect();
            json!({
                "sidecars": size.sidecars, "credentials": size.credentials,
                "tracking": size.tracking.as_str(), "samples": samples,
            })
        });
        sizes.collect()
    }

    /// Returns an error that lists every broken promise.
    pub(crate) fn judge(&self) -> Result<()> {
        let mut faults = Vec::new();
        for (size, samples) in self.all() {
            let stale = samples.sum("stale");
            if stale > 0.0 {
                faults.push(format!("{size:?}: {stale:.0} stale answers"));
            }
            let reads = samples.of("reads_a_version_and_credential");
            let most = READS[usize::from(size.credentials > 1)];
            if reads > most && samples.per("late", "polls") <= LATE {
                faults.push(format!("{size:?}: {reads:.3} reads of a version by a credential"));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ").into()) }
    }
}

fn pair(p50: f64, p99: f64) -> String {
    format!("{}/{}", number(Some(p50)), number(Some(p99)))
}

/// Converts a count to a real number.
pub(crate) fn count(number: usize) -> f64 {
    real(number as u64)
}
