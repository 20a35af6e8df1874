//! The closed form: expectations, with pollers that come independently of each other.

use super::{
    load::Version,
    scenario::{Balance, Near, Scenario},
};

/// Lookups of one who waits for another sidecar's fill, beside his first: he looks again when the news
/// comes, and once for having listened too late.
const LOOKS: f64 = 1.5;

/// One version of one job.
pub(crate) fn version(scenario: &Scenario) -> Version {
    let n = scenario.sidecars;
    let (shortest, longest) = scenario.stage();
    let polls = scenario.poll_rate() * f64::midpoint(shortest, longest);
    // Who come while the first reads the API: all look and ask for the lease.
    let amid = scenario.poll_rate() * scenario.fill_takes;
    let elsewhere = 1.0 - 1.0 / n;
    let first_of_sidecars = first_polls(scenario);
    let looks_amid = amid * (1.0 + LOOKS * elsewhere);
    let (holders, near) = match scenario.near {
        Near::Off => (0.0, 0.0),
        Near::Strict | Near::Bounded => {
            (first_of_sidecars, (polls - 1.0 - amid - first_of_sidecars).max(0.0))
        }
    };
    let later = if scenario.near == Near::Off { polls - 1.0 - amid } else { first_of_sidecars };
    Version {
        polls,
        lookups: 1.0 + looks_amid + later,
        leases: 1.0 + amid,
        fills: 1.0,
        ends: 1.0,
        near,
        // The purge tells the holders; the placeholder tells the first, whose lookup found nothing; the
        // fill tells who has looked meanwhile.
        told: holders + 1.0 + amid,
        holders,
    }
}

/// Sidecars that are polled for a version once it is there: each of them reads it once.
///
/// Random: of `n` sidecars `m` polls leave `(1 - 1/n)^m` of them out, and `m` is the poll rate times a
/// life that is uniform between the two. Sticky: those with a watcher.
fn first_polls(scenario: &Scenario) -> f64 {
    let n = scenario.sidecars;
    let missed = 1.0 - 1.0 / n;
    match scenario.balance {
        Balance::Sticky => n * (1.0 - missed.powf(scenario.watchers)),
        Balance::Random if n <= 1.0 => 1.0,
        Balance::Random => {
            let (shortest, longest) = scenario.stage();
            let rate = scenario.poll_rate() * missed.ln();
            let mean =
                ((rate * longest).exp() - (rate * shortest).exp()) / (rate * (longest - shortest));
            n * (1.0 - mean)
        }
    }
}
