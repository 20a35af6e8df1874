//! A model of the load that any number of sidecars and pollers puts on Redis.
//!
//! The unit is one version of a job ([`load::Version`]): how often it is looked up, leased, filled
//! and purged, how many sidecars are notified, and how many polls are answered from process memory.
//! These counts are computed twice, by expectation ([`closed`]) and by simulation ([`simulation`]).
//! The load follows from them by arithmetic ([`load`]) and the measured costs of the primitives
//! ([`costs`]).

mod closed;
pub(crate) mod costs;
mod load;
mod scenario;
mod simulation;

use serde_json::{Value, json};

use self::{
    costs::Costs,
    load::{Load, Version},
    scenario::{Balance, Near, Scenario},
};
use crate::{
    Tracking,
    crowd::SPEED,
    outcome::{Outcomes, Samples, count},
    stage::Size,
    table::{Table, number},
};

/// Sidecars and pollers of the rows of the growth table.
const SIZES: [(u32, u32); 12] = [
    (10, 10_000),
    (100, 10_000),
    (1_000, 10_000),
    (10, 100_000),
    (30, 100_000),
    (100, 100_000),
    (300, 100_000),
    (1_000, 100_000),
    (10, 1_000_000),
    (100, 1_000_000),
    (300, 1_000_000),
    (1_000, 1_000_000),
];
/// Sidecars of the columns of the table of what tracking by keys saves.
const FEW: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 100];
/// Pollers in that table.
const CROWD: u32 = 100_000;

/// Renders the comparison of model and measurements, and the predictions.
pub(crate) fn tables(costs: &Costs, outcomes: &Outcomes) -> String {
    let measured = outcomes.all().next().is_some();
    let agreement = if measured { agreement(costs, outcomes) + "\n" } else { String::new() };
    format!(
        "### model\n\n{agreement}{}\n{}\n{}\n{}\n",
        growth(costs).render(),
        capacity(costs).render(),
        savings(costs).render(),
        mitigations(costs).render()
    )
}

pub(crate) fn json(costs: &Costs) -> Value {
    let row = |(sidecars, pollers): (u32, u32)| {
        let each = [Tracking::Broadcast, Tracking::Keys].map(|tracking| {
            let scenario = Scenario { tracking, ..Scenario::new(sidecars, pollers) };
            let load = Load::new(&scenario, &simulation::version(&scenario), costs);
            json!({
                "tracking": tracking.as_str(), "cores": load.cores(), "sends_a_second": load.sends,
                "turn_s": load.turn, "parts": load.parts.map(|(name, cores)| json!([name, cores])),
            })
        });
        json!({ "sidecars": sidecars, "pollers": pollers, "loads": each })
    };
    SIZES.map(row).into_iter().collect()
}

/// Renders the measured and simulated values, with the largest deviations of the simulation.
fn agreement(costs: &Costs, outcomes: &Outcomes) -> String {
    let mut table = Table::new(&[
        "sidecars",
        "tracking",
        "lookups/change: measured",
        "simulated",
        "closed form",
        "leases/change",
        "simulated",
        "notifications/change",
        "simulated",
        "PINGs/hit",
        "computed",
        "Redis CPU-s/1,000 changes",
        "computed",
    ]);
    let mut worst = [0.0_f64; 4];
    for (size, samples) in outcomes.all().filter(|(size, _)| size.credentials == 1) {
        let scenario = played(size);
        let (simulated, closed) = (simulation::version(&scenario), closed::version(&scenario));
        let pairs = compared(&scenario, samples, &simulated, costs);
        for (worst, (measured, predicted)) in worst.iter_mut().zip(pairs) {
            *worst = worst.max((predicted / measured - 1.0).abs());
        }
        table.row(agreement_row(size, samples, &simulated, &closed, pairs));
    }
    let [lookups, news, pings, cpu] = worst.map(|part| format!("{:.0} %", 100.0 * part));
    format!(
        "{}\nThe simulation is off by at most {lookups} (lookups), {news} (notifications), {pings} (PINGs) and \
         {cpu} (CPU of Redis).\n",
        table.render()
    )
}

