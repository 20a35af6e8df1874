//! The closed form: expected values, for pollers that arrive independently of each other.

use super::{
    load::Version,
    scenario::{Balance, Near, Scenario},
};

/// Further lookups of a poll that waits for another sidecar's fill: one when the notification
/// arrives, and one because it subscribed too late for the first.
const LOOKS: f64 = 1.5;

/// Returns the expected counts of one version of one job.
pub(crate) fn version(scenario: &Scenario) -> Version {
    let n = scenario.sidecars;
    let (shortest, longest) = scenario.stage();
    let polls = scenario.poll_rate() * f64::midpoint(shortest, longest);
    // Polls that arrive while the first one reads the API: each looks up the entry and asks for the
    // lease.
    let polls_during_fill = scenario.poll_rate() * scenario.fill_takes;
    let elsewhere = 1.0 - 1.0 / n;
    let first_of_sidecars = first_polls(scenario);
    let lookups_during_fill = polls_during_fill * (1.0 + LOOKS * elsewhere);
    let (holders, near) = match scenario.near {
        Near::Off => (0.0, 0.0),
        Near::Strict | Near::Bounded => {
            (first_of_sidecars, (polls - 1.0 - polls_during_fill - first_of_sidecars).max(0.0))
        }
    };
    let later = if scenario.near == Near::Off {
        polls - 1.0 - polls_during_fill
    } else {
        first_of_sidecars
    };
    Version {
        polls,
        lookups: 1.0 + lookups_during_fill + later,
        leases: 1.0 + polls_during_fill,
        fills: 1.0,
        ends: 1.0,
        near,
        // The purge notifies the holders; the placeholder notifies the first sidecar, because its
        // lookup found nothing; the fill notifies the sidecars that have looked since.
        notified: holders + 1.0 + polls_during_fill,
        holders,
    }
}

/// Returns the number of sidecars that are polled during the life of a version; each of them reads
/// it once.
///
/// If balancing is random, `m` polls miss a given one of `n` sidecars with probability `(1 -
/// 1/n)^m`, where `m` is the poll rate times a life that is uniform between its two bounds. If it
/// is sticky, the result is the number of sidecars with a watcher.
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
