//! Larger than life: what any number of sidecars and pollers asks of Redis.
//!
//! A version of a job is what everything is counted by ([`load::Version`]): how often it is looked up,
//! leased, filled and purged, who is told of it, and how many polls are answered from a process. That is
//! worked out twice, by expectation ([`closed`]) and by playing it ([`simulation`]). From there on a load is
//! arithmetic ([`load`]) with the costs that the primitives have ([`costs`]).

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

/// Sidecars and pollers of the large table.
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
/// Sidecars of the table of what tracking by keys saves.
const FEW: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 100];
/// Pollers there.
const CROWD: u32 = 100_000;

/// The model against what was measured, and beyond.
pub(crate) fn tables(costs: &Costs, outcomes: &Outcomes) -> String {
    let measured = outcomes.all().next().is_some();
    let agreement = if measured { agreement(costs, outcomes) + "\n" } else { String::new() };
    format!(
        "### model\n\n{agreement}{}\n{}\n{}\n{}\n",
        growth(costs).render(),
        capacity(costs).render(),
        savings(costs).render(),
        mends(costs).render()
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

/// What was measured, what the simulation and the closed form say of it, and by how much they are off.
fn agreement(costs: &Costs, outcomes: &Outcomes) -> String {
    let mut table = Table::new(&[
        "sidecars",
        "tracking",
        "lookups/change: measured",
        "simulated",
        "closed form",
        "leases/change",
        "simulated",
        "news/change",
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
        for (worst, (measured, said)) in worst.iter_mut().zip(pairs) {
            *worst = worst.max((said / measured - 1.0).abs());
        }
        table.row(agreement_row(size, samples, &simulated, &closed, pairs));
    }
    let [lookups, news, pings, cpu] = worst.map(|part| format!("{:.0} %", 100.0 * part));
    format!(
        "{}\nThe simulation is off by at most {lookups} (lookups), {news} (news), {pings} (PINGs) and \
         {cpu} (CPU of Redis).\n",
        table.render()
    )
}

/// Lookups, news, `PING`s and CPU of Redis: measured, and as they should be.
fn compared(
    scenario: &Scenario,
    samples: Samples<'_>,
    simulated: &Version,
    costs: &Costs,
) -> [(f64, f64); 4] {
    let load = Load::new(scenario, simulated, costs);
    let news = match scenario.tracking {
        Tracking::Broadcast => 3.0 * scenario.sidecars,
        Tracking::Keys => simulated.told,
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

/// A stage, as the model sees it.
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

/// More and more of both.
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
        "news MB/s",
        "Redis cores",
        "turn ms",
        "Redis MiB",
        "tracked",
        "near MiB",
        "news/s a sidecar",
        "breaks first",
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

/// Of a turn of the event loop; nothing where it never ends.
fn milliseconds(seconds: f64) -> String {
    number(seconds.is_finite().then_some(seconds * 1e3))
}

/// How many pollers one Redis carries.
fn capacity(costs: &Costs) -> Table {
    let mut header = vec!["sidecars".to_owned()];
    let near = [Near::Strict, Near::Bounded];
    for near in near {
        for tracking in [Tracking::Broadcast, Tracking::Keys] {
            header.push(format!("{near:?}, {}", tracking.as_str()).to_lowercase());
        }
    }
    header.push("a change holds it up, ms".to_owned());
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
        // A broadcast, once; with tracking by keys the readers at most.
        row.push(milliseconds(f64::from(sidecars) * costs.send / 1e6));
        table.row(row);
    }
    table
}

/// The most pollers that leave a tenth of the thread of Redis, without bunching the news.
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

/// CPU of Redis with tracking by keys, by that with broadcasts.
fn savings(costs: &Costs) -> Table {
    let mut header = vec!["watchers a job, near".to_owned()];
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

/// What helps at the largest size.
fn mends(costs: &Costs) -> Table {
    let mut table = Table::new(&[
        "1,000 sidecars, 1,000,000 pollers",
        "PINGs",
        "lookups",
        "scripts",
        "probes",
        "news",
        "Redis cores",
        "masters that it takes",
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
        // Half of a thread is left for what comes at once.
        row.push(format!("{:.0}", (load.cores() / 0.5).ceil().max(1.0)));
        table.row(row);
    }
    table
}