/// Returns measured and predicted values: lookups, notifications, `PING`s and CPU of Redis.
fn compared(
    scenario: &Scenario,
    samples: Samples<'_>,
    simulated: &Version,
    costs: &Costs,
) -> [(f64, f64); 4] {
    let load = Load::new(scenario, simulated, costs);
    let news = match scenario.tracking {
        Tracking::Broadcast => 3.0 * scenario.sidecars,
        Tracking::Keys => simulated.notified,
    };
    let pings = load.rounds / load.changes / (simulated.polls - 1.0);
    let cpu = 1e3 * load.cores() / load.changes;
    [
        (samples.per("lookups", "changes"), simulated.lookups),
        (samples.per("news", "changes"), news),
        (samples.per("rounds", "hits"), pings),
        (1e3 * samples.per("redis_cpu", "changes"), cpu),
    ]
}

fn agreement_row(
    size: Size,
    samples: Samples<'_>,
    simulated: &Version,
    closed: &Version,
    pairs: [(f64, f64); 4],
) -> Vec<String> {
    let cell = |value: f64| number(Some(value));
    let [lookups, news, pings, cpu] = pairs;
    vec![
        size.sidecars.to_string(),
        size.tracking.as_str().to_owned(),
        cell(lookups.0),
        cell(lookups.1),
        cell(closed.lookups),
        cell(samples.per("leases", "changes")),
        cell(simulated.leases),
        cell(news.0),
        cell(news.1),
        cell(pings.0),
        cell(pings.1),
        cell(cpu.0),
        cell(cpu.1),
    ]
}

/// Describes a measured stage as a scenario of the model.
fn played(size: Size) -> Scenario {
    let pollers = crate::api::JOBS * crate::crowd::WATCHERS;
    Scenario {
        sidecars: count(size.sidecars),
        pollers: count(pollers),
        tracking: size.tracking,
        speed: SPEED,
        ..Scenario::new(1, 1)
    }
}

/// Tabulates the load for growing numbers of sidecars and pollers.
fn growth(costs: &Costs) -> Table {
    let mut table = Table::new(&[
        "sidecars",
        "pollers",
        "tracking",
        "polls/s",
        "API reads/s",
        "lookups/s",
        "scripts/s",
        "PINGs/s",
        "sends/s",
        "notifications MB/s",
        "Redis cores",
        "turn ms",
        "Redis MiB",
        "tracked",
        "near MiB",
        "notifications/s per sidecar",
        "first bottleneck",
    ]);
    for (sidecars, pollers) in SIZES {
        for tracking in [Tracking::Broadcast, Tracking::Keys] {
            let scenario = Scenario { tracking, ..Scenario::new(sidecars, pollers) };
            let load = Load::new(&scenario, &simulation::version(&scenario), costs);
            table.row(growth_row(&scenario, &load));
        }
    }
    table
}

fn growth_row(scenario: &Scenario, load: &Load) -> Vec<String> {
    let cell = |value: f64| number(Some(value));
    vec![
        cell(scenario.sidecars),
        cell(scenario.pollers),
        scenario.tracking.as_str().to_owned(),
        cell(load.polls),
        cell(load.changes),
        cell(load.lookups),
        cell(load.scripts),
        cell(load.rounds),
        cell(load.sends),
        cell(load.news_bytes / 1e6),
        cell(load.cores()),
        milliseconds(load.turn),
        cell(load.redis_bytes / 1_048_576.0),
        cell(load.tracked),
        cell(load.near_bytes / 1_048_576.0),
        cell(load.news_each),
        load.breaks(),
    ]
}

/// Formats the length of an event loop turn, or a dash if it is infinite.
fn milliseconds(seconds: f64) -> String {
    number(seconds.is_finite().then_some(seconds * 1e3))
}

/// Tabulates the number of pollers that one Redis can serve.
fn capacity(costs: &Costs) -> Table {
    let mut header = vec!["sidecars".to_owned()];
    let near = [Near::Strict, Near::Bounded];
    for near in near {
        for tracking in [Tracking::Broadcast, Tracking::Keys] {
            header.push(format!("{near:?}, {}", tracking.as_str()).to_lowercase());
        }
    }
    header.push("delay by a change, ms".to_owned());
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = Table::new(&header);
    for sidecars in [10, 30, 100, 300, 1_000] {
        let mut row = vec![number(Some(sidecars.into()))];
        for near in near {
            for tracking in [Tracking::Broadcast, Tracking::Keys] {
                let size = Scenario { near, tracking, ..Scenario::new(sidecars, 0) };
                row.push(number(Some(largest(&size, costs))));
            }
        }
        // A broadcast reaches each sidecar once; tracking by keys reaches at most the readers.
        row.push(milliseconds(f64::from(sidecars) * costs.send / 1e6));
        table.row(row);
    }
    table
}

/// Returns the largest number of pollers that leaves a tenth of the Redis thread idle without
/// batching notifications.
fn largest(size: &Scenario, costs: &Costs) -> f64 {
    let load = |pollers| {
        let scenario = Scenario { pollers, ..*size };
        Load::new(&scenario, &closed::version(&scenario), costs)
    };
    let (mut fits, mut exceeds) = (1e3, 1e8);
    while exceeds / fits > 1.001 {
        let pollers = f64::midpoint(fits, exceeds);
        let fitting = load(pollers).fits();
        *if fitting { &mut fits } else { &mut exceeds } = pollers;
    }
    fits
}

/// Tabulates the CPU of Redis with tracking by keys, relative to broadcasts.
fn savings(costs: &Costs) -> Table {
    let mut header = vec!["watchers per job, near".to_owned()];
    header.extend(FEW.map(|sidecars| format!("{sidecars} sidecars")));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = Table::new(&header);
    for near in [Near::Strict, Near::Bounded] {
        for watchers in [5.0, 20.0, 50.0] {
            let ratio = |sidecars| {
                let [broadcast, keys] = [Tracking::Broadcast, Tracking::Keys].map(|tracking| {
                    let size = Scenario::new(sidecars, CROWD);
                    let scenario = Scenario { watchers, near, tracking, ..size };
                    Load::together(&scenario, &closed::version(&scenario), costs).cores()
                });
                format!("{:.2}", keys / broadcast)
            };
            let mut row = vec![format!("{watchers}, {near:?}").to_lowercase()];
            row.extend(FEW.map(ratio));
            table.row(row);
        }
    }
    table
}

/// Tabulates the measures that help at the largest size.
fn mitigations(costs: &Costs) -> Table {
    let mut table = Table::new(&[
        "1,000 sidecars, 1,000,000 pollers",
        "PINGs",
        "lookups",
        "scripts",
        "probes",
        "news",
        "Redis cores",
        "masters needed",
    ]);
    let plain = Scenario::new(1_000, 1_000_000);
    let keys = Scenario { tracking: Tracking::Keys, ..plain };
    let sticky = Scenario { balance: Balance::Sticky, ..keys };
    for (name, scenario) in [
        ("broadcast", plain),
        ("near = \"off\"", Scenario { near: Near::Off, ..plain }),
        ("broadcast, bounded", Scenario { near: Near::Bounded, ..plain }),
        (
            "broadcast, bounded, sticky",
            Scenario { near: Near::Bounded, balance: Balance::Sticky, ..plain },
        ),
        ("keys", keys),
        ("keys, sticky", sticky),
        ("keys, bounded", Scenario { near: Near::Bounded, ..keys }),
        ("keys, bounded, sticky", Scenario { near: Near::Bounded, ..sticky }),
        ("100 sidecars, keys, bounded", Scenario { near: Near::Bounded, sidecars: 100.0, ..keys }),
    ] {
        let load = Load::together(&scenario, &simulation::version(&scenario), costs);
        let mut row = vec![name.to_owned()];
        row.extend(load.parts.map(|(_, cores)| format!("{cores:.2}")));
        row.push(format!("{:.2}", load.cores()));
        // Each master keeps half of its thread free for bursts.
        row.push(format!("{:.0}", (load.cores() / 0.5).ceil().max(1.0)));
        table.row(row);
    }
    table
}
